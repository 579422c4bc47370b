"""members: who is there, and of whom there is enough to learn from."""

import polars as pl
import pytest

from case_folders import MESSAGE, cases, compare, ledger_of, messages, read_lines, to_lines
from helpers import run_script
from llm_folder import complaint, succeeded


def members(folder, rows):
    """Run combine and members as Make does; return (the frame of members.parquet, what is printed below the ledger)."""
    file, combined, out = folder / "messages.parquet", folder / "combined", folder / "members"
    messages(rows).write_parquet(file)
    succeeded(run_script("combine", file, "--config", "config/combine.yaml", "--out", combined))
    done = succeeded(run_script("tools/members", file, combined / "turns.parquet", "--out", out))
    return pl.read_parquet(out / "members.parquet"), done.stdout.partition("\n")[2]


@cases("members")
def test_the_figures_of_each_member(case, tmp_path):
    table, printed = members(tmp_path, read_lines(case / "messages.jsonl"))
    figures = to_lines(table.iter_rows(named=True))
    ledger = ledger_of(tmp_path / "members")
    compare(case, {"ledger.json": ledger, "members.jsonl": figures, "printed.txt": printed})


@pytest.mark.parametrize(
    ("user", "different", "verdict"),
    [
        ("7", 199, "too little"),
        ("7", 200, "thin"),
        ("7", 999, "thin"),
        ("7", 1_000, "enough"),
        ("", 1_000, "not one person"),
        ("80000000", 1_000, "not one person"),
    ],
)
def test_the_verdict_goes_by_different_turns_in_all_groups(tmp_path, user, different, verdict):
    texts = [str(number) for number in range(different)]
    rows = [
        {"time": 120 * index, "group_id": str(1 + index % 2), "user_id": user, "fragments": [text]}
        for index, text in enumerate(texts * 2 + texts[:1])
    ]
    table, _ = members(tmp_path, rows)
    assert table.select("different_turns", "verdict").rows() == [(different, verdict)] * 2


def test_a_crowd_is_cut_on_the_terminal_but_not_in_the_file(tmp_path):
    rows = [{"time": number, "user_id": str(100 + number), "fragments": ["在"]} for number in range(33)]
    table, printed = members(tmp_path, rows)
    assert table.height == 33
    assert printed.splitlines()[-3] == "  ... and 3 more"


def test_missing_turns(tmp_path):
    file, turns = tmp_path / "messages.parquet", tmp_path / "turns.parquet"
    pl.DataFrame([], MESSAGE).write_parquet(file)
    done = run_script("tools/members", file, turns, "--out", tmp_path / "out")
    assert complaint(done) == f"members.py: {turns}: no such file; `make combine` makes it"
