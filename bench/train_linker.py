"""Train scripts/linking/linker.txt on annotated chat; the same data gives the same file.

    python bench/train_linker.py FOLDER/train.jsonl.gz scripts/linking/linker.txt

A turn answers the turns of others that its lines answer; where there are none in the window, its own earlier ones;
else none. Any of the several is right: the loss is the logarithm of the probability that they have together.
"""

import sys
import time

import lightgbm
import numpy as np

from linking.features import NAMES, WIDTH, Talk, features
from linking.linker import softmax, starts_of
from predict_replies import add_named, groups_of
from replies import gold_of, judged_turns

ROUNDS = 150
PARAMETERS = {
    "learning_rate": 0.1, "num_leaves": 31, "min_data_in_leaf": 100, "lambda_l2": 2.0, "max_bin": 127,
    "feature_fraction": 0.6, "bagging_fraction": 0.7, "bagging_freq": 1, "seed": 7, "verbosity": -1,
    "num_threads": 1, "deterministic": True, "force_row_wise": True,
}


def talk_of(turns):
    """Return the Talk of the turns of a log, dicts with `named`."""
    return Talk([turn["user_id"] for turn in turns], [turn["first_time"].timestamp() for turn in turns],
                [turn["last_time"].timestamp() for turn in turns], [turn["text"] for turn in turns],
                [turn["named"] for turn in turns])


def examples(turns, judged):
    """Return (rows, sizes, right) of the `judged` turns of a log: [(place, {places it answers}), ...]."""
    talk = talk_of(turns)
    rows, sizes, candidates = features(talk, [place for place, _ in judged])
    right = np.zeros(len(rows), bool)
    for (place, answered), start, size in zip(judged, starts_of(sizes), sizes, strict=True):
        within = [other for other in answered if place - WIDTH <= other < place]
        of_others = [other for other in within if talk.users[other] != talk.users[place]]
        right[start:start + size] = np.isin(candidates[start:start + size], of_others or within or [-1])
    return rows, sizes, right


def examples_of(source):
    """Return (rows, sizes, right) of the annotated chat in the file `source`."""
    groups, ids = groups_of(source)
    gold, found = gold_of(source), []
    for turns in groups:
        add_named(turns)
        first = turns[0]["turn_id"]
        judged = [(place, {other - first for other in answered}) for place, answered in judged_turns(turns, ids, gold)]
        found.append(examples(turns, judged))
    return tuple(np.concatenate(arrays) for arrays in zip(*found, strict=True))


def train(rows, sizes, right, rounds=ROUNDS, **parameters):
    """Return the booster whose softmax over the rows of each turn gives the right ones most."""
    starts = starts_of(sizes)

    def gradient(scores, _):
        shares = softmax(scores, sizes)
        wanted = shares * right
        wanted /= np.repeat(np.maximum(np.add.reduceat(wanted, starts), 1e-12), sizes)
        return shares - wanted, np.maximum(shares * (1 - shares), 1e-3)

    data = lightgbm.Dataset(rows, label=right.astype(np.float32), feature_name=NAMES)
    return lightgbm.train({**PARAMETERS, "objective": gradient, **parameters}, data, rounds)


def main(source, target):
    started = time.monotonic()
    rows, sizes, right = examples_of(source)
    train(rows, sizes, right).save_model(target)
    print(f"{target}: {len(sizes):,} turns, {len(rows):,} rows, {len(NAMES)} features, "
          f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
