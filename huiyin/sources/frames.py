"""Columns of lists, which every reader makes."""

from collections.abc import Sequence
from itertools import chain

import polars as pl

CHUNK = 25_000  # rows that a worker processes at a time


def list_column(name: str, values: Sequence[Sequence[str]]) -> pl.Series:
    """Return a series of lists of text. polars makes a series of each list, which takes six times as long as one series
    of all items, grouped afterwards."""
    items = pl.DataFrame(
        {"row": [row for row, items in enumerate(values) for _ in items], name: list(chain.from_iterable(values))},
        schema={"row": pl.Int64, name: pl.String},
    )
    return lists_of(items, len(values))


def lists_of(items: pl.DataFrame, height: int) -> pl.Series:
    """Return the second column of `items` as a series of `height` lists; the first column is the sorted `row`."""
    name = items.columns[1]
    lists = items.group_by("row", maintain_order=True).agg(name)
    rows = pl.DataFrame({"row": pl.int_range(height, eager=True)})
    return rows.join(lists, on="row", how="left", maintain_order="left")[name].fill_null([])
