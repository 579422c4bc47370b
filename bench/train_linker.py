"""Train huiyin/linking/linker.txt and linker_second.txt on annotated chat; the same data gives the same files.

    python bench/train_linker.py FOLDER/train.jsonl.gz huiyin/linking

The right candidates of a message are those that it replies to by its annotation, its own author's too; without any,
"replies to none" is right. If several are right, each will do: the loss is -log of the sum of their probabilities.

The second pass is trained on what a first pass predicts for logs that it was not trained on: the trees of one half of
the logs predict the other half.

Every log is used twice, as it is and with nobody naming anybody. In most groups of friends few people do, and a linker
trained only on chat full of names would take that for "replies to none", with a high confidence.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lightgbm
import numpy as np

from huiyin.common.errors import UserError, run
from huiyin.common.stage import arguments
from huiyin.linking.conversation import WIDTH, Conversation
from huiyin.linking.features import NAMES, features
from huiyin.linking.linker import FIRST, SECOND, predict, softmax, starts_of
from huiyin.linking.messages import messages_of
from huiyin.linking.threads import NAMES as NAMES_OF_THREADS
from huiyin.linking.threads import thread_features
from predict_replies import LineId, groups_of, namer, nobody
from replies import Gold, gold_of

ROUNDS = 200
WITHOUT_NAMES = 0.3  # the weight of a message of a log in which nobody names anybody
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
    conversation: Conversation
    positions: np.ndarray  # of the messages that were annotated, and of those just before
    annotated: np.ndarray  # which of these were annotated
    rows: np.ndarray  # [row, feature]
    sizes: np.ndarray  # rows of each of the messages
    right: np.ndarray  # [row]: is it a right candidate?
    weight: float  # of a message

    def of_annotated(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the (rows, sizes, right, weights) of the messages that were annotated."""
        kept = np.repeat(self.annotated, self.sizes)
        sizes = self.sizes[self.annotated]
        return self.rows[kept], sizes, self.right[kept], np.full(len(sizes), self.weight)


def logs_of(source: Path) -> list[Log]:
    """Return a Log for each log in the file `source`, and one for each as if nobody named anybody."""
    groups, ids = groups_of(source)
    gold = gold_of(source)
    return [
        log_of(*messages_of(turns, named), ids, gold, weight)
        for turns in groups
        for named, weight in ((namer(turns), 1.0), (nobody, WITHOUT_NAMES))
    ]


def log_of(
    conversation: Conversation,
    _: np.ndarray,
    message_ids: Sequence[int],
    ids: Sequence[LineId],
    gold: Gold,
    weight: float,
) -> Log:
    lines = [ids[message_id] for message_id in message_ids]
    position_of = {line: position for position, line in enumerate(lines)}
    annotated = np.array([line in gold for line in lines])
    ends = np.flatnonzero(annotated)
    positions = np.arange(max(0, ends[0] - 2 * WIDTH), ends[-1] + 1)
    rows, sizes, candidates = features(conversation, positions)
    right = np.zeros(len(rows), bool)
    for position, start, size in zip(positions, starts_of(sizes), sizes, strict=True):
        log, _ = lines[position]
        replied_to = [position_of.get((log, parent), -2) for parent in gold.get(lines[position], ())]
        right[start : start + size] = np.isin(candidates[start : start + size], replied_to)
        right[start + size - 1] = not right[start : start + size].any()
    return Log(conversation, positions, annotated[positions], rows, sizes, right, weight)


def train(logs: Sequence[Log], names: list[str]) -> lightgbm.Booster:
    """Return the trees that give the right rows of each message the highest probability, by softmax over its rows."""
    rows, sizes, right, weights = (
        np.concatenate(arrays) for arrays in zip(*(log.of_annotated() for log in logs), strict=True)
    )
    starts, weights = starts_of(sizes), np.repeat(weights, sizes)

    def gradient(scores: np.ndarray, _: lightgbm.Dataset) -> tuple[np.ndarray, np.ndarray]:
        probabilities = softmax(scores, sizes)
        target = probabilities * right
        target /= np.repeat(np.maximum(np.add.reduceat(target, starts), 1e-12), sizes)
        return weights * (probabilities - target), weights * np.maximum(probabilities * (1 - probabilities), 1e-3)

    data = lightgbm.Dataset(rows, label=right.astype(np.float32), feature_name=names)
    return lightgbm.train({**PARAMETERS, "objective": gradient}, data, ROUNDS)


def with_threads(logs: Sequence[Log], first: lightgbm.Booster) -> list[Log]:
    """Return `logs` with the rows of the second pass; first: the trees of a first pass."""
    results = []
    for log in logs:
        predicted = predict(first, log.rows, log.positions, log.sizes, len(log.conversation.users))
        of_threads = thread_features(log.conversation, log.positions, *predicted)
        results.append(replace(log, rows=np.concatenate([log.rows, of_threads], 1)))
    return results


def both_passes(logs: Sequence[Log]) -> tuple[lightgbm.Booster, lightgbm.Booster]:
    """Return the trees of the first and the second pass."""
    halves = [[log for number, log in enumerate(logs) if number // 2 % 2 == part] for part in (1, 0)]
    second = [with_threads(half, train(other, NAMES)) for half, other in (halves, halves[::-1])]
    return train(logs, NAMES), train([log for half in second for log in half], NAMES + NAMES_OF_THREADS)


def main() -> None:
    args = arguments(__doc__, "source", "target", config=False, out=False).parse_args()
    if not args.target.is_dir():
        raise UserError(f"{args.target}: no such folder; {FIRST} and {SECOND} are written into it")
    started = time.monotonic()
    logs = logs_of(args.source)
    for model, name in zip(both_passes(logs), (FIRST, SECOND), strict=True):
        model.save_model(args.target / name)
    print(
        f"{args.target}: {sum(log.annotated.sum() for log in logs):,} messages, half of them without names, "
        f"{len(NAMES)} and {len(NAMES_OF_THREADS)} features, {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    run(main)
