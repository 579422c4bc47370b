"""The linker: boosted trees that say which turn is replied to, with a probability. No language model.

    from huiyin.linking.linker import Linker
    decisions = Linker().decide_cases(cases, history)

Two passes over the messages: the second knows what the first has found for the messages around, so who waits for a
reply and who talks with whom. A turn replies to whatever its messages reply to.

`bench/train_linker.py` makes linker.txt and linker_second.txt; README.md beside them describes the training data.
"""

import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from huiyin.linking import features, threads
from huiyin.linking.calibration import Decisions
from huiyin.linking.cases import Case, History, Namer, Turn
from huiyin.linking.conversation import LOOKAHEAD, WIDTH, Conversation
from huiyin.linking.messages import messages_of, probabilities_of_turns, with_earlier_turns

if TYPE_CHECKING:
    import lightgbm

FIRST, SECOND = "linker.txt", "linker_second.txt"
HORIZON = 10  # turns before one that it may reply to
CASES_AT_ONCE = 5_000  # with all turns around them: some 2 GB


class Linker:
    """The two models beside this file, loaded when they are first used."""

    @cached_property
    def first(self) -> "lightgbm.Booster":
        return load(FIRST, features.NAMES)

    @cached_property
    def second(self) -> "lightgbm.Booster":
        return load(SECOND, features.NAMES + threads.NAMES)

    def probabilities(self, conversation: Conversation, asked: np.ndarray, near: np.ndarray) -> np.ndarray:
        """Return [message, distance]: the probability that a message replies to the one distance + 1 before it.

        asked, near: which messages of `conversation` are asked about, and which the first pass looks at: those and all
        that are near (arrays of bool).
        """
        positions, count = np.flatnonzero(near), len(conversation.users)
        rows, sizes, _ = features.features(conversation, positions)
        first = predict(self.first, rows, positions, sizes, count)
        kept = asked[positions]
        rows, sizes, positions = rows[np.repeat(kept, sizes)], sizes[kept], positions[kept]
        rows = np.concatenate([rows, threads.thread_features(conversation, positions, *first)], 1)
        return predict(self.second, rows, positions, sizes, count)[0]

    def decide_turns(
        self, turns: Sequence[Turn], named: Namer, asked: np.ndarray, candidates: int, stop_at_own_turn: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (indexes, confidences) of `decide` for the turns with the indexes `asked`.

        turns: those of one group, oldest first, `asked` and all that are near, with `earlier_turns`.
        """
        conversation, turn_of, _ = messages_of(turns, named)
        near = np.unique(np.add.outer(asked, np.arange(-WIDTH, LOOKAHEAD + 1)))
        of_messages = self.probabilities(conversation, np.isin(turn_of, asked), np.isin(turn_of, near))
        of_turns = probabilities_of_turns(of_messages, turn_of, len(turns), HORIZON)
        users = np.unique([turn["user_id"] for turn in turns], return_inverse=True)[1]
        return decide(of_turns, users, asked, candidates, stop_at_own_turn)

    def decide_cases(self, cases: Iterable[Case], history: History) -> Decisions:
        """Return {turn_id of each Case: (turn_id that it replies to or None, probability that this is right)}.

        A turn that a Case has changed is seen as the Case has it, by the others too: nobody sees the mention that
        would give a held-out quote away.
        """
        decisions: dict[int, tuple[int | None, float]] = {}
        changed = {case.turn["turn_id"]: case.turn for case in cases}
        for group in dict.fromkeys(turn["group_id"] for turn in changed.values()):
            of_group = with_earlier_turns(history.turns.filter(pl.col("group_id") == group))
            ids = np.unique([turn_id for turn_id, turn in changed.items() if turn["group_id"] == group])
            for asked in np.array_split(ids, -(-len(ids) // CASES_AT_ONCE)):
                window = np.unique(np.add.outer(asked, np.arange(-2 * WIDTH, 2 * LOOKAHEAD + 1)))
                near = of_group.filter(pl.col("turn_id").is_in(window))
                turns = [{**turn, **changed.get(turn["turn_id"], {})} for turn in near.iter_rows(named=True)]
                indexes = near["turn_id"].search_sorted(asked).to_numpy()
                decided = self.decide_turns(turns, history.named, indexes, history.candidates, history.stop_at_own_turn)
                for turn_id, index, confidence in zip(asked.tolist(), *decided, strict=True):
                    replied_to = near["turn_id"][int(index)] if index >= 0 else None
                    decisions[turn_id] = replied_to, round(float(confidence), 4)
        return decisions


def load(file: str, names: list[str]) -> "lightgbm.Booster":
    """Return the trees in `file`, beside this one, which must have been trained with the features `names`."""
    path = Path(__file__).with_name(file)
    model = import_lightgbm().Booster(model_file=path)
    if model.feature_name() != names:
        raise AssertionError(f"{path} was trained with other features; run bench/train_linker.py to train it again")
    return model


def import_lightgbm() -> Any:
    """Return LightGBM, which takes half a second, so it is imported only when there is anything to decide. Where
    scikit-learn and pandas are installed, it would load both, and take two seconds more."""
    others = {"sklearn", "pandas"} - sys.modules.keys()
    for name in others:
        sys.modules[name] = None  # type: ignore[assignment]  # to import it fails, as if it were not there
    try:
        import lightgbm
    finally:
        for name in others:
            del sys.modules[name]
    return lightgbm


def softmax(scores: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the probabilities of the rows; those of a message (`sizes` rows each) sum to 1."""
    starts = starts_of(sizes)
    powers = np.exp(scores - np.repeat(np.maximum.reduceat(scores, starts), sizes))
    return powers / np.repeat(np.add.reduceat(powers, starts), sizes)


def starts_of(sizes: np.ndarray) -> np.ndarray:
    """Return the index of the first row of each message."""
    return np.cumsum(sizes) - sizes


def predict(
    model: "lightgbm.Booster", rows: np.ndarray, positions: np.ndarray, sizes: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return ([message, distance], [message]): the probability that each of `count` messages replies to that, to none.

    rows: `sizes` rows for each of the messages at `positions`; other messages get 0, and -1 for none.
    """
    probabilities = softmax(np.asarray(model.predict(rows, raw_score=True, num_threads=1)), sizes)
    last, of_candidates = np.cumsum(sizes) - 1, np.zeros((len(sizes), WIDTH))
    of_candidates[np.arange(WIDTH) < sizes[:, None] - 1] = np.delete(probabilities, last)
    matrix, none = np.zeros((count, WIDTH)), np.full(count, -1.0)
    matrix[positions], none[positions] = of_candidates, probabilities[last]
    return matrix, none


def decide(
    probabilities: np.ndarray, users: np.ndarray, asked: np.ndarray, candidates: int, stop_at_own_turn: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return (indexes, confidences): the turn that each turn replies to, or -1, and the probability that this is right.

    probabilities: of `probabilities_of_turns`; users: of all turns; asked: the indexes of the turns that are decided.
    Candidates are turns of others among the `candidates` before; replies to anything else count as replies to none.
    """
    distance = np.arange(HORIZON)
    before = asked[:, None] - 1 - distance
    own = (before >= 0) & (users[np.maximum(before, 0)] == users[asked][:, None])
    allowed = (before >= 0) & ~own & (distance < candidates)
    if stop_at_own_turn:
        allowed &= ~np.logical_or.accumulate(own, 1)
    probabilities = np.where(allowed, probabilities[asked], 0)
    best, none = probabilities.argmax(1), np.maximum(1 - probabilities.sum(1), 0)
    most_probable = probabilities.max(1)
    return np.where(most_probable > none, asked - 1 - best, -1), np.maximum(most_probable, none)
