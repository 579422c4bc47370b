"""The linker: boosted trees that say which turn is answered, and how sure that is. No language model.

    from huiyin.linking.linker import Linker
    decisions = Linker().decide(cases, history)

Two passes over the lines: the second knows what the first has made of the lines around, so who waits for an answer and
who talks with whom. What the lines of a turn answer, the turn answers.

`bench/train_linker.py` makes linker.txt and linker_second.txt; README.md beside them says from what, and what they are
worth.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from huiyin.linking import features, threads
from huiyin.linking.features import AHEAD, WIDTH
from huiyin.linking.lines import lines_of, shares_of_turns, with_said

FOLDER = Path(__file__).parent
FIRST, SECOND = "linker.txt", "linker_second.txt"
REACH = 10  # turns before one that it may answer
CASES_AT_ONCE = 5_000  # with all turns around them: some 2 GB


def starts_of(sizes):
    """Return where each of the runs of rows begins."""
    return np.cumsum(sizes) - sizes


def softmax(scores, sizes):
    """Return the probabilities of the rows; those of a line (`sizes` rows each) sum to 1."""
    starts = starts_of(sizes)
    powers = np.exp(scores - np.repeat(np.maximum.reduceat(scores, starts), sizes))
    return powers / np.repeat(np.add.reduceat(powers, starts), sizes)


def by_distance(shares, places, sizes, lines):
    """Return ([line, distance], [line]): how probable it is that a line answers that one, and that it answers none.

    shares: of `softmax`, for the lines at `places`; those of other lines are 0 and -1.
    """
    ends = np.cumsum(sizes) - 1
    column = np.arange(len(shares)) - np.repeat(starts_of(sizes), sizes)
    table, none = np.zeros((lines, WIDTH)), np.full(lines, -1.0)
    of_candidates = np.ones(len(shares), bool)
    of_candidates[ends] = False
    table[np.repeat(places, sizes)[of_candidates], column[of_candidates]] = shares[of_candidates]
    none[places] = shares[ends]
    return table, none


def choose(shares, users, places, most, stop_at_own_turn):
    """Return (places, confidences): the place each turn answers, or -1, and how probable it is that this is right.

    shares: [turn, distance] of `shares_of_turns`; users: of all turns; places: of the turns that are decided.
    Candidates are turns of others among the `most` before; whatever else is answered counts as no answer.
    """
    distance = np.arange(REACH)
    at = places[:, None] - 1 - distance
    own = (at >= 0) & (users[np.maximum(at, 0)] == users[places][:, None])
    in_view = (at >= 0) & ~own & (distance < most)
    if stop_at_own_turn:
        in_view &= ~np.logical_or.accumulate(own, 1)
    shares = np.where(in_view, shares[places], 0)
    best, none = shares.argmax(1), np.maximum(1 - shares.sum(1), 0)
    surest = shares.max(1)
    return np.where(surest > none, places - 1 - best, -1), np.maximum(surest, none)


class Linker:
    def __init__(self, folder=FOLDER):
        self.folder = Path(folder)

    @cached_property
    def first(self):
        return load(self.folder / FIRST, features.NAMES)

    @cached_property
    def second(self):
        return load(self.folder / SECOND, features.NAMES + threads.NAMES)

    def shares(self, talk, asked, around):
        """Return [line, distance]: how probable it is that a line answers the one so far before it.

        asked, around: which lines of `talk` are asked about, and which the first pass looks at: those, too, and all
        that are near (arrays of bool).
        """
        around, lines = np.flatnonzero(around), len(talk.users)
        rows, sizes, _ = features.features(talk, around)
        first = by_distance(softmax(scores(self.first, rows), sizes), around, sizes, lines)
        wanted = asked[around]
        rows, sizes, places = rows[np.repeat(wanted, sizes)], sizes[wanted], around[wanted]
        rows = np.concatenate([rows, threads.thread_features(talk, places, *first)], 1)
        return by_distance(softmax(scores(self.second, rows), sizes), places, sizes, lines)[0]

    def answered(self, turns, named, places, most, stop_at_own_turn):
        """Return (places, confidences) of `choose` for the `places` of `turns`.

        turns: dicts of one group, oldest first, and all that are near, with `said`; named: as `lines_of` wants it.
        """
        talk, turn_of, _ = lines_of(turns, named)
        asked = np.isin(turn_of, places)
        around = np.isin(turn_of, np.unique(np.add.outer(places, np.arange(-WIDTH, AHEAD + 1))))
        of_turns = shares_of_turns(self.shares(talk, asked, around), turn_of, len(turns), REACH)
        users = np.unique([turn["user_id"] for turn in turns], return_inverse=True)[1]
        return choose(of_turns, users, places, most, stop_at_own_turn)

    def decide(self, cases, history):
        """Return {turn_id of each Case: (the turn_id that it replies to or None, how probable it is that this is right)}.

        A turn that a Case has changed is seen as the Case has it, by the others too: what a held-out quote must not
        mention, nobody sees.
        """
        decisions = {}
        changed = {case.turn["turn_id"]: case.turn for case in cases}
        for group in dict.fromkeys(turn["group_id"] for turn in changed.values()):
            of_group = with_said(history.turns.filter(pl.col("group_id") == group))
            ids = np.unique([turn_id for turn_id, turn in changed.items() if turn["group_id"] == group])
            for asked in np.array_split(ids, -(-len(ids) // CASES_AT_ONCE)):
                around = np.unique(np.add.outer(asked, np.arange(-2 * WIDTH, 2 * AHEAD + 1)))
                near = of_group.filter(pl.col("turn_id").is_in(around))
                turns = [{**turn, **changed.get(turn["turn_id"], {})} for turn in near.iter_rows(named=True)]
                places = near["turn_id"].search_sorted(asked).to_numpy()
                answers = self.answered(turns, history.named, places, history.candidates, history.stop_at_own_turn)
                for turn_id, answered, confidence in zip(asked.tolist(), *answers, strict=True):
                    replied_to = near["turn_id"][int(answered)] if answered >= 0 else None
                    decisions[turn_id] = replied_to, round(float(confidence), 4)
        return decisions


def load(path, names):
    """Return the trees in the file at `path`."""
    import lightgbm  # takes half a second, and there may be nothing to decide

    model = lightgbm.Booster(model_file=path)
    if model.feature_name() != names:
        raise AssertionError(f"{path} was trained with other features; bench/train_linker.py makes it anew")
    return model


def scores(model, rows):
    return model.predict(rows, raw_score=True, num_threads=1)
