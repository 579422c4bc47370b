"""Take what is left of a damaged QQNT database, page by page: each sound leaf of a table gives its rows.

A leaf is made a small database of its own, from which SQLite reads the rows. So damage stays local: a leaf that is not
sound loses its own rows and no others.
"""

import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from huiyin.common.errors import UserError
from huiyin.common.progress import Progress
from huiyin.qqnt.btree import NO_PAGES, Cell, LeafDatabase, Tree, children, each_page, four, leaf_cells, two, walk
from huiyin.qqnt.pages import Pages
from huiyin.qqnt.tables import KEEP_FREE, Refuse, Table, lossy_text, plain_tables

Schema = list[tuple[str, str, str, int, str]]  # (type, name, table, top page, sql), as in sqlite_master

INDEX_INNER, INDEX_LEAF = 2, 10  # types of the pages of an index
GROUP_CHAT = "[40010] = 2"  # a row of a group; private chats have the same columns


def salvage(
    pages: Pages, source: Path, names: Iterable[str], target: Path, progress: Progress, refuse: Refuse
) -> dict[str, Table]:
    """Write the rows that are left of those of the tables `names` that `pages` have into the new database `target`;
    return {name: Table}. If something is damaged, `refuse(what)` is called, which may raise."""
    schema = read_schema(pages, source)
    tables = plain_tables([(kind, name, sql) for kind, name, _, _, sql in schema], names, source)
    roots = {name: root for kind, name, _, root, _ in schema if kind == "table"}
    trees = {name: walk(pages, roots[table.stored_as]) for name, table in tables.items()}
    leaves = sum(len(tree.leaves) for tree in trees.values())
    check_space(target, (leaves + leaves // 50) * pages.size)
    progress.set_total(leaves * pages.size)
    with closing(sqlite3.connect(target, isolation_level=None)) as connection:
        for setting in (f"encoding = '{pages.encoding}'", "journal_mode = MEMORY", "synchronous = OFF"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("ATTACH DATABASE ':memory:' AS leaf")
        for name, table in tables.items():
            connection.execute(f"CREATE TABLE [{name}] {table.definition}")
            insert_tree(Inserter(connection, pages, table), trees[name], progress)
        bad = sorted(page for table in tables.values() for page in table.lost_pages)
        if any(table.is_damaged for table in tables.values()):
            some = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            refuse(f"{len(bad)} damaged pages ({some})" if bad else "pages that do not fit together")
        for name, table in tables.items():
            if table.is_damaged:
                recover(Inserter(connection, pages, table), schema, trees[name])
    return tables


def check_space(target: Path, size: int) -> None:
    free, needed = shutil.disk_usage(target.parent).free, size + KEEP_FREE
    if free < needed:
        sizes = f"{needed >> 20:,} MiB are needed there, {free >> 20:,} MiB are free"
        raise UserError(f"{target.parent}: {sizes}; free some")


def read_schema(pages: Pages, source: Path) -> Schema:
    tree, database = walk(pages, 1), LeafDatabase(pages, "leaf", "(type, name, tbl_name, rootpage, sql)")
    rows: Schema = []
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.text_factory = lossy_text
        for number, page, sound in each_page(pages, tree.leaves):
            leaf = leaf_cells(pages, number, page) if sound else None
            try:
                if leaf is None:
                    raise ValueError("no leaf")
                connection.deserialize(database.of(page, leaf, []))
                rows += connection.execute("SELECT * FROM leaf").fetchall()
            except (ValueError, sqlite3.DatabaseError):
                tree.bad.append(number)
    if tree.bad:
        raise UserError(
            f"{source}: page {tree.bad[0]}, which has the list of the tables, is damaged; copy it again with QQ closed"
        )
    types = str, str, str, int, str | None
    return [row for row in rows if all(map(isinstance, row, types)) and (row[0] != "table" or row[4])]


class Inserter:
    """Inserts the rows of leaves into a table of the result."""

    def __init__(self, connection: sqlite3.Connection, pages: Pages, table: Table):
        self.connection, self.pages, self.table = connection, pages, table
        self.database = LeafDatabase(pages, table.name, table.definition)

    def insert(self, number: int, page: np.ndarray, rows: Sequence[Cell], where: str = "1") -> int:
        """Insert those of the `rows` of the leaf `number` that are sound and fulfil `where`; return how many."""
        table, lost = self.table, list[int]()
        self.connection.deserialize(self.database.of(page, rows, lost), name="leaf")
        try:
            inserted = self.connection.execute(
                f"INSERT OR IGNORE INTO main.[{table.name}] (rowid, {table.selected}) "
                f"SELECT rowid, {table.selected} FROM leaf.[{table.name}] WHERE {where}"
            ).rowcount
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_CORRUPT:
                raise
            lost, inserted = [number], 0
        table.lost_pages += lost
        table.lost_rows += len(lost)  # a row with overflow pages is lost with the first that is damaged
        table.rows += inserted
        return inserted


def insert_tree(inserter: Inserter, tree: Tree, progress: Progress) -> None:
    """Insert the rows of the leaves that are in the order of their keys; note in the table what is lost."""
    pages, table = inserter.pages, inserter.table
    table.lost_pages += tree.bad
    leaf_gaps, in_gap = set(tree.leaf_gaps), False
    highest = None
    for index, (number, page, sound) in enumerate(each_page(pages, tree.leaves)):
        progress.add(pages.size)
        in_gap |= index in leaf_gaps
        rows = leaf_cells(pages, number, page) if sound else None
        if rows == [] and len(tree.leaves) == 1:
            continue  # a table without rows; no other leaf is empty
        if not rows:
            table.lost_pages.append(number)
            in_gap = True
        elif rows[-1].rowid < rows[0].rowid or (highest is not None and rows[0].rowid <= highest):
            table.orphan_leaves.append(number)
        elif not inserter.insert(number, page, rows):
            in_gap = True
        else:
            if in_gap:
                table.key_gaps.append((highest, rows[0].rowid))
                in_gap = False
            highest = rows[-1].rowid
    if in_gap or len(tree.leaves) in leaf_gaps:
        table.key_gaps.append((highest, None))


# ---- rows that a damaged table still has


def recover(inserter: Inserter, schema: Schema, tree: Tree) -> None:
    """Add the rows of leaves that no inner page leads to any more, and estimate how many rows are lost."""
    pages, table = inserter.pages, inserter.table
    if "PRIMARY KEY" in table.definition:
        has_chat_type = "40010" in table.columns
        if tree.leaf_gaps and has_chat_type:
            table.orphan_leaves += unreached(pages, schema, table, tree)
        for number, page, sound in each_page(pages, np.array(table.orphan_leaves, np.int64)):
            rows = leaf_cells(pages, number, page) if sound else None
            inserter.insert(number, page, rows or [], GROUP_CHAT if has_chat_type else "1")
    table.lost_pages = sorted(set(table.lost_pages))
    counts = [
        entries(pages, root)
        for kind, _, of, root, sql in schema
        if kind == "index" and of == table.stored_as and "WHERE" not in (sql or "").upper()
    ]
    if whole := [count for count in counts if count is not None]:  # an index has one entry a row
        table.lost_rows = max(0, max(whole) - table.rows)
    elif len(tree.leaves):
        lost = len(set(table.lost_pages) & set(tree.leaves.tolist()))
        table.lost_rows += round(lost * table.rows / max(1, len(tree.leaves) - lost))


def unreached(pages: Pages, schema: Schema, table: Table, tree: Tree) -> list[int]:
    """Return the leaves that are in no tree and whose keys lie in the gaps of this one."""
    used = np.zeros(max(pages.count, pages.in_file) + 2, bool)
    used[0] = True
    roots = [root for kind, _, _, root, _ in schema if kind == "table" and root]
    for other in (tree, *(walk(pages, root) for root in [1, *roots])):
        for numbers in (other.leaves, other.inner):
            numbers = np.asarray(numbers, np.int64)
            used[numbers[(numbers > 0) & (numbers < len(used))]] = True
    for number in freelist(pages):
        used[min(number, len(used) - 1)] = True
    unused = np.flatnonzero(~used)
    orphans = []
    for number, page, sound in each_page(pages, unused[unused <= pages.count]):
        rows = leaf_cells(pages, number, page) if sound else None
        if rows and rows[0].rowid <= rows[-1].rowid:
            first, last = rows[0].rowid, rows[-1].rowid
            if any((low is None or low < first) and (high is None or last < high) for low, high in table.key_gaps):
                orphans.append(number)
    return orphans


def freelist(pages: Pages) -> Iterator[int]:
    """Yield the pages that the database does not use; their content is out of date."""
    trunk, seen = int.from_bytes(pages.header[32:36], "big"), set()
    while trunk and trunk not in seen:
        seen.add(trunk)
        yield trunk
        content, sound = pages.read([trunk])
        if not sound[0]:
            return
        page = content[0]
        for slot in range(min(four(page, 4), pages.usable // 4 - 2)):
            yield four(page, 8 + 4 * slot)
        trunk = four(page, 0)


def entries(pages: Pages, root: int) -> int | None:
    """Return the number of entries of the index with the top page `root`; None if the index is damaged."""
    total, level, seen = 0, np.array([root]), 0
    while len(level):
        below, seen = [], seen + len(level)
        if seen > pages.count:  # the pages form a cycle
            return None
        for _, page, sound in each_page(pages, level):
            if not sound or page[0] not in (INDEX_INNER, INDEX_LEAF):
                return None
            total += two(page, 3)
            if page[0] == INDEX_INNER:
                below.append(children(page, 0))
        level = np.concatenate(below) if below else NO_PAGES
    return total
