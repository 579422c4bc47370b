"""Stages write whole results or none."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl
import pytest

from helpers import ROOT, receipt
from huiyin.common.errors import UserError
from huiyin.common.stage import Stage, read_receipt, unchanged
from huiyin.common.tables import MESSAGES, NULLABLE, TURNS, read_records, scan_table, schema
from scripts.tools import summary, verify


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
    assert not tmp_path.exists()


def test_two_runs_cannot_work_in_one_folder(tmp_path):
    with Stage("test", tmp_path), pytest.raises(UserError, match="another run is at work here"):
        Stage("test", tmp_path).__enter__()
    write(tmp_path, ["a"])  # the lock went with the first


def make_stage(folder, content="a", results=1, value=3, **changes):
    """Run a stage that copies its input; return what it prints."""
    source, settings = folder / changes.get("source", "in"), folder / changes.get("settings", "s.yaml")
    source.write_text(content)
    settings.write_text(f"value: {value}\n{changes.get('comment', '')}")
    with contextlib.redirect_stdout(io.StringIO()) as shown, Stage("test", folder / "out", results) as stage:
        stage.use(settings, Values(value))
        stage.input(source)
        stage.stop_if_done()
        stage.output("copy").write_text(content)
        stage.output("tree").mkdir()
        (stage.out / ".tree.part/leaf").write_text(content)
    return shown.getvalue().splitlines()


@dataclass
class Values:
    value: int
    speed: int = 1
    WITHOUT_EFFECT = ("speed",)


def test_what_is_made_of_the_same_is_not_made_again(tmp_path):
    make_stage(tmp_path)
    receipt = tmp_path / "out/receipt.json"
    before = receipt.read_bytes()
    os.utime(receipt, (0, 0))
    assert make_stage(tmp_path, comment="# why\n") == ["test: nothing has changed"]
    assert receipt.read_bytes() == before
    assert receipt.stat().st_mtime_ns >= (tmp_path / "s.yaml").stat().st_mtime_ns


@pytest.mark.parametrize("change", [{"content": "b"}, {"value": 4}, {"results": 2}])
def test_what_is_made_of_other_things_is_made_anew(tmp_path, change):
    make_stage(tmp_path)
    shown = make_stage(tmp_path, **change)
    line = f"test: what is in {tmp_path}/out is of another version of Huiyin; it is made anew"
    assert (line in shown) == ("results" in change)
    assert shown[-1].startswith("test: read 0")
    assert (tmp_path / "out/copy").read_text() == change.get("content", "a")


@pytest.mark.parametrize("damage", ["copy", "tree/leaf"])
def test_results_that_are_not_whole_are_made_anew(tmp_path, damage):
    make_stage(tmp_path)
    (tmp_path / "out" / damage).write_text("other")
    assert make_stage(tmp_path)[-1].startswith("test: read 0")
    (tmp_path / "out" / damage).unlink()
    assert make_stage(tmp_path)[-1].startswith("test: read 0")
    assert (tmp_path / "out" / damage).read_text() == "a"


def test_files_with_other_names_make_the_same_and_the_receipt_names_them(tmp_path):
    make_stage(tmp_path)
    assert make_stage(tmp_path, source="in2", settings="s2.yaml") == ["test: nothing has changed"]
    names = read_receipt(tmp_path / "out")
    assert list(names["inputs"]) == [f"{tmp_path}/in2"] and list(names["settings"]) == [f"{tmp_path}/s2.yaml"]


def test_a_file_with_the_size_and_date_of_the_receipt_is_not_read_again(tmp_path):
    make_stage(tmp_path)
    copy = tmp_path / "out/copy"
    state = copy.stat()
    copy.write_text("b")
    os.utime(copy, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert make_stage(tmp_path) == ["test: nothing has changed"]


def test_that_nobody_can_read_the_last_line_is_no_failure(tmp_path):
    program = (
        "import sys; from pathlib import Path; from huiyin.common.stage import Stage\n"
        "with Stage('test', Path(sys.argv[1])) as stage: stage.output('a').write_text('b')"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program, tmp_path], stdout=full, stderr=subprocess.PIPE, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, b"")
    assert read_receipt(tmp_path)["outputs"].keys() == {"a"}


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


def test_a_receipt_has_no_password_whatever_part_it_would_stand_in(tmp_path):
    with Stage("test", tmp_path) as stage:
        stage.receipt["export"] = {"ollama": ["http://me:secret@10.0.0.2:11434"]}
    assert read_receipt(tmp_path)["export"] == {"ollama": ["http://10.0.0.2:11434"]}


@pytest.mark.parametrize("begun_anew", [False, True])
@pytest.mark.parametrize("moment", ["before an output", "after the outputs", "in an error"])
def test_a_folder_that_is_deleted_while_a_stage_works_is_one_line(tmp_path, begun_anew, moment):
    folder, line = tmp_path / "out", "out: was deleted while test was at work; start again"
    with contextlib.ExitStack() as other, pytest.raises(UserError, match=line), Stage("test", folder) as stage:
        if moment == "after the outputs":
            stage.output("a").write_text("old")
        shutil.rmtree(folder)
        if begun_anew:
            other.enter_context(Stage("test", folder)).output("b").write_text("new")
        if moment == "before an output":
            stage.output("a")
        elif moment == "in an error":
            (folder / ".c.part").rename(folder / "c")
    assert {path.name for path in folder.glob("*")} == ({"b", "receipt.json"} if begun_anew else set())


@pytest.mark.parametrize("damaged", [False, True])
def test_an_error_that_nobody_foresaw_is_put_down_to_an_input_that_was_damaged(tmp_path, damaged):
    write(tmp_path / "before", ["a"])
    made = tmp_path / "before/a"
    if damaged:
        made.write_text("xyz")
    line = f"{made}: cannot be read, it was changed or damaged since then; " + (
        f"delete {made.with_name('receipt.json')}, then `make test` makes it"
    )
    with pytest.raises(UserError if damaged else KeyError) as error, Stage("test", tmp_path / "out") as stage:
        raise KeyError(stage.input(made).read_text())
    assert str(error.value) == (line if damaged else repr("['a']"))


def test_what_was_changed_and_can_be_read_is_no_error(tmp_path):
    write(tmp_path / "before", ["a"])
    (tmp_path / "before/a").write_text("edited by hand")
    with Stage("test", tmp_path / "out") as stage:
        stage.output("b").write_text(stage.input(tmp_path / "before/a").read_text())
    assert (tmp_path / "out/b").read_text() == "edited by hand"


LINES = {  # {what stands in line 2: what is said of it}
    "": "not a JSON object",
    "{": "not a JSON object",
    "[1]": "not a JSON object",
    "null": "not a JSON object",
    '{"prompt": "\\ud800"}': "not a JSON object",
    "[" * 100_000: "not a JSON object",
    '{"a": 1}': "no field b",
    '{"a": true, "b": 2}': "a is of another type or out of range",
}


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"a": 1, "b": 2}\n' + line + "\n")
    with pytest.raises(UserError) as error:
        read_records(path, {"a": int, "b": int}, "`make pair` makes it")
    assert str(error.value) == f"{path} line 2: {LINES[line]}; `make pair` makes it"
    path.write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(UserError, match="line 1: not a JSON object"):
        read_records(path, {"a": str}, "`make pair` makes it")


EXAMPLES = {
    **{"Int64": 0, "String": "甲", "Boolean": False, "Datetime(ms, UTC)": datetime(2023, 5, 1, tzinfo=UTC)},
    **{"List(String)": ["a", "b"], "List(Int64)": [1, 2], "List(List(String))": [["a"], []]},
    **{"List(Datetime(ms, UTC))": [datetime(2023, 5, 1, tzinfo=UTC)] * 2},
}


def refusal_of_table(path, columns, **changed):
    """Return what is wrong with a table of two rows that has these values in the second one."""
    rows = [{name: EXAMPLES[kind] for name, kind in columns.items()} for _ in range(2)]
    if "turn_id" in columns:
        rows[1]["turn_id"] = 1
    rows[1] |= changed
    pl.DataFrame(rows, schema(columns)).write_parquet(path)
    try:
        scan_table(path, columns, "`make it` makes it")
    except UserError as error:
        return str(error).removeprefix(f"{path}: ").removesuffix("; `make it` makes it")
    return ""


@pytest.mark.parametrize("columns", [MESSAGES, TURNS], ids=["messages", "turns"])
def test_only_what_may_be_null_is(tmp_path, columns):
    for name, kind in columns.items():
        expected = "" if name in NULLABLE else f"nulls in {name}"
        assert refusal_of_table(tmp_path / "x", columns, **{name: None}) == expected
        if kind.startswith("List"):
            assert refusal_of_table(tmp_path / "x", columns, **{name: [None]}) == f"nulls in lists of {name}"


def test_a_turn_has_messages_and_its_place(tmp_path):
    assert refusal_of_table(tmp_path / "x", TURNS, message_ids=[]) == "empty lists in message_ids"
    for name in ("texts", "times", "mentioned"):
        assert refusal_of_table(tmp_path / "x", TURNS, **{name: []}) == f"{name} and message_ids of different lengths"
    for number in (0, 2, -1):  # twice, left out, out of order
        assert refusal_of_table(tmp_path / "x", TURNS, turn_id=number) == "turn_id is not 0, 1, 2, ..."


# ---- A receipt says what is deleted and read


def receipt_with(**fields):
    return json.dumps(receipt("test", **fields))


ELSEWHERE = ["../victim", "../../victim", "/victim", "a/../../victim", "..", ".", "", "a\0b", "\ud800"]
NO_RECEIPT = {
    "an array": "[]",
    "null": "null",
    "cut off": '{"stage": "te',
    "arrays in arrays": "[" * 100_000,
    "objects in objects": '{"outputs": ' * 100_000,
    "no stage": json.dumps({**receipt("test"), "stage": None}),
    "no outputs": receipt_with(outputs=None),
    "a list of outputs": receipt_with(outputs=["a"]),
    "a number as digest": receipt_with(outputs={"a": 1}),
    "a ledger of texts": receipt_with(ledger={"read": "1", "written": "1", "dropped": "none"}),
    "a base model of another form": receipt_with(base_model={"folder": "/", "sha256": ["etc/passwd"]}),
    "a base model elsewhere": receipt_with(base_model={"folder": "/usr", "sha256": {"../etc/passwd": "0"}}),
    **{f"an output at {name!r}": receipt_with(outputs={name: "0"}) for name in ELSEWHERE},
    **{f"an output in a folder at {name!r}": receipt_with(outputs={"a": {name: "0"}}) for name in ELSEWHERE[:4]},
}


@pytest.mark.parametrize("what", NO_RECEIPT)
def test_a_receipt_of_another_form_counts_as_none(tmp_path, capsys, what):
    folder, victim = tmp_path / "data/stage", tmp_path / "victim"
    folder.mkdir(parents=True)
    victim.write_text("precious")
    (tmp_path / "data/victim").write_text("precious")
    (folder / "receipt.json").write_text(NO_RECEIPT[what].replace('"/victim"', f'"{victim}"'))
    assert read_receipt(folder) == {}
    summary.main([str(folder)])
    with pytest.raises(UserError, match="there is no receipt to verify"):
        verify.main([str(folder), "--export", "config/export.yaml"])
    write(folder, ["a"])
    assert victim.read_text() == (tmp_path / "data/victim").read_text() == "precious"
    assert set(read_receipt(folder)["outputs"]) == set(files(folder)) - {"receipt.json"} == {"a"}


def test_a_receipt_never_lies_beside_outputs_of_another_run(tmp_path, monkeypatch):
    write(tmp_path, ["a", "b"])
    (tmp_path / "b").unlink()
    (tmp_path / "b").mkdir()
    monkeypatch.setattr("huiyin.common.stage.shutil.rmtree", fail)
    with pytest.raises(OSError, match="broken"):
        write(tmp_path, ["a"])
    assert not (tmp_path / "receipt.json").exists()


def fail(*_):
    raise OSError("the disk is broken")


def test_what_export_was_answered_is_shown_by_summary(tmp_path, capsys):
    with Stage("export", tmp_path) as stage:
        stage.output("asked.json").write_text(
            '{"who": "the model", "question": "在吗", "reply": "在"}', encoding="utf-8"
        )
    summary.main([str(tmp_path)])
    assert "Asked the model: 在吗\nIt said: '在'\n" in capsys.readouterr().out
    (tmp_path / "asked.json").write_text("[]")
    with pytest.raises(UserError, match=r"asked\.json: not what export wrote; make export again"):
        summary.main([str(tmp_path)])
