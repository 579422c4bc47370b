"""Columns of lists, which every reader makes."""

from collections.abc import Iterable, Mapping, Sequence

import polars as pl

CHUNK = 25_000  # rows that a worker processes at a time


def list_columns(lengths: Sequence[int], items: Mapping[str, Iterable[str | None]]) -> pl.DataFrame:
    """Return columns of lists of text; items: {name: those of all lists, one after the other}, lengths: of each list.
    polars makes a series of each list, which takes many times as long as one series of all items, grouped after."""
    rows = pl.select(row=pl.int_range(len(lengths)).repeat_by(pl.Series(lengths, dtype=pl.UInt32)).explode())["row"]
    columns = [pl.Series(name, list(texts), pl.String) for name, texts in items.items()]
    return lists_of(pl.DataFrame([rows.drop_nulls(), *columns]), len(lengths))


def lists_of(items: pl.DataFrame, height: int) -> pl.DataFrame:
    """Return the columns of `items` but the first as columns of `height` lists without nulls; the first is the sorted
    `row`."""
    lists = items.group_by(pl.col("row").set_sorted(), maintain_order=True).agg(pl.all().drop_nulls())
    rows = pl.DataFrame({"row": pl.int_range(height, eager=True)})
    lists = rows.join(lists, on="row", how="left", maintain_order="left").drop("row")
    return lists.with_columns(pl.all().fill_null([]))
