"""A turn and those before it, among which the answered one is sought."""

from dataclasses import dataclass

import polars as pl

from huiyin.linking.window import window


@dataclass
class Case:
    """A turn, what was said before it, and what became of it."""

    turn: dict
    window: list[dict]  # the turns before it that are looked at
    candidates: list[dict]  # those of other people: one of them may be the prompt
    prompt: dict | None = None
    decided_by: str | None = None
    confidence: float | None = None
    reason: str | None = None  # why it has no prompt

    @property
    def open(self):
        return self.prompt is None and self.reason is None

    def answered(self, prompt, decided_by, confidence=None):
        self.prompt, self.decided_by, self.confidence = prompt, decided_by, confidence


def cases_of(kept, turns, candidates, stop_at_own_turn):
    """Return a Case for each of the turns `kept`, and {turn_id: row} of all that may be a prompt.

    `candidates`: how many turns before each are looked at; `stop_at_own_turn`: none before its author's previous one.

    Only the rows that some case looks at become Python objects: a history has millions of turns.
    """
    before = {turn["turn_id"]: range(turn["turn_id"] - candidates, turn["turn_id"]) for turn in kept}
    looked_at = {place for places in before.values() for place in places}
    looked_at.update(turn[name] for turn in kept for name in ("reply_to_turn", "previous_of_others") if name in turn)
    rows = {
        row["turn_id"]: row
        for row in turns.filter(pl.col("turn_id").is_in(list(looked_at - {None}))).iter_rows(named=True)
    }
    cases = []
    for turn in kept:
        near = [
            rows[place]
            for place in before[turn["turn_id"]]
            if place in rows and rows[place]["group_id"] == turn["group_id"]
        ]
        near = window(near, turn["user_id"], candidates, stop_at_own_turn)
        cases.append(Case(turn, near, [other for other in near if other["user_id"] != turn["user_id"]]))
    return cases, rows
