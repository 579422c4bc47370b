"""Batches of turns that one question is about, cut so that a history that has grown asks only what is new."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TypeVar

from huiyin.linking.cases import Turn

Item = TypeVar("Item")


def batches_of(items: Sequence[Item], size: int, turn_of: Callable[[Item], Turn]) -> list[list[Item]]:
    """Return `items`, in their order, in batches of at most `size`, each within one group and one month (UTC).

    What is added to a history at its end, or left out at its start, changes the batches of these months alone: of the
    others the questions are the same, and the answer cache has the answers. turn_of: item -> the turn it is about.
    """

    def place(item: Item) -> tuple[str, int, int]:
        turn = turn_of(item)
        return turn["group_id"], turn["time"].year, turn["time"].month

    parts = [list(part) for _, part in groupby(items, place)]
    return [part[start : start + size] for part in parts for start in range(0, len(part), size)]
