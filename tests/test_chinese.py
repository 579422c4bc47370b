"""What is said in Chinese: help, the tables of members and plan, and the first mistakes that people make."""

import re
import sys

import polars as pl
import pytest
from pynvml import NVML_ERROR_LIBRARY_NOT_FOUND

from cards import RTX_3060, simulate_nvml
from helpers import ROOT, copy_project, make, run_script
from huiyin.common.chinese import CATALOGUE, catalogue, to_chinese
from huiyin.common.errors import UserError
from huiyin.common.terminal import columns, fit, right
from huiyin.forecast.needs import HEADER
from huiyin.llm.ollama import Ollama
from huiyin.training.base import check_disk
from huiyin.training.card import find_card
from scripts.tools.members import COLUMNS, lines

IDEOGRAPH = re.compile("[\u4e00-\u9fff]")
HAN = {"LANG": "zh_CN.UTF-8", "LC_ALL": "", "LC_MESSAGES": ""}


def is_chinese(text):
    return IDEOGRAPH.search(text) is not None


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("chinese"))


# ---- the catalogue


def test_both_lines_of_an_entry_have_the_same_words_left_open():
    entries = [line for line in CATALOGUE.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    english, chinese = entries[::2], entries[1::2]
    assert [sorted(set(re.findall(r"{\w+}", line))) for line in english] == [
        sorted(set(re.findall(r"{\w+}", line))) for line in chinese
    ]
    assert len(set(english)) == len(english) == len(catalogue())
    assert not [line for line in english if is_chinese(line)]


def test_what_is_not_in_the_catalogue_stays_as_it_is():
    for line in ("", "hello", "a; b", "  {path}: odd {}", "x" * 10_000):
        assert to_chinese(line) == line


def test_a_line_within_a_line_is_translated_and_values_stay():
    line = "GPU=7, but the cards here are: 0 ({x}; y); say GPU=none to train on the processor (ANYWAY=yes goes on)"
    assert to_chinese(f"  {line}") == (
        "  GPU=7，但这里的显卡是：0 ({x}; y)；要用处理器训练，请加上 GPU=none（加上 ANYWAY=yes 则照样继续）"
    )


# ---- help and tables


def test_help_is_in_the_language_of_the_locale(project):
    english, chinese = (make(project, "help", env=env).stdout.splitlines() for env in ({"LANG": "C.UTF-8"}, HAN))
    assert len(english) == len(chinese)
    assert [line for line in chinese if not is_chinese(line)] == []
    assert [line for line in english if is_chinese(line)] == []


def test_tables_have_chinese_heads_and_keep_their_columns(monkeypatch):
    monkeypatch.setitem(sys._xoptions, "language", "zh")
    row = {"group_id": "7", "user_id": "2", "nickname": "小梅", "median_length": 3.0, "share_of_text": 1.0}
    counts = ("messages", "turns", "different_turns", "quotes_given", "quotes_received", "active_months")
    table = pl.DataFrame([{**row, **dict.fromkeys(counts, 1), "verdict": "thin"}])
    shown = list(lines(table, {"7": "from QQNT, 1 messages, 0 quotes, 0 of them found, times to the second 100%"}))
    assert all(map(is_chinese, shown))
    head, first = shown[2:4]
    assert columns(head[: head.index("数据")]) == columns(first[: first.index("偏少")])
    assert all(is_chinese(to_chinese(word)) for word in [*COLUMNS, *HEADER] if word != "tokens")


def test_columns_of_a_terminal():
    assert (fit("小梅", 3), fit("小梅", 6), right("小梅", 6)) == ("小 ", "小梅  ", "  小梅")


# ---- the first mistakes

OLD_PYTHON = f"""#!/bin/sh
case $1 in -c) exit 1;; -V) echo Python 3.8; exit;; esac
{sys.executable} "$@"
"""
MAKE = {
    "no history": ["parse"],
    "no member": ["pair"],
    "a member that is no id": ["pair", "TARGET=a/b"],
    "a member that is a folder": ["pair", "TARGET=parsed"],
    "no members": ["each"],
    "a name with blanks": ["parse", "CONFIG=a b"],
    "a name that is taken": ["parse", "CONFIG=raw"],
    "neither docker nor host": ["parse", "RUN_IN=podman"],
    "neither yes nor no": ["plan", "PROBE=maybe"],
    "a path that is an option": ["parse", "SOURCE=-x"],
    "a port that is none": ["web", "PORT=http", "TARGET=1"],
    "an old Python": [".venv/base", "PYTHON=old"],
}


@pytest.mark.parametrize("mistake", MAKE)
def test_mistakes_in_make(project, tmp_path, mistake):
    old = tmp_path / "old"
    old.write_text(OLD_PYTHON)
    old.chmod(0o755)
    words = [word.replace("PYTHON=old", f"PYTHON={old}") for word in MAKE[mistake]]
    run_in = [] if any(word.startswith("RUN_IN") for word in words) else ["RUN_IN=host"]
    if mistake == "an old Python":
        (project / ".venv").rename(project / "kept")
    try:
        said = [make(project, *words, *run_in, env=env).stderr for env in ({"LANG": "C.UTF-8"}, HAN)]
    finally:
        if (project / "kept").is_symlink():
            (project / "kept").rename(project / ".venv")
    assert [is_chinese(line) for line in said] == [False, True], said


def raised(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    return str(error.value)


def parsed(path, name, content, settings=""):
    """Return the line with which parse refuses a file."""
    (path / name).write_bytes(content)
    (path / "parse.yaml").write_text(settings)
    done = run_script("parse", path / name, "--config", path / "parse.yaml", "--out", path / "parsed")
    return done.stderr.removeprefix("parse.py: ").strip()


def decrypted(path, key):
    """Return the line with which decrypt refuses a key."""
    database = path / "nt_msg.db"
    database.write_bytes((b"SQLite header 3\0" + bytes(16) + b"QQ_NT DB").ljust(1024 + 4096 * 4, b"\1"))
    if key is not None:
        (path / "key.txt").write_text(key)
    options = ["--key", path / "key.txt", "--config", ROOT / "config/decrypt.yaml", "--out", path / "decrypted"]
    return run_script("decrypt", database, *options).stderr.removeprefix("decrypt.py: ").strip()


def card(monkeypatch, gpu, *cards, **options):
    simulate_nvml(monkeypatch, *cards, **options)
    return raised(find_card, gpu)


LOCAL = b'{"chatlab":{"version":"0.0.1"},"meta":{"name":"x","platform":"qq","type":"group"}}'
SCRIPTS = {
    "no key": lambda path, _: decrypted(path, None),
    "an empty key": lambda path, _: decrypted(path, "\n"),
    "a wrong key": lambda path, _: decrypted(path, "0123456789abcdef"),
    "an empty file": lambda path, _: parsed(path, "chat.json", b""),
    "a zip": lambda path, _: parsed(path, "chat.json", b"PK\x03\x04"),
    "HTML": lambda path, _: parsed(path, "chat.html", b"<!doctype html>"),
    "some text": lambda path, _: parsed(path, "chat.txt", b"hello\n"),
    "local times": lambda path, _: parsed(
        path,
        "chat.csv",
        "时间,昵称,内容\n2024-05-31 18:05:09,小梅,吃了吗\n2024-05-31 18:06:09,阿宝,没呢\n".encode(),
    ),
    "an unknown setting": lambda path, _: parsed(path, "chat.csv", b"x", "zones: x\n"),
    "no driver": lambda _, patch: card(patch, "0", error=NVML_ERROR_LIBRARY_NOT_FOUND),
    "another card": lambda _, patch: card(patch, "3", RTX_3060),
    "no Ollama": lambda *_: raised(Ollama("http://127.0.0.1:9", "qwen2.5:14b").identity),
    "a full disk": lambda path, _: raised(check_disk, path, 1 << 60, "the base model"),
}


@pytest.mark.parametrize("mistake", SCRIPTS)
def test_mistakes_of_the_scripts(tmp_path, monkeypatch, mistake):
    line = SCRIPTS[mistake](tmp_path, monkeypatch)
    assert line.count("\n") == 0
    assert (is_chinese(line), is_chinese(to_chinese(line))) == (False, True), line


def test_a_script_says_its_mistake_in_chinese(tmp_path, monkeypatch):
    monkeypatch.setitem(sys._xoptions, "language", "zh")
    assert (
        parsed(tmp_path, "chat.json", b"PK\x03\x04")
        == f"{tmp_path}/chat.json：是压缩包或电子表格；压缩包请解压，表格请另存为 CSV"
    )
