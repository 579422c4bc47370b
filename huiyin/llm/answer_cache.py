"""The answer cache: every accepted answer of the language model, so that an interrupted run asks no question twice."""

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huiyin.common.errors import UserError

LOCKED_SECONDS = 60  # how long to wait for another program
# What SQLite says of a disk that takes no more, or fails
DISK = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
CLOSED = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH)


class AnswerCache:
    """`answers.db`: a SQLite table from the digest of a question to its answer. Threads may share it. `UserError` where
    the file cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no file, but the answers belong there; move it away")
        with self.in_use():
            self.database = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=LOCKED_SECONDS)
            self.database.execute("PRAGMA journal_mode = WAL")  # one short write per answer, and it survives a kill
            self.database.execute("PRAGMA synchronous = NORMAL")  # after a power cut the last few are asked again
            self.database.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID"
            )
            self.database.text_factory = bytes  # text that is no UTF-8 is for the caller to refuse

    def get(self, key: str) -> bytes | None:
        """Return what was put there as UTF-8; another program may have left anything there, a number for example."""
        with self.in_use():
            row = self.database.execute("SELECT CAST(answer AS BLOB) FROM answers WHERE key = ?", [key]).fetchone()
        return row[0] if row else None

    def put(self, key: str, answer: str) -> None:
        with self.in_use():
            self.database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", [key, answer])

    def put_all(self, answers: Iterable[tuple[str, str]]) -> None:
        """Put all (key, answer), or after a kill none."""
        with self.in_use():
            self.database.execute("BEGIN")
            self.database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", answers)
            self.database.execute("COMMIT")

    def close(self) -> None:
        self.database.close()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let nobody else use the database, and tell an error of SQLite as what it means."""
        try:
            with self.lock:
                yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # without the extension
            if code in DISK:
                what = f"no space left, or the disk fails ({error}); free some and start again"
            elif code in LOCKED:
                what = f"another program has locked it for {LOCKED_SECONDS} s; close that one and start again"
            elif code in CLOSED:
                what = f"cannot be opened ({error}); make its folder and it readable and writable for you"
            else:
                what = f"is damaged: {error}; `make forget-answers` deletes it, sqlite3's .recover may save some of it"
            raise UserError(f"{self.path}: {what}") from None
