"""JSON that DB Browser for SQLite exports from group_msg_table (File > Export > Table(s) to JSON), read as a stream.

An array of rows, {"40001": 7400000000000000101, "40800": "gvYT...", ...}: exact integers, blobs in base64. Older
versions of the program lose data: 3.11 rounds ids, 3.10 destroys bodies. Other programs write the blobs of a table or
query in their own ways, see `to_body`, and may name a column `hex("40800")`.
"""

import base64
import re
import reprlib
import sys
from collections.abc import Iterable, Iterator
from decimal import Decimal
from functools import lru_cache
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import ijson
import polars as pl

from huiyin.common.characters import skip_bom
from huiyin.common.errors import UserError
from huiyin.common.workers import cores, workers
from huiyin.qqnt.body import ELEMENT_TAG
from huiyin.sources.frames import CHUNK
from huiyin.sources.history import BODY, COLUMNS, COMPANIONS, NUMBERS, missing_columns, to_chunk, to_history

COLUMN = re.compile(r'(?:(?:hex|base64)\(["\[]?)?(\d+)(?:["\]]?\))?', re.ASCII | re.IGNORECASE)
HEX = re.compile(r"(?:0x|\\x|x')?([0-9a-f]+)'?", re.IGNORECASE)
JSON_TYPES = {
    str: "text",
    bool: "true or false",
    int: "a number",
    Decimal: "a number",
    list: "a list",
    dict: "an object",
}
NUMBER_COLUMNS = set(NUMBERS.values())
CHAT_TYPE, GROUP = "40010", 2
EXACT_IN_A_DOUBLE = 1 << 53
MOST_KEYS = 12
STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("?)', re.DOTALL)  # the group is empty where the end is missing
NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
DEEPEST = 1000  # lists in lists: ijson takes seconds for 20,000, and crashes at 100,000
AGAIN = "export the table again with DB Browser 3.12 or newer"


def read_export(
    path: Path, file: Any, placeholders: Iterable[str], name_faces: bool
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return what `read_history` does, from the open `file` at `path`; anything with a `read` will do."""
    nobody = [pl.DataFrame(schema=dict.fromkeys(columns, pl.String)) for columns in COMPANIONS.values()]
    with workers(tasks=cores()) as share_out:
        chunks = share_out(to_chunk, ((rows, placeholders, name_faces) for rows in json_chunks(path, file)))
        return to_history(path, AGAIN, chunks, *nobody)


def json_chunks(path: Path, file: Any) -> Iterator[list[tuple]]:
    """Yield lists of rows with the values of COLUMNS, texts and bodies as bytes, from the open `file` at `path`."""
    rows = json_rows(path, file)
    for number, chunk in enumerate(iter(lambda: list(islice(rows, CHUNK)), [])):
        if number == 0:
            check_ids(path, chunk)
        yield chunk


class Shallow:
    """The bytes of a file of JSON with at most DEEPEST lists and objects in one another; `UserError` for more."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self.file, self.depth, self.in_string = path, file, 0, False

    def read(self, size: int = -1) -> bytes:
        whole = self.file.read(size)
        while whole.endswith(b"\\") and (more := self.file.read(1)):  # so that no escape is torn
            whole += more
        self.check(whole)
        return whole

    def check(self, content: bytes) -> None:
        parts = STRING.split(b'"' * self.in_string + content)  # what is no string, and its ends, in turn
        self.in_string = len(parts) > 1 and not parts[-2]
        brackets = b"".join(parts[::2]).translate(None, NO_BRACKETS)
        for opens in (bracket in b"[{" for bracket in brackets):
            self.depth += 1 if opens else -1
            if self.depth > DEEPEST:
                raise UserError(f"{self.path}: more than {DEEPEST:,} lists in one another; {AGAIN}")


def json_rows(path: Path, file: Any) -> Iterator[tuple]:
    """Yield the values of COLUMNS for each row of the open `file` at `path`."""
    sys.set_int_max_str_digits(0)  # ijson crashes on a longer number
    number = 0
    try:
        with open(path, "rb") as beginning:
            skip_bom(beginning)
            if problem := wrong_shape(Shallow(path, beginning)):
                raise UserError(f"{path}: {problem}; {AGAIN}")
        for number, row in enumerate(ijson.items(Shallow(path, file), "item"), 1):
            yield to_row(path, number, row)
    except (ijson.JSONError, ValueError, ArithmeticError) as error:
        raise UserError(f"{path}: not whole JSON ({reason(error)}, after row {number}); {AGAIN}") from None


def reason(error: Exception) -> str:
    """Return what is wrong with the JSON. The parser's further lines quote the file."""
    if isinstance(error, ijson.JSONError):
        return re.split(r"\n|\\n", str(error).removeprefix("b'"))[0].rstrip(".")
    return "a text that is not UTF-8" if isinstance(error, UnicodeDecodeError) else "a number that is too large"


def wrong_shape(file: Shallow) -> str | None:
    """Return what the file has instead of an array of rows, or None. An empty table is written as `null`."""
    events = ijson.parse(file)
    _, event, value = next(events)
    if event in ("null", "start_array"):
        return None
    if event != "start_map":
        return f"not an array of rows but {JSON_TYPES[type(value)]}"
    first_object = takewhile(lambda event: event[:2] != ("", "end_map"), events)
    keys = islice((value for prefix, event, value in first_object if (prefix, event) == ("", "map_key")), MOST_KEYS)
    return f"not an export of group_msg_table but an object with the keys {', '.join(map(reprlib.repr, keys))}"


def to_row(path: Path, number: int, row: Any) -> tuple:
    """Return the values of COLUMNS of the row `number`, counted from 1."""
    if not isinstance(row, dict):
        raise UserError(f"{path}: row {number} is not an object but {JSON_TYPES.get(type(row), 'null')}; {AGAIN}")
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
        problem = f"is no row of group_msg_table; it has the keys {', '.join(map(reprlib.repr, keys[:MOST_KEYS]))}"
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
