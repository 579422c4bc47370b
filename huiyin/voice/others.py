"""Replies of other members of the same groups after the evaluation cut: what a model of one member should not learn."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from huiyin.common.lazy import polars as pl
from huiyin.linking.cases import Turn
from huiyin.linking.pairing import pairs_by_linker, turns_of
from huiyin.questions import dataset
from huiyin.questions.conversations import order, with_threads
from huiyin.questions.messages import Join, with_messages

CANDIDATES = 10  # turns before one that it may reply to, as in pair
LEAST_TURNS = 5  # of a member after the cut, to be one of those compared with

Rows = list[dict[str, Any]]


def most_active(turns: pl.DataFrame, cut: datetime, count: int) -> list[str]:
    """Return the ids of the so many members with the most turns from `cut` on, the most active first."""
    late = turns.filter(pl.col("time") >= cut)
    numbers = late.group_by("user_id").len().filter(pl.col("len") >= LEAST_TURNS)
    return numbers.sort("len", "user_id", descending=[True, False])["user_id"].head(count).to_list()


def held_out_rows(
    turns: pl.DataFrame, users: Sequence[str], cut: datetime, most: int, joined: Join, system: str, settings: Any
) -> dict[str, Rows]:
    """Return {user: dataset rows of the latest replies from `cut` on, at most `most`}, paired by quotes and linker.
    turns: all turns of the groups; joined: what gen makes of the messages of a turn; settings: those of gen."""
    author: dict[int, Turn] = {}
    for user in users:
        kept = [turn for turn in turns_of(turns, user)[0] if turn["time"] >= cut]
        latest = sorted(kept, key=lambda turn: turn["time"])[-2 * most :]  # some reply to nobody
        author |= {turn["turn_id"]: turn for turn in latest}
    pairs = pairs_by_linker(turns, [author[turn_id] for turn_id in sorted(author)], CANDIDATES) if author else []
    samples: dict[str, Rows] = {user: [] for user in users}
    for sample in sorted(with_threads(with_messages(pairs, turns, joined), turns), key=order):
        samples[author[sample["turn_id"]]["user_id"]].append(sample)
    rows = {user: dataset.held_out_rows(of_user, system, settings) for user, of_user in samples.items()}
    return {user: [row for row, _ in of_user[-most:]] for user, of_user in rows.items()}
