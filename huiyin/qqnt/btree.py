"""SQLite's tables page by page: which pages hold the rows of a table, and one of them as a database of its own.

Rows are not decoded. Format: SQLite's "Database File Format" (b-tree pages, schema layer).
"""

from collections.abc import Iterator, Sequence
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


def leaf_cells(pages: Pages, number: int, page: np.ndarray) -> list[Cell] | None:
    """Return the cells of the page `number` with the content `page`; None if it is no leaf that can be read."""
    start = 100 if number == 1 else 0
    try:
        return cells(page, pages.usable, start) if page[start] == LEAF else None
    except ValueError:
        return None


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


# ---- a database of one leaf


def overflow_chain(pages: Pages, cell: Cell, lost: list[int]) -> list[np.ndarray] | None:
    """Return the overflow pages of a cell in order, or None if one is damaged, which is added to `lost`."""
    chain, number, count = list[np.ndarray](), cell.overflow, -(-cell.payload // (pages.usable - 4))
    for _ in range(count):
        content, sound = pages.read([number])
        if not sound[0] or count > pages.count:  # the size that the cell states is not its own
            lost.append(number)
            return None
        chain.append(content[0])
        number = four(content[0], 0)
    return chain


def leaf_image(
    pages: Pages, page: np.ndarray, rows: Sequence[Cell], name: str, definition: str, lost: list[int]
) -> bytes:
    """Return a whole database with the table `name` and the `rows` of the leaf `page`, but for those with a damaged
    overflow page, which is added to `lost`. `ValueError` if the schema, with
    the columns `definition`, does not fit on a page."""
    data, kept, overflow = bytearray(page.tobytes()), [], list[bytes]()  # overflow: the pages from 3 on
    for cell in rows:
        if cell.overflow:
            chain = overflow_chain(pages, cell, lost)
            if chain is None:
                continue
            data[cell.stop - 4 : cell.stop] = (3 + len(overflow)).to_bytes(4, "big")
            for position, part in enumerate(chain, 1):
                following = 3 + len(overflow) + 1 if position < len(chain) else 0
                overflow.append(following.to_bytes(4, "big") + part[4:].tobytes())
        kept.append(cell)
    first = first_page(pages, name, definition, 2 + len(overflow))
    leaf = make_leaf(pages, [data[cell.start : cell.stop] for cell in kept])
    return bytes(first + leaf + b"".join(overflow))


def first_page(pages: Pages, name: str, definition: str, count: int) -> bytearray:
    """Return page 1 of a database of `count` pages: the header of the source, adapted, and the schema, which is the
    table `name` with the top page 2. `ValueError` if it does not fit."""
    header = bytearray(pages.header)
    header[18:20] = b"\1\1"  # no write-ahead log
    header[28:32] = count.to_bytes(4, "big")
    header[32:40] = bytes(8)  # no freelist
    header[52:56] = header[64:68] = bytes(4)  # no auto-vacuum
    header[92:96] = header[24:28]
    kind, *names, sql = (
        value.encode(pages.encoding) for value in ("table", name, name, f"CREATE TABLE [{name}] {definition}")
    )
    types = [to_varint(2 * len(value) + 13) for value in (kind, *names, sql)]
    types.insert(3, b"\1")  # the top page: an integer of 8 bits
    sizes = b"".join(types)
    payload = bytes([len(sizes) + 1]) + sizes + kind + b"".join(names) + b"\2" + sql
    cell = to_varint(len(payload)) + b"\1" + payload
    if len(cell) > pages.usable - 110:
        raise ValueError("the schema does not fit on a page")
    page = make_leaf(pages, [cell], 100)
    page[:100] = header
    return page


def make_leaf(pages: Pages, contents: Sequence[bytes | bytearray], start: int = 0) -> bytearray:
    """Return a leaf with the cells `contents`, whose header begins at byte `start`."""
    page, offset = bytearray(pages.size), pages.usable
    for slot, content in enumerate(contents):
        offset -= len(content)
        page[offset : offset + len(content)] = content
        pointer = start + 8 + 2 * slot
        page[pointer : pointer + 2] = offset.to_bytes(2, "big")
    count = len(contents).to_bytes(2, "big")  # where the content begins: 65,536 is stored as 0
    page[start : start + 8] = bytes([LEAF, 0, 0]) + count + (offset & 0xFFFF).to_bytes(2, "big") + b"\0"
    return page
