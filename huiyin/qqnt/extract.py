"""Copy tables of a QQNT database into a new plain database: through SQLCipher, or page by page if it is damaged."""

import errno
import shutil
import signal
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import sqlcipher3

from huiyin.common.progress import Progress
from huiyin.qqnt.cipher import Cipher
from huiyin.qqnt.pages import Pages
from huiyin.qqnt.salvage import salvage
from huiyin.qqnt.tables import KEEP_FREE, Refuse, Table, lossy_text, plain_tables

COPIED_AT_ONCE = 1 << 20  # bytes
STEPS_BETWEEN_CALLS = 100_000  # of SQLite's virtual machine: some ten milliseconds
# Before the first read: without shared memory beside the copy, and without running what a foreign schema defines.
CAREFUL = ("PRAGMA locking_mode = EXCLUSIVE", "PRAGMA trusted_schema = OFF", "PRAGMA cell_size_check = ON")
# Nothing reads the result before it is complete, and after an error it is deleted: no journal, no fsync.
FAST = ("PRAGMA result.journal_mode = OFF", "PRAGMA result.synchronous = OFF")
# The last: a damaged schema that is quoted in the message of such an error.
DatabaseErrors = (sqlite3.DatabaseError, sqlcipher3.DatabaseError, UnicodeDecodeError)


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
    with closing(Pages(source, cipher, key)) as pages:
        logged = len(pages.logged)
        if pages.missing:
            refuse(f"truncated: {pages.count - pages.missing:,} of {pages.count:,} pages are there", truncated=True)
        elif shutil.disk_usage(target.parent).free < 2 * (pages.in_file + logged) * pages.size + KEEP_FREE:
            no_space = f"no space for a copy of {source}; reading it page by page, slower"
            print(f"decrypt: {target.parent}: {no_space}", flush=True)
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
        if not pragmas:
            check_pages(connection, tables)
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
                f"INSERT INTO result.[{name}] (rowid, {table.selected}) "
                f"SELECT rowid, {table.selected} FROM main.[{table.stored_as}] NOT INDEXED"
            ).rowcount
    return tables


def check_pages(connection: sqlite3.Connection, tables: dict[str, Table]) -> None:
    """Raise `sqlite3.DatabaseError` if a page of `tables` is used twice: where overflow pages form a circle, SQLite
    reads on. The pages of an encrypted database need no such check, their HMAC says that QQ wrote them."""
    connection.execute("PRAGMA ignore_check_constraints = ON")  # those of the schema would be evaluated
    for table in tables.values():
        (found,) = connection.execute(f"PRAGMA quick_check([{table.stored_as}])").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(" ".join(found.split()))


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


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn SQLite's errors for a full disk into an `OSError` that names the folder."""
    try:
        yield
    except DatabaseErrors as error:
        if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE):
            raise OSError(errno.ENOSPC, "no space left", str(target.parent)) from None
        raise
