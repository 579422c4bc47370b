"""The answer cache: every accepted answer of the language model, so that an interrupted run asks no question twice."""

import hashlib
import json
import sqlite3
import threading
from pathlib import Path


class AnswerCache:
    """`answers.db`: a SQLite table from the digest of a question to the text of its answer. Threads may share it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.database = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=60)
        self.database.execute("PRAGMA journal_mode = WAL")  # one short write per answer, and it survives a kill
        self.database.execute("PRAGMA synchronous = NORMAL")  # after a power cut the last few are asked again
        self.database.execute(
            "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID"
        )
        self.lock = threading.Lock()

    def get(self, key: str) -> str | None:
        with self.lock:
            row = self.database.execute("SELECT answer FROM answers WHERE key = ?", [key]).fetchone()
        return row[0] if row else None

    def put(self, key: str, answer: str) -> None:
        with self.lock:
            self.database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", [key, answer])

    def close(self) -> None:
        self.database.close()


def digest(*parts: object) -> str:
    """Return the sha256 of `parts` as canonical JSON."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
