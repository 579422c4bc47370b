"""SQLite's tables page by page: which pages hold the rows of a table, and how to write a new database from them.

Rows are not decoded: the leaves of a table are copied unchanged, in the order of their keys, under new inner pages. So
the cost is that of reading pages, and damage stays local: a leaf that is not sound loses its own rows and no others.
Format: SQLite's "Database File Format" (b-tree pages, schema layer, freelist).
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from huiyin.qqnt.pages import Pages

INNER, LEAF = 5, 13  # types of the pages of a table (SQLite: interior, leaf)
BATCH = 512  # pages in one read
NO_PAGES = np.empty(0, np.int64)


@dataclass
class Tree:
    """The pages of a table: `leaves` in the order of their keys, and `inner` pages. `bad` are the inner pages that
    are not sound; `leaf_gaps` are the indices in `leaves` at which leaves are missing because of them."""

    leaves: np.ndarray
    leaf_gaps: list[int] = field(default_factory=list)
    bad: list[int] = field(default_factory=list)
    inner: list[int] = field(default_factory=list)


def walk(pages: Pages, root: int) -> Tree:
    """Return the `Tree` of the table whose top page is `root`."""
    tree, level = Tree(NO_PAGES), np.array([root])
    gaps: list[int] = []
    while len(level) and not is_leaf_level(pages, level):
        below, gaps_below = [], []
        count, ahead = 0, iter([*gaps, None])
        gap = next(ahead)
        for index, (number, page, sound) in enumerate(each_page(pages, level)):
            while gap is not None and gap <= index:
                gaps_below.append(count)
                gap = next(ahead)
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
        if len(level) > pages.count:  # the pages form a cycle
            level, gaps = NO_PAGES, [0]
    tree.leaves, tree.leaf_gaps = level, gaps
    return tree


def each_page(pages: Pages, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray, bool]]:
    """Yield (number, content, is it sound?) of each page."""
    for begin in range(0, len(numbers), BATCH):
        batch = numbers[begin : begin + BATCH]
        yield from zip(batch.tolist(), *pages.read(batch), strict=True)


def is_leaf_level(pages: Pages, level: np.ndarray) -> bool:
    for number, page, sound in each_page(pages, level):
        kind = page[100 if number == 1 else 0]
        if sound and kind in (INNER, LEAF):
            return bool(kind == LEAF)
    return False


def children(page: np.ndarray, start: int) -> np.ndarray:
    """Return the numbers of the pages below an inner page, whose header begins at byte `start`."""
    count = two(page, start + 3)
    cells = page[start + 12 : start + 12 + 2 * count].view(">u2").astype(np.int64)
    cells = np.append(cells[cells < len(page) - 4], start + 8)
    return (page[cells[:, None] + np.arange(4)].astype(np.int64) << [24, 16, 8, 0]).sum(axis=1)


def two(page: np.ndarray, offset: int) -> int:
    return int(page[offset]) << 8 | int(page[offset + 1])


def four(page: np.ndarray, offset: int) -> int:
    return int.from_bytes(page[offset : offset + 4].tobytes(), "big")


@dataclass
class Cell:
    """A row in its leaf: the offsets of its begin and end, its key, the bytes of its payload in overflow pages, and the
    first of these pages (0: none), whose number is the last four bytes of the cell."""

    start: int
    stop: int
    rowid: int
    payload: int
    overflow: int


def cells(page: np.ndarray, usable: int, start: int = 0) -> list[Cell]:
    """Return the cells of a leaf; `ValueError` if one does not fit into it."""
    result = []
    count = two(page, start + 3)
    data = page.tobytes()
    for slot in range(count):
        begin = two(page, start + 8 + 2 * slot)
        try:
            payload, offset = varint(data, begin)
            rowid, offset = varint(data, offset)
        except IndexError:
            raise ValueError("a cell outside of its page") from None
        local = local_size(payload, usable)
        stop = offset + local + (4 if local < payload else 0)
        if begin < start + 8 + 2 * count or stop > usable:
            raise ValueError("a cell outside of its page")
        overflow = int.from_bytes(data[stop - 4 : stop], "big") if local < payload else 0
        result.append(Cell(begin, stop, rowid - (rowid >> 63 << 64), payload - local, overflow))
    return result


def varint(data: bytes, offset: int) -> tuple[int, int]:
    """Return the number at `offset` and the offset after it; SQLite's format, big-endian, up to nine bytes."""
    value = 0
    for used in range(8):
        byte = data[offset + used]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, offset + used + 1
    return value << 8 | data[offset + 8], offset + 9


def to_varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    if value >> 56:
        return bytes(value >> shift & 0x7F | 0x80 for shift in range(57, 7, -7)) + bytes([value & 0xFF])
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.append(value & 0x7F | 0x80)
    return bytes(reversed(digits))


def local_size(payload: int, usable: int) -> int:
    """Return how many bytes of a row's payload are in its leaf; the rest is in overflow pages."""
    if payload <= usable - 35:
        return payload
    least = (usable - 12) * 32 // 255 - 23
    local = least + (payload - least) % (usable - 4)
    return local if local <= usable - 35 else least


def look_at_leaves(
    raw: np.ndarray, sound: np.ndarray, usable: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return for each of the pages `raw`, [page, byte]: is it a sound leaf, its number of rows, its first and its last
    key, and has a row of it overflow pages? There are hundreds of thousands of pages, hence numpy."""
    count = len(raw)
    rows = raw[:, 3].astype(np.int64) << 8 | raw[:, 4]
    good = sound & (raw[:, 0] == LEAF) & (rows > 0) & (rows * 2 + 8 < usable)
    first, last = keys_at(raw, np.full(count, 8)), keys_at(raw, np.where(good, 6 + 2 * rows, 8))
    counted = np.where(good, rows, 0)
    owners = np.repeat(np.arange(count), counted)
    slots = np.arange(len(owners)) - np.repeat(np.cumsum(counted) - counted, counted)
    begins = raw[owners, 8 + 2 * slots].astype(np.int64) << 8 | raw[owners, 9 + 2 * slots]
    begins = np.minimum(begins, raw.shape[1] - 2)
    high, low = raw[owners, begins].astype(np.int64), raw[owners, begins + 1].astype(np.int64)
    payload = np.where(high < 128, high, np.where(low < 128, (high & 127) << 7 | low, usable))  # three bytes: large
    spills = np.zeros(count, bool)
    spills[owners[payload > usable - 35]] = True
    return good, rows, first, last, spills


def keys_at(raw: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Return the key of the cell to which the pointer at `slots` of each page leads."""
    rows = np.arange(len(raw))
    offset = raw[rows, slots].astype(np.int64) << 8 | raw[rows, slots + 1]
    offset = np.minimum(offset, raw.shape[1] - 19)
    skip = np.ones(len(raw), bool)
    for _ in range(8):  # over the size of the payload
        skip &= raw[rows, offset] >= 128
        offset += skip
    offset += 1
    key, unfinished = np.zeros(len(raw), np.int64), np.ones(len(raw), bool)
    for used in range(9):
        byte = raw[rows, offset + used].astype(np.int64)
        shifted = key << 8 | byte if used == 8 else key << 7 | byte & 127
        key = np.where(unfinished, shifted, key)
        unfinished = unfinished & (byte >= 128)
    return key


# ---- writing


def make_leaf(kept: Sequence[Cell], data: bytes | bytearray, usable: int, size: int) -> bytearray:
    """Return a leaf with the cells `kept` of the page `data`."""
    page, offset = bytearray(size), usable
    for slot, cell in enumerate(kept):
        offset = put_cell(page, offset, 8 + 2 * slot, data[cell.start : cell.stop])
    page[:8] = page_header(LEAF, len(kept), offset)
    return page


def put_cell(page: bytearray, end: int, pointer: int, content: bytes | bytearray) -> int:
    """Write a cell that ends at the offset `end`, and its pointer; return the offset where the cell begins."""
    begin = end - len(content)
    page[begin:end] = content
    page[pointer : pointer + 2] = begin.to_bytes(2, "big")
    return begin


def page_header(kind: int, count: int, offset: int) -> bytes:
    """Return the header of a page with `count` cells, whose content begins at `offset` (65,536 is stored as 0)."""
    return bytes([kind, 0, 0]) + count.to_bytes(2, "big") + (offset & 0xFFFF).to_bytes(2, "big") + b"\0"


def make_inner(numbers: Sequence[int], keys: Sequence[int], usable: int, size: int) -> bytearray:
    """Return an inner page over the pages `numbers`, whose last keys are `keys`."""
    page, offset = bytearray(size), usable
    for slot, (number, key) in enumerate(zip(numbers[:-1], keys, strict=False)):
        offset = put_cell(page, offset, 12 + 2 * slot, number.to_bytes(4, "big") + to_varint(key))
    page[:12] = page_header(INNER, len(numbers) - 1, offset) + numbers[-1].to_bytes(4, "big")
    return page


def make_first(
    header: bytes, tables: Mapping[str, tuple[str, int]], count: int, free: tuple[int, int], size: int
) -> bytearray:
    """Return page 1: the `header` of the source, adapted, and the schema, {name: (CREATE statement, top page)}.

    count: pages of the database; free: (first page of the freelist, pages on it). `ValueError` if it is too much.
    """
    usable = size - header[20]
    changed = bytearray(header[:100])
    changed[18:20] = b"\1\1"  # no write-ahead log
    changed[28:32] = count.to_bytes(4, "big")
    changed[32:40] = b"".join(number.to_bytes(4, "big") for number in free)
    changed[52:56] = changed[64:68] = bytes(4)  # no auto-vacuum
    changed[92:96] = changed[24:28]
    page, offset = bytearray(size), usable
    for slot, (name, (create, root)) in enumerate(tables.items()):
        *names, sql = (value.encode() for value in ("table", name, name, create))
        types = [to_varint(2 * len(value) + 13) for value in (*names, sql)]
        types.insert(3, b"\4")  # the top page: an integer of 32 bits
        sizes = b"".join(types)
        payload = bytes([len(sizes) + 1]) + sizes + b"".join(names) + root.to_bytes(4, "big") + sql
        offset = put_cell(page, offset, 108 + 2 * slot, to_varint(len(payload)) + to_varint(slot + 1) + payload)
    if offset < 108 + 2 * len(tables) or any(len(create) > usable - 300 for create, _ in tables.values()):
        raise ValueError("the schema does not fit on a page")
    page[:100] = changed
    page[100:108] = page_header(LEAF, len(tables), offset)
    return page


def plain_create(name: str, sql: str) -> str:
    """Return a CREATE statement for the columns of the one in `sql`, without constraints and so without indexes;
    `ValueError` if its rows are not stored like those of an ordinary table."""
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
        # an INTEGER key of one column is the rowid, which is not stored a second time
        rowid = (
            " PRIMARY KEY" if key and len(keys) == 1 and kind.upper() == "INTEGER" and "DESC" not in sql.upper() else ""
        )
        parts.append(f"[{column}] {kind}{rowid}" + (f" DEFAULT {default}" if default is not None else ""))
    return f"CREATE TABLE [{name}] ({', '.join(parts)})"
