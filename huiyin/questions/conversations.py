"""Which samples are one conversation of the member. Each is in exactly one, so that each reply is learnt once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from huiyin.common.lazy import polars as pl
from huiyin.common.tables import NOT_ONE_PERSON

Sample = dict[str, Any]  # a line of pairs.jsonl or unpaired.jsonl
Conversation = list[Sample]  # sorted by time
Fits = Callable[[Conversation, Conversation], bool]


def with_threads(samples: Iterable[Sample], turns: pl.DataFrame) -> list[Sample]:
    """Return the samples with their "partner", the user id of whom they reply to (None where the prompt was written, or
    its sender is nobody in particular), and their "thread": the ids of the turn they reply to, of the turn that this
    one quotes, and so on.

    turns: all of these groups, as in turns.parquet.
    """
    samples = list(samples)
    quoted = dict(turns.select("turn_id", "reply_to_turn").drop_nulls().iter_rows())
    prompts = [sample.get("prompt_turn_id") for sample in samples]
    user_of = dict(turns.filter(pl.col("turn_id").is_in(prompts)).select("turn_id", "user_id").iter_rows())
    found = []
    for sample, turn_id in zip(samples, prompts, strict=True):
        user = user_of.get(turn_id)
        thread: list[int] = []
        while turn_id is not None and turn_id not in thread:
            thread.append(turn_id)
            turn_id = quoted.get(turn_id)
        found.append({**sample, "partner": None if user in NOT_ONE_PERSON else user, "thread": thread})
    return found


def conversations(samples: Iterable[Sample], most: int | None, gap_minutes: float) -> list[Conversation]:
    """Return the samples, of `with_threads` and sorted by time, in conversations of at most `most`, which are sorted by
    their last sample.

    A conversation is of one group, and each of its samples came less than `gap_minutes` after the one before. First a
    sample continues the conversation that its thread leads to, else the latest with the same partner. Then whole
    conversations are joined, where one began after the other's end and of one of them no partner is known. With two
    partners they are most often two, as people say who have read annotated chat (bench/threads.py).
    """
    gap = timedelta(minutes=gap_minutes)
    parts = [[sample] for sample in samples]
    most = most or len(parts)
    for ways in [(in_thread, with_partner), (unless_with_two_partners,)]:
        parts = join(parts, ways, most, gap)
    return sorted(parts, key=lambda part: order(part[-1]))


def join(parts: list[Conversation], ways: Iterable[Fits], most: int, gap: timedelta) -> list[Conversation]:
    """Return `parts`, sorted by their first sample, each joined to an earlier one of its group: the latest of those for
    which the first of `ways` says so that says it of any."""
    found: list[Conversation] = []
    recent: dict[str, list[Conversation]] = defaultdict(list)  # by group, sorted by their last sample
    for part in parts:
        first = part[0]
        of_group = recent[first["group_id"]]
        of_group[:] = [one for one in of_group if time_of(first) - time_of(one[-1]) < gap]
        near = [one for one in reversed(of_group) if order(one[-1]) < order(first) and len(one) + len(part) <= most]
        earlier = next((one for fits in ways for one in near if fits(one, part)), None)
        if earlier is None:
            found.append(part := [*part])
        else:
            of_group.remove(earlier)
            earlier += part
            part = earlier
        of_group.append(part)
        of_group.sort(key=lambda one: order(one[-1]))
    return found


def in_thread(earlier: Conversation, part: Conversation) -> bool:
    """Does the thread of `part` come by a reply of `earlier`, or by what one replied to?"""
    turn_ids = {turn_id for sample in earlier for turn_id in (*sample["turn_ids"], *sample["thread"][:1])}
    return not turn_ids.isdisjoint(part[0]["thread"])


def with_partner(earlier: Conversation, part: Conversation) -> bool:
    partner = part[0]["partner"]
    return partner is not None and any(sample["partner"] == partner for sample in earlier)


def unless_with_two_partners(earlier: Conversation, part: Conversation) -> bool:
    return not all(any(sample["partner"] is not None for sample in one) for one in (earlier, part))


def order(sample: Sample) -> tuple[datetime, int]:
    return time_of(sample), sample["turn_id"]


def time_of(sample: Sample) -> datetime:
    return datetime.fromisoformat(sample["time"])
