"""SQLite's tables page by page: which pages hold the rows of a table, and a new database made of just these.

Rows are never looked into: the leaves of a table are copied as they are, in the order of their keys, and new inner
pages are put above them. So the cost is that of the pages, and damage stays where it is: a leaf that is not sound takes
its own rows along, nothing else. Format: SQLite's "Database File Format" (b-tree pages, schema layer, freelist).
"""

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

INNER, LEAF = 5, 13  # types of pages of a table; those of an index hold no rows of their own
BATCH = 512  # pages in one read
NO_PAGES = np.empty(0, np.int64)


@dataclass
class Tree:
    """The leaves of a table in the order of their keys. `gaps` are the places in `leaves` at which others are missing,
    because an inner page was not sound; `bad` are the pages that were not."""

    leaves: np.ndarray
    gaps: list[int] = field(default_factory=list)
    bad: list[int] = field(default_factory=list)
    inner: list[int] = field(default_factory=list)


def walk(pages, root):
    """Return the `Tree` of the table whose top page is `root`."""
    tree, level, gaps = Tree(NO_PAGES), np.array([root]), []
    while len(level) and not is_leaf_level(pages, level):
        below, gaps_below = [], []
        count, reached = 0, iter([*gaps, None])
        gap = next(reached)
        for place in range(0, len(level), BATCH):
            numbers = level[place : place + BATCH]
            for number, page, sound in zip(numbers.tolist(), *pages.read(numbers), strict=True):
                while gap is not None and gap <= place:
                    gaps_below.append(count)
                    gap = next(reached)
                place += 1
                start = 100 if number == 1 else 0
                if sound and page[start] == INNER:
                    below.append(children(page, start))
                    tree.inner.append(number)
                    count += len(below[-1])
                else:
                    tree.bad.append(number)
                    gaps_below.append(count)
        gaps = sorted({*gaps_below, *([count] if gap is not None else [])})
        level = np.concatenate(below) if below else NO_PAGES
        if len(level) > pages.count:  # pages that lead in a circle
            level, gaps = NO_PAGES, [0]
    tree.leaves, tree.gaps = level, gaps
    return tree


def is_leaf_level(pages, level):
    for place in range(0, len(level), BATCH):
        numbers = level[place : place + BATCH]
        for number, page, sound in zip(numbers.tolist(), *pages.read(numbers), strict=True):
            kind = page[100 if number == 1 else 0]
            if sound and kind in (INNER, LEAF):
                return kind == LEAF
    return False


def children(page, start):
    count = two(page, start + 3)
    cells = page[start + 12 : start + 12 + 2 * count].view(">u2").astype(np.int64)
    cells = np.append(cells[cells < len(page) - 4], start + 8)
    return (page[cells[:, None] + np.arange(4)].astype(np.int64) << [24, 16, 8, 0]).sum(axis=1)


def two(page, at):
    return int(page[at]) << 8 | int(page[at + 1])


def four(page, at):
    return int.from_bytes(page[at : at + 4].tobytes(), "big")


@dataclass
class Cell:
    """A row within its leaf: where it begins and ends, its key, and the first overflow page (0: none), whose number is
    the last four bytes."""

    start: int
    stop: int
    rowid: int
    payload: int
    overflow: int


def cells(page, usable, start=0):
    """Return the cells of a leaf; a ValueError says that they do not fit into it."""
    found = []
    count = two(page, start + 3)
    data = page.tobytes()
    for number in range(count):
        place = begin = two(page, start + 8 + 2 * number)
        try:
            payload, place = varint(data, place)
            rowid, place = varint(data, place)
        except IndexError:
            raise ValueError("a cell outside of its page") from None
        local = local_size(payload, usable)
        stop = place + local + (4 if local < payload else 0)
        if begin < start + 8 + 2 * count or stop > usable:
            raise ValueError("a cell outside of its page")
        overflow = int.from_bytes(data[stop - 4 : stop], "big") if local < payload else 0
        found.append(Cell(begin, stop, rowid - (rowid >> 63 << 64), payload - local, overflow))
    return found


def varint(data, place):
    value = 0
    for used in range(8):
        byte = data[place + used]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + used + 1
    return value << 8 | data[place + 8], place + 9


def to_varint(value):
    value &= (1 << 64) - 1
    if value >> 56:
        return bytes(value >> shift & 0x7F | 0x80 for shift in range(57, 7, -7)) + bytes([value & 0xFF])
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.append(value & 0x7F | 0x80)
    return bytes(reversed(digits))


def local_size(payload, usable):
    """Return how many bytes of a row's payload are in its leaf; the others are in overflow pages."""
    if payload <= usable - 35:
        return payload
    least = (usable - 12) * 32 // 255 - 23
    local = least + (payload - least) % (usable - 4)
    return local if local <= usable - 35 else least


def look_at_leaves(raw, sound, usable):
    """Return of the pages `raw` which are sound leaves, how many rows each has, its first and its last key, and which
    have a row with overflow pages. All pages at once: there are hundreds of thousands of them."""
    count = len(raw)
    rows = raw[:, 3].astype(np.int64) << 8 | raw[:, 4]
    good = sound & (raw[:, 0] == LEAF) & (rows > 0) & (rows * 2 + 8 < usable)
    first, last = keys_at(raw, np.full(count, 8)), keys_at(raw, np.where(good, 6 + 2 * rows, 8))
    owners = np.repeat(np.arange(count), np.where(good, rows, 0))
    slots = np.arange(len(owners)) - np.repeat(
        np.cumsum(np.where(good, rows, 0)) - np.where(good, rows, 0), np.where(good, rows, 0)
    )
    begins = raw[owners, 8 + 2 * slots].astype(np.int64) << 8 | raw[owners, 9 + 2 * slots]
    begins = np.minimum(begins, raw.shape[1] - 2)
    high, low = raw[owners, begins].astype(np.int64), raw[owners, begins + 1].astype(np.int64)
    payload = np.where(high < 128, high, np.where(low < 128, (high & 127) << 7 | low, usable))  # large is large
    spills = np.zeros(count, bool)
    spills[owners[payload > usable - 35]] = True
    return good, rows, first, last, spills


def keys_at(raw, slots):
    """Return the key of the cell that each page's pointer at `slots` points to."""
    rows = np.arange(len(raw))
    place = raw[rows, slots].astype(np.int64) << 8 | raw[rows, slots + 1]
    place = np.minimum(place, raw.shape[1] - 19)
    skip = np.ones(len(raw), bool)
    for _ in range(8):  # past the size of the payload
        skip &= raw[rows, place] >= 128
        place += skip
    place += 1
    key, going = np.zeros(len(raw), np.int64), np.ones(len(raw), bool)
    for used in range(9):
        byte = raw[rows, place + used].astype(np.int64)
        shifted = key << 8 | byte if used == 8 else key << 7 | byte & 127
        key = np.where(going, shifted, key)
        going = going & (byte >= 128)
    return key


# ---- writing


def make_leaf(found, data, usable, size):
    """Return a leaf with the given cells of the page `data`."""
    page, place = bytearray(size), usable
    for number, cell in enumerate(found):
        content = data[cell.start : cell.stop]
        place -= len(content)
        page[place : place + len(content)] = content
        page[8 + 2 * number : 10 + 2 * number] = place.to_bytes(2, "big")
    page[:8] = bytes([LEAF, 0, 0]) + len(found).to_bytes(2, "big") + (place & 0xFFFF).to_bytes(2, "big") + b"\0"
    return page


def make_inner(numbers, keys, usable, size):
    """Return an inner page over the pages `numbers`, the last keys of which are `keys`."""
    page, place = bytearray(size), usable
    for slot, (number, key) in enumerate(zip(numbers[:-1], keys, strict=False)):
        content = number.to_bytes(4, "big") + to_varint(key)
        place -= len(content)
        page[place : place + len(content)] = content
        page[12 + 2 * slot : 14 + 2 * slot] = place.to_bytes(2, "big")
    count = len(numbers) - 1
    page[:12] = (
        bytes([INNER, 0, 0])
        + count.to_bytes(2, "big")
        + (place & 0xFFFF).to_bytes(2, "big")
        + b"\0"
        + numbers[-1].to_bytes(4, "big")
    )
    return page


def make_first(header, tables, count, free, size):
    """Return page 1: the `header` of the source, made to fit, and the schema, {name: (CREATE statement, top page)};
    `count` pages in all, `free` is the first of the freelist and how many are on it."""
    usable = size - header[20]
    changed = bytearray(header[:100])
    changed[18:20] = b"\1\1"  # no write-ahead log
    changed[28:32] = count.to_bytes(4, "big")
    changed[32:40] = b"".join(number.to_bytes(4, "big") for number in free)
    changed[52:56] = changed[64:68] = bytes(4)  # no auto-vacuum
    changed[92:96] = changed[24:28]
    page, place = bytearray(size), usable
    for slot, (name, (create, root)) in enumerate(tables.items()):
        values = [value.encode() for value in ("table", name, name)], create.encode()
        sizes = (
            b"".join(to_varint(2 * len(value) + 13) for value in values[0]) + b"\4" + to_varint(2 * len(values[1]) + 13)
        )
        payload = bytes([len(sizes) + 1]) + sizes + b"".join(values[0]) + root.to_bytes(4, "big") + values[1]
        content = to_varint(len(payload)) + to_varint(slot + 1) + payload
        place -= len(content)
        page[place : place + len(content)] = content
        page[108 + 2 * slot : 110 + 2 * slot] = place.to_bytes(2, "big")
    if place < 108 + 2 * len(tables) or any(len(create) > usable - 300 for create, _ in tables.values()):
        raise ValueError("the schema does not fit on a page")
    page[:100] = changed
    page[100:108] = bytes([LEAF, 0, 0]) + len(tables).to_bytes(2, "big") + (place & 0xFFFF).to_bytes(2, "big") + b"\0"
    return page


def plain_create(name, sql):
    """Return a CREATE statement for the columns of the one in `sql`, without constraints and so without indexes.
    A ValueError says that its rows are not kept as those of an ordinary table."""
    with closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute(sql)
            columns = connection.execute(f"PRAGMA table_info([{name}])").fetchall()
            connection.execute(f"SELECT rowid FROM [{name}]")
        except sqlite3.Error as error:
            raise ValueError(str(error)) from None
    keys = [column for column in columns if column[5]]
    parts = []
    for _, column, kind, _, default, key in columns:
        # a lone INTEGER key is the row's own number, which is not stored a second time
        rowid = (
            " PRIMARY KEY" if key and len(keys) == 1 and kind.upper() == "INTEGER" and "DESC" not in sql.upper() else ""
        )
        parts.append(f"[{column}] {kind}{rowid}" + (f" DEFAULT {default}" if default is not None else ""))
    return f"CREATE TABLE [{name}] ({', '.join(parts)})"
