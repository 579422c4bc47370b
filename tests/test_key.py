"""The key of a database in the forms that people write: tried, or what is odd about it is named."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlcipher3

from helpers import run_script
from huiyin.common.errors import UserError
from huiyin.qqnt.cipher import Cipher, build_header, encryption_key
from huiyin.qqnt.key import LONGEST, working_key
from huiyin.qqnt.qqnt_pb2 import Header

WINDOWS, ANDROID = "q'7#Zk \"x0;M%=\\8", "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
BYTES = [f"{byte:02x}" for byte in WINDOWS.encode()]
FORMS = {  # {what is written: what is done to it}
    WINDOWS: "",
    WINDOWS + " ": "without the blanks at its ends",
    WINDOWS + "\r\n\r\n": "without the blanks at its ends",
    "\t" + WINDOWS + "\r": "without the blanks at its ends",
    WINDOWS + "\u00a0": "without the blanks at its ends",
    "\u200b" + WINDOWS + "\u200b": "without the blanks at its ends",
    f'"{WINDOWS}"': "without its quotes",
    f"‘{WINDOWS}’": "without its quotes",
    f"key = '{WINDOWS}'": "without what stands around it, without its quotes",
    f"PRAGMA key = '{WINDOWS.replace(chr(39), chr(39) * 2)}';": "without what stands around it, without its quotes",
    f"{WINDOWS}\n# of my old account": "from one line alone",
    "".join(BYTES).upper(): "read as hexadecimal",
    ", ".join(f"0x{byte}" for byte in BYTES) + ",": "read as hexadecimal",
    "".join(f"\\x{byte}" for byte in BYTES): "read as hexadecimal",
    f"  x'{''.join(BYTES)}'\n": "without the blanks at its ends, read as hexadecimal",
}


def write_database(folder, key):
    """Write an encrypted database with a table of messages; return its path and its salt."""
    bare, path = folder / "bare.db", folder / "nt_msg.db"
    with closing(sqlcipher3.connect(bare, isolation_level=None)) as connection:
        for pragma in Cipher(hmac="SHA1").pragmas(key):
            connection.execute(pragma)
        connection.execute("CREATE TABLE group_msg_table ([40001] INTEGER PRIMARY KEY, [40050] INTEGER, [40800] BLOB)")
        connection.execute("INSERT INTO group_msg_table VALUES (1, 1, x'00')")
    content = bare.read_bytes()
    path.write_bytes(build_header(Header(hmac=b"HMAC_SHA1")) + content)
    return path, content[:16]


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    return write_database(tmp_path_factory.mktemp("windows"), WINDOWS)


@pytest.mark.parametrize("written", FORMS)
def test_a_key_in_another_form_opens_the_database_and_the_form_is_named(windows, written):
    assert working_key(windows[0], written) == (WINDOWS, FORMS[written])


def test_capitals_of_an_android_key_are_read_as_small_letters(tmp_path):
    path, _ = write_database(tmp_path, ANDROID)
    assert working_key(path, ANDROID.upper()) == (ANDROID, "in small letters")


@pytest.mark.parametrize("form", ["x'{}'", "0x{}", "\"x'{}'\"", "{} "])
@pytest.mark.parametrize("with_salt", [True, False])
def test_the_derived_key_may_be_written_as_other_programs_show_it(windows, form, with_salt):
    path, salt = windows
    derived = encryption_key(WINDOWS, salt).hex() + (salt.hex() if with_salt else "")
    assert working_key(path, form.format(derived))[0] == derived
    assert working_key(path, " ".join([derived[at : at + 2] for at in range(0, len(derived), 2)]))[0] == derived


WRONG = "wrong key; get it again for the account this file belongs to"


@pytest.mark.parametrize(
    ("key", "odd"),
    [
        ("0123456789abcdef", ""),
        ("k" * 17, ". This one has 17 characters; QQ's have 16, on Android 32"),
        ("k" * 16 + " \r", ". This one has 18 characters, a blank at an end; QQ's have 16, on Android 32"),
        (
            "'小明'",
            ". This one has 4 characters, quotes around it, characters that are no ASCII; QQ's have 16, on Android 32",
        ),
        (
            "k\n" * LONGEST,
            ". This one has 2,000 characters, a blank at an end, several lines; QQ's have 16, on Android 32",
        ),
    ],
)
def test_of_a_wrong_key_what_is_odd_is_named_and_nothing_is_shown(windows, key, odd):
    with pytest.raises(UserError) as error:
        working_key(windows[0], key)
    assert str(error.value) == f"{windows[0]}: {WRONG}{odd}"


@pytest.mark.parametrize("in_environment", [True, False])
def test_decrypt_says_in_which_form_the_key_was_used(windows, tmp_path, in_environment):
    key = tmp_path / "key.txt"
    key.write_text("another" if in_environment else f'"{WINDOWS}"')
    arguments = windows[0], "--key", key, "--config", "config/decrypt.yaml", "--out", tmp_path / "out"
    done = run_script("decrypt", *arguments, env={"QQ_DB_KEY": f"{WINDOWS}\r"} if in_environment else {})
    how = "without the blanks at its ends" if in_environment else "without its quotes"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == f"decrypt: opened with the key {how}; better write it so"
    assert WINDOWS not in done.stdout + (tmp_path / "out/receipt.json").read_text()
    with closing(sqlite3.connect(tmp_path / "out/nt_msg.db")) as connection:
        assert connection.execute("SELECT count(*) FROM group_msg_table").fetchone() == (1,)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_key_that_is_no_file_or_no_text_is_one_line(windows, tmp_path, make):
    key = tmp_path / "key.txt"
    make(key)
    arguments = windows[0], "--key", key, "--config", "config/decrypt.yaml", "--out", tmp_path / "out"
    line = f"decrypt.py: {key}: not an ordinary file; write the key of the database there, or set QQ_DB_KEY\n"
    assert run_script("decrypt", *arguments).stderr == line
    line = "decrypt.py: QQ_DB_KEY: the key is not UTF-8 text; save it as plain text with nothing but the key\n"
    assert run_script("decrypt", *arguments, env={"QQ_DB_KEY": "\udcff"}).stderr == line


def test_a_file_that_is_no_key_is_not_read_to_its_end(windows, tmp_path):
    key = tmp_path / "key.txt"
    with open(key, "wb") as file:
        file.truncate(1 << 40)  # reading it would take all memory
    arguments = windows[0], "--key", key, "--config", "config/decrypt.yaml", "--out", tmp_path / "out"
    line = f"decrypt.py: {key}: too long for a key; write nothing but the key of the database there\n"
    assert run_script("decrypt", *arguments).stderr == line
