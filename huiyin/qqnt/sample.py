"""Some rows of a database, encrypted or not, as a small plain database: stretches of its leaves, from beginning to end.

Only these leaves and the pages above them are read, so it takes seconds for a file of any size.
"""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from huiyin.common.errors import UserError
from huiyin.common.tables import GROUP_MESSAGES
from huiyin.qqnt.btree import each_page, leaf_cells, walk
from huiyin.qqnt.cipher import detect
from huiyin.qqnt.key import opening_key
from huiyin.qqnt.pages import Pages
from huiyin.qqnt.salvage import Inserter, read_schema
from huiyin.qqnt.tables import Table, plain_tables

STRETCHES = 50  # few, since a burst of messages is torn at the ends of each
COUNTED = 200  # leaves, by which the rows of a leaf are estimated


def take_sample(source: Path, key_file: Path | None, names: Sequence[str], rows: int, target: Path) -> float:
    """Write about `rows` rows of the group messages of the database `source`, and all of its other tables `names`, into
    the new plain database `target`; return the share of the messages that these are."""
    key = opening_key(key_file, source)
    with closing(Pages(source, detect(source, key), key)) as pages, closing(sqlite3.connect(target)) as connection:
        schema = read_schema(pages, source)
        tables = plain_tables([(kind, name, sql) for kind, name, _, _, sql in schema], names, source)
        if GROUP_MESSAGES not in tables:
            raise UserError(f"{source}: no {GROUP_MESSAGES} in it; give the nt_msg.db of the account")
        roots = {name: root for kind, name, _, root, _ in schema if kind == "table"}
        connection.execute(f"PRAGMA encoding = '{pages.encoding}'")
        connection.execute("ATTACH DATABASE ':memory:' AS leaf")
        share = 1.0
        for name, table in tables.items():
            leaves = walk(pages, roots[table.stored_as]).leaves
            if name == GROUP_MESSAGES:
                chosen = stretches(leaves, rows / rows_of_a_leaf(pages, leaves))
                leaves, share = chosen, len(chosen) / max(1, len(leaves))
            insert_leaves(connection, pages, table, leaves)
        connection.commit()
    return share


def rows_of_a_leaf(pages: Pages, leaves: np.ndarray) -> float:
    """Return the mean number of rows of the `leaves` that can be read, at least 1."""
    some = leaves[:: len(leaves) // COUNTED + 1]
    counts = [
        len(cells)
        for number, page, sound in each_page(pages, some)
        if sound and (cells := leaf_cells(pages, number, page))
    ]
    return float(np.mean(counts)) if counts else 1.0


def stretches(leaves: np.ndarray, wanted: float) -> np.ndarray:
    """Return about `wanted` of the `leaves`, all if there are no more, in stretches at equal distances."""
    if wanted >= len(leaves):
        return leaves
    length = max(1, round(wanted / STRETCHES))
    starts = np.linspace(0, len(leaves) - length, max(1, round(wanted / length))).astype(np.int64)
    return leaves[np.unique((starts[:, None] + np.arange(length)).ravel())]


def insert_leaves(connection: sqlite3.Connection, pages: Pages, table: Table, leaves: np.ndarray) -> None:
    """Create the `table` and insert the rows of its `leaves` that can be read."""
    connection.execute(f"CREATE TABLE [{table.name}] {table.definition}")
    inserter = Inserter(connection, pages, table)
    for number, page, sound in each_page(pages, leaves):
        if sound and (rows := leaf_cells(pages, number, page)):
            inserter.insert(number, page, rows)
