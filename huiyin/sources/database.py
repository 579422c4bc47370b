"""A decrypted database of QQNT, read in chunks of rows on all cores."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl

from huiyin.common.errors import UserError
from huiyin.common.progress import Progress
from huiyin.common.stage import anew
from huiyin.common.tables import GROUP_MESSAGES
from huiyin.common.workers import workers
from huiyin.sources.frames import CHUNK
from huiyin.sources.history import (
    COLUMNS,
    COMPANIONS,
    MAX_INT,
    NUMBERS,
    TEXTS,
    Chunk,
    missing_columns,
    to_chunk,
    to_history,
    to_text,
)

BYTES_A_TASK = 8 << 20  # of a database; for less, another process costs more time than it saves
DECRYPT = "if it is encrypted, decrypt it first"
AGAIN = "copy it again with QQ closed, and decrypt it again"


def read_history(path: Path, placeholders: Iterable[str], name_faces: bool) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return all rows of the database at `path`, and what the receipt says of them.

    The rows have the columns of messages.parquet, `time` in seconds, and also `dropped` (the reason, null if there is
    none) and `copy_of` (the id of the message that this one repeats, or null). placeholders, name_faces: those of
    `BodyReader`.
    """
    try:
        with closing(open_database(path)) as connection:
            existing = columns_of(connection, GROUP_MESSAGES)
            if not existing:
                raise UserError(f"{path}: no {GROUP_MESSAGES} in it; give a decrypted nt_msg.db")
            if missing := missing_columns(existing):
                raise UserError(f"{path}: {GROUP_MESSAGES} has no column {missing}; is it QQNT's?")
            tables = [read_table(connection, table, columns) for table, columns in COMPANIONS.items()]
            with workers(tasks=path.stat().st_size // BYTES_A_TASK) as share_out:
                ranges = list(ranges_of(connection))  # while the workers start
                with Progress("parse", sum(count for *_, count in ranges), "rows") as progress:
                    query = select(existing)
                    arguments = [(path, query, placeholders, name_faces, low, high) for low, high, _ in ranges]
                    chunks = counted(share_out(read_range, arguments), progress)
                    return to_history(path, AGAIN, chunks, *tables)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the second: a damaged schema in an error's message
        reason = "its schema is damaged" if isinstance(error, UnicodeDecodeError) else error
        raise UserError(f"{path}: cannot be read ({reason}); {anew(path, DECRYPT)}") from None


def counted(chunks: Iterable[Chunk], progress: Progress) -> Iterator[Chunk]:
    for chunk in chunks:
        progress.add(chunk.rows.height)
        yield chunk


def open_database(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    # a view would be a foreign query, one that never ends for example
    connection.set_authorizer(lambda *call: sqlite3.SQLITE_DENY if call[-1] else sqlite3.SQLITE_OK)
    connection.text_factory = bytes
    return connection


def columns_of(connection: sqlite3.Connection, table: str) -> set[int]:
    return {int(row[1]) for row in connection.execute(f"PRAGMA table_info([{table}])") if row[1].isdigit()}


def read_table(connection: sqlite3.Connection, table: str, columns: dict[str, int]) -> pl.DataFrame:
    """Return columns of a table as text, "" for NULL and 0; no rows if the table or one of its columns is missing."""
    schema = dict.fromkeys(columns, pl.String)
    if not columns_of(connection, table) >= set(columns.values()):
        return pl.DataFrame(schema=schema)
    selected = ", ".join(f"coalesce(CAST(nullif([{number}], 0) AS TEXT), '')" for number in columns.values())
    rows = ([to_text(value) for value in row] for row in connection.execute(f"SELECT {selected} FROM [{table}]"))
    return pl.DataFrame(list(rows), schema=schema, orient="row")


def ranges_of(connection: sqlite3.Connection) -> Iterator[tuple[int, int, int]]:
    """Yield (low, high, count) for each CHUNK of rows: low < rowid <= high."""
    low = -MAX_INT - 1
    query = f"SELECT rowid FROM {GROUP_MESSAGES} WHERE rowid > ? ORDER BY rowid LIMIT 1 OFFSET ?"
    while last := connection.execute(query, (low, CHUNK - 1)).fetchone():
        yield low, last[0], CHUNK
        low = last[0]
    if rest := connection.execute(f"SELECT count(*) FROM {GROUP_MESSAGES} WHERE rowid > ?", (low,)).fetchone()[0]:
        yield low, MAX_INT, rest


def select(existing: set[int]) -> str:
    """Return the query for the rows of a range, NULL for columns that do not exist. Because of the casts, exported
    copies that have lost the types give the same values."""
    kinds = ["INTEGER"] * len(NUMBERS) + ["TEXT"] * len(TEXTS) + ["BLOB"]
    values = ", ".join(
        f"CAST([{name}] AS {kind})" if name in existing else "NULL" for name, kind in zip(COLUMNS, kinds, strict=True)
    )
    return f"SELECT {values} FROM {GROUP_MESSAGES} WHERE rowid > ? AND rowid <= ?"


def read_range(path: Path, query: str, placeholders: Iterable[str], name_faces: bool, low: int, high: int) -> Chunk:
    """Return the `Chunk` of the rows with low < rowid <= high; runs in a worker process."""
    with closing(open_database(path)) as connection:
        return to_chunk(connection.execute(query, (low, high)).fetchall(), placeholders, name_faces)
