"""Decrypt QQNT's nt_msg.db into a plain SQLite file that holds the group messages and nothing private.

    python scripts/decrypt.py data/demo/sample/nt_msg.db --key data/demo/sample/key.txt \\
        --config config/decrypt.yaml --out data/demo/decrypted

A key in the environment variable QQ_DB_KEY takes precedence over the key file. The source is never written to:
SQLCipher reads an encrypted copy of it. Only the wanted tables are decrypted, straight into the result.
"""

from __future__ import annotations

import huiyin.common.starting  # noqa: F401

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from huiyin.common.digests import sha256
from huiyin.common.errors import UserError, run
from huiyin.common.progress import Progress
from huiyin.common.settings import read_settings
from huiyin.common.stage import Stage, arguments, need, noted_argument, unchanged
from huiyin.common.tables import DECRYPTED, GROUP_MESSAGES

if TYPE_CHECKING:
    from huiyin.qqnt.tables import Table

RESULTS = 1  # to be raised when the same input gives another result
COMPANIONS = {"group_info.db": ["group_list", "group_member3"], "profile_info.db": ["profile_info_v6"]}


@dataclass
class Settings:
    companions: bool = True
    salvage: Literal["auto", "never", "always"] = "auto"


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "source")
    parser.add_argument("--key", type=Path, metavar="FILE", help="file with the key of the database")
    noted_argument(parser)
    args = parser.parse_args(argv)
    settings = read_settings(args.config, Settings)
    need(args.source, "put your nt_msg.db there, or name another file with SOURCE=")
    from huiyin.qqnt.key import opening_key  # without it `--help` is quick

    source = real(args.source)

    with Stage("decrypt", args.out, RESULTS, packages=["cryptography", "numpy", "sqlcipher3"]) as stage:
        stage.use(args.config, settings)
        stage.after(args.noted)
        key = opening_key(args.key, source)
        stage.stop_if_done(*inputs(source, settings))
        plain = stage.output("nt_msg.db")
        tables = extract(stage, source, key, DECRYPTED, plain, settings, args.config)
        if GROUP_MESSAGES not in tables:
            raise UserError(f"{source}: no {GROUP_MESSAGES} in it; give the nt_msg.db of the account")
        rows, left_out = {name: table.rows for name, table in tables.items()}, {}
        for name, names in COMPANIONS.items() if settings.companions else ():
            companion = source.with_name(name)
            try:
                if os.path.lexists(companion):
                    need(companion, "copy that of QQ there")
                    rows |= add_companion(stage, companion, key, names, plain, settings, args.config)
            except UserError as error:  # they only add names; the messages are useful without them
                for file in files_of(companion):
                    stage.input(file)
                left_out[name] = str(error)
                print(f"decrypt: {name} left out: {error}", flush=True)
        stage.receipt |= {"tables": rows, "companions_left_out": left_out}
        report_other_logs(args.source, source)
        stage.receipt["damage"] = damage(source, tables, plain)
        stage.ledger.written = tables[GROUP_MESSAGES].rows
        if lost := tables[GROUP_MESSAGES].lost_rows:
            stage.ledger.dropped["damaged"] = lost
        stage.ledger.read = stage.ledger.written + lost
        if stage.receipt["damage"] and not stage.ledger.written:
            raise UserError(f"{source}: no message in it can be read, it is damaged; copy it again with QQ closed")
        if not stage.ledger.written:
            raise UserError(f"{source}: no group messages in it; is it the account, and the device, that has them?")


def inputs(source: Path, settings: Settings) -> list[Path]:
    """Return the files that are there of those which are read, in the order in which they are."""
    return [
        *files_of(source),
        *(file for name in COMPANIONS if settings.companions for file in files_of(source.with_name(name))),
    ]


def files_of(database: Path) -> list[Path]:
    """Return the database and its log, those that are there."""
    return [file for file in (database, database.with_name(f"{database.name}-wal")) if file.is_file()]


def real(path: Path) -> Path:
    """Return the file that a symbolic link leads to: logs and name databases lie beside that one."""
    return path.resolve() if path.is_symlink() else path


def extract(
    stage: Stage, source: Path, key: str | None, names: list[str], plain: Path, settings: Settings, config: Path
) -> dict[str, Table]:
    """Write those of the tables `names` that `source` has into the new database `plain`; return {name: Table}."""
    from concurrent.futures import ThreadPoolExecutor  # imports that take 0.2 s, without which `--help` is quick

    from huiyin.qqnt.cipher import detect
    from huiyin.qqnt.extract import take_tables

    cipher = detect(source, key)
    journal, wal = (source.with_name(source.name + end) for end in ("-journal", "-wal"))
    if journal.exists() and journal.stat().st_size:
        raise UserError(
            f"{journal}: QQ was writing when this was copied; copy again with QQ closed, or delete that file"
        )

    def refuse(problem: str, truncated: bool = False) -> None:
        again = f"{source}: {problem}; copy it again with QQ closed, or set `salvage: "
        if truncated and settings.salvage != "always":
            raise UserError(f"{again}always` in {config} to take what is there")
        if settings.salvage == "never":
            raise UserError(f"{again}auto` in {config} to take what is sound")
        print(f"decrypt: {source}: {problem}; taking what is sound", flush=True)

    with (
        unchanged(source),
        ThreadPoolExecutor(1) as hashing,
        Progress(f"decrypt {source.name}", None, "B", bytes=True) as progress,
    ):
        digest = hashing.submit(sha256, source)
        try:
            tables, logged = take_tables(source, cipher, key, names, plain, progress, refuse)
        except OSError as error:
            if error.filename is None:  # a page of the result could not be written
                error.filename = str(stage.out)
            raise
        stage.input(source, digest.result())
        if wal.is_file():
            stage.input(wal)
    if os.path.lexists(wal) and not wal.is_file():
        print(f"decrypt: {wal}: not an ordinary file; left out", flush=True)
    elif wal.exists() and wal.stat().st_size and not logged:
        print(f"decrypt: {wal}: nothing in it that belongs to {source.name}; left out", flush=True)
    return tables


def report_other_logs(given: Path, source: Path) -> None:
    """Say which logs near by were not used: with a file or a link renamed, the newest messages are easily lost.

    given: the path as the user wrote it; source: the file that it leads to.
    """
    used = source.with_name(f"{source.name}-wal")
    for log in sorted({source.with_name("nt_msg.db-wal"), given.with_name(f"{given.name}-wal")}):
        if log.exists() and log.stat().st_size and log.resolve() != used.resolve():
            print(f"decrypt: {log}: not used; if it is the log of {source.name}, its name must be {used}", flush=True)


def add_companion(
    stage: Stage, source: Path, key: str | None, names: list[str], plain: Path, settings: Settings, config: Path
) -> dict[str, int]:
    """Add the tables `names` of another database of the account to `plain`; return {name: rows}."""
    from huiyin.qqnt.extract import copy_tables

    part = stage.out / f".{source.name}.part"
    tables = extract(stage, real(source), key, names, part, settings, config)
    with Progress(f"decrypt {source.name}", None, "B", bytes=True) as progress:
        copy_tables(part, [], names, plain, progress, source)
    part.unlink()
    return {name: table.rows for name, table in tables.items()}


def damage(source: Path, tables: dict[str, Table], plain: Path) -> dict[str, Any]:
    """Return what was lost, {} for nothing, and print it: pages, rows, and the time span."""
    lost = {name: table for name, table in tables.items() if table.is_damaged}
    if not lost:
        return {}
    messages = lost.get(GROUP_MESSAGES)
    spans = [time_span(plain, *gap) for gap in messages.key_gaps] if messages and "40050" in messages.columns else []
    rows = ", ".join(f"about {table.lost_rows:,} rows of {name}" for name, table in lost.items())
    starts, ends = [start for start, _ in spans if start], [end for _, end in spans if end]
    between = f", sent between {min(starts, default='?')} and {max(ends, default='?')}" if spans else ""
    pages = sum(len(table.lost_pages) for table in lost.values())
    print(f"decrypt: DAMAGED: {source}: {pages:,} pages could not be read; lost are {rows}{between}", flush=True)
    return {
        **{name: {"pages": table.lost_pages, "rows": table.lost_rows} for name, table in lost.items()},
        "spans": spans,
    }


def time_span(plain: Path, low: int | None, high: int | None) -> list[str | None]:
    """Return the times, as text, of the messages next to the rows lost between the ids `low` and `high`."""
    # a comparison with NULL, for no edge, finds no row
    query = f"SELECT [40050] FROM {GROUP_MESSAGES} WHERE rowid {{}} ? AND [40050] > 0 ORDER BY rowid {{}} LIMIT 1"
    sides = [("<=", "DESC", low), (">=", "ASC", high)]
    with closing(sqlite3.connect(plain)) as connection:
        rows = [connection.execute(query.format(sign, order), (edge,)).fetchone() for sign, order, edge in sides]
    return [row and datetime.fromtimestamp(row[0], UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for row in rows]


if __name__ == "__main__":
    run(main)
