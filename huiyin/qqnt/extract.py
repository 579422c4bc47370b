"""Take tables out of a QQNT database into a plain one of their own, and rescue what can be of a damaged one."""

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from huiyin.common.errors import UserError
from huiyin.common.workers import workers
from huiyin.qqnt.btree import (
    BATCH,
    LEAF,
    NO_PAGES,
    cells,
    children,
    four,
    look_at_leaves,
    make_first,
    make_inner,
    make_leaf,
    plain_create,
    two,
    walk,
)
from huiyin.qqnt.pages import Pages

INDEX_TYPES = (2, 10)
GROUP_CHAT = "[40010] = 2"  # tells a row of a group from one of a private chat, which has the same columns
KEEP_FREE = 16 << 20  # bytes
LOCK_BYTE = 1 << 30  # SQLite keeps nothing on the page that holds it


@dataclass
class Table:
    """What became of one table. `lost` are pages of it that are damaged, `holes` the keys before and after each run
    of rows that is missing (None: there are none), `loose` leaves that the tree does not lead to in order."""

    create: str
    rows: int = 0
    lost_rows: int = 0
    lost: list[int] = field(default_factory=list)
    holes: list[tuple[int | None, int | None]] = field(default_factory=list)
    loose: list[int] = field(default_factory=list)
    root: int = 0

    @property
    def is_damaged(self):
        return bool(self.lost or self.lost_rows or self.holes or self.loose)


def take_tables(source, cipher, key, wanted, target, progress, refuse):
    """Write those of the tables `wanted` which the database `source` has into a new plain database `target`; return
    {name: Table} and how many pages are in its log. Where something is damaged, `refuse(what)` is called, which may
    raise."""
    pages = Pages(source, cipher, key)
    if pages.missing:
        refuse(f"truncated: {pages.count - pages.missing:,} of {pages.count:,} pages are there", truncated=True)
    schema = read_schema(pages, source)
    tables, trees = {}, {}
    for kind, name, _, root, sql in schema:
        if kind == "table" and name in wanted:
            try:
                tables[name], trees[name] = Table(plain_create(name, sql)), walk(pages, root)
            except ValueError as error:
                raise UserError(f"{source}: {name} is not kept as tables usually are ({error})") from None
    leaves = sum(len(tree.leaves) for tree in trees.values())
    check_space(target, (leaves + leaves // 50) * pages.size)
    progress.set_total(leaves * pages.size)

    writer = Writer(pages, target)
    with workers(open_both, source, cipher, key, target, tasks=-(-leaves // BATCH)) as share_out:
        for name, tree in trees.items():
            copy_tree(writer, tables[name], tree, share_out, progress)
    bad = sorted(page for table in tables.values() for page in table.lost)
    if any(table.is_damaged for table in tables.values()):
        some = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        refuse(f"{len(bad)} damaged pages ({some})" if bad else "pages that do not fit together")
    writer.finish(tables)
    for name, tree in trees.items():
        if tables[name].is_damaged:
            rescue(pages, schema, name, tables[name], tree, target)
    return tables, len(pages.logged)


def check_space(target, needed):
    free, needed = shutil.disk_usage(target.parent).free, needed + KEEP_FREE
    if free < needed:
        raise UserError(
            f"{target.parent}: {needed >> 20:,} MiB are needed there, {free >> 20:,} MiB are free; free some"
        )


def read_schema(pages, source):
    """Return [(type, name, table, top page, sql)] of all that is in the database."""
    create = "CREATE TABLE leaf (type, name, tbl_name, rootpage, sql)"
    tree = walk(pages, 1)
    rows = []
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
            f"{source}: page {tree.bad[0]}, which says where the tables are, is damaged; copy it again with QQ closed"
        )
    return rows


# ---- every leaf


def open_both(source, cipher, key, target):
    global PAGES, TARGET
    PAGES, TARGET = Pages(source, cipher, key), os.open(target, os.O_WRONLY)


def copy_leaves(numbers, place):
    """Copy the leaves `numbers` to the pages of the target from `place` on, without those that are not sound; return
    which are, the rows, the first and the last key of each, and {page of the target: cells with overflow pages}."""
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
    written = {row: place + slot for slot, row in enumerate(kept.tolist())}
    write(TARGET, content, place, PAGES.size)
    return good, rows, first, last, {written[row]: found for row, found in spilling.items() if good[row]}


def write(file, content, number, size):
    if not len(content):
        return
    view = memoryview(content).cast("B")
    place = (number - 1) * size
    while len(view):
        done = os.pwrite(file, view, place)
        view, place = view[done:], place + done


class Writer:
    """Hands out the pages of the target and writes those that are made here."""

    def __init__(self, pages, target):
        self.pages, self.size, self.usable = pages, pages.size, pages.usable
        self.target, self.next, self.free = target, 2, []
        self.file = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

    def reserve(self, count):
        """Return the first of `count` pages in a row."""
        lock = LOCK_BYTE // self.size + 1
        if self.next <= lock < self.next + count:
            self.free += range(self.next, lock)
            self.next = lock + 1
        place, self.next = self.next, self.next + count
        return place

    def put(self, content, number=None):
        """Write a page, at `number` or wherever there is room; return its number."""
        if number is None:
            number = self.free.pop() if self.free else self.reserve(1)
        write(self.file, content, number, self.size)
        return number

    def put_above(self, leaves, keys):
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

    def finish(self, tables):
        """Write what is left: the list of the pages that are not used, and page 1."""
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


def copy_tree(writer, table, tree, share_out, progress):
    """Copy the leaves of `tree` with their overflow pages and put a new tree above them."""
    batches = [tree.leaves[place : place + BATCH] for place in range(0, len(tree.leaves), BATCH)]
    places = [writer.reserve(len(batch)) for batch in batches]
    numbers, counts, lasts, highest = [], [], [], None
    table.lost += tree.bad
    gaps, before = set(tree.gaps), 0
    open_hole = False
    for batch, place, (good, rows, first, last, spilling) in zip(
        batches, places, share_out(copy_leaves, zip(batches, places, strict=True)), strict=True
    ):
        end = place + len(batch)
        for row, number in enumerate(batch.tolist()):
            open_hole |= before in gaps
            before += 1
            if not good[row]:
                table.lost.append(number)
                open_hole = True
                continue
            target, place = place, place + 1
            lower, upper, count = int(first[row]), int(last[row]), int(rows[row])
            if (highest is not None and lower <= highest) or upper < lower:
                table.loose.append(number)
                writer.free.append(target)
                continue
            if target in spilling:
                count -= copy_overflow(writer, target, spilling[target], table)
                if not count:
                    writer.free.append(target)
                    open_hole = True
                    continue
            if open_hole:
                table.holes.append((highest, lower))
                open_hole = False
            numbers.append(target)
            counts.append(count)
            lasts.append(upper)
            highest = upper
        writer.free += range(place, end)  # room of those that were not sound
        progress.add(len(batch) * writer.size)
    if open_hole or before in gaps:
        table.holes.append((highest, None))
    table.rows = sum(counts)
    table.root = writer.put_above(np.array(numbers, np.int64), np.array(lasts, np.int64))


def copy_overflow(writer, leaf, spilling, table):
    """Copy the overflow pages of the cells `spilling` of the page `leaf`, which has been written; return how many rows
    had to be taken out of it because one of theirs is damaged."""
    page = bytearray(os.pread(writer.file, writer.size, (leaf - 1) * writer.size))
    broken = set()
    for cell in spilling:
        chain = overflow_chain(writer.pages, cell, table.lost)
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


def overflow_chain(pages, cell, lost):
    """Return the overflow pages of a cell in order, or None, with the damaged one noted in `lost`."""
    chain, number = [], cell.overflow
    for _ in range(-(-cell.payload // (pages.usable - 4))):
        content, sound = pages.read([number])
        if not sound[0]:
            lost.append(number)
            return None
        chain.append(content[0])
        number = four(content[0], 0)
    return chain


# ---- what a damaged table still holds


def rescue(pages, schema, name, table, tree, target):
    """Add the rows of leaves to which no inner page leads any more, and work out how many are lost."""
    has_key = "PRIMARY KEY" in table.create
    if tree.gaps and has_key and "[40010]" in table.create:
        table.loose += unreached(pages, schema, table, tree)
    with closing(sqlite3.connect(target, isolation_level=None)) as connection:
        for setting in ("journal_mode", "synchronous"):
            connection.execute(f"PRAGMA {setting} = OFF")
        connection.execute("ATTACH DATABASE ':memory:' AS loose")
        condition = f"WHERE {GROUP_CHAT}" if "[40010]" in table.create else ""
        for number in table.loose if has_key else ():
            image = leaf_image(pages, number, name, table.create)
            if image is None:
                table.lost.append(number)
                continue
            connection.deserialize(image, name="loose")
            try:
                done = connection.execute(
                    f"INSERT OR IGNORE INTO main.[{name}] SELECT * FROM loose.[{name}] {condition}"
                )
                table.rows += done.rowcount
            except sqlite3.DatabaseError:  # it only looked like one
                table.lost.append(number)
    table.lost = sorted(set(table.lost))
    known = [
        count
        for kind, _, of, root, sql in schema
        if kind == "index" and of == name and "WHERE" not in (sql or "").upper()
        if (count := entries(pages, root)) is not None
    ]
    if known:
        table.lost_rows = max(0, max(known) - table.rows)
    elif len(tree.leaves):
        gone = len(set(table.lost) & set(tree.leaves.tolist()))
        table.lost_rows += round(gone * table.rows / max(1, len(tree.leaves) - gone))


def unreached(pages, schema, table, tree):
    """Return the leaves that are in no tree, whose keys lie in the gaps of this one."""
    used = np.zeros(max(pages.count, pages.in_file) + 2, bool)
    used[0] = True
    roots = [root for kind, _, _, root, _ in schema if kind == "table" and root]
    for other in (tree, *(walk(pages, root) for root in [1, *roots])):
        for numbers in (other.leaves, other.inner):
            numbers = np.asarray(numbers, np.int64)
            used[numbers[(numbers > 0) & (numbers < len(used))]] = True
    for number in freelist(pages):
        used[min(number, len(used) - 1)] = True
    found, left = [], np.flatnonzero(~used)
    left = left[left <= pages.count]
    for place in range(0, len(left), BATCH):
        numbers = left[place : place + BATCH]
        good, _, first, last, _ = look_at_leaves(*pages.read(numbers), pages.usable)
        for low, high in table.holes:
            inside = good & (first <= last)
            if low is not None:
                inside &= first > low
            if high is not None:
                inside &= last < high
            found += numbers[inside].tolist()
    return found


def freelist(pages):
    """Yield the pages that the database does not use; what they hold is out of date."""
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


def entries(pages, root):
    """Return how many entries the index with the top page `root` has: one a row. None if it is damaged itself."""
    total, level = 0, np.array([root])
    while len(level):
        below = []
        for place in range(0, len(level), BATCH):
            for page, sound in zip(*pages.read(level[place : place + BATCH]), strict=True):
                if not sound or page[0] not in INDEX_TYPES:
                    return None
                total += two(page, 3)
                if page[0] == INDEX_TYPES[0]:
                    below.append(children(page, 0))
        level = np.concatenate(below) if below else NO_PAGES
    return total


def leaf_image(pages, number, name, create):
    """Return a database of its own, with the table `name`, for the rows of one leaf; None if that is not sound. Rows
    with a damaged overflow page are left out."""
    content, sound = pages.read([number])
    start = 100 if number == 1 else 0
    if not sound[0] or content[0, start] != LEAF:
        return None
    data, more = content[0].tobytes(), []
    try:
        found = cells(content[0], pages.usable, start)
    except ValueError:
        return None
    page, kept = bytearray(data), []
    for cell in found:
        if cell.overflow:
            chain = overflow_chain(pages, cell, [])
            if chain is None:
                continue
            page[cell.stop - 4 : cell.stop] = (3 + len(more)).to_bytes(4, "big")
            for place, part in enumerate(chain, 1):
                following = 3 + len(more) + 1 if place < len(chain) else 0
                more.append(following.to_bytes(4, "big") + part[4:].tobytes())
        kept.append(cell)
    leaf = make_leaf(kept, page, pages.usable, pages.size)
    first = make_first(pages.header, {name: (create, 2)}, 2 + len(more), (0, 0), pages.size)
    return bytes(first + leaf + b"".join(more))
