"""A turn and the turns before it, one of which it may reply to; and the history in which they are looked up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from huiyin.common.lazy import polars as pl
from huiyin.linking.names import Names

Turn = dict[str, Any]  # a row of turns.parquet
Namer = Callable[[Turn], list[str]]  # turn -> the ids of the users whom it names, the one addressed first

NAMED_TEXTS = 5_000  # the latest turns of a group show which names are also common words


@dataclass
class Case:
    """A turn, the turns before it, and what was decided about it."""

    turn: Turn
    window: list[Turn]  # the turns before it that are looked at
    candidates: list[Turn]  # those of other people: one of them may be the prompt
    quoted: Turn | None = None  # the turn that it quotes
    previous: Turn | None = None  # the previous turn of somebody else, however far back
    prompt: Turn | None = None
    decided_by: str | None = None
    confidence: float | None = None
    reason: str | None = None  # why it has no prompt

    @property
    def open(self) -> bool:
        return self.prompt is None and self.reason is None

    @property
    def quotes_a_candidate(self) -> bool:
        """Is the turn that it quotes one of its candidates? Otherwise nobody can find it."""
        return any(other["turn_id"] == self.turn["reply_to_turn"] for other in self.candidates)

    def decide(
        self, prompt: Turn | None, by: str, confidence: float | None = None, least: float = 0, otherwise: str = "none"
    ) -> None:
        """Close the case with `prompt`, unless the confidence is below `least`; otherwise: the reason without one."""
        if prompt is None:
            self.reason = otherwise
        elif confidence is not None and confidence < least:
            self.reason = "low_confidence"
        else:
            self.prompt, self.decided_by, self.confidence = prompt, by, confidence


class History:
    """The turns of a history: the only class in which linking looks up the turns around a turn.

    turns: the frame of turns.parquet, where each group has consecutive values of `turn_id`; candidates: how many turns
    before one are looked at; stop_at_own_turn: none before the previous turn of its author.
    """

    def __init__(self, turns: pl.DataFrame, candidates: int, stop_at_own_turn: bool):
        self.turns, self.candidates, self.stop_at_own_turn = turns, candidates, stop_at_own_turn
        self.names: dict[str, Names] = {}

    def cases(self, turns: Iterable[Turn]) -> list[Case]:
        """Return a Case for each of `turns`.

        Only the rows that some case looks at become Python objects: a history has millions of turns.
        """
        turns = list(turns)
        before = {turn["turn_id"]: range(turn["turn_id"] - self.candidates, turn["turn_id"]) for turn in turns}
        needed: set[Any] = {turn_id for turn_ids in before.values() for turn_id in turn_ids}
        needed.update(turn.get(name) for turn in turns for name in ("reply_to_turn", "previous_of_others"))
        near = self.turns.filter(pl.col("turn_id").is_in(list(needed - {None})))
        rows = {row["turn_id"]: row for row in near.iter_rows(named=True)}
        cases = []
        for turn in turns:
            earlier = [rows[turn_id] for turn_id in before[turn["turn_id"]] if turn_id in rows]
            of_group = [other for other in earlier if other["group_id"] == turn["group_id"]]
            shown = window(of_group, turn["user_id"], self.candidates, self.stop_at_own_turn)
            others = [other for other in shown if other["user_id"] != turn["user_id"]]
            quoted, previous = rows.get(turn["reply_to_turn"]), rows.get(turn.get("previous_of_others"))
            cases.append(Case(turn, shown, others, quoted, previous))
        return cases

    def named(self, turn: Turn) -> list[str]:
        """Return the ids of those whom `turn` mentions or calls by name."""
        group = turn["group_id"]
        if group not in self.names:
            of_group = self.turns.filter(pl.col("group_id") == group)
            members = of_group.select("nickname", "user_id").unique(keep="last", maintain_order=True).rows()
            self.names[group] = Names(members, of_group["text"].tail(NAMED_TEXTS).to_list())
        return [*turn["mentions"], *self.names[group].named(turn["text"])]


def window(before: Sequence[Turn], user: str, size: int, stop_at_own_turn: bool) -> list[Turn]:
    """Return the last `size` of `before` (the turns of the group before one of `user`, oldest first).

    stop_at_own_turn: only those after the last of `user`.
    """
    near = list(before[-size:]) if size else []
    if stop_at_own_turn:
        last_own = max((index for index, turn in enumerate(near) if turn["user_id"] == user), default=-1)
        near = near[last_own + 1 :]
    return near
