"""plan: what is still to do is tried, counted and said, and what does not fit is said before anything is done."""

import json
import re
import sqlite3
from collections import namedtuple
from contextlib import closing
from datetime import datetime, timedelta

import pytest
import yaml

from cards import BUSY, RTX_2060, RTX_3060, simulate_nvml
from helpers import ROOT, make, receipt, run_script
from huiyin.common.stage import STAGES
from huiyin.common.tables import DECRYPTED, GROUP_MESSAGES
from huiyin.forecast.needs import shown_time
from huiyin.forecast.stages import usual_speed
from huiyin.qqnt.sample import take_sample
from huiyin.training import work
from huiyin.training.memory import GIB, Ram

Usage = namedtuple("Usage", "free")
FOLDERS = ["decrypted", "parsed", "combined", "paired", "generated", "trained", "exported"]
PROMPTS = [ROOT / f"config/prompts/{name}.md" for name in ("pair", "merge", "gen", "persona")]
UNUSED_PORT = "http://127.0.0.1:9"


class Planned:
    """A folder with a dataset and the default settings, of which what is `said` differs."""

    def __init__(self, path, **train):
        self.path, self.settings = path, {}
        for name in ("parse", "combine", "pair", "gen", "llm", "preflight", "export", "models", "train"):
            self.settings[name] = (ROOT / f"config/{name}.yaml").read_text(encoding="utf-8")
        self.say("train", **train)
        generated = path / "generated"
        generated.mkdir()
        rows = [{"instruction": "吃了吗", "input": "", "output": "没呢", "system": "", "history": []}] * 300
        for name, part in (("alpaca", rows), ("alpaca_eval", rows[:20]), ("dataset_info", {})):
            (generated / f"{name}.json").write_text(json.dumps(part))
        (generated / "system.txt").write_text("你是小梅。")
        ledger = {"read": 320, "written": 320, "merged": 0, "dropped": {}}
        outputs = dict.fromkeys(["alpaca.json", "alpaca_eval.json"], "")
        (generated / "receipt.json").write_text(json.dumps(receipt("gen", outputs=outputs) | {"ledger": ledger}))

    def say(self, file, **settings):
        self.settings[file] = yaml.safe_dump(yaml.safe_load(self.settings[file]) | settings)

    def plan(self, *to_do, source="nt_msg.db", gpu="none", options=()):
        files = [self.path / f"{name}.yaml" for name in self.settings]
        for file in files:
            file.write_text(self.settings[file.stem])
        source = self.path / source
        done = run_script(
            "tools/plan",
            source,
            *("--messages", source, "--key", self.path / "key.txt", "--target=2", "--to-do", *to_do),
            *("--results", *(self.path / name for name in FOLDERS), "--settings", *files, *PROMPTS),
            *("--answers", self.path / "answers.db", "--cache", self.path / "cache", "--gpu", gpu, "--probe", "no"),
            *("--ollama-url", UNUSED_PORT, "--out", self.path / "plan", *options),
        )
        done.stdout = done.stdout.replace(str(self.path), "")
        return done

    def verdict(self, *to_do, **options):
        """Return the last line, which must be the same as the one with which `make all` stops."""
        said = self.plan(*to_do, **options)
        assert (said.returncode, said.stderr) == (0, "")
        stopped = self.plan(*to_do, **options, options=["--or-stop"])
        line = re.sub("^plan: (does not fit|cannot begin yet): ", "", said.stdout.splitlines()[-1])
        assert (stopped.returncode, stopped.stderr) == (1, f"plan.py: {line} (ANYWAY=yes goes on)\n")
        return line


@pytest.fixture
def roomy(monkeypatch):
    """A machine with much memory and disk, without a card."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(100 * GIB))
    for module in ("work", "memory"):
        monkeypatch.setattr(f"huiyin.training.{module}.find_ram", lambda: Ram(64 * GIB, 60 * GIB, 0))
    monkeypatch.setattr("huiyin.forecast.training.find_ram", lambda: Ram(64 * GIB, 60 * GIB, 0))
    monkeypatch.setattr(work, "torch_cuda", lambda: "13.0")


# ---- what does not fit


def test_a_model_too_large_for_the_card(tmp_path, monkeypatch, roomy):
    simulate_nvml(monkeypatch, RTX_2060)
    planned = Planned(tmp_path, model_name_or_path="Qwen/Qwen2.5-7B-Instruct")
    line = planned.verdict("train", "export", gpu="0")
    assert line.startswith(
        "NVIDIA GeForce RTX 2060 has 5.5 GiB free of 6.0, too little for this model even with every concession"
    )
    assert "or take a smaller model in train.yaml, such as Qwen/Qwen" in line


def test_a_card_that_others_use(tmp_path, monkeypatch, roomy):
    simulate_nvml(monkeypatch, BUSY)
    assert "has 1.0 GiB free of 12.0" in Planned(tmp_path).verdict("train", gpu="0")


def test_no_card(tmp_path, monkeypatch, roomy):
    simulate_nvml(monkeypatch, RTX_3060)
    assert Planned(tmp_path).verdict("train", gpu="1") == (
        "GPU=1, but the cards here are: 0 (NVIDIA GeForce RTX 3060); say GPU=none to train on the processor"
    )


def test_a_small_disk(tmp_path, monkeypatch, roomy):
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(2 * GIB))
    line = Planned(tmp_path).verdict("train", "export")
    assert line.endswith("of disk are needed at a time and 2.0 GiB are free; make room")


def test_little_memory(tmp_path, monkeypatch, roomy):
    monkeypatch.setattr("huiyin.training.work.find_ram", lambda: Ram(8 * GIB, 2 * GIB, 0))
    monkeypatch.setattr("huiyin.forecast.training.find_ram", lambda: Ram(8 * GIB, 2 * GIB, 0))
    training, export = Planned(tmp_path).verdict("train", "export").split("; export ")
    assert training.startswith("training takes about ")
    assert export == (
        "needs 4.4 GiB of memory and 2.0 GiB are free; close programs, or take a smaller model in train.yaml"
    )


def test_no_language_model_for_the_questions_that_there_are(tmp_path, roomy):
    planned = Planned(tmp_path)
    (tmp_path / "chat.csv").write_text(history(600))
    stopped = planned.plan("parse", "combine", "pair", source="chat.csv", options=["--or-stop"])
    assert (stopped.returncode, stopped.stderr.count("\n")) == (1, 1)
    assert stopped.stderr.startswith(f"plan.py: no Ollama answers at {UNUSED_PORT}")


# ---- what is said


def history(messages):
    """Return a CSV of a group of two, in which member 2 answers each message of member 1 after two minutes."""
    start = datetime(2024, 3, 1)
    return "".join(
        f"77,{start + timedelta(minutes=2 * number):%Y-%m-%dT%H:%M:%SZ},{'小梅' if number % 2 else '阿宝'},"
        f"{1 + number % 2},\"['第{number}句话说得长一点']\"\n"
        for number in range(messages)
    )


def test_what_is_to_do_is_counted_and_noted(tmp_path, roomy):
    planned = Planned(tmp_path)
    (tmp_path / "chat.csv").write_text(history(600))
    planned.say("pair", use_llm=False)
    planned.say("gen", fill=False)
    done = planned.plan("parse", "combine", "pair", "gen", "train", "export", source="chat.csv")
    stages = json.loads((tmp_path / "plan/plan.json").read_text())["stages"]
    assert {stage: (each["read"], each["written"]) for stage, each in stages.items() if stage != "gen"} == {
        **{"parse": (600, 600), "combine": (600, stages["combine"]["written"]), "export": (0, 0)},
        **{"pair": (300, 300), "train": (stages["train"]["read"],) * 2},
    }
    table = done.stdout.splitlines()
    assert table[4].split() == ["stage", "read", "written", "questions", "tokens", "cached", "time", "disk"]
    assert [line.split()[0] for line in table[5:11]] == list(STAGES[1:])
    assert "network  Qwen/Qwen2.5-1.5B-Instruct from the hub of Hugging Face, 2.9 GiB" in done.stdout
    assert table[-1].startswith("plan: fits, about ")
    assert not [path for path in (tmp_path / "plan").iterdir() if path.name != "plan.json"]


@pytest.mark.parametrize("content", ["", "[]", '{"stages": 3}', '{"stages": {"train": 3}}'])
def test_an_earlier_plan_that_cannot_be_read_is_none(tmp_path, roomy, content):
    planned = Planned(tmp_path)
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan/plan.json").write_text(content)
    assert planned.plan("train").returncode == 0
    assert json.loads((tmp_path / "plan/plan.json").read_text())["stages"]["train"]["read"] == 320


def test_a_sample_stands_for_the_whole(tmp_path, monkeypatch, roomy):
    planned = Planned(tmp_path)
    (tmp_path / "chat.csv").write_text(history(30_000))
    monkeypatch.setattr("scripts.tools.plan.SAMPLE", 1000)
    planned.plan("parse", "combine", source="chat.csv")
    stages = json.loads((tmp_path / "plan/plan.json").read_text())["stages"]
    assert stages["parse"]["read"] == pytest.approx(30_000, rel=0.05)
    assert stages["combine"]["written"] == pytest.approx(30_000, rel=0.05)


def test_what_cannot_be_tried_is_left_to_the_stage_itself(tmp_path, roomy):
    planned = Planned(tmp_path)
    (tmp_path / "chat.csv").write_text("hello\n")
    said, all_ = (planned.plan("parse", source="chat.csv", options=options) for options in ([], ["--or-stop"]))
    assert (said.returncode, said.stderr.count("\n")) == (1, 1)
    assert all_.returncode == 0
    assert all_.stdout.splitlines()[-1].startswith("plan: nothing can be said before this is mended: /chat.csv: ")


def test_nothing_to_do(tmp_path):
    assert Planned(tmp_path).plan().stdout == "plan: nothing is to do\n"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "?"),
        ((0.4, 0.4), "0 s"),
        ((90, 90), "90 s"),
        ((200, 200), "3.3 min"),
        ((600, 4000), "10-67 min"),
        ((3600, 90_000), "1.0-25 h"),
    ],
)
def test_times_have_a_unit_that_suits_them(seconds, shown):
    assert shown_time(seconds) == shown


def test_a_larger_model_is_slower_and_a_larger_card_faster():
    assert usual_speed("qwen2.5:7b", 12 * GIB) > usual_speed("qwen2.5:14b", 12 * GIB) > usual_speed("qwen2.5:14b", 0)
    assert usual_speed("some-model", 0) == usual_speed("qwen2.5:14b", 0)


# ---- the sample of a database


@pytest.mark.parametrize("rows", [100, 10_000])
def test_a_sample_of_a_database_has_whole_rows_from_beginning_to_end(tmp_path, rows):
    source, target = tmp_path / "nt_msg.db", tmp_path / "sample.db"
    with closing(sqlite3.connect(source)) as connection:
        connection.execute("PRAGMA page_size = 4096")
        connection.execute(f"CREATE TABLE {GROUP_MESSAGES} ([40001] INTEGER PRIMARY KEY, [40800] BLOB)")
        connection.execute("CREATE TABLE nt_uid_mapping_table ([48902] TEXT)")
        bodies = ((number, bytes(300) + b"%d" % number) for number in range(2000))
        connection.executemany(f"INSERT INTO {GROUP_MESSAGES} VALUES (?, ?)", bodies)
        connection.execute("INSERT INTO nt_uid_mapping_table VALUES ('u_x')")
        connection.commit()
    share = take_sample(source, None, DECRYPTED, rows, target)
    with closing(sqlite3.connect(target)) as connection:
        found = connection.execute(f"SELECT * FROM {GROUP_MESSAGES}").fetchall()
        assert connection.execute("SELECT * FROM nt_uid_mapping_table").fetchall() == [("u_x",)]
    assert all(body.endswith(b"%d" % number) for number, body in found)
    assert len(found) / share == pytest.approx(2000, rel=0.05)
    assert len(found) == pytest.approx(min(rows, 2000), rel=0.3)
    assert (found[0][0], found[-1][0]) == (0, 1999)


# ---- through make


def test_all_says_the_plan_first_and_the_summary_what_happened(demo):
    project, output = demo
    lines = output.splitlines()
    first = next(number for number, line in enumerate(lines) if "scripts/decrypt.py" in line)
    assert any(line.startswith("plan: fits, about ") for line in lines[:first])
    said = json.loads((project / "data/demo/10002/plan/plan.json").read_text())["stages"]
    for stage, folder in zip(STAGES[:4], FOLDERS[:4], strict=True):
        where = project / "data/demo" / ("10002" if stage == "pair" else "") / folder
        done = json.loads((where / "receipt.json").read_text())["ledger"]
        assert said[stage]["written"] == pytest.approx(done["written"], rel=0.05), stage
    assert "predicted / seen" in output


def test_nothing_is_tried_where_nothing_is_to_do(demo):
    done = make(demo[0], "all", "CONFIG=demo", "RUN_IN=host", "GPU=none")
    assert (done.returncode, "plan" in done.stdout) == (0, False)
