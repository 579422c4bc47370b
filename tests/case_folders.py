"""Case folders: tests/cases/<stage>/<behaviour>/ holds input, settings and the expected files.

`make golden` writes the expected files anew; the diff is the review.
"""

import json
import os
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from helpers import ROOT
from huiyin.common import tables
from huiyin.common.tables import schema

CASES = ROOT / "tests/cases"
START = datetime(2024, 1, 1, tzinfo=UTC)  # the times in the cases are seconds from here
MESSAGE, TURN = schema(tables.MESSAGES), schema(tables.TURNS)


def cases(stage):
    folders = sorted((CASES / stage).iterdir())
    assert folders, f"no cases for {stage}"
    return pytest.mark.parametrize("case", folders, ids=[folder.name for folder in folders])


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def to_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def compare(case, found):
    """Compare {file name: text} with the case's folder `expected`, or write it anew."""
    folder = case / "expected"
    if os.environ.get("GOLDEN"):
        folder.mkdir(exist_ok=True)
        for name, text in found.items():
            (folder / name).write_text(text, encoding="utf-8")
    assert found == {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())}


def ledger_of(folder):
    return to_lines([json.loads((folder / "receipt.json").read_text(encoding="utf-8"))["ledger"]])


def messages(rows):
    """The messages of a case: what a row leaves out has a plain value."""
    full = []
    for index, row in enumerate(rows):
        plain = {
            "message_id": index,
            "group_id": "g",
            "seq": index,
            "nickname": f"名{row['user_id']}",
            "kinds": ["text"] * len(row["fragments"]),
            "mentions": [],
            "reply_to": None,
            "reply_dangling": False,
        }
        full.append({**plain, **row, "time": START + timedelta(seconds=row["time"])})
    return pl.DataFrame(full, MESSAGE).sort("group_id", "time", "seq", "message_id")


def turns(rows):
    """The turns of a case, sorted as combine sorts them: group, time."""
    full = []
    for index, row in enumerate(sorted(rows, key=lambda row: (row.get("group_id", "g"), row["time"]))):
        plain = {
            "turn_id": index,
            "group_id": "g",
            "nickname": f"名{row['user_id']}",
            "mentions": [],
            "reply_to_turn": None,
            "quotes_outside": False,
            "seconds_since_previous": 0,
        }
        time = START + timedelta(seconds=row["time"])
        row = {**plain, **row, "time": time, "first_time": time, "last_time": time}
        number = len(row.setdefault("texts", [row["text"]]))
        each = {"message_ids": index, "times": time, "mentioned": row["mentions"]}
        full.append({**{name: [value] * number for name, value in each.items()}, **row})
    return pl.DataFrame(full, TURN)
