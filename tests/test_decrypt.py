"""decrypt: which tables and rows it writes, with which keys, and the error lines."""

import contextlib
import json
import operator
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import namedtuple
from contextlib import closing
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import pytest
import sqlcipher3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import huiyin.qqnt.extract
from helpers import CLEAN, EXAMPLES, ROOT, run_script
from huiyin.common.errors import UserError
from huiyin.common.progress import Progress
from huiyin.qqnt.btree import four, leaf_cells, varint, walk
from huiyin.qqnt.cipher import HEADER_SIZE, Cipher, build_header, detect, encryption_key
from huiyin.qqnt.extract import take_tables
from huiyin.qqnt.key import read_key
from huiyin.qqnt.pages import Pages
from huiyin.qqnt.qqnt_pb2 import Header
from huiyin.qqnt.salvage import check_space, read_schema, salvage
from huiyin.qqnt.tables import KEEP_FREE, plain_tables
from scripts.demo.history import KEY

Usage = namedtuple("Usage", "free")

MESSAGES = 400


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    assert run_script("demo/history", "--messages", MESSAGES, "--out", folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def plain_sample(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    assert decrypt(sample / "nt_msg.db", folder).returncode == 0
    return folder / "nt_msg.db"


@pytest.fixture
def source(sample, tmp_path):
    """A copy of the sample, which a test may damage."""
    return shutil.copytree(sample, tmp_path / "raw", ignore=shutil.ignore_patterns("receipt.json")) / "nt_msg.db"


def decrypt(source, out, *, key=None, env=None, config="config/decrypt.yaml"):
    key = key or source.with_name("key.txt")
    env = {"QQ_DB_KEY": "", **(env or {})}
    return run_script("decrypt", source, "--key", key, "--config", config, "--out", out, env=env)


def receipt(out):
    return json.loads((out / "receipt.json").read_text())


def query(database, sql):
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(sql).fetchall()


def content(database):
    """Return {table: its rows with their rowids, values and types}."""
    tables = {}
    for (name,) in query(database, "SELECT name FROM sqlite_master WHERE type = 'table'"):
        types = ", ".join(f"typeof([{row[1]}])" for row in query(database, f"PRAGMA table_info([{name}])"))
        tables[name] = query(database, f"SELECT rowid, *, {types} FROM [{name}] ORDER BY rowid")
    return tables


def assert_decrypted(done, out, rows=MESSAGES):
    assert (done.returncode, done.stderr) == (0, "")
    assert receipt(out)["ledger"] == {"read": rows, "written": rows, "dropped": {}}
    assert query(out / "nt_msg.db", "SELECT count(*) FROM group_msg_table") == [(rows,)]


def assert_refused(done, out, line):
    assert (done.returncode, done.stderr) == (1, f"decrypt.py: {line}\n")
    assert not out.exists() or list(out.iterdir()) == []


ROWS = "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 360) INSERT INTO group_msg_table"
ORDINARY = "CREATE TABLE group_msg_table ([40001] INTEGER PRIMARY KEY, [40010] INTEGER, [40050] INTEGER, [40800] BLOB)"
FILL = f"{ROWS} SELECT n * 977, 2, n, randomblob(n * 20) FROM s"
DELETE = "DELETE FROM group_msg_table WHERE rowid % 9 < 7"
NO_KEY = [
    "CREATE TABLE group_msg_table ([40001] TEXT, [40010], [40050] REAL DEFAULT 7, [40800] NUMERIC)",
    f"{ROWS}(rowid, [40001], [40800]) SELECT n * n, n, iif(n % 3, 'x' || n, NULL) FROM s",
    "ALTER TABLE group_msg_table ADD COLUMN [40090] TEXT DEFAULT 'none'",
]
SOUND = {  # {what: statements}
    "rows larger than a page": [ORDINARY, FILL],
    "no key and gaps in the rowids": NO_KEY,
    "stale pages and an index": [ORDINARY, FILL, "CREATE INDEX by_time ON group_msg_table ([40050])", DELETE],
    "no rows in another table": [ORDINARY, FILL, "CREATE TABLE nt_uid_mapping_table ([48901] INTEGER PRIMARY KEY)"],
    "a name in capitals": [ORDINARY.replace("group_msg_table", "GROUP_MSG_TABLE"), FILL],
    "UTF-16": ["PRAGMA encoding = 'UTF-16le'", *NO_KEY],
    "auto-vacuum": ["PRAGMA auto_vacuum = FULL", ORDINARY, FILL, DELETE],
    "a view and a trigger": [
        *(ORDINARY, FILL, "CREATE VIEW v AS SELECT * FROM group_msg_table"),
        f"CREATE TRIGGER t BEFORE INSERT ON group_msg_table BEGIN {DELETE}; END",
    ],
}
LOGGED = [
    "UPDATE group_msg_table SET [40050] = 5 WHERE rowid % 4 = 0",
    "DELETE FROM group_msg_table WHERE rowid % 7 = 0",
]
DEVICES = {  # {device: (key, HMAC, header)}
    "Windows": ("a#'\"@ 0123456789", "SHA512", Header(version=b"9.9.3")),
    "Linux": (KEY, "SHA1", Header(version=b"0" * 128, hmac=b"HMAC_SHA1")),
    "Android": ("0123456789abcdef" * 2, "SHA256", Header(version=b"a1B2c3D4", hmac=b"HMAC_SHA256")),
    "plain": (None, None, None),
}


def run_statements(bare, device, statements):
    """Run `statements` in the database `bare`, one without QQ's header; return the connection."""
    key, name, _ = DEVICES[device]
    connection = (sqlcipher3 if key else sqlite3).connect(bare, isolation_level=None)
    for statement in [*Cipher(hmac=name).pragmas(key), "PRAGMA synchronous = OFF", *statements]:
        connection.execute(statement)
    return connection


def write_database(path, device, statements, logged=()):
    """Write a database with the `statements`, and a log beside it with those of `logged`."""
    header, bare = DEVICES[device][2], path.with_suffix(".bare")
    with closing(run_statements(bare, device, statements)) as connection:
        for statement in ["PRAGMA journal_mode = WAL", *logged] if logged else ():
            connection.execute(statement)
        path.write_bytes((build_header(header) if header else b"") + bare.read_bytes())
        if logged:
            shutil.copy(f"{bare}-wal", f"{path}-wal")
    return path


def test_only_the_documented_tables_are_written(source, tmp_path):
    before = {path.name: path.read_bytes() for path in source.parent.iterdir()}
    out = tmp_path / "out"
    assert_decrypted(decrypt(source, out), out)
    companions = {"group_list": 2, "group_member3": 16, "profile_info_v6": 8}
    tables = {"group_msg_table": MESSAGES, "nt_uid_mapping_table": 8, **companions}
    assert receipt(out)["tables"] == tables
    assert receipt(out)["companions_left_out"] == {}
    assert {name for (name,) in query(out / "nt_msg.db", "SELECT name FROM sqlite_master")} == set(tables) | {
        name for (name,) in query(out / "nt_msg.db", "SELECT name FROM sqlite_master WHERE type = 'index'")
    }
    plain = (out / "nt_msg.db").read_bytes()
    assert "私聊".encode() not in plain
    assert "公告".encode() not in plain
    assert sorted(path.name for path in out.iterdir()) == ["nt_msg.db", "receipt.json"]
    assert {path.name: path.read_bytes() for path in source.parent.iterdir()} == before
    assert KEY not in (out / "receipt.json").read_text()


@pytest.mark.parametrize("content", [KEY, KEY + "\n", KEY + "\r\n", "\ufeff" + KEY, "\ufeff" + KEY + "\r\n"])
def test_a_key_file_may_have_a_bom_and_a_line_end(source, tmp_path, content):
    source.with_name("key.txt").write_bytes(content.encode())
    assert_decrypted(decrypt(source, tmp_path / "out"), tmp_path / "out")


def test_the_key_in_the_environment_takes_precedence(source, tmp_path):
    source.with_name("key.txt").write_text("not the key at all")
    assert_decrypted(decrypt(source, tmp_path / "out", env={"QQ_DB_KEY": KEY}), tmp_path / "out")


@pytest.mark.parametrize("device", ["Windows", "Linux", "Android"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("form", ["passphrase", "raw", "raw with salt"])
def test_every_hmac_and_form_of_key(tmp_path, device, header, form):
    key, name, _ = DEVICES[device]
    path = write_database(tmp_path / "nt_msg.db", device, [ORDINARY, FILL])
    salt = stripped(path)[:16]
    if not header:
        path.write_bytes(stripped(path))
    if form.startswith("raw"):
        key = encryption_key(key, salt).hex() + (salt.hex() if form == "raw with salt" else "")
    assert detect(path, key) == Cipher(HEADER_SIZE if header else 0, name)
    assert_decrypted(decrypt(path, tmp_path / "out", env={"QQ_DB_KEY": key}), tmp_path / "out", 360)


def test_the_newest_messages_are_read_from_the_write_ahead_log(tmp_path):
    source = write_database(tmp_path / "raw.db", "Linux", [ORDINARY, FILL], [DELETE])
    before, wal = {path: path.read_bytes() for path in tmp_path.iterdir()}, f"{source}-wal"
    assert_decrypted(decrypt(source, tmp_path / "out", env={"QQ_DB_KEY": KEY}), tmp_path / "out", 80)
    assert wal in receipt(tmp_path / "out")["inputs"]
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_link_leads_to_the_file_and_to_what_lies_beside_it(sample, tmp_path):
    real, link = tmp_path / "Tencent Files/nt_db", tmp_path / "raw"
    shutil.copytree(sample, real)
    link.mkdir()
    (link / "nt_msg.db").symlink_to(real / "nt_msg.db")
    shutil.copy(real / "key.txt", link)
    (link / "group_info.db").touch()  # not beside the file
    assert_decrypted(decrypt(link / "nt_msg.db", tmp_path / "out"), tmp_path / "out")
    assert {"group_member3", "profile_info_v6"} < set(receipt(tmp_path / "out")["tables"])
    (real / "nt_msg.db-journal").write_text("unfinished")
    done = decrypt(link / "nt_msg.db", tmp_path / "other")
    assert done.stderr.startswith(f"decrypt.py: {real / 'nt_msg.db-journal'}: QQ was writing when this was copied")


@pytest.mark.parametrize("linked", [True, False])
def test_the_log_of_a_renamed_database_is_named(tmp_path, linked):
    source = write_database(tmp_path / "nt_msg.db", "Linux", [ORDINARY, FILL], [DELETE]).rename(tmp_path / "mychat.db")
    wal, given = tmp_path / "nt_msg.db-wal", source
    if linked:  # the log has the name of the link, not of the file
        (tmp_path / "raw").mkdir()
        wal = wal.rename(tmp_path / "raw/nt_msg.db-wal")
        given = tmp_path / "raw/nt_msg.db"
        given.symlink_to(source)
    done = decrypt(given, tmp_path / "out", env={"QQ_DB_KEY": KEY})
    assert_decrypted(done, tmp_path / "out", 360)
    used = f"{source}-wal"
    assert done.stdout.startswith(f"decrypt: {wal}: not used; if it is the log of mychat.db, its name must be {used}\n")
    wal.rename(used)
    assert_decrypted(decrypt(given, tmp_path / "out", env={"QQ_DB_KEY": KEY}), tmp_path / "out", 80)


def test_companion_databases_that_do_not_open_are_left_out(source, tmp_path):
    other = write_database(source.with_name("group_info.db"), "Android", ["CREATE TABLE group_list (a)"])
    source.with_name("profile_info.db").unlink()
    done = decrypt(source, tmp_path / "out")
    assert_decrypted(done, tmp_path / "out")
    why = f"{other}: wrong key; get it again for the account this file belongs to"
    assert done.stdout.startswith(f"decrypt: group_info.db left out: {why}\n")
    assert receipt(tmp_path / "out")["companions_left_out"] == {"group_info.db": why}
    assert receipt(tmp_path / "out")["tables"] == {"group_msg_table": MESSAGES, "nt_uid_mapping_table": 8}


def link_to_itself(path):
    path.symlink_to(path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, link_to_itself])
def test_what_is_no_ordinary_file_is_refused_or_left_out(source, tmp_path, make):
    log, companion = source.with_name("nt_msg.db-wal"), source.with_name("group_info.db")
    companion.unlink()
    make(log), make(companion)
    done = decrypt(source, tmp_path / "out")
    assert_decrypted(done, tmp_path / "out")
    assert f"decrypt: {log}: not an ordinary file; left out\n" in done.stdout
    what = "no such file" if make is link_to_itself else "not an ordinary file"
    assert f"decrypt: group_info.db left out: {companion}: {what}; " in done.stdout
    source.unlink()
    make(source)
    line = f"{source}: {what}; put your nt_msg.db there, or name another file with SOURCE="
    assert_refused(decrypt(source, tmp_path / "new"), tmp_path / "new", line)


def test_a_database_leaves_no_file_open(source, tmp_path):
    shutil.copy(source, source.with_name("nt_msg.db-wal"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert_decrypted(decrypt(source, tmp_path / "out"), tmp_path / "out")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_companion_databases_can_be_switched_off(source, tmp_path):
    config = tmp_path / "decrypt.yaml"
    config.write_text("companions: false\n")
    assert_decrypted(decrypt(source, tmp_path / "out", config=config), tmp_path / "out")
    assert list(receipt(tmp_path / "out")["tables"]) == ["group_msg_table", "nt_uid_mapping_table"]


def test_without_a_key_file_the_key_is_asked_for(source, tmp_path):
    done = run_script("decrypt", source, "--config", "config/decrypt.yaml", "--out", tmp_path / "out")
    line = "--key: no such file; write the key of the database there, or set QQ_DB_KEY"
    assert_refused(done, tmp_path / "out", line)


def stripped(source):
    return source.read_bytes()[HEADER_SIZE:]


AGAIN = "copy it again with QQ closed"
SALVAGE = "set `salvage: always` in config/decrypt.yaml to take what is there"
PARTIAL = f"truncated: 5 of 53 pages are there; {AGAIN}, or {SALVAGE}"
NO_KEY_THERE = "write the key of the database there"
REFUSED = {  # {what: (the content of nt_msg.db, of key.txt, the line)}; None: no such file, ...: as it was
    "no database": (None, ..., "nt_msg.db: no such file; put your nt_msg.db there, or name another file with SOURCE="),
    "no key file": (..., None, f"key.txt: no such file; {NO_KEY_THERE}, or set QQ_DB_KEY"),
    "an empty key file": (..., b"", f"key.txt: no key in it; {NO_KEY_THERE}"),
    "a key file with a line end": (..., b"\xef\xbb\xbf\r\n", f"key.txt: no key in it; {NO_KEY_THERE}"),
    "a key file with a zero byte": (..., b"a\0b", f"key.txt: a zero byte in it; {NO_KEY_THERE}"),
    "a key file in UTF-16": (
        *(..., "\ufeffkey".encode("utf-16-le")),
        "key.txt: the key is not UTF-8 text; save it as plain text with nothing but the key",
    ),
    "a wrong key": (..., b"K" * 16, "nt_msg.db: wrong key; get it again for the account this file belongs to"),
    "an unknown HMAC": (
        *(lambda source: build_header(Header(hmac=b"HMAC_SHA3")) + stripped(source), b"K" * 16),
        "nt_msg.db: wrong key, or a newer QQ: its header names HMAC_SHA3, which is not known here",
    ),
    "an empty file": (b"", ..., f"nt_msg.db: is empty; {AGAIN}"),
    "another kind of file": (b"hello", ..., "nt_msg.db: not a QQNT database; give the nt_msg.db of your account"),
    "zeros": (bytes(8192), ..., "nt_msg.db: not a QQNT database, or the key is wrong for it"),
    "900 bytes": (900, ..., f"nt_msg.db: truncated, only 900 bytes; {AGAIN}"),
    "a header": (HEADER_SIZE, ..., f"nt_msg.db: truncated, only 1,024 bytes; {AGAIN}"),
    "five pages": (HEADER_SIZE + 4096 * 5, ..., f"nt_msg.db: {PARTIAL}"),
    "half a page": (HEADER_SIZE + 4096 * 5 + 17, ..., f"nt_msg.db: {PARTIAL}"),
    "a damaged first page": (
        *(lambda source: source.read_bytes()[:2000] + b"?" + source.read_bytes()[2001:], ...),
        f"nt_msg.db: the key is right, but page 1, which says where everything is, is damaged; {AGAIN}",
    ),
    "another database": (
        *(lambda source: source.with_name("group_info.db").read_bytes(), ...),
        "nt_msg.db: no group_msg_table in it; give the nt_msg.db of the account",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_decrypted_is_one_line(source, tmp_path, what):
    database, key, line = REFUSED[what]
    for path, change in ((source, database), (source.with_name("key.txt"), key)):
        if change is None:
            path.unlink()
        elif change is not ...:
            content = (
                change(path) if callable(change) else path.read_bytes()[:change] if isinstance(change, int) else change
            )
            path.write_bytes(content)
    assert_refused(decrypt(source, tmp_path / "out"), tmp_path / "out", f"{source.parent}/{line}")


def test_a_database_of_which_no_message_is_left_is_called_damaged(tmp_path):
    source = tmp_path / "nt_msg.db"
    with closing(sqlite3.connect(source)) as connection:
        connection.execute(ORDINARY)
        connection.execute("INSERT INTO group_msg_table VALUES (1, 2, 3, NULL)")
        connection.commit()
        [(root,)] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'group_msg_table'")
    content = bytearray(source.read_bytes())
    content[(root - 1) * 4096 : root * 4096] = b"?" * 4096
    source.write_bytes(content)
    line = f"{source}: no message in it can be read, it is damaged; {AGAIN}"
    assert_refused(decrypt(source, tmp_path / "out"), tmp_path / "out", line)


def test_a_rollback_journal_next_to_the_database_is_refused(source, tmp_path):
    journal = source.with_name("nt_msg.db-journal")
    journal.write_bytes(b"")
    assert_decrypted(decrypt(source, tmp_path / "out"), tmp_path / "out")
    journal.write_bytes(b"x")
    done = decrypt(source, tmp_path / "other")
    line = f"{journal}: QQ was writing when this was copied; copy again with QQ closed, or delete that file"
    assert_refused(done, tmp_path / "other", line)


# ---- both ways of reading, and what is no ordinary table


def read_both_ways(path, device):
    """Return what SQLCipher reads and what is read page by page."""
    key, names = DEVICES[device][0], ["group_msg_table", "nt_uid_mapping_table"]
    cipher, copied, salvaged = detect(path, key), path.with_name("copied.db"), path.with_name("salvaged.db")
    with Progress("test", None, "B") as progress:
        taken = [
            take_tables(path, cipher, key, names, copied, progress, pytest.fail)[0],
            salvage(Pages(path, cipher, key), path, names, salvaged, progress, pytest.fail),
        ]
    results = [content(copied), content(salvaged)]
    for tables, result in zip(taken, results, strict=True):
        assert not any(table.is_damaged for table in tables.values())
        assert {name: table.rows for name, table in tables.items()} == {name: len(result[name]) for name in result}
    return results


@pytest.mark.parametrize(
    ("device", "page", "what"),
    [*product(DEVICES, [4096], SOUND), *product(["plain"], [1024, 8192, 65536], ["auto-vacuum", "a name in capitals"])],
)
@pytest.mark.parametrize("logged", [(), LOGGED])
def test_both_ways_give_the_same_rows(tmp_path, capsys, what, device, page, logged):
    statements = [f"PRAGMA page_size = {page}", *SOUND[what]]
    path = write_database(tmp_path / "nt_msg.db", device, statements, logged)
    copied, salvaged = read_both_ways(path, device)
    assert copied == salvaged
    assert capsys.readouterr().out == ""  # SQLCipher read it to its end
    with closing(run_statements(path.with_suffix(".bare"), device, [])) as connection:
        rows = connection.execute("SELECT rowid, * FROM group_msg_table").fetchall()
    assert [row[: len(rows[0])] for row in copied["group_msg_table"]] == rows


UNUSUAL = "group_msg_table is not stored like an ordinary table"


@pytest.mark.parametrize(
    ("statement", "line"),
    [
        ("CREATE VIEW group_msg_table AS SELECT 1 AS [40001]", f"{UNUSUAL} (a view)"),
        ("CREATE TABLE group_msg_table ([40001] PRIMARY KEY) WITHOUT ROWID", f"{UNUSUAL} (no such column: rowid)"),
        ("CREATE VIRTUAL TABLE group_msg_table USING fts5 ([40001])", f"{UNUSUAL} (not authorized)"),
        (ORDINARY, "no group messages in it; is it the account, and the device, that has them?"),
    ],
)
def test_no_ordinary_table_or_one_without_messages_is_refused(tmp_path, statement, line):
    path = write_database(tmp_path / "nt_msg.db", "plain", [statement])
    assert_refused(decrypt(path, tmp_path / "out"), tmp_path / "out", f"{path}: {line}")


def test_a_damaged_name_that_holds_another_is_one_column():
    sql = "CREATE TABLE group_msg_table ([40001] INTEGER PRIMARY KEY, [40010_ INTEGER, [40050] INTEGER)"
    table = plain_tables([("table", "group_msg_table", sql)], ["group_msg_table"], Path("nt_msg.db"))["group_msg_table"]
    assert table.columns == ["40001", "40010_ INTEGER, [40050"]


SIZE, BLOB = 29170, "zeroblob(29170)"  # little of it is in the leaf
FOREVER = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n"
PIECE = f"{UNUSUAL} (a name or a type in it is a piece of SQL)"


@pytest.mark.parametrize(
    ("statement", "line"),
    [
        ("VACUUM INTO '{victim}'", f"{UNUSUAL} (authorization denied)"),
        ("ATTACH '{victim}' AS x", f"{UNUSUAL} (not authorized)"),
        (f"CREATE TABLE group_msg_table AS {FOREVER}", f"{UNUSUAL} (not authorized)"),
        ("CREATE TABLE group_msg_table (a, b AS (a + 1))", f"{UNUSUAL} (a column in it is computed)"),
        ("CREATE TABLE group_msg_table ('a] INTEGER, [b')", PIECE),
        ("CREATE TABLE group_msg_table (a 'INTEGER PRIMARY KEY')", PIECE),
        ("CREATE TABLE group_msg_table (a 'INTEGER DEFAULT 7')", PIECE),
        (f"CREATE TABLE group_msg_table ('a], ({FOREVER}) AS [b')", f'{UNUSUAL} (near "(": syntax error)'),
        (
            "CREATE TABLE group_msg_table (a, b 'AS (zeroblob(a))')",
            f"{UNUSUAL} (not authorized to use function: zeroblob)",
        ),
    ],
)
def test_nothing_in_the_schema_is_executed(tmp_path, statement, line):
    path, victim = write_database(tmp_path / "nt_msg.db", "plain", [ORDINARY]), tmp_path / "victim"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = ?", (statement.replace("{victim}", str(victim)),))
    assert_refused(decrypt(path, tmp_path / "out"), tmp_path / "out", f"{path}: {line}")
    assert not victim.exists()


KILLED = """
import os, sys, threading
import huiyin.qqnt.extract
from huiyin.common.errors import run
from huiyin.common.progress import Progress
from scripts.decrypt import main

moment = threading.Event()

def wait():
    moment.wait()
    os.kill(os.getpid(), number)

def count(self, count):
    global left
    left -= 1
    if not left:
        moment.set()  # the other thread goes on when this one is inside a call, be it of SQLite

Progress.add = count
threading.Thread(target=wait, daemon=True).start()
huiyin.qqnt.extract.COPIED_AT_ONCE = 1 << 14
huiyin.qqnt.extract.STEPS_BETWEEN_CALLS = 1000
number, left = int(sys.argv.pop(1)), int(sys.argv.pop(1))
run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("moment", [3, 30])  # while copying, while decrypting
def test_a_killed_run_leaves_no_copy(source, tmp_path, number, moment):
    out, expected = tmp_path / "out", tmp_path / "expected"
    arguments = [source, "--key", source.with_name("key.txt"), "--config", "config/decrypt.yaml", "--out", out]
    command = [sys.executable, "-c", KILLED, int(number), moment, *arguments]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=CLEAN, capture_output=True, text=True)
    assert done.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}[number]
    assert done.stderr.count("\n") == (number != signal.SIGKILL)
    left = {path.name for path in out.glob("*")}  # the folder may be gone
    assert left <= ({".copy.part", ".nt_msg.db.part"} if number == signal.SIGKILL else set())
    assert_decrypted(decrypt(source, out), out)
    assert {path.name for path in out.iterdir()} == {"nt_msg.db", "receipt.json"}
    decrypt(source, expected)
    assert (out / "nt_msg.db").read_bytes() == (expected / "nt_msg.db").read_bytes()


# ---- damage: rows on sound pages are kept, the others are counted


def rows_by_page(source):
    """Return ({row: the pages it is on}, its tree, the number of pages), read with huiyin's own reader of pages."""
    pages = Pages(source, detect(source, KEY), KEY)
    roots = {name: root for _, name, _, root, _ in read_schema(pages, source)}
    tree = walk(pages, roots["group_msg_table"])
    pages_of = {}
    for number in tree.leaves.tolist():
        for cell in leaf_cells(pages, number, pages.read([number])[0][0]):
            pages_of[cell.rowid] = {number}
            overflow, left = cell.overflow, cell.payload
            while left > 0:
                pages_of[cell.rowid].add(overflow)
                overflow, left = four(pages.read([overflow])[0][0], 0), left - pages.usable + 4
    return pages_of, tree, pages.count


def damage(path, numbers):
    content = bytearray(path.read_bytes())
    for number in numbers:
        content[HEADER_SIZE + (number - 1) * 4096 + 1234] ^= 0x55
    path.write_bytes(content)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A history with rows larger than a page, and so many that the table has inner pages over inner pages."""
    fill = f"{ROWS.replace('360', '1799')} SELECT n << 33, 2, n, randomblob(iif(n % 50, 900, 12000)) FROM s"
    private = [statement.replace("group_msg_table", "c2c_msg_table") for statement in (ORDINARY, fill)]
    index = "CREATE INDEX by_time ON group_msg_table ([40050])"
    delete = "DELETE FROM group_msg_table WHERE [40050] % 97 < 9"  # stale pages remain
    statements = ["BEGIN", ORDINARY, fill, *private, index, delete, "COMMIT"]
    return write_database(tmp_path_factory.mktemp("large") / "nt_msg.db", "Linux", statements)


@pytest.mark.parametrize("seed", range(6))
def test_every_row_on_a_sound_page_is_kept(large, tmp_path, seed):
    rows, tree, count = rows_by_page(large)
    assert count > 400 and len(tree.inner) > 2
    rng = random.Random(seed)
    bad = {*rng.sample(range(2, count + 1), 4), *(rng.sample(tree.inner, 1) if seed % 2 else ())}
    path, out = Path(shutil.copy(large, tmp_path)), tmp_path / "out"
    damage(path, bad)
    done = decrypt(path, out, env={"QQ_DB_KEY": KEY})
    assert (done.returncode, done.stderr) == (0, "")
    sound = {row for row, pages in rows.items() if not pages & bad}
    assert {row for (row,) in query(out / "nt_msg.db", "SELECT [40001] FROM group_msg_table")} == sound
    assert query(out / "nt_msg.db", "PRAGMA integrity_check") == [("ok",)]
    lost = len(rows) - len(sound)
    dropped = {"damaged": lost} if lost else {}
    assert receipt(out)["ledger"] == {"read": len(rows), "written": len(sound), "dropped": dropped}


def test_a_row_that_is_lost_alone_is_counted_without_an_index(tmp_path):
    path, out = write_database(tmp_path / "nt_msg.db", "Linux", [ORDINARY, FILL]), tmp_path / "out"
    rows, tree, _ = rows_by_page(path)
    row = next(row for row, pages in rows.items() if pages - set(tree.leaves.tolist()))
    [page] = rows[row] - set(tree.leaves.tolist())
    damage(path, [page])
    assert decrypt(path, out, env={"QQ_DB_KEY": KEY}).returncode == 0
    assert receipt(out)["ledger"] == {"read": 360, "written": 359, "dropped": {"damaged": 1}}
    assert receipt(out)["damage"]["group_msg_table"] == {"pages": [page], "rows": 1}
    assert query(out / "nt_msg.db", f"SELECT count(*) FROM group_msg_table WHERE [40001] = {row}") == [(0,)]


@pytest.mark.parametrize("space", [10**12, 0], ids=["copied", "page by page"])
@pytest.mark.parametrize("what", ["a circle", "those of another row", "more than there are"])
def test_wrong_overflow_pages_lose_their_row_alone(tmp_path, monkeypatch, what, space):
    statements = [ORDINARY, *(f"INSERT INTO group_msg_table VALUES ({row}, 2, {row}, {BLOB})" for row in (1, 2, 3))]
    path, out = write_database(tmp_path / "nt_msg.db", "plain", statements), tmp_path / "out"
    pages = Pages(path, Cipher(), None)
    leaf = read_schema(pages, path)[0][3]
    first, second, _ = leaf_cells(pages, leaf, pages.read([leaf])[0][0])
    data = bytearray(path.read_bytes())
    size = varint(data, (leaf - 1) * pages.size + second.start)[0] + 128 * (pages.size - 4)  # as much is in the leaf
    places = {
        "a circle": ((second.overflow - 1) * pages.size, second.overflow.to_bytes(4, "big")),
        "those of another row": ((leaf - 1) * pages.size + second.stop - 4, first.overflow.to_bytes(4, "big")),
        "more than there are": (
            (leaf - 1) * pages.size + second.start,
            bytes([size >> 14 | 128, size >> 7 & 127 | 128]),
        ),
    }
    offset, written = places[what]
    data[offset : offset + len(written)] = written
    path.write_bytes(data)
    usage = Usage(free=space or path.stat().st_size * 3 // 2 + KEEP_FREE)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    done = decrypt(path, out)
    assert (done.returncode, done.stderr) == (0, "")
    assert query(out / "nt_msg.db", "SELECT [40001], length([40800]) FROM group_msg_table") == [(1, SIZE), (3, SIZE)]
    assert receipt(out)["ledger"] == {"read": 3, "written": 2, "dropped": {"damaged": 1}}


def test_the_lost_rows_are_reported_with_their_time(source, tmp_path):
    rows, tree, _ = rows_by_page(source)
    bad = tree.leaves[3:5].tolist()
    damage(source, bad)
    done, out = decrypt(source, tmp_path / "out"), tmp_path / "out"
    lost = sum(pages <= set(bad) for pages in rows.values())
    kept = query(out / "nt_msg.db", "SELECT [40001] FROM group_msg_table")
    assert lost == MESSAGES - len(kept) > 0
    ids = sorted(rows)
    first = next(index for index, row in enumerate(ids) if rows[row] <= set(bad))
    times = dict(query(out / "nt_msg.db", "SELECT [40001], [40050] FROM group_msg_table"))
    edges = [datetime.fromtimestamp(times[ids[index]], UTC) for index in (first - 1, first + lost)]
    span = [edge.strftime("%Y-%m-%dT%H:%M:%SZ") for edge in edges]
    assert f"decrypt: {source}: 2 damaged pages ({min(bad)}, {max(bad)}); taking what is sound\n" in done.stdout
    assert (
        f"decrypt: DAMAGED: {source}: 2 pages could not be read; lost are about {lost} rows of group_msg_table, "
        f"sent between {span[0]} and {span[1]}\n"
    ) in done.stdout
    assert receipt(out)["damage"] == {"group_msg_table": {"pages": sorted(bad), "rows": lost}, "spans": [span]}
    assert receipt(out)["ledger"] == {"read": MESSAGES, "written": MESSAGES - lost, "dropped": {"damaged": lost}}


def test_salvage_never_refuses_and_always_takes_a_truncated_copy(source, tmp_path):
    _, tree, count = rows_by_page(source)
    config, bad, out = tmp_path / "decrypt.yaml", int(tree.leaves[3]), tmp_path / "out"
    whole = source.read_bytes()
    damage(source, [bad])
    config.write_text("salvage: never\n")
    problem = f"{source}: 1 damaged pages ({bad})"
    line = f"{problem}; copy it again with QQ closed, or set `salvage: auto` in {config} to take what is sound"
    assert_refused(decrypt(source, out, config=config), out, line)
    config.write_text("salvage: always\n")
    source.write_bytes(whole[: HEADER_SIZE + 4096 * (count - 30)])
    done = decrypt(source, out, config=config)
    assert (done.returncode, done.stderr) == (0, "")
    ledger = receipt(out)["ledger"]
    assert 0 < ledger["written"] < ledger["read"]
    assert query(out / "nt_msg.db", "SELECT count(*) FROM group_msg_table") == [(ledger["written"],)]


# ---- the disk and other programs


@pytest.mark.parametrize("step", ["extract.copied", "extract.copy_tables", "extract.salvage"])
def test_a_full_disk_is_one_line(source, tmp_path, monkeypatch, step):
    out, real = tmp_path / "out", operator.attrgetter(step)(huiyin.qqnt)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def without_space(*arguments):  # a limit on the size of files has the effect of a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, limits[1]))
        return real(*arguments)

    monkeypatch.setattr(f"huiyin.qqnt.{step}", without_space)
    if step == "extract.salvage":
        damage(source, rows_by_page(source)[1].leaves[3:4].tolist())
    try:
        done = decrypt(source, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_refused(done, out, f"{out}: no space left; free some and start again")


def test_without_space_for_a_copy_it_is_read_page_by_page(source, tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    assert_decrypted(decrypt(source, first), first)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(free=source.stat().st_size * 3 // 2 + KEEP_FREE))
    done = decrypt(source, second)
    assert_decrypted(done, second)
    assert done.stdout.startswith(
        f"decrypt: {second}: no space for a copy of {source}; reading it page by page, slower\n"
    )
    assert content(second / "nt_msg.db") == content(first / "nt_msg.db")


def test_too_little_space_is_reported_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(free=3 << 20))
    target = tmp_path / "plain.db"
    with pytest.raises(UserError) as caught:
        check_space(target, 40 << 20)
    assert str(caught.value) == f"{tmp_path}: 56 MiB are needed there, 3 MiB are free; free some"
    check_space(target, -(14 << 20))


@pytest.mark.parametrize("closed", ["nt_msg.db", "key.txt"])
def test_a_file_without_permission_is_one_line(source, tmp_path, closed):
    out, path, user = tmp_path / "out", source.with_name(closed), os.geteuid()
    assert decrypt(source, tmp_path / "first").returncode == 0  # loads modules that another user may not read
    for other in source.parent.iterdir():
        other.chmod(0o644)
    path.chmod(0)
    for folder in (tmp_path, source.parent, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o777)
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        done = decrypt(source, out)
    finally:
        os.seteuid(user)
    assert_refused(done, out, f"{path}: permission denied; make it readable and writable for you")


def test_a_database_that_changes_while_it_is_read_is_refused(source, tmp_path, monkeypatch):
    states = iter(["before", "after"])
    monkeypatch.setattr("huiyin.common.stage.state", lambda path: next(states))
    line = f"{source}: was written to while it was read; close the program that writes it and start again"
    assert_refused(decrypt(source, tmp_path / "out"), tmp_path / "out", line)


@pytest.mark.parametrize("sound", [True, False])
def test_a_log_of_another_database_is_left_out(source, tmp_path, sound):
    other = write_database(tmp_path / "other.db", "Android", [ORDINARY], [FILL])
    wal = source.with_name("nt_msg.db-wal")
    wal.write_bytes(Path(f"{other}-wal").read_bytes() if sound else bytes(5000))
    done = decrypt(source, tmp_path / "out")
    assert_decrypted(done, tmp_path / "out")
    assert f"decrypt: {wal}: nothing in it that belongs to nt_msg.db; left out\n" in done.stdout


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_raises_anything_but_a_user_error(sample, plain_sample, tmp_path, data):
    content = bytearray(data.draw(st.sampled_from([sample / "nt_msg.db", plain_sample])).read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        offset = data.draw(st.integers(0, 6000) | st.integers(0, len(content) - 1))
        content[offset] ^= data.draw(st.integers(1, 255))
    end = data.draw(st.none() | st.integers(0, 9000) | st.integers(0, len(content)))
    key = data.draw(st.just(KEY) | st.text(max_size=3) | st.from_regex(r"[0-9a-f]{64}", fullmatch=True))
    path, target = tmp_path / "nt_msg.db", tmp_path / "plain.db"
    path.write_bytes(content[:end])
    target.unlink(missing_ok=True)
    with contextlib.suppress(UserError), Progress("test", None, "B") as progress:
        take_tables(path, detect(path, key), key, ["group_msg_table"], target, progress, lambda *_, **__: None)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80) | st.text(max_size=40).map(str.encode))
def test_no_key_file_raises_anything_but_a_user_error(tmp_path, content):
    path = tmp_path / "key.txt"
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        key = read_key(path, path).encode()
        assert content in [bom + key + end for bom in (b"", b"\xef\xbb\xbf") for end in (b"", b"\n", b"\r\n")]
