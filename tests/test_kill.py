"""Kill pair and gen while they ask the language model: nothing is lost, nothing is asked twice, nothing differs."""

import os
import shutil
import signal
import subprocess
import sys

import polars as pl
import pytest

from helpers import CLEAN, ROOT
from llm_folder import succeeded

KILLS = 20
RESULTS = {"pair": "paired", "gen": "generated"}


@pytest.fixture
def project(demo, folder):
    """A folder in which pair and gen ask the test server, one question at a time."""
    me = pl.col("user_id").replace("10002", "me"), pl.col("mentions").list.eval(pl.element().replace("10002", "me"))
    turns = pl.read_parquet(demo[0] / "data/demo/combined/turns.parquet")
    turns.with_columns(*me).write_parquet(folder.path / "turns.parquet")
    llm = f"url: {folder.ollama.url}\nnum_ctx: 16384\nparallel: 1\npair_temperature: 3.0\nmax_failed_share: 1\n"
    pair = "newest: 16\nquotes_first: false\nstop_at_own_turn: true\nquotes_tested: 4\nmerge_replies: llm\n"
    folder.settings("llm", llm)
    folder.settings("pair", f"{pair}batch_size: 3\n")
    folder.settings("gen", "batch_size: 2\nmax_characters: 15\n")
    return folder


def results(project):
    files = [path for folder in RESULTS.values() for path in sorted((project.path / folder).rglob("*"))]
    return {path: path.read_bytes() for path in files if path.is_file() and path.name != "receipt.json"}


def start_over(project):
    for name in RESULTS.values():
        shutil.rmtree(project.path / name, ignore_errors=True)
    for file in project.path.glob("answers.db*"):
        file.unlink()
    project.ollama.requests.clear()


def run_until_killed(project, stage, answers, monkeypatch):
    """Run `stage`; when it asks a question after so many answers in all, kill it with SIGKILL."""

    def run_alone(name, *arguments):
        program = [sys.executable, f"scripts/{name}.py", *map(str, arguments)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        running = subprocess.Popen(program, cwd=ROOT, env=CLEAN, start_new_session=True, **pipes)

        def kill(k, body):
            if len(project.chats()) == answers + 1:
                os.killpg(running.pid, signal.SIGKILL)

        project.ollama.before_chat = kill
        output, _ = running.communicate()
        project.ollama.before_chat = lambda k, body: None
        assert running.returncode == -signal.SIGKILL, output

    with monkeypatch.context() as patch:
        patch.setattr("llm_folder.run_script", run_alone)
        getattr(project, stage)()


@pytest.mark.parametrize("first", [0, 1])
def test_after_a_kill_at_any_answer_the_results_are_the_same(project, monkeypatch, first):
    """At KILLS moments from the first question to the last; each half of them is a test, for two workers."""
    succeeded(project.pair())
    succeeded(project.gen())
    expected, asked = results(project), project.chats()
    of_pair = project.json("paired/receipt.json")["llm"]["asked"]
    assert of_pair > 10 and len(asked) >= of_pair + 2 and len(asked) >= KILLS
    assert {path.name for path in expected} >= {"pairs.jsonl", "unpaired.jsonl", "alpaca.json"}

    for answers in [round(kill * (len(asked) - 1) / (KILLS - 1)) for kill in range(first, KILLS, 2)]:
        start_over(project)
        stage = "pair" if answers < of_pair else "gen"
        if stage == "gen":
            succeeded(project.pair())
        run_until_killed(project, stage, answers, monkeypatch)
        assert not (project.path / RESULTS[stage] / "receipt.json").exists()
        if stage == "pair":
            succeeded(project.pair())
        succeeded(project.gen())
        assert results(project) == expected
        # the question that was not answered before the kill comes twice, no other does
        assert project.chats() == [*asked[: answers + 1], *asked[answers:]]
