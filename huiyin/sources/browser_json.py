"""JSON that DB Browser for SQLite exports from group_msg_table (File > Export > Table(s) to JSON), read as a stream.

An array of rows, {"40001": 7400000000000000101, "40800": "gvYT...", ...}: exact integers, blobs in base64. Older
versions of the program lose data: 3.11 rounds ids, 3.10 destroys bodies. Other programs write the blobs of a table or
query in their own ways, see `to_body`, and may name a column `hex("40800")`.
"""

import base64
import re
import reprlib
from collections.abc import Iterable, Iterator
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from huiyin.common.errors import UserError
from huiyin.common.workers import cores, workers
from huiyin.qqnt.body import ELEMENT_TAG
from huiyin.sources.files import JSON_TYPES, json_items
from huiyin.sources.frames import CHUNK
from huiyin.sources.history import BODY, COLUMNS, COMPANIONS, NUMBERS, missing_columns, to_chunk, to_history

if TYPE_CHECKING:
    from huiyin.sources.detect import Head

COLUMN = re.compile(r'(?:(?:hex|base64)\(["\[]?)?(\d+)(?:["\]]?\))?', re.ASCII | re.IGNORECASE)
HEX = re.compile(r"(?:0x|\\x|x')?([0-9a-f]+)'?", re.IGNORECASE)
NUMBER_COLUMNS = set(NUMBERS.values())
CHAT_TYPE, GROUP = "40010", 2
EXACT_IN_A_DOUBLE = 1 << 53
AGAIN = "export the table again with DB Browser 3.12 or newer"


def recognizes(head: "Head") -> bool:
    """An array of rows with at least one of the columns; an empty table is `[]` or `null`."""
    if not head.keys:
        return False
    of_row = (COLUMN.fullmatch(key.removeprefix("item.")) for key in head.keys if key.startswith("item."))
    return any(column and int(column[1]) in COLUMNS for column in of_row) or is_empty(head)


def is_empty(head: "Head") -> bool:
    return list(head.keys.values()) == [None] or (head.keys == {"": "start_array"} and "" in head.ended)


def read_table(
    path: Path, file: Any, placeholders: Iterable[str], name_faces: bool, most: int | None = None
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return what `read_history` does, from the open `file` at `path`; anything with a `read` will do. most: rows that
    are read; None: all of them."""
    nobody = [pl.DataFrame(schema=dict.fromkeys(columns, pl.String)) for columns in COMPANIONS.values()]
    with workers(tasks=cores()) as share_out:
        chunks = share_out(to_chunk, ((rows, placeholders, name_faces) for rows in json_chunks(path, file, most)))
        return to_history(path, AGAIN, chunks, *nobody)


def json_chunks(path: Path, file: Any, most: int | None = None) -> Iterator[list[tuple]]:
    """Yield lists of rows with the values of COLUMNS, texts and bodies as bytes, from the open `file` at `path`."""
    rows = islice(json_rows(path, file), most)
    for number, chunk in enumerate(iter(lambda: list(islice(rows, CHUNK)), [])):
        if number == 0:
            check_ids(path, chunk)
        yield chunk


def json_rows(path: Path, file: Any) -> Iterator[tuple]:
    """Yield the values of COLUMNS for each row of the open `file` at `path`."""
    for number, row in enumerate(json_items(path, file, "item", AGAIN, "row"), 1):
        yield to_row(path, number, row)


def to_row(path: Path, number: int, row: Any) -> tuple:
    """Return the values of COLUMNS of the row `number`, counted from 1."""
    if not isinstance(row, dict):
        raise UserError(f"{path}: row {number} is not an object but {JSON_TYPES[type(row)]}; {AGAIN}")
    keys, problem = keys_of(tuple(row))
    if problem:
        raise UserError(f"{path}: row {number} {problem}; {AGAIN}")
    if CHAT_TYPE in row and to_integer(path, number, CHAT_TYPE, row[CHAT_TYPE]) not in (GROUP, None):
        raise UserError(f"{path}: row {number} is of a private chat (40010 = {row[CHAT_TYPE]}); export group_msg_table")
    return tuple(
        to_integer(path, number, name, row.get(key))
        if name in NUMBER_COLUMNS
        else to_body(row.get(key))
        if name == BODY
        else to_bytes(row.get(key))
        for name, key in keys
    )


@lru_cache(1000)  # the rows of a file have the same keys
def keys_of(keys: tuple[str, ...]) -> tuple[list[tuple[int, str | None]], str | None]:
    """Return the key of each of COLUMNS among `keys`, and why they are not those of group_msg_table, or None."""
    by_column = {int(column[1]): key for key in keys if (column := COLUMN.fullmatch(key))}
    problem = None
    if not by_column.keys() & set(COLUMNS):
        problem = f"is no row of group_msg_table; it has the keys {', '.join(map(reprlib.repr, keys[:12]))}"
    elif missing := missing_columns(by_column):
        problem = f"has no column {missing}"
    return [(name, by_column.get(name)) for name in COLUMNS], problem


def to_integer(path: Path, number: int, name: int | str, value: Any) -> int | None:
    """Return an integer that was written as a number or as text; None for NULL, which 3.10 writes as ""."""
    if value is None or value == "":
        return None
    if isinstance(value, Decimal):
        raise UserError(f"{path}: row {number}: {name} is {value}, rounded as DB Browser 3.11 does; {AGAIN}")
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,19}", value, re.ASCII):
        value = int(value)
    if type(value) is not int:
        raise UserError(f"{path}: row {number}: {name} is {JSON_TYPES[type(value)]}, not a number; {AGAIN}")
    if not -(1 << 63) <= value < 1 << 63:
        raise UserError(f"{path}: row {number}: {name} is a number too large for the table; {AGAIN}")
    return value


def to_bytes(value: Any) -> bytes | None:
    return None if value is None else str(value).encode("utf-8", "replace")


def to_body(value: Any) -> bytes | None:
    """Return the bytes of a blob. A text that is neither base64 nor hex is returned as it is: it will not decode.

    DB Browser writes base64; MIME, MySQL and sqlite3's `base64()` break it into lines, others leave out its `=` or have
    `-_` for `+/`; sqlite-utils has {"$base64": true, "encoded": ...}. Hex is bare, `0x..`, `X'..'`, or `\\x..`.
    """
    if isinstance(value, dict):
        value = value.get("encoded", value)
    if not value:
        return None
    text = "".join(str(value).split())
    try:
        if (hexadecimal := HEX.fullmatch(text)) and (body := bytes.fromhex(hexadecimal[1])).startswith(ELEMENT_TAG):
            return body
        return base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return text.encode("utf-8", "replace")


def check_ids(path: Path, rows: list[tuple]) -> None:
    """Raise `UserError` if the ids of the rows, those of the first chunk, are rounded."""
    ids = [row[0] for row in rows if row[0] and row[0] > EXACT_IN_A_DOUBLE]
    if len(ids) > 4 and all(number == int(float(number)) for number in ids):
        raise UserError(f"{path}: all ids are rounded, as DB Browser 3.11 does; {AGAIN}")
