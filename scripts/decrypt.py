"""Decrypt QQNT's nt_msg.db into a plain SQLite file that holds the group messages and nothing private.

    python scripts/decrypt.py data/demo/sample/nt_msg.db --key data/demo/sample/key.txt \\
        --config config/decrypt.yaml --out data/demo/decrypted

A key in the environment variable QQ_DB_KEY wins over the key file. The source is only ever read: SQLCipher works on
a copy without QQ's header, which is removed at the end.
"""

import errno
import hashlib
import os
import shutil
import sqlite3
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlcipher3

from common.errors import Mistake, run
from common.progress import Progress
from common.settings import read_settings
from common.stage import Stage, arguments, need
from qq.cipher import detect, is_plain

MESSAGES = "group_msg_table"
TABLES = [MESSAGES, "nt_uid_mapping_table"]
COMPANIONS = {"group_info.db": ["group_list", "group_member3"], "profile_info.db": ["profile_info_v6"]}

BLOCK = 1 << 20
STEPS_BETWEEN_LOOKS = 200_000  # of SQLite's virtual machine; some hundredths of a second


@dataclass
class Settings:
    companions: bool = True


def main():
    parser = arguments(__doc__, "source")
    parser.add_argument("--key", type=Path, metavar="FILE", help="file with the key of the database")
    args = parser.parse_args()
    settings = read_settings(args.config, Settings)
    need(args.source, "put your nt_msg.db there, or name another file with SOURCE=")

    with Stage("decrypt", args.out, packages=["sqlcipher3"]) as stage:
        stage.use(args.config, settings)
        plain = stage.output("nt_msg.db")
        key = read_key(args.key, args.source)
        tables = extract(stage, args.source, key, TABLES, plain)
        if MESSAGES not in tables:
            raise Mistake(f"{args.source}: no {MESSAGES} in it; give the nt_msg.db of the account")
        left_out = {}
        for name, wanted in COMPANIONS.items() if settings.companions else ():
            companion = args.source.with_name(name)
            try:
                if companion.exists():
                    tables |= extract(stage, companion, key, wanted, plain)
            except Mistake as mistake:  # they only add names; the messages are worth having without them
                left_out[name] = str(mistake)
                print(f"decrypt: {name} left out: {mistake}", flush=True)
        stage.receipt |= {"tables": tables, "companions_left_out": left_out}
        stage.ledger.read = tables[MESSAGES]
        stage.ledger.written = count_rows(plain, MESSAGES)


def read_key(path, source):
    """Return the key as text: that of the environment, else that in the file at `path`; None if `source` needs none."""
    if key := os.environ.get("QQ_DB_KEY"):
        return key
    if path is None or not path.exists():
        with open(source, "rb") as file:
            if is_plain(file.read(BLOCK)):
                return None
        raise Mistake(f"{path or '--key'}: no such file; write the key of the database there, or set QQ_DB_KEY")
    try:
        key = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise Mistake(f"{path}: the key is not UTF-8 text; save it as plain text with nothing but the key") from None
    key = key.removesuffix("\n").removesuffix("\r")
    if not key or "\0" in key:
        raise Mistake(f"{path}: {'no key' if not key else 'a zero byte'} in it; write the key of the database there")
    return key


def extract(stage, source, key, wanted, plain):
    """Copy those of the tables `wanted` that `source` has into the database `plain`; return {table: rows}."""
    cipher = detect(source, key)
    with working_copy(stage, source, cipher.offset) as copy:
        try:
            with closing(sqlcipher3.connect(str(copy), isolation_level=None)) as connection:
                for statement in cipher.pragmas(key):
                    connection.execute(statement)
                return copy_tables(connection, wanted, plain, source.stat().st_size)
        except sqlcipher3.DatabaseError as error:
            if "is full" in str(error):
                raise OSError(errno.ENOSPC, "no space left", str(stage.out)) from None
            raise Mistake(f"{source}: damaged or cut short ({error}); copy it again with QQ closed") from None


@contextmanager
def working_copy(stage, source, offset):
    """Copy `source` from `offset` on and the `-wal` beside it, which holds the newest messages; both are inputs."""
    journal = source.with_name(source.name + "-journal")
    if journal.exists() and journal.stat().st_size:
        raise Mistake(f"{journal}: QQ was writing when this was copied; copy again with QQ closed, or delete that file")
    wal = source.with_name(source.name + "-wal")
    folder = stage.out / ".work.part"
    folder.mkdir()
    try:
        stage.input(source, copy_file(source, folder / "copy.db", offset))
        if wal.exists():  # it has no header of QQ's
            stage.input(wal, copy_file(wal, folder / "copy.db-wal"))
        yield folder / "copy.db"
    finally:
        shutil.rmtree(folder)


def copy_file(source, target, skip=0):
    """Copy `source` without its first `skip` bytes; return the sha256 of the whole of it."""
    digest = hashlib.sha256()
    with open(source, "rb") as old, open(target, "wb") as new:
        digest.update(old.read(skip))
        with Progress(f"copy {source.name}", source.stat().st_size, "B", bytes=True) as progress:
            while block := old.read(BLOCK):
                digest.update(block)
                new.write(block)
                progress.add(len(block))
    return digest.hexdigest()


def copy_tables(connection, wanted, plain, size):
    """Copy tables over an open connection, all or none of them; `size` is about what there is to read."""
    schema = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
    connection.execute("ATTACH DATABASE ? AS plain KEY ''", (str(plain),))
    # Nobody reads the output before it is whole, so it needs no journal on disk; the one in memory is for ROLLBACK.
    connection.execute("PRAGMA plain.journal_mode = MEMORY")
    connection.execute("PRAGMA plain.synchronous = OFF")
    rows = {}
    with Progress("decrypt", size, "B", bytes=True) as progress:

        def look():
            progress.add(max(0, plain.stat().st_size - progress.done))

        connection.set_progress_handler(look, STEPS_BETWEEN_LOOKS)
        connection.execute("BEGIN")
        for name, create in schema:
            if name in wanted:
                connection.execute(create.replace("CREATE TABLE ", "CREATE TABLE plain.", 1))
                rows[name] = connection.execute(f"INSERT INTO plain.[{name}] SELECT * FROM main.[{name}]").rowcount
        connection.execute("COMMIT")
        connection.set_progress_handler(None, 0)
    return rows


def count_rows(database, table):
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(f"SELECT count(*) FROM [{table}]").fetchone()[0]


if __name__ == "__main__":
    run(main)
