"""Train scripts/linking/linker.txt on annotated chat; the same data gives the same file.

    python bench/train_linker.py FOLDER/train.jsonl.gz scripts/linking/linker.txt

A turn answers those of its candidates that its lines answer; where there are none, nothing. Any of several is right:
the loss is the logarithm of the probability that they have together. It learns with and without stop_at_own_turn.

Every log is learnt twice, as it is and with nobody naming anybody. In most groups of friends few do, and a linker that
knows only chat full of names would take their silence for "answers nobody", and be sure of it.
"""

import sys
import time
from pathlib import Path

import lightgbm
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from linking.features import NAMES, features
from linking.linker import softmax, starts_of
from predict_replies import add_named, groups_of, talk_of
from replies import gold_of, judged_turns

ROUNDS = 200
WITHOUT_NAMES = 0.3  # the weight of a turn of a log in which nobody names anybody
PARAMETERS = {
    "learning_rate": 0.07, "num_leaves": 31, "min_data_in_leaf": 200, "lambda_l2": 2.0, "max_bin": 127,
    "feature_fraction": 0.6, "bagging_fraction": 0.7, "bagging_freq": 1, "seed": 7, "verbosity": -1,
    "num_threads": 1, "deterministic": True, "force_row_wise": True,
}


def examples(talk, judged, stop_at_own_turn):
    """Return (rows, sizes, right) of the `judged` turns of a log: [(place, {places it answers}), ...]."""
    rows, sizes, candidates = features(talk, [place for place, _ in judged], stop_at_own_turn)
    right = np.zeros(len(rows), bool)
    for (_, answered), start, size in zip(judged, starts_of(sizes), sizes, strict=True):
        part = slice(start, start + size)
        right[part] = np.isin(candidates[part], list(answered))
        right[start + size - 1] = not right[part].any()
    return rows, sizes, right


def examples_of(source):
    """Return (rows, sizes, right, weights) of the annotated chat in the file `source`; weights: of the turns."""
    groups, ids = groups_of(source)
    gold, found = gold_of(source), []
    for turns in groups:
        add_named(turns)
        first = turns[0]["turn_id"]
        judged = [(place, {other - first for other in answered}) for place, answered in judged_turns(turns, ids, gold)]
        for with_names, weight in ((True, 1.0), (False, WITHOUT_NAMES)):
            for stop_at_own_turn in (True, False):
                found.append((*examples(talk_of(turns, with_names), judged, stop_at_own_turn),
                              np.full(len(judged), weight)))
    return tuple(np.concatenate(arrays) for arrays in zip(*found, strict=True))


def train(rows, sizes, right, weights):
    """Return the booster whose softmax over the rows of each turn gives the right ones most."""
    starts, weights = starts_of(sizes), np.repeat(weights, sizes)

    def gradient(scores, _):
        shares = softmax(scores, sizes)
        wanted = shares * right
        wanted /= np.repeat(np.maximum(np.add.reduceat(wanted, starts), 1e-12), sizes)
        return weights * (shares - wanted), weights * np.maximum(shares * (1 - shares), 1e-3)

    data = lightgbm.Dataset(rows, label=right.astype(np.float32), feature_name=NAMES)
    return lightgbm.train({**PARAMETERS, "objective": gradient}, data, ROUNDS)


def main(source, target):
    started = time.monotonic()
    rows, sizes, right, weights = examples_of(source)
    train(rows, sizes, right, weights).save_model(target)
    print(f"{target}: {len(sizes):,} turns, {len(rows):,} rows, {len(NAMES)} features, "
          f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
