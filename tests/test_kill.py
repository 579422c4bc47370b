"""Kill pair and gen while they ask the language model: nothing is lost, nothing is asked twice, nothing differs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from helpers import CLEAN, ROOT, run_script
from llm_folder import arguments, chats, succeeded

KILLS = 12
RESULTS = {"pair": "paired", "gen": "generated"}
STAGES = list(RESULTS)


class Project:
    """A folder in which pair and gen ask the test server, one question at a time."""

    def __init__(self, turns, path, ollama):
        self.path, self.ollama = path, ollama
        llm = f"url: {ollama.url}\nnum_ctx: 16384\nparallel: 1\npair_temperature: 3.0\nmax_failed_share: 1\n"
        pair = "newest: 16\nquotes_first: false\nstop_at_own_turn: true\nquotes_tested: 4\nmerge_replies: llm\n"
        gen = "batch_size: 2\nmax_characters: 15\n"
        for name, text in (("llm", llm), ("pair", f"{pair}batch_size: 3\n"), ("gen", gen)):
            (path / f"{name}.yaml").write_text(text)
        shutil.copy(turns, path)

    def arguments(self, stage):
        return arguments(stage, self.path, **({"target": "10002"} if stage == "pair" else {}))

    def run(self, first="pair"):
        for stage in STAGES[STAGES.index(first) :]:
            succeeded(run_script(stage, *self.arguments(stage)))

    def run_until_killed(self, stage, answers):
        """Run up to `stage`; when it asks a question after so many answers in all, kill it with SIGKILL."""
        for earlier in STAGES[: STAGES.index(stage)]:
            succeeded(run_script(earlier, *self.arguments(earlier)))
        program = [sys.executable, f"scripts/{stage}.py", *map(str, self.arguments(stage))]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        running = subprocess.Popen(program, cwd=ROOT, env=CLEAN, start_new_session=True, **pipes)

        def kill(k, body):
            if len(self.questions()) == answers + 1:
                os.killpg(running.pid, signal.SIGKILL)

        self.ollama.before_chat = kill
        output, _ = running.communicate()
        self.ollama.before_chat = lambda k, body: None
        assert running.returncode == -signal.SIGKILL, output

    def start_over(self):
        for folder in RESULTS.values():
            shutil.rmtree(self.path / folder, ignore_errors=True)
        for file in self.path.glob("answers.db*"):
            file.unlink()
        self.ollama.requests.clear()

    def results(self):
        files = [file for folder in RESULTS.values() for file in (self.path / folder).glob("*")]
        return {file: file.read_bytes() for file in files if file.name != "receipt.json"}

    def questions(self):
        return [json.dumps(body) for body in chats(self.ollama)]


@pytest.mark.parametrize("first", [0, 1])
def test_after_a_kill_at_any_answer_the_results_are_the_same(demo, tmp_path, ollama, first):
    """At KILLS moments from the first question to the last; each half of them is a test, for two workers."""
    project = Project(demo[0] / "data/demo/combined/turns.parquet", tmp_path, ollama)
    ollama.remembered = {}
    project.run()
    expected, asked = project.results(), project.questions()
    receipt = json.loads((tmp_path / "paired/receipt.json").read_text(encoding="utf-8"))
    of_pair = receipt["llm"]["asked"]
    assert of_pair > 10 and len(asked) >= of_pair + 2 and len(asked) >= KILLS
    assert {path.name for path in expected} >= {"pairs.jsonl", "unpaired.jsonl", "alpaca.json"}

    for answers in [round(kill * (len(asked) - 1) / (KILLS - 1)) for kill in range(first, KILLS, 2)]:
        project.start_over()
        stage = "pair" if answers < of_pair else "gen"
        project.run_until_killed(stage, answers)
        assert not (tmp_path / RESULTS[stage] / "receipt.json").exists()
        project.run(first=stage)
        assert project.results() == expected
        # the question that was not answered before the kill comes twice, no other does
        assert project.questions() == [*asked[: answers + 1], *asked[answers:]]


@pytest.mark.parametrize(("stage", "number"), [("pair", signal.SIGINT), ("gen", signal.SIGTERM)])
def test_a_signal_ends_a_stage_whose_server_does_not_answer(folder, stage, number):
    """The first answer is in the answer cache, the others never come."""
    silent, waits = threading.Event(), threading.Event()
    folder.llm("read_timeout_seconds: 3600\n")
    if stage == "gen":
        folder.settings("pair", "method: empty\n")
        folder.settings("gen", "batch_size: 1\n")
        succeeded(folder.pair())

    def fall_silent(k, body):
        if k > 1:
            waits.set()
            silent.wait()

    folder.ollama.before_chat = fall_silent
    program = [sys.executable, f"scripts/{stage}.py", *map(str, arguments(stage, folder.path))]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    with subprocess.Popen(program, cwd=ROOT, env=CLEAN, **pipes) as running:
        assert waits.wait(60)
        running.send_signal(number)
        _, errors = running.communicate(timeout=60)
    silent.set()
    what = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
    assert errors == f"{stage}.py: {what}; finished work is kept, start again to continue\n"
    assert running.returncode == 128 + number
    folder.ollama.before_chat = lambda k, body: None
    again = succeeded(getattr(folder, stage)())
    assert re.search(r": (2 questions to ask and 1|1 of 3 are) answered from the answer cache", again.stdout)


@pytest.mark.parametrize("where", ["{}", "import weakref; x = weakref.ref(set(), lambda _: {})"])
def test_ctrl_c_while_packages_load_is_one_line(where):
    code = f"import huiyin.common.starting, signal; {where.format('signal.raise_signal(signal.SIGINT)')}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=CLEAN, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (130, "-c: interrupted; finished work is kept, start again to continue\n")
