"""members: who is there, and of whom there is enough to learn from."""

import json
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from case_folders import MESSAGE
from helpers import run_script

START = datetime(2024, 1, 31, 23, tzinfo=UTC)
ANONYMOUS = "80000000"


def message(index, user, text, group="1", **more):
    return {
        "message_id": index,
        "group_id": group,
        "time": START + timedelta(minutes=2 * index),
        "seq": index,
        "user_id": user,
        "nickname": f"名{user}",
        "fragments": [text] if text else [],
        "kinds": ["text" if text else "image"],
        "mentions": [],
        "reply_to": None,
        "reply_dangling": False,
        **more,
    }


def members(folder, rows):
    """Run combine and members as Make does; return (the rows of members.parquet, the ledger, what was printed)."""
    pl.DataFrame(rows, MESSAGE).sort("group_id", "time").write_parquet(folder / "messages.parquet")
    combined = run_script(
        "combine", folder / "messages.parquet", "--config", "config/combine.yaml", "--out", folder / "combined"
    )
    assert combined.returncode == 0, combined.stderr
    done = run_script(
        "tools/members", folder / "messages.parquet", folder / "combined/turns.parquet", "--out", folder / "members"
    )
    assert done.returncode == 0, done.stderr
    ledger = json.loads((folder / "members/receipt.json").read_text(encoding="utf-8"))["ledger"]
    return pl.read_parquet(folder / "members/members.parquet").to_dicts(), ledger, done.stdout


def test_each_figure(tmp_path):
    rows = [
        message(0, "7", "你好"),
        message(1, "8", "在", reply_to=0),
        message(2, "7", "", reply_to=1),
        message(3, "7", "你好"),
        message(4, "7", "自己引自己", reply_to=3, nickname="新名"),
        message(5, "8", "什么", reply_dangling=True),
        message(6, "", "谁"),
        message(40, "8", "二月了"),
        message(50, "7", "另一个群", group="2"),
        message(51, "7", "你好", group="2"),
    ]
    found, ledger, _ = members(tmp_path, rows)
    first = [row["time"] for row in rows]
    assert found == [
        {
            "group_id": "1",
            "user_id": "7",
            "nickname": "新名",
            "messages": 4,
            "turns": 3,
            "different_turns": 3,
            "quotes_given": 2,
            "quotes_received": 1,
            "active_months": 1,
            "median_length": 2.0,
            "share_of_text": 0.75,
            "first_time": first[0],
            "last_time": first[4],
            "verdict": "too little",
        },
        {
            "group_id": "1",
            "user_id": "8",
            "nickname": "名8",
            "messages": 3,
            "turns": 3,
            "different_turns": 3,
            "quotes_given": 2,
            "quotes_received": 1,
            "active_months": 2,
            "median_length": 2.0,
            "share_of_text": 1.0,
            "first_time": first[1],
            "last_time": first[7],
            "verdict": "too little",
        },
        {
            "group_id": "1",
            "user_id": "",
            "nickname": "名",
            "messages": 1,
            "turns": 1,
            "different_turns": 1,
            "quotes_given": 0,
            "quotes_received": 0,
            "active_months": 1,
            "median_length": 1.0,
            "share_of_text": 1.0,
            "first_time": first[6],
            "last_time": first[6],
            "verdict": "not one person",
        },
        {
            "group_id": "2",
            "user_id": "7",
            "nickname": "名7",
            "messages": 2,
            "turns": 2,
            "different_turns": 3,
            "quotes_given": 0,
            "quotes_received": 0,
            "active_months": 1,
            "median_length": 3.0,
            "share_of_text": 1.0,
            "first_time": first[8],
            "last_time": first[9],
            "verdict": "too little",
        },
    ]
    assert ledger == {"read": 10, "written": 4, "merged": 6, "dropped": {}}


def test_who_never_wrote_a_word_is_there_too(tmp_path):
    found, _, printed = members(tmp_path, [message(0, "7", ""), message(1, "8", "在")])
    assert [(row["user_id"], row["turns"], row["median_length"], row["share_of_text"]) for row in found] == [
        ("8", 1, 1.0, 1.0),
        ("7", 0, None, 0.0),
    ]
    assert "  7              名7" in printed


@pytest.mark.parametrize(
    ("user", "different", "verdict"),
    [
        ("7", 199, "too little"),
        ("7", 200, "thin"),
        ("7", 999, "thin"),
        ("7", 1_000, "enough"),
        ("", 1_000, "not one person"),
        (ANONYMOUS, 1_000, "not one person"),
    ],
)
def test_the_verdict_goes_by_different_turns_in_all_groups(tmp_path, user, different, verdict):
    texts = [str(number) for number in range(different)]
    rows = [message(index, user, text, group=str(1 + index % 2)) for index, text in enumerate(texts * 2 + texts[:1])]
    found, _, _ = members(tmp_path, rows)
    assert [(row["different_turns"], row["verdict"]) for row in found] == [(different, verdict)] * 2


def test_a_crowd_is_cut_on_the_terminal_but_not_in_the_file(tmp_path):
    found, _, printed = members(tmp_path, [message(index, str(100 + index), "在") for index in range(33)])
    assert len(found) == 33
    assert printed.splitlines()[-3] == "  ... and 3 more"


def test_missing_turns(tmp_path):
    pl.DataFrame([], MESSAGE).write_parquet(tmp_path / "messages.parquet")
    done = run_script(
        "tools/members", tmp_path / "messages.parquet", tmp_path / "turns.parquet", "--out", tmp_path / "out"
    )
    assert (done.returncode, done.stderr) == (
        1,
        f"members.py: {tmp_path}/turns.parquet: no such file; `make combine` makes it\n",
    )
