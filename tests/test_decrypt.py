"""decrypt: what leaves the encrypted file, with which key, and what is said where none does."""

import json
import shutil
import sqlite3
from contextlib import closing

import pytest
import sqlcipher3

from helpers import run_script
from qq.cipher import HEADER_SIZE, Cipher, build_header, detect, encryption_key
from qq.qqnt_pb2 import Header
from sample import KEY

MESSAGES = 400


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    assert run_script("sample", "--messages", MESSAGES, "--out", folder).returncode == 0
    return folder


@pytest.fixture
def source(sample, tmp_path):
    """A copy of the sample of one's own, to spoil."""
    return shutil.copytree(sample, tmp_path / "raw") / "nt_msg.db"


def decrypt(source, out, *more, key=None, env=None):
    return run_script("decrypt", source, "--key", key or source.with_name("key.txt"), "--config", "config/decrypt.yaml",
                      "--out", out, *more, env={"QQ_DB_KEY": "", **(env or {})})


def receipt(out):
    return json.loads((out / "receipt.json").read_text())


def query(database, sql):
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(sql).fetchall()


def assert_decrypted(done, out, rows=MESSAGES):
    assert (done.returncode, done.stderr) == (0, "")
    assert receipt(out)["ledger"] == {"read": rows, "written": rows, "dropped": {}}
    assert query(out / "nt_msg.db", "SELECT count(*) FROM group_msg_table") == [(rows,)]


def assert_refused(done, out, line):
    assert (done.returncode, done.stderr) == (1, f"decrypt.py: {line}\n")
    assert not out.exists() or list(out.iterdir()) == []


def write_encrypted(path, key=KEY, name="SHA1", header=True, tables=("group_msg_table",)):
    """Write a database with one row a table, encrypted as asked."""
    bare = path.with_suffix(".bare")
    with closing(sqlcipher3.connect(str(bare), isolation_level=None)) as connection:
        for statement in Cipher(hmac=name).pragmas(key):
            connection.execute(statement)
        for table in tables:
            connection.execute(f"CREATE TABLE {table} ([40001] INTEGER PRIMARY KEY)")
            connection.execute(f"INSERT INTO {table} VALUES (7)")
    start = build_header(Header(hmac=b"HMAC_" + name.encode())) if header else b""
    path.write_bytes(start + bare.read_bytes())
    bare.unlink()
    return path


def test_only_the_tables_of_the_contract_leave(source, tmp_path):
    before = {path.name: path.read_bytes() for path in source.parent.iterdir()}
    out = tmp_path / "out"
    assert_decrypted(decrypt(source, out), out)
    tables = {"group_msg_table": MESSAGES, "nt_uid_mapping_table": 8, "group_list": 2, "group_member3": 16,
              "profile_info_v6": 8}
    assert receipt(out)["tables"] == tables
    assert receipt(out)["companions_left_out"] == {}
    assert {name for (name,) in query(out / "nt_msg.db", "SELECT name FROM sqlite_master")} == set(tables) | {
        name for (name,) in query(out / "nt_msg.db", "SELECT name FROM sqlite_master WHERE type = 'index'")}
    plain = (out / "nt_msg.db").read_bytes()
    assert "私聊".encode() not in plain
    assert "公告".encode() not in plain
    assert sorted(path.name for path in out.iterdir()) == ["nt_msg.db", "receipt.json"]
    assert {path.name: path.read_bytes() for path in source.parent.iterdir()} == before
    assert KEY not in (out / "receipt.json").read_text()


def test_every_value_is_as_it_was(source, tmp_path):
    out = tmp_path / "out"
    decrypt(source, out)
    bare = tmp_path / "bare.db"
    bare.write_bytes(source.read_bytes()[HEADER_SIZE:])
    with closing(sqlcipher3.connect(str(bare))) as connection:
        for statement in Cipher(hmac="SHA1").pragmas(KEY):
            connection.execute(statement)
        rows = connection.execute("SELECT * FROM group_msg_table ORDER BY [40001]").fetchall()
    assert query(out / "nt_msg.db", "SELECT * FROM group_msg_table ORDER BY [40001]") == rows


@pytest.mark.parametrize("content", [KEY, KEY + "\n", KEY + "\r\n", "\ufeff" + KEY, "\ufeff" + KEY + "\r\n"])
def test_a_key_file_may_have_a_bom_and_a_line_end(source, tmp_path, content):
    source.with_name("key.txt").write_bytes(content.encode())
    assert_decrypted(decrypt(source, tmp_path / "out"), tmp_path / "out")


def test_the_key_in_the_environment_wins(source, tmp_path):
    source.with_name("key.txt").write_text("not the key at all")
    assert_decrypted(decrypt(source, tmp_path / "out", env={"QQ_DB_KEY": KEY}), tmp_path / "out")


@pytest.mark.parametrize("name", ["SHA1", "SHA256", "SHA512"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("form", ["passphrase", "32 hex", "raw", "raw with salt"])
def test_every_hmac_and_form_of_key(tmp_path, name, header, form):
    key = "0123456789abcdef" * 2 if form == "32 hex" else KEY
    path = write_encrypted(tmp_path / "nt_msg.db", key, name, header)
    if form.startswith("raw"):
        offset = HEADER_SIZE if header else 0
        salt = path.read_bytes()[offset : offset + 16]
        key = encryption_key(key, salt).hex() + (salt.hex() if form == "raw with salt" else "")
    assert detect(path, key) == Cipher(HEADER_SIZE if header else 0, name)
    done = decrypt(path, tmp_path / "out", env={"QQ_DB_KEY": key})
    assert_decrypted(done, tmp_path / "out", 1)


def test_the_header_may_name_another_hmac(tmp_path):
    path = write_encrypted(tmp_path / "nt_msg.db", name="SHA512", header=False)
    path.write_bytes(build_header(Header(hmac=b"HMAC_SHA1")) + path.read_bytes())
    assert detect(path, KEY) == Cipher(HEADER_SIZE, "SHA512")


def test_a_plain_database_needs_no_key(source, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    decrypt(source, first)
    assert_decrypted(decrypt(first / "nt_msg.db", second, key=tmp_path / "none.txt"), second)
    sql = "SELECT * FROM group_msg_table"
    assert query(second / "nt_msg.db", sql) == query(first / "nt_msg.db", sql)


def test_the_newest_messages_in_the_wal_are_taken_in(source, tmp_path):
    bare = tmp_path / "bare.db"
    bare.write_bytes(source.read_bytes()[HEADER_SIZE:])
    with closing(sqlcipher3.connect(str(bare), isolation_level=None)) as connection:
        for statement in [*Cipher(hmac="SHA1").pragmas(KEY), "PRAGMA journal_mode = WAL"]:
            connection.execute(statement)
        connection.execute("INSERT INTO group_msg_table ([40001]) VALUES (1), (2), (3)")
        source.write_bytes(build_header(Header(hmac=b"HMAC_SHA1")) + bare.read_bytes())
        wal = source.with_name("nt_msg.db-wal")
        wal.write_bytes(bare.with_name("bare.db-wal").read_bytes())
    before = source.read_bytes(), wal.read_bytes()
    assert_decrypted(decrypt(source, tmp_path / "out"), tmp_path / "out", MESSAGES + 3)
    assert (source.read_bytes(), wal.read_bytes()) == before
    assert str(wal) in receipt(tmp_path / "out")["inputs"]
    assert not source.with_name("nt_msg.db-shm").exists()


def test_companions_that_do_not_open_are_left_out(source, tmp_path):
    other = write_encrypted(source.with_name("group_info.db"), "another account's", tables=("group_list",))
    source.with_name("profile_info.db").unlink()
    done = decrypt(source, tmp_path / "out")
    assert_decrypted(done, tmp_path / "out")
    why = f"{other}: wrong key; get it again for the account this file belongs to"
    assert done.stdout.startswith(f"decrypt: group_info.db left out: {why}\n")
    assert receipt(tmp_path / "out")["companions_left_out"] == {"group_info.db": why}
    assert receipt(tmp_path / "out")["tables"] == {"group_msg_table": MESSAGES, "nt_uid_mapping_table": 8}


def test_companions_can_be_declined(source, tmp_path):
    config = tmp_path / "decrypt.yaml"
    config.write_text("companions: false\n")
    done = run_script("decrypt", source, "--key", source.with_name("key.txt"), "--config", config, "--out",
                      tmp_path / "out")
    assert_decrypted(done, tmp_path / "out")
    assert list(receipt(tmp_path / "out")["tables"]) == ["group_msg_table", "nt_uid_mapping_table"]


def test_no_database(tmp_path):
    source = tmp_path / "nt_msg.db"
    line = f"{source}: no such file; put your nt_msg.db there, or name another file with SOURCE="
    assert_refused(decrypt(source, tmp_path / "out"), tmp_path / "out", line)


def test_no_key_file(source, tmp_path):
    key = source.with_name("key.txt")
    key.unlink()
    line = f"{key}: no such file; write the key of the database there, or set QQ_DB_KEY"
    assert_refused(decrypt(source, tmp_path / "out"), tmp_path / "out", line)


def test_no_key_named(source, tmp_path):
    done = run_script("decrypt", source, "--config", "config/decrypt.yaml", "--out", tmp_path / "out",
                      env={"QQ_DB_KEY": ""})
    line = "--key: no such file; write the key of the database there, or set QQ_DB_KEY"
    assert_refused(done, tmp_path / "out", line)


@pytest.mark.parametrize(("content", "what"), [
    (b"", "no key in it; write the key of the database there"),
    (b"\xef\xbb\xbf\r\n", "no key in it; write the key of the database there"),
    (b"a\0b", "a zero byte in it; write the key of the database there"),
    ("\ufeffkey".encode("utf-16-le"), "the key is not UTF-8 text; save it as plain text with nothing but the key"),
])
def test_a_key_file_that_holds_none(source, tmp_path, content, what):
    key = source.with_name("key.txt")
    key.write_bytes(content)
    line = f"{key}: {what}"
    assert_refused(decrypt(source, tmp_path / "out"), tmp_path / "out", line)


def test_the_wrong_key(source, tmp_path):
    done = decrypt(source, tmp_path / "out", env={"QQ_DB_KEY": "0123456789abcdeF"})
    line = f"{source}: wrong key; get it again for the account this file belongs to"
    assert_refused(done, tmp_path / "out", line)
    assert "0123456789abcdeF" not in done.stdout


def test_an_hmac_from_the_future(source, tmp_path):
    source.write_bytes(build_header(Header(hmac=b"HMAC_SHA3")) + source.read_bytes()[HEADER_SIZE:])
    line = f"{source}: wrong key, or a newer QQ: its header names HMAC_SHA3, which is not known here"
    assert_refused(decrypt(source, tmp_path / "out", env={"QQ_DB_KEY": "wrong"}), tmp_path / "out", line)


@pytest.mark.parametrize(("content", "line"), [
    (b"", "is empty; copy it again with QQ closed"),
    (b"hello", "not a QQNT database; give the nt_msg.db of your account"),
    (bytes(8192), "not a QQNT database, or the key is wrong for it"),
])
def test_something_else(source, tmp_path, content, line):
    source.write_bytes(content)
    assert_refused(decrypt(source, tmp_path / "out"), tmp_path / "out", f"{source}: {line}")


@pytest.mark.parametrize(("size", "line"), [
    (900, "truncated, only 900 bytes; copy it again with QQ closed"),
    (1024, "truncated, only 1,024 bytes; copy it again with QQ closed"),
    (1024 + 4096 * 5 + 17, "truncated in the middle of a page; copy it again with QQ closed"),
    (1024 + 4096 * 5, "damaged or cut short (database disk image is malformed); copy it again with QQ closed"),
])
def test_a_truncated_copy(source, tmp_path, size, line):
    source.write_bytes(source.read_bytes()[:size])
    assert_refused(decrypt(source, tmp_path / "out"), tmp_path / "out", f"{source}: {line}")


def test_a_journal_beside_it(source, tmp_path):
    journal = source.with_name("nt_msg.db-journal")
    journal.write_bytes(b"")
    assert_decrypted(decrypt(source, tmp_path / "out"), tmp_path / "out")
    journal.write_bytes(b"x")
    done = decrypt(source, tmp_path / "other")
    line = f"{journal}: QQ was writing when this was copied; copy again with QQ closed, or delete that file"
    assert_refused(done, tmp_path / "other", line)


def test_another_database_of_the_account(source, tmp_path):
    other = source.with_name("group_info.db")
    line = f"{other}: no group_msg_table in it; give the nt_msg.db of the account"
    assert_refused(decrypt(other, tmp_path / "out"), tmp_path / "out", line)


def test_a_failure_leaves_the_earlier_result(source, tmp_path):
    out = tmp_path / "out"
    decrypt(source, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    source.write_bytes(source.read_bytes()[: 1024 + 4096 * 5])
    assert decrypt(source, out).returncode == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
