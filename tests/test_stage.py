"""Stages write whole results or none."""

import json
import os
import time

import pytest

from huiyin.common.errors import UserError
from huiyin.common.stage import Stage, unchanged


def write(folder, names, fail=None):
    with Stage("test", folder) as stage:
        for name in names:
            stage.output(name).write_text(f"{names}")
        stage.ledger.read = stage.ledger.written = len(names)
        if fail:
            raise fail


def files(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_failure_leaves_the_earlier_result_and_no_parts(tmp_path):
    write(tmp_path, ["a", "b"])
    before = files(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, ["a", "c"], KeyboardInterrupt())
    assert files(tmp_path) == before


def test_files_that_are_no_longer_made_go_and_so_do_parts_of_a_killed_run(tmp_path):
    write(tmp_path, ["a", "b"])
    (tmp_path / ".a.part").write_text("half")
    (tmp_path / ".folder.part").mkdir()
    write(tmp_path, ["a", "c"])
    assert set(files(tmp_path)) == {"a", "c", "receipt.json"}


def test_a_stage_whose_numbers_do_not_balance_fails(tmp_path):
    with pytest.raises(AssertionError, match="does not balance"), Stage("test", tmp_path) as stage:
        stage.ledger.read, stage.ledger.written = 3, 1
        stage.ledger.dropped["empty"] = 1
        stage.output("a").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_two_runs_cannot_work_in_one_folder(tmp_path):
    with Stage("test", tmp_path), pytest.raises(UserError, match="another run is at work here"):
        Stage("test", tmp_path).__enter__()
    write(tmp_path, ["a"])  # the lock went with the first


def test_what_is_edited_during_a_run_is_newer_than_its_receipt(tmp_path):
    edited = tmp_path / "settings.yaml"
    with Stage("test", tmp_path / "out"):
        edited.write_text("x")
        os.utime(edited, (time.time(), time.time()))  # the file system's own clock is some milliseconds behind
    assert (tmp_path / "out/receipt.json").stat().st_mtime_ns <= edited.stat().st_mtime_ns


def test_the_receipt_names_what_was_read_and_made(tmp_path):
    (tmp_path / "in").write_text("x")
    with Stage("test", tmp_path / "out", packages=["pyyaml"]) as stage:
        stage.input(tmp_path / "in")
        stage.output("a").write_text("x")
    receipt = json.loads((tmp_path / "out/receipt.json").read_text())
    [digest] = receipt["inputs"].values()
    assert receipt["outputs"] == {"a": digest}
    assert set(receipt["versions"]) == {"python", "pyyaml"}


@pytest.mark.parametrize("change", ["longer", "another file", "a log", "gone"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, change):
    path = tmp_path / "chat.csv"
    path.write_text("before")

    def act():
        if change == "another file":  # of the same size and date
            date = path.stat().st_mtime_ns
            (tmp_path / "new").write_text("behind")
            os.utime((tmp_path / "new").replace(path), ns=(date, date))
        elif change == "gone":
            path.unlink()
        else:
            (path if change == "longer" else tmp_path / "chat.csv-wal").open("a").write("more")

    link = tmp_path / "link.csv"
    link.symlink_to(path)
    with unchanged(link):
        pass
    with (
        pytest.raises(UserError, match=r"link.csv: was written to while it was read; close the program"),
        unchanged(link),
    ):
        act()
