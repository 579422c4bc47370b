"""Case folders: tests/cases/<stage>/<behaviour>/ holds input, settings and the expected files.

`make golden` writes the expected files anew; the diff is the review.
"""

import json
import os
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from helpers import ROOT, run_script

CASES = ROOT / "tests/cases"
START = datetime(2024, 1, 1, tzinfo=UTC)  # the times in the cases are seconds from here
MESSAGE = {
    "message_id": pl.Int64, "group_id": pl.String, "time": pl.Datetime("ms", "UTC"), "seq": pl.Int64,
    "user_id": pl.String, "nickname": pl.String, "fragments": pl.List(pl.String), "kinds": pl.List(pl.String),
    "mentions": pl.List(pl.String), "reply_to": pl.Int64, "reply_dangling": pl.Boolean,
}


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
    return json.dumps(json.loads((folder / "receipt.json").read_text(encoding="utf-8"))["ledger"]) + "\n"


def messages(rows):
    """The messages of a case: what a row leaves out has a plain value."""
    full = []
    for place, row in enumerate(rows):
        plain = {"message_id": place, "group_id": "g", "seq": place, "nickname": f"名{row['user_id']}",
                 "kinds": ["text"] * len(row["fragments"]), "mentions": [], "reply_to": None, "reply_dangling": False}
        full.append({**plain, **row, "time": START + timedelta(seconds=row["time"])})
    return pl.DataFrame(full, MESSAGE).sort("group_id", "time", "seq", "message_id")


@cases("combine")
def test_combine(case, tmp_path):
    messages(read_lines(case / "messages.jsonl")).write_parquet(tmp_path / "messages.parquet")
    done = run_script("combine", tmp_path / "messages.parquet", "--config", case / "combine.yaml",
                      "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    turns = pl.read_parquet(tmp_path / "out/turns.parquet")
    found = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "out").glob("turns.*.json")}
    compare(case, dict(sorted({
        **found, "ledger.json": ledger_of(tmp_path / "out"), "turns.jsonl": to_lines(turns.iter_rows(named=True)),
    }.items())))


TURN = {
    "turn_id": pl.Int64, "group_id": pl.String, "user_id": pl.String, "nickname": pl.String,
    **dict.fromkeys(("time", "first_time", "last_time"), pl.Datetime("ms", "UTC")), "text": pl.String,
    "message_ids": pl.List(pl.Int64), "mentions": pl.List(pl.String), "reply_to_turn": pl.Int64,
    "quotes_outside": pl.Boolean, "seconds_since_previous": pl.Int64,
}


def turns(rows):
    """The turns of a case, sorted as combine sorts them: group, time."""
    full = []
    for place, row in enumerate(sorted(rows, key=lambda row: (row.get("group_id", "g"), row["time"]))):
        plain = {"turn_id": place, "group_id": "g", "nickname": f"名{row['user_id']}", "message_ids": [place],
                 "mentions": [], "reply_to_turn": None, "quotes_outside": False, "seconds_since_previous": 0}
        time = START + timedelta(seconds=row["time"])
        full.append({**plain, **row, "time": time, "first_time": time, "last_time": time})
    return pl.DataFrame(full, TURN)


@cases("pair")
def test_pair_without_a_model(case, tmp_path):
    turns(read_lines(case / "turns.jsonl")).write_parquet(tmp_path / "turns.parquet")
    done = run_script("pair", tmp_path / "turns.parquet", "--target", "me", "--config", case / "pair.yaml",
                      "--prompt", "config/prompts/pair.md", "--merge-prompt", "config/prompts/merge.md",
                      "--llm", "config/llm.yaml", "--answers", tmp_path / "answers.db", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    lines = {name: (tmp_path / "out" / name).read_text(encoding="utf-8") for name in ("pairs.jsonl", "unpaired.jsonl")}
    compare(case, {"ledger.json": ledger_of(tmp_path / "out"), **lines})
    assert not (tmp_path / "answers.db").exists()  # nobody was asked
