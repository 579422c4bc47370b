"""Copy tables of a QQNT database into a new plain database: through SQLCipher, or page by page if it is damaged."""

import errno
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import sqlcipher3

from huiyin.common.errors import UserError
from huiyin.common.progress import Progress
from huiyin.qqnt.cipher import Cipher
from huiyin.qqnt.pages import Pages

KEEP_FREE = 16 << 20  # bytes
COPIED_AT_ONCE = 1 << 20  # bytes
STEPS_BETWEEN_CALLS = 100_000  # of SQLite's virtual machine: some ten milliseconds
# Before the first read: without shared memory beside the copy, and without running what a foreign schema defines.
CAREFUL = ("PRAGMA locking_mode = EXCLUSIVE", "PRAGMA trusted_schema = OFF", "PRAGMA cell_size_check = ON")
# Nothing reads the result before it is complete, and after an error it is deleted: no journal, no fsync.
FAST = ("PRAGMA result.journal_mode = OFF", "PRAGMA result.synchronous = OFF")
# What a CREATE TABLE without a query does; anything else in its place is not executed.
CREATES_A_TABLE = {
    *(sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_REINDEX),
    *(sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_READ),
}
# The last: a damaged schema that is quoted in the message of such an error.
DatabaseErrors = (sqlite3.DatabaseError, sqlcipher3.DatabaseError, UnicodeDecodeError)
Refuse = Callable[..., None]  # called with what is damaged; it may raise


@dataclass
class Table:
    """The result for one table. `stored_as` is its name in the source, `definition` the columns with their types in
    parentheses, `columns` their names. `lost_pages` are damaged; `key_gaps` are the keys before and after each run of
    missing rows (None: no row on that side); `orphan_leaves` cannot be reached through the tree in the order of the
    keys."""

    name: str
    stored_as: str
    definition: str
    columns: str
    rows: int = 0
    lost_rows: int = 0
    lost_pages: list[int] = field(default_factory=list)
    key_gaps: list[tuple[int | None, int | None]] = field(default_factory=list)
    orphan_leaves: list[int] = field(default_factory=list)

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
    refuse: Refuse,
) -> tuple[dict[str, Table], int]:
    """Write those of the tables `names` that the database `source` has into a new plain database `target`; return
    {name: Table} and the number of pages in the log. If something is damaged, `refuse(what)` is called, which may
    raise. While it works, a copy of the source as it is, encrypted, lies beside the target in `.copy.part`."""
    from huiyin.qqnt.salvage import salvage

    pages = Pages(source, cipher, key)
    logged = len(pages.logged)
    if pages.missing:
        refuse(f"truncated: {pages.count - pages.missing:,} of {pages.count:,} pages are there", truncated=True)
    elif shutil.disk_usage(target.parent).free < 2 * (pages.in_file + logged) * pages.size + KEEP_FREE:
        print(f"decrypt: {target.parent}: no space for a copy of {source}; reading it page by page, slower", flush=True)
    else:
        try:
            with copied(source, cipher.offset, bool(logged), target.with_name(".copy.part"), progress) as copy:
                return copy_tables(copy, cipher.pragmas(key), names, target, progress, source), logged
        except DatabaseErrors as error:
            target.unlink(missing_ok=True)
            print(f"decrypt: {source}: cannot be read to its end ({error}); reading it page by page", flush=True)
    with writing(target):
        return salvage(pages, source, names, target, progress, refuse), logged


@contextmanager
def copied(source: Path, offset: int, with_log: bool, folder: Path, progress: Progress) -> Iterator[Path]:
    """Give a copy of the database from the byte `offset` on, with its log, in the new `folder`, which is removed."""
    log = source.with_name(source.name + "-wal")
    progress.set_total(2 * (source.stat().st_size - offset + (log.stat().st_size if with_log else 0)))
    folder.mkdir(mode=0o700)
    try:
        copy = folder / "copy.db"
        for path, start, end in [(source, offset, ""), *([(log, 0, "-wal")] if with_log else ())]:
            with open(path, "rb") as old, open(f"{copy}{end}", "wb") as new:
                old.seek(start)
                while block := old.read(COPIED_AT_ONCE):
                    new.write(block)
                    progress.add(len(block))
        yield copy
    finally:
        shutil.rmtree(folder)


def copy_tables(
    path: Path, pragmas: Sequence[str], names: Iterable[str], target: Path, progress: Progress, source: Path
) -> dict[str, Table]:
    """Copy those of the tables `names` that the database at `path`, a copy of `source`, has to the database `target`;
    `pragmas` open it. Return {name: Table}. An error of the database means damage, but a full disk is an `OSError`."""
    driver = sqlcipher3 if pragmas else sqlite3
    with (
        closing(driver.connect(str(path), isolation_level=None)) as connection,
        held_signals() as signals,
        writing(target),
    ):
        for statement in (*pragmas, *CAREFUL):
            connection.execute(statement)
        connection.text_factory = lossy_text
        schema = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
        tables = plain_tables(schema, names, source)
        connection.execute("ATTACH DATABASE ? AS result KEY ''", (str(target),))
        for statement in FAST:
            connection.execute(statement)
        written = target.stat().st_size

        def report() -> bool:
            """Show the progress; stop SQLite after a signal."""
            nonlocal written
            before, written = written, target.stat().st_size
            progress.add(written - before)
            return bool(signals)

        connection.set_progress_handler(report, STEPS_BETWEEN_CALLS)
        for name, table in tables.items():
            connection.execute(f"CREATE TABLE result.[{name}] {table.definition}")
            table.rows = connection.execute(
                f"INSERT INTO result.[{name}] (rowid, {table.columns}) "
                f"SELECT rowid, {table.columns} FROM main.[{table.stored_as}] NOT INDEXED"
            ).rowcount
    return tables


@contextmanager
def held_signals() -> Iterator[list[int]]:
    """Give the list of the signals that arrive; afterwards the first of them is raised. What a handler raises inside a
    call from SQLite would be lost."""
    received: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def lossy_text(text: bytes) -> str:
    """Decode a text of the schema, which may be damaged in a table that is not wanted."""
    return text.decode("utf-8", "replace")


def plain_tables(schema: Iterable[Sequence[str]], names: Iterable[str], source: Path) -> dict[str, Table]:
    """Return {name: Table} for those of `names` that `schema` has, rows of (type, name, sql)."""
    stored = {name.lower(): (kind, name, sql) for kind, name, sql in schema if kind in ("table", "view")}
    tables = {}
    for name in names:
        kind, stored_as, sql = stored.get(name, ("", "", ""))
        try:
            if kind == "view":
                raise ValueError("a view")
            if kind:
                tables[name] = Table(name, stored_as, *plain_columns(stored_as, sql))
        except ValueError as error:
            raise UserError(f"{source}: {name} is not stored like an ordinary table ({error})") from None
    return tables


def plain_columns(name: str, sql: str) -> tuple[str, str]:
    """Return the definition and the names of the columns in the CREATE statement `sql`, without constraints and so
    without indexes; `ValueError` if the rows are not stored like those of an ordinary table."""
    with closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.set_authorizer(
                lambda action, *_: sqlite3.SQLITE_OK if action in CREATES_A_TABLE else sqlite3.SQLITE_DENY
            )
            connection.execute(sql)
            connection.set_authorizer(None)
            columns = connection.execute(f"PRAGMA table_info([{name}])").fetchall()
            connection.execute(f"SELECT rowid FROM [{name}]")
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise ValueError(str(error)) from None
    keys = [column for column in columns if column[5]]
    parts = []
    for _, column, kind, _, default, key in columns:
        # an INTEGER key of one column is the rowid, which is not stored a second time
        rowid = key and len(keys) == 1 and kind.upper() == "INTEGER" and "DESC" not in sql.upper()
        ending = (" PRIMARY KEY" if rowid else "") + (f" DEFAULT {default}" if default is not None else "")
        parts.append(f"[{column}] {kind}{ending}")
    return f"({', '.join(parts)})", ", ".join(f"[{column[1]}]" for column in columns)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn SQLite's errors for a full disk into an `OSError` that names the folder."""
    try:
        yield
    except DatabaseErrors as error:
        if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE):
            raise OSError(errno.ENOSPC, "no space left", str(target.parent)) from None
        raise
