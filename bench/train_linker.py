"""Train huiyin/linking/linker.txt and linker_second.txt on annotated chat; the same data gives the same files.

    python bench/train_linker.py FOLDER/train.jsonl.gz huiyin/linking

A line answers those of its candidates that people say it answers, of its own author too; where there are none, nothing.
Any of several is right: the loss is the logarithm of the probability that they have together.

The second pass learns from what a first one says of logs that it has not learnt from: each half is read by the trees
of the other half.

Every log is learnt twice, as it is and with nobody naming anybody. In most groups of friends few do, and a linker that
knows only chat full of names would take their silence for "answers nobody", and be sure of it.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import lightgbm
import numpy as np

from huiyin.common.errors import UserError, run
from huiyin.linking.features import NAMES, WIDTH, Talk, features
from huiyin.linking.lines import lines_of
from huiyin.linking.linker import FIRST, SECOND, by_distance, scores, softmax, starts_of
from huiyin.linking.threads import NAMES as NAMES_OF_THREADS
from huiyin.linking.threads import thread_features
from predict_replies import groups_of, namer, nobody, parser_of
from replies import gold_of

ROUNDS = 200
WITHOUT_NAMES = 0.3  # the weight of a line of a log in which nobody names anybody
PARAMETERS = {
    "learning_rate": 0.07,
    "num_leaves": 31,
    "min_data_in_leaf": 200,
    "lambda_l2": 2.0,
    "max_bin": 127,
    "feature_fraction": 0.6,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "seed": 7,
    "verbosity": -1,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
}


@dataclass
class Log:
    talk: Talk
    places: np.ndarray  # of the lines that were judged, and of those just before
    judged: np.ndarray  # which of these
    rows: np.ndarray
    sizes: np.ndarray
    right: np.ndarray  # of the rows
    weight: float  # of a line

    def of_judged(self):
        """Return the (rows, sizes, right, weights) of the lines that were judged."""
        kept = np.repeat(self.judged, self.sizes)
        sizes = self.sizes[self.judged]
        return self.rows[kept], sizes, self.right[kept], np.full(len(sizes), self.weight)


def logs_of(source):
    """Return a Log for each log in the file `source`, and one for each as if nobody named anybody."""
    groups, ids = groups_of(source)
    gold, found = gold_of(source), []
    for turns in groups:
        for named, weight in ((namer(turns), 1.0), (nobody, WITHOUT_NAMES)):
            found.append(log_of(lines_of(turns, named), ids, gold, weight))
    return found


def log_of(lines, ids, gold, weight):
    talk, _, messages = lines
    place_of = {ids[message]: place for place, message in enumerate(messages)}
    is_judged = np.array([ids[message] in gold for message in messages])
    ends = np.flatnonzero(is_judged)
    places = np.arange(max(0, ends[0] - 2 * WIDTH), ends[-1] + 1)
    rows, sizes, candidates = features(talk, places)
    right = np.zeros(len(rows), bool)
    for place, start, size in zip(places, starts_of(sizes), sizes, strict=True):
        log, _ = ids[messages[place]]
        answered = [place_of.get((log, line), -2) for line in gold.get(ids[messages[place]], ())]
        right[start : start + size] = np.isin(candidates[start : start + size], answered)
        right[start + size - 1] = not right[start : start + size].any()
    return Log(talk, places, is_judged[places], rows, sizes, right, weight)


def train(logs, names):
    """Return the trees whose softmax over the rows of each line gives the right ones most."""
    rows, sizes, right, weights = (
        np.concatenate(arrays) for arrays in zip(*(log.of_judged() for log in logs), strict=True)
    )
    starts, weights = starts_of(sizes), np.repeat(weights, sizes)

    def gradient(scores, _):
        shares = softmax(scores, sizes)
        wanted = shares * right
        wanted /= np.repeat(np.maximum(np.add.reduceat(wanted, starts), 1e-12), sizes)
        return weights * (shares - wanted), weights * np.maximum(shares * (1 - shares), 1e-3)

    data = lightgbm.Dataset(rows, label=right.astype(np.float32), feature_name=names)
    return lightgbm.train({**PARAMETERS, "objective": gradient}, data, ROUNDS)


def with_threads(logs, first):
    """Return `logs` with the rows of the second pass; first: the trees of a first pass."""
    found = []
    for log in logs:
        shares = softmax(scores(first, log.rows), log.sizes)
        known = by_distance(shares, log.places, log.sizes, len(log.talk.users))
        found.append(replace(log, rows=np.concatenate([log.rows, thread_features(log.talk, log.places, *known)], 1)))
    return found


def both_passes(logs):
    """Return the trees of the first and the second pass."""
    halves = (
        [log for place, log in enumerate(logs) if place // 2 % 2],
        [log for place, log in enumerate(logs) if not place // 2 % 2],
    )
    second = [with_threads(half, train(other, NAMES)) for half, other in (halves, halves[::-1])]
    return train(logs, NAMES), train([log for half in second for log in half], NAMES + NAMES_OF_THREADS)


def main():
    parser = parser_of(__doc__)
    parser.add_argument("source")
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    if not args.target.is_dir():
        raise UserError(f"{args.target}: no such folder; {FIRST} and {SECOND} are written into it")
    started = time.monotonic()
    logs = logs_of(args.source)
    for model, name in zip(both_passes(logs), (FIRST, SECOND), strict=True):
        model.save_model(args.target / name)
    print(
        f"{args.target}: {sum(log.judged.sum() for log in logs):,} lines, half of them without names, "
        f"{len(NAMES)} and {len(NAMES_OF_THREADS)} features, {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    run(main)
