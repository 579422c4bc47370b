"""JSON that DB Browser for SQLite exports from group_msg_table (File > Export > Table(s) to JSON), read as a stream.

An array of rows, {"40001": 7400000000000000101, "40800": "gvYT...", ...}: exact integers, blobs in base64 (or, from a
query, `hex("40800")`). Older versions of the program lose data: 3.11 rounds ids, 3.10 destroys bodies.
"""

import base64
import binascii
import re
import reprlib
from collections.abc import Iterable, Iterator
from decimal import Decimal
from itertools import count, islice, takewhile
from pathlib import Path
from typing import IO, Any

import ijson
import polars as pl

from huiyin.common.errors import UserError
from huiyin.common.workers import cores, workers
from huiyin.qqnt.body import ELEMENT_TAG
from huiyin.sources.frames import CHUNK
from huiyin.sources.history import BODY, COLUMNS, COMPANIONS, NUMBERS, to_chunk, to_history

NEEDED = {"40001", "40050", "40800"}
NUMBER_COLUMNS = set(NUMBERS.values())
CHAT_TYPE, GROUP = "40010", 2
EXACT_IN_A_DOUBLE = 1 << 53
MOST_KEYS = 12
TYPES = {str: "a text", bool: "true or false", dict: "an object", list: "an array", type(None): "null"}
AGAIN = "export the table again with DB Browser 3.12 or newer"


def read_export(path: Path, file: Any, placeholders: Iterable[str]) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return what `read_history` does, from the open `file` at `path`; anything with a `read` will do."""
    nobody = [pl.DataFrame(schema=dict.fromkeys(columns, pl.String)) for columns in COMPANIONS.values()]
    with workers(tasks=cores()) as share_out:
        chunks = share_out(to_chunk, ((rows, placeholders) for rows in json_chunks(path, file)))
        return to_history(chunks, *nobody)


def json_chunks(path: Path, file: Any) -> Iterator[list[tuple]]:
    """Yield lists of rows with the values of COLUMNS, texts and bodies as bytes, from the open `file` at `path`."""
    row_number = count(1)
    try:
        with open(path, "rb") as beginning:
            if problem := wrong_shape(beginning):
                raise UserError(f"{path}: {problem}; {AGAIN}")
        rows = (to_row(path, next(row_number), row) for row in ijson.items(file, "item"))
        for number, chunk in enumerate(iter(lambda: list(islice(rows, CHUNK)), [])):
            if number == 0:
                check_versions(path, chunk)
            yield chunk
    # the texts of these errors quote the file; the last is that of a number such as 1e9999999999999999999
    except (ijson.JSONError, UnicodeDecodeError, ArithmeticError):
        raise UserError(f"{path}: not whole JSON, in row {next(row_number):,}; {AGAIN}") from None


def wrong_shape(file: IO[bytes]) -> str | None:
    """Return what the file has instead of an array of rows, or None. An empty table is written as `null`."""
    events = ijson.parse(file)
    _, event, value = next(events)
    if event in ("null", "start_array"):
        return None
    if event != "start_map":
        return f"not an array of rows but {json_type(value)}"
    first_object = takewhile(lambda event: event[:2] != ("", "end_map"), events)
    keys = islice((value for prefix, event, value in first_object if (prefix, event) == ("", "map_key")), MOST_KEYS)
    return f"not an export of group_msg_table but an object with the keys {', '.join(map(reprlib.repr, keys))}"


def json_type(value: Any) -> str:
    """Return what `value` is, in words; not the value, which may be what somebody said."""
    return TYPES.get(type(value), "a number")


def to_row(path: Path, number: int, row: Any) -> tuple:
    """Return the values of COLUMNS of the row `number`, counted from 1."""
    if not isinstance(row, dict):
        raise UserError(f"{path}: row {number} is not an object but {json_type(row)}; {AGAIN}")
    row = {re.sub(r'hex\(["\[]?(\d+)["\]]?\)', r"\1", name): value for name, value in row.items()}
    if not row.keys() >= NEEDED:
        keys = ", ".join(map(reprlib.repr, list(row)[:MOST_KEYS]))
        raise UserError(f"{path}: row {number} is no row of group_msg_table; it has the keys {keys}; {AGAIN}")
    if CHAT_TYPE in row and to_integer(path, number, CHAT_TYPE, row[CHAT_TYPE]) not in (GROUP, None):
        raise UserError(f"{path}: row {number} is of a private chat (40010 = {row[CHAT_TYPE]}); export group_msg_table")
    return tuple(
        to_integer(path, number, str(name), row.get(str(name)))
        if name in NUMBER_COLUMNS
        else to_body(row.get(str(name)))
        if name == BODY
        else to_bytes(row.get(str(name)))
        for name in COLUMNS
    )


def to_integer(path: Path, number: int, name: str, value: Any) -> int | None:
    """Return an integer that was written as a number or as text; None for NULL, which 3.10 writes as ""."""
    if value is None or value == "":
        return None
    if isinstance(value, Decimal):
        raise UserError(f"{path}: row {number}: {name} is {value}, rounded as DB Browser 3.11 does; {AGAIN}")
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,19}", value, re.ASCII):
        value = int(value)
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise UserError(f"{path}: row {number}: {name} is {json_type(value)}, not an integer of 64 bits; {AGAIN}")
    return value


def to_bytes(value: Any) -> bytes | None:
    return None if value is None else str(value).encode("utf-8", "replace")


def to_body(value: Any) -> bytes | None:
    """Return the bytes of a blob; a text that is neither base64 nor hex is returned as it is: it will not decode."""
    if not value:
        return None
    text = str(value)
    try:
        if (body := bytes.fromhex(text)).startswith(ELEMENT_TAG):
            return body
    except ValueError:
        pass
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return text.encode("utf-8", "replace")


def check_versions(path: Path, rows: list[tuple]) -> None:
    """Raise `UserError` if the rows, those of the first chunk, are from an older version of DB Browser."""
    ids = [row[0] for row in rows if row[0] and row[0] > EXACT_IN_A_DOUBLE]
    if len(ids) > 4 and all(number == int(float(number)) for number in ids):
        raise UserError(f"{path}: all ids are rounded, as DB Browser 3.11 does; {AGAIN}")
    bodies = [row[-1] for row in rows if row[-1]]
    if bodies and not any(body.startswith(ELEMENT_TAG) for body in bodies):
        raise UserError(f"{path}: the message bodies are destroyed, as DB Browser 3.10 does; {AGAIN}")
