"""Columns of lists, as every reader makes them."""

from itertools import chain

import polars as pl

CHUNK = 25_000  # rows that are worked on at a time


def list_column(name, values):
    """Return a series of lists of text. Of such polars makes a series each, which takes six times as long as one of
    all their items, grouped afterwards."""
    items = pl.DataFrame(
        {"row": [row for row, items in enumerate(values) for _ in items], name: list(chain.from_iterable(values))},
        schema={"row": pl.Int64, name: pl.String},
    )
    return lists_of(items, len(values))


def lists_of(items, height):
    """Return the second column of `items` (the first is `row`, rising) as a series of lists, one for each row."""
    name = items.columns[1]
    lists = items.group_by("row", maintain_order=True).agg(name)
    rows = pl.DataFrame({"row": pl.int_range(height, eager=True)})
    return rows.join(lists, on="row", how="left", maintain_order="left")[name].fill_null([])
