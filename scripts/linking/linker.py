"""The linker: boosted trees that say which turn is answered, and how sure that is. No language model.

    from linking.linker import Linker
    decisions = Linker().decide(cases, turns, named, candidates=10, stop_at_own_turn=False)

`bench/train_linker.py` makes linker.txt; README.md beside it says from what, and what it is worth.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from linking.features import AHEAD, NAMES, WIDTH, Talk, features

MODEL = Path(__file__).parent / "linker.txt"
DISTANCE = NAMES.index("distance")


def starts_of(sizes):
    """Return where each of the runs of rows begins."""
    return np.cumsum(sizes) - sizes


def softmax(scores, sizes):
    """Return the probabilities of the rows; those of a turn (`sizes` rows each) sum to 1."""
    starts = starts_of(sizes)
    powers = np.exp(scores - np.repeat(np.maximum.reduceat(scores, starts), sizes))
    return powers / np.repeat(np.add.reduceat(powers, starts), sizes)


def decisions(rows, sizes, candidates, shares, most):
    """Return (places, confidences): the place each turn answers, or -1, and how probable it is that this is right.

    rows, sizes, candidates: of `features`; shares: of `softmax`. What is further back than the `most` turns before
    counts as no answer.
    """
    starts = starts_of(sizes)
    in_view = rows[:, DISTANCE] <= most  # of the row for `none` it is NaN
    shares = np.where(in_view, shares, 0)
    best, none = np.maximum.reduceat(shares, starts), 1 - np.add.reduceat(shares, starts)
    is_best = in_view & (shares == np.repeat(best, sizes))
    chosen = np.maximum.reduceat(np.where(is_best, candidates, -1), starts)  # of two alike the later
    return np.where(best > none, chosen, -1), np.maximum(best, none)


class Linker:
    def __init__(self, path=MODEL):
        self.path = path

    @cached_property
    def model(self):
        import lightgbm  # takes half a second, and there may be nothing to decide

        model = lightgbm.Booster(model_file=self.path)
        if model.feature_name() != NAMES:
            raise AssertionError(f"{self.path} was trained with other features; bench/train_linker.py makes it anew")
        return model

    def shares(self, rows, sizes):
        """Return the probability of each of the `rows` of `features`."""
        return softmax(self.model.predict(rows, raw_score=True, num_threads=1), sizes)

    def decide(self, cases, turns, named, candidates, stop_at_own_turn):
        """Return [(the turn_id that a Case answers or None, how probable it is that this is right), ...].

        turns: turns.parquet; named: turn -> the user ids it names, who is addressed first.
        """
        found = {}
        for group in dict.fromkeys(case.turn["group_id"] for case in cases):
            of_group = [place for place, case in enumerate(cases) if case.turn["group_id"] == group]
            some = [cases[place] for place in of_group]
            ids = np.array([case.turn["turn_id"] for case in some])
            near = np.unique(np.concatenate([ids + step for step in range(-WIDTH, AHEAD + 1)]))
            of_all = turns.filter(pl.col("group_id") == group).with_columns(said=pl.int_range(pl.len()).over("user_id"))
            near = of_all.filter(pl.col("turn_id").is_in(near))
            talk = talk_of(near, [named(turn) for turn in near.iter_rows(named=True)])
            naming = talk.coded([named(case.turn) for case in some], [case.turn["user_id"] for case in some])
            rows, sizes, places = features(talk, near["turn_id"].search_sorted(ids), stop_at_own_turn,
                                           [case.turn["text"] for case in some], naming)
            chosen, sure = decisions(rows, sizes, places, self.shares(rows, sizes), candidates)
            for place, answered, confidence in zip(of_group, chosen, sure, strict=True):
                found[place] = near["turn_id"][int(answered)] if answered >= 0 else None, round(float(confidence), 4)
        return [found[place] for place in range(len(cases))]


def talk_of(turns, named):
    """Return the Talk of `turns` (a frame of one group, in order, with `said`); named: the user ids that each names."""
    return Talk(turns["user_id"].to_list(), turns["first_time"].dt.epoch("ms").to_numpy() / 1000,
                turns["last_time"].dt.epoch("ms").to_numpy() / 1000, turns["text"].to_list(), named,
                turns["said"].to_numpy())
