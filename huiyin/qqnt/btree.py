"""SQLite's tables page by page: which pages hold the rows of a table, and one of them as a database of its own.

Rows are not decoded. Format: SQLite's "Database File Format" (b-tree pages, schema layer).
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from huiyin.qqnt.cipher import PLAIN_MAGIC
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
        below, begins = [], [0]  # the pages below each page of the level, and the index of the first of them
        for index, (number, page, sound) in enumerate(each_page(pages, level)):
            start = 100 if number == 1 else 0
            if sound and page[start] == INNER:
                below.append(children(page, start))
                tree.inner.append(number)
            else:
                below.append(NO_PAGES)
                tree.bad.append(number)
                gaps.append(index)
            begins.append(begins[-1] + len(below[-1]))
        gaps = sorted({begins[gap] for gap in gaps})
        level = np.concatenate(below)
        if len(tree.inner) + len(level) > pages.count:  # the pages form a cycle
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


def leaf_cells(pages: Pages, number: int, page: np.ndarray) -> list[Cell] | None:
    """Return the cells of the page `number` with the content `page`; None if it is no leaf that can be read."""
    start = 100 if number == 1 else 0
    if page[start] != LEAF:
        return None
    result, count, data = [], two(page, start + 3), page.tobytes()
    for slot in range(count):
        begin = two(page, start + 8 + 2 * slot)
        try:
            payload, offset = varint(data, begin)
            rowid, offset = varint(data, offset)
        except IndexError:
            return None
        local = local_size(payload, pages.usable)
        stop = offset + local + (4 if local < payload else 0)
        if begin < start + 8 + 2 * count or stop > pages.usable:
            return None
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


def local_size(payload: int, usable: int) -> int:
    """Return how many bytes of a row's payload are in its leaf; the rest is in overflow pages."""
    if payload <= usable - 35:
        return payload
    least = (usable - 12) * 32 // 255 - 23
    local = least + (payload - least) % (usable - 4)
    return local if local <= usable - 35 else least


# ---- a database of one leaf


def overflow_chain(pages: Pages, cell: Cell, used: set[int], lost: list[int]) -> list[np.ndarray] | None:
    """Return the overflow pages of a cell in order, or None if one is damaged, which is added to `lost`. A page that is
    `used` already is damage, too: the chain is a circle, or that of another row."""
    chain, number, count = list[np.ndarray](), cell.overflow, -(-cell.payload // (pages.usable - 4))
    for _ in range(count):
        content, sound = pages.read([number])
        if not sound[0] or number in used or count > pages.count:  # the size that the cell states is not its own
            lost.append(number)
            return None
        used.add(number)
        chain.append(content[0])
        number = four(content[0], 0)
    return chain


class LeafDatabase:
    """Makes a database of a single leaf, from which SQLite reads the rows: one with the table `name` and the columns
    `definition`, and with the page size, the reserved bytes and the encoding of `pages`."""

    def __init__(self, pages: Pages, name: str, definition: str):
        header = bytearray(100)
        header[:16], header[20:24] = PLAIN_MAGIC, bytes([pages.size - pages.usable, 64, 32, 32])
        header[16:20] = bytes([pages.size >> 8 & 255, pages.size >> 16, 1, 1])  # 65,536 is stored as 1
        header[31], header[47], header[56:60] = 1, 4, pages.header[56:60]  # one page, the present format, the encoding
        self.pages = pages
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.deserialize((bytes(header) + leaf_header(0, pages.usable)).ljust(pages.size, b"\0"))
            connection.execute(f"CREATE TABLE [{name}] {definition}")
            (self.root,) = connection.execute("SELECT rootpage FROM sqlite_master").fetchone()
            self.empty = connection.serialize()

    def of(self, page: np.ndarray, rows: Sequence[Cell], lost: list[int]) -> bytes:
        """Return the database with the `rows` of the leaf `page`, but for those with a damaged overflow page, which is
        added to `lost`."""
        size, kept, used = self.pages.size, [], set[int]()
        image, leaf = bytearray(self.empty), bytearray(page.tobytes())
        for cell in rows:
            if cell.overflow:
                chain = overflow_chain(self.pages, cell, used, lost)
                if chain is None:
                    continue
                leaf[cell.stop - 4 : cell.stop] = (len(image) // size + 1).to_bytes(4, "big")
                for left, content in zip(reversed(range(len(chain))), chain, strict=True):
                    following = len(image) // size + 2 if left else 0
                    image += following.to_bytes(4, "big") + content[4:].tobytes()
            kept.append(cell.start)
        begin = leaf_header(len(kept), min(kept, default=self.pages.usable))
        begin += b"".join(offset.to_bytes(2, "big") for offset in kept)
        leaf[: len(begin)] = begin
        image[28:32] = (len(image) // size).to_bytes(4, "big")
        image[(self.root - 1) * size : self.root * size] = leaf
        return bytes(image)


def leaf_header(count: int, offset: int) -> bytes:
    """Return the header of a leaf with `count` rows, whose content begins at `offset` (65,536 is stored as 0)."""
    return bytes([LEAF, 0, 0]) + count.to_bytes(2, "big") + (offset & 0xFFFF).to_bytes(2, "big") + b"\0"
