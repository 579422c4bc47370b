"""Copy tables of a QQNT database into a new plain database, and recover what is left of damaged ones."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from huiyin.common.errors import UserError
from huiyin.common.progress import Progress
from huiyin.common.workers import workers
from huiyin.qqnt.btree import (
    BATCH,
    LEAF,
    NO_PAGES,
    Cell,
    Tree,
    cells,
    children,
    each_page,
    four,
    look_at_leaves,
    make_first,
    make_inner,
    make_leaf,
    plain_create,
    two,
    walk,
)
from huiyin.qqnt.cipher import Cipher
from huiyin.qqnt.pages import Pages

Schema = list[tuple[str, str, str, int, str]]  # (type, name, table, top page, sql), as in sqlite_master
ShareOut = Callable[..., Iterator[Any]]  # what `workers` gives

INDEX_INNER, INDEX_LEAF = 2, 10  # types of the pages of an index
GROUP_CHAT = "[40010] = 2"  # a row of a group; private chats have the same columns
KEEP_FREE = 16 << 20  # bytes
LOCK_BYTE = 1 << 30  # SQLite stores nothing on the page with this offset

# What a process that copies leaves works with; `open_source_and_target` sets them
PAGES: Pages
TARGET: int  # file descriptor


@dataclass
class Table:
    """The result for one table. `lost_pages` are damaged; `key_gaps` are the keys before and after each run of missing
    rows (None: no row on that side); `orphan_leaves` cannot be reached through the tree in the order of the keys."""

    create: str
    rows: int = 0
    lost_rows: int = 0
    lost_pages: list[int] = field(default_factory=list)
    key_gaps: list[tuple[int | None, int | None]] = field(default_factory=list)
    orphan_leaves: list[int] = field(default_factory=list)
    root: int = 0

    @property
    def is_damaged(self) -> bool:
        return bool(self.lost_pages or self.lost_rows or self.key_gaps or self.orphan_leaves)


def take_tables(
    source: Path,
    cipher: Cipher,
    key: str | None,
    names: Iterable[str],
    target: Path,
    progress: Progress,
    refuse: Callable[..., None],
) -> tuple[dict[str, Table], int]:
    """Write those of the tables `names` that the database `source` has into a new plain database `target`; return
    {name: Table} and the number of pages in the log. If something is damaged, `refuse(what)` is called, which may
    raise."""
    pages = Pages(source, cipher, key)
    if pages.missing:
        refuse(f"truncated: {pages.count - pages.missing:,} of {pages.count:,} pages are there", truncated=True)
    schema = read_schema(pages, source)
    tables, trees = {}, {}
    for kind, name, _, root, sql in schema:
        if kind == "table" and name in names:
            try:
                tables[name], trees[name] = Table(plain_create(name, sql)), walk(pages, root)
            except ValueError as error:
                raise UserError(f"{source}: {name} is not stored like an ordinary table ({error})") from None
    leaves = sum(len(tree.leaves) for tree in trees.values())
    check_space(target, (leaves + leaves // 50) * pages.size)
    progress.set_total(leaves * pages.size)

    writer = Writer(pages, target)
    with workers(open_source_and_target, source, cipher, key, target, tasks=-(-leaves // BATCH)) as share_out:
        for name, tree in trees.items():
            copy_tree(writer, tables[name], tree, share_out, progress)
    bad = sorted(page for table in tables.values() for page in table.lost_pages)
    if any(table.is_damaged for table in tables.values()):
        some = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        refuse(f"{len(bad)} damaged pages ({some})" if bad else "pages that do not fit together")
    writer.finish(tables)
    for name, tree in trees.items():
        if tables[name].is_damaged:
            recover(pages, schema, name, tables[name], tree, target)
    return tables, len(pages.logged)


def check_space(target: Path, size: int) -> None:
    free, needed = shutil.disk_usage(target.parent).free, size + KEEP_FREE
    if free < needed:
        raise UserError(
            f"{target.parent}: {needed >> 20:,} MiB are needed there, {free >> 20:,} MiB are free; free some"
        )


def read_schema(pages: Pages, source: Path) -> Schema:
    create = "CREATE TABLE leaf (type, name, tbl_name, rootpage, sql)"
    tree = walk(pages, 1)
    rows: Schema = []
    with closing(sqlite3.connect(":memory:")) as connection:
        for number in tree.leaves.tolist():
            image = leaf_image(pages, number, "leaf", create)
            if image is None:
                tree.bad.append(number)
                continue
            connection.deserialize(image)
            rows += connection.execute("SELECT * FROM leaf").fetchall()
    if tree.bad:
        raise UserError(
            f"{source}: page {tree.bad[0]}, which has the list of the tables, is damaged; copy it again with QQ closed"
        )
    return rows


# ---- every leaf


def open_source_and_target(source: Path, cipher: Cipher, key: str | None, target: Path) -> None:
    global PAGES, TARGET
    PAGES, TARGET = Pages(source, cipher, key), os.open(target, os.O_WRONLY)


def copy_leaves(
    numbers: np.ndarray, start: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[int, list[Cell]]]:
    """Copy those of the leaves `numbers` that are sound to the pages of the target from `start` on. Return for each
    whether it is sound, its rows, first and last key; and {page of the target: cells with overflow pages}."""
    raw, sound = PAGES.read(numbers)
    good, rows, first, last, spills = look_at_leaves(raw, sound, PAGES.usable)
    spilling = {}
    for row in np.flatnonzero(spills & good).tolist():
        try:
            spilling[row] = [cell for cell in cells(raw[row], PAGES.usable) if cell.overflow]
        except ValueError:
            good[row] = False
    kept = np.flatnonzero(good)
    content = raw if len(kept) == len(raw) else raw[kept]
    written = {row: start + slot for slot, row in enumerate(kept.tolist())}
    write(TARGET, content.data, start, PAGES.size)
    return good, rows, first, last, {written[row]: large for row, large in spilling.items() if good[row]}


def write(file: int, content: bytes | bytearray | memoryview, number: int, size: int) -> None:
    """Write one or more pages of `size` bytes from the page `number` on."""
    if not len(content):
        return
    view, offset = memoryview(content).cast("B"), (number - 1) * size
    while len(view):
        done = os.pwrite(file, view, offset)
        view, offset = view[done:], offset + done


class Writer:
    """Assigns the pages of the target and writes those that are no copies of leaves."""

    def __init__(self, pages: Pages, target: Path):
        self.pages, self.size, self.usable = pages, pages.size, pages.usable
        self.next, self.free = 2, list[int]()
        self.file = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

    def reserve(self, count: int) -> int:
        """Return the first of `count` pages in a row."""
        lock = LOCK_BYTE // self.size + 1
        if self.next <= lock < self.next + count:
            self.free += range(self.next, lock)
            self.next = lock + 1
        first, self.next = self.next, self.next + count
        return first

    def put(self, content: bytes | bytearray, number: int | None = None) -> int:
        """Write a page as `number`, or as any free one; return its number."""
        if number is None:
            number = self.free.pop() if self.free else self.reserve(1)
        write(self.file, content, number, self.size)
        return number

    def put_above(self, leaves: np.ndarray, keys: np.ndarray) -> int:
        """Write the inner pages above the pages `leaves`, whose last keys are `keys`; return the top page."""
        if not len(leaves):
            return self.put(make_leaf([], b"", self.usable, self.size))
        most = (self.usable - 12) // 15  # bytes of an entry with the longest key
        while len(leaves) > 1:
            parts = -(-len(leaves) // most)
            above = [
                (self.put(make_inner(numbers.tolist(), last.tolist(), self.usable, self.size)), last[-1])
                for numbers, last in zip(np.array_split(leaves, parts), np.array_split(keys, parts), strict=True)
            ]
            leaves, keys = (np.array(values, np.int64) for values in zip(*above, strict=True))
        return int(leaves[0])

    def finish(self, tables: Mapping[str, Table]) -> None:
        """Write the freelist and page 1, and close the file."""
        most, first, count = self.usable // 4 - 8, 0, len(self.free)
        while self.free:
            trunk, *listed = self.free[: most + 1]
            words = [first, len(listed), *listed]
            page = b"".join(word.to_bytes(4, "big") for word in words)
            self.put(page.ljust(self.size, b"\0"), trunk)
            first, self.free = trunk, self.free[most + 1 :]
        schema = {name: (table.create, table.root) for name, table in tables.items()}
        header = self.pages.header
        self.put(make_first(header, schema, self.next - 1, (first, count), self.size), 1)
        os.ftruncate(self.file, (self.next - 1) * self.size)
        os.close(self.file)


def copy_tree(writer: Writer, table: Table, tree: Tree, share_out: ShareOut, progress: Progress) -> None:
    """Copy the leaves of `tree` with their overflow pages and write a new tree above them."""
    batches = [tree.leaves[begin : begin + BATCH] for begin in range(0, len(tree.leaves), BATCH)]
    starts = [writer.reserve(len(batch)) for batch in batches]
    copied: list[tuple[int, int, int]] = []  # page of the target, rows, last key
    table.lost_pages += tree.bad
    leaf_gaps, index, in_gap = set(tree.leaf_gaps), 0, False
    highest = None
    for batch, start, (good, rows, first, last, spilling) in zip(
        batches, starts, share_out(copy_leaves, zip(batches, starts, strict=True)), strict=True
    ):
        next_target = start
        for row, number in enumerate(batch.tolist()):
            in_gap |= index in leaf_gaps
            index += 1
            if not good[row]:
                table.lost_pages.append(number)
                in_gap = True
                continue
            target, next_target = next_target, next_target + 1
            lower, upper, count = int(first[row]), int(last[row]), int(rows[row])
            if (highest is not None and lower <= highest) or upper < lower:
                table.orphan_leaves.append(number)
                writer.free.append(target)
                continue
            if target in spilling:
                count -= copy_overflow(writer, target, spilling[target], table)
                if not count:
                    writer.free.append(target)
                    in_gap = True
                    continue
            if in_gap:
                table.key_gaps.append((highest, lower))
                in_gap = False
            copied.append((target, count, upper))
            highest = upper
        writer.free += range(next_target, start + len(batch))  # reserved for leaves that are not sound
        progress.add(len(batch) * writer.size)
    if in_gap or index in leaf_gaps:
        table.key_gaps.append((highest, None))
    numbers, counts, keys = np.array(copied, np.int64).reshape(-1, 3).T
    table.rows = int(counts.sum())
    table.root = writer.put_above(numbers, keys)


def copy_overflow(writer: Writer, leaf: int, spilling: list[Cell], table: Table) -> int:
    """Copy the overflow pages of the cells `spilling` of the page `leaf` of the target. A row with a damaged overflow
    page is removed from the leaf; return how many rows that is."""
    page = bytearray(os.pread(writer.file, writer.size, (leaf - 1) * writer.size))
    broken = set()
    for cell in spilling:
        chain = overflow_chain(writer.pages, cell, table.lost_pages)
        if chain is None:
            broken.add(cell.start)
            continue
        following = 0
        for content in reversed(chain):
            following = writer.put(following.to_bytes(4, "big") + content[4:].tobytes())
        page[cell.stop - 4 : cell.stop] = following.to_bytes(4, "big")
    if broken:
        kept = [cell for cell in cells(np.frombuffer(page, np.uint8), writer.usable) if cell.start not in broken]
        page = make_leaf(kept, page, writer.usable, writer.size)
        table.lost_rows += len(broken)
    writer.put(page, leaf)
    return len(broken)


def overflow_chain(pages: Pages, cell: Cell, lost: list[int]) -> list[np.ndarray] | None:
    """Return the overflow pages of a cell in order, or None if one is damaged, which is added to `lost`."""
    chain, number = [], cell.overflow
    for _ in range(-(-cell.payload // (pages.usable - 4))):
        content, sound = pages.read([number])
        if not sound[0]:
            lost.append(number)
            return None
        chain.append(content[0])
        number = four(content[0], 0)
    return chain


# ---- rows that a damaged table still has


def recover(pages: Pages, schema: Schema, name: str, table: Table, tree: Tree, target: Path) -> None:
    """Add the rows of leaves that no inner page leads to any more, and estimate how many rows are lost."""
    has_key, has_chat_type = "PRIMARY KEY" in table.create, "[40010]" in table.create
    if tree.leaf_gaps and has_key and has_chat_type:
        table.orphan_leaves += unreached(pages, schema, table, tree)
    with closing(sqlite3.connect(target, isolation_level=None)) as connection:
        for setting in ("journal_mode", "synchronous"):
            connection.execute(f"PRAGMA {setting} = OFF")
        connection.execute("ATTACH DATABASE ':memory:' AS orphan")
        condition = f"WHERE {GROUP_CHAT}" if has_chat_type else ""
        for number in table.orphan_leaves if has_key else ():
            image = leaf_image(pages, number, name, table.create)
            if image is None:
                table.lost_pages.append(number)
                continue
            connection.deserialize(image, name="orphan")
            try:
                done = connection.execute(
                    f"INSERT OR IGNORE INTO main.[{name}] SELECT * FROM orphan.[{name}] {condition}"
                )
                table.rows += done.rowcount
            except sqlite3.DatabaseError:  # a leaf of another table, or none
                table.lost_pages.append(number)
    table.lost_pages = sorted(set(table.lost_pages))
    counts = [
        entries(pages, root)
        for kind, _, of, root, sql in schema
        if kind == "index" and of == name and "WHERE" not in (sql or "").upper()
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
    orphans, unused = list[int](), np.flatnonzero(~used)
    unused = unused[unused <= pages.count]
    for begin in range(0, len(unused), BATCH):
        batch = unused[begin : begin + BATCH]
        good, _, first, last, _ = look_at_leaves(*pages.read(batch), pages.usable)
        for low, high in table.key_gaps:
            inside = good & (first <= last)
            if low is not None:
                inside &= first > low
            if high is not None:
                inside &= last < high
            orphans += batch[inside].tolist()
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
    total, level = 0, np.array([root])
    while len(level):
        below = []
        for _, page, sound in each_page(pages, level):
            if not sound or page[0] not in (INDEX_INNER, INDEX_LEAF):
                return None
            total += two(page, 3)
            if page[0] == INDEX_INNER:
                below.append(children(page, 0))
        level = np.concatenate(below) if below else NO_PAGES
    return total


def leaf_image(pages: Pages, number: int, name: str, create: str) -> bytes | None:
    """Return a whole database with the table `name` and the rows of one leaf; None if the leaf is not sound. Rows with
    a damaged overflow page are left out."""
    content, sound = pages.read([number])
    start = 100 if number == 1 else 0
    if not sound[0] or content[0, start] != LEAF:
        return None
    overflow: list[bytes] = []  # the pages from 3 on
    try:
        rows = cells(content[0], pages.usable, start)
    except ValueError:
        return None
    page, kept = bytearray(content[0].tobytes()), []
    for cell in rows:
        if cell.overflow:
            chain = overflow_chain(pages, cell, [])
            if chain is None:
                continue
            page[cell.stop - 4 : cell.stop] = (3 + len(overflow)).to_bytes(4, "big")
            for position, part in enumerate(chain, 1):
                following = 3 + len(overflow) + 1 if position < len(chain) else 0
                overflow.append(following.to_bytes(4, "big") + part[4:].tobytes())
        kept.append(cell)
    leaf = make_leaf(kept, page, pages.usable, pages.size)
    first = make_first(pages.header, {name: (create, 2)}, 2 + len(overflow), (0, 0), pages.size)
    return bytes(first + leaf + b"".join(overflow))
