"""Kill pair and gen while they ask the language model: nothing is lost, nothing is asked twice, nothing differs."""

import json
import os
import shutil
import signal
import subprocess

import pytest

from helpers import CLEAN, copy_project, make
from llm_folder import chats

RUN = ["gen", "CONFIG=kill", "RUN_IN=host", "TARGET=10002", "SOURCE=data/raw/nt_msg.db", "KEY=data/raw/key.txt"]
KILLS = 20


@pytest.fixture
def project(demo, tmp_path, ollama):
    """A project whose `kill` settings ask the test server, one question at a time."""
    project = copy_project(tmp_path)
    shutil.copytree(demo[0] / "data/demo/sample", project / "data/raw")
    settings = project / "config/kill"
    settings.mkdir()
    (settings / "llm.yaml").write_text(
        f"url: {ollama.url}\nnum_ctx: 16384\nparallel: 1\npair_temperature: 3.0\nmax_failed_share: 1\n"
    )
    (settings / "pair.yaml").write_text(
        "newest: 16\nquotes_first: false\nstop_at_own_turn: true\nquotes_tested: 4\nmerge_replies: llm\nbatch_size: 3\n"
    )
    (settings / "gen.yaml").write_text("batch_size: 2\nmax_characters: 15\n")
    assert make(project, "combine", *RUN[1:]).returncode == 0
    return project


def results(project):
    folder = project / "data/kill/10002"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "receipt.json"
    }


def start_over(project, ollama):
    shutil.rmtree(project / "data/kill/10002", ignore_errors=True)
    for file in (project / "data").glob("answers.db*"):
        file.unlink()
    ollama.requests.clear()


def questions(ollama):
    return [json.dumps(body) for body in chats(ollama)]


def run_until_killed(project, ollama, answers):
    """Run until `answers` questions are answered; at the next one, kill the whole process group with SIGKILL."""
    running = subprocess.Popen(
        ["make", *RUN],
        cwd=project,
        env=CLEAN,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )

    def kill(k, body):
        if len(questions(ollama)) == answers + 1:
            os.killpg(running.pid, signal.SIGKILL)

    ollama.before_chat = kill
    output, _ = running.communicate()
    ollama.before_chat = lambda k, body: None
    assert running.returncode == -signal.SIGKILL, output


def test_after_a_kill_at_any_answer_the_results_are_the_same(project, ollama):
    undisturbed = make(project, *RUN)
    assert undisturbed.returncode == 0, undisturbed.stderr
    expected, asked = results(project), questions(ollama)
    of_pair = json.loads((project / "data/kill/10002/paired/receipt.json").read_text(encoding="utf-8"))["llm"]["asked"]
    assert of_pair > 10 and len(asked) >= of_pair + 2 and len(asked) >= KILLS
    assert {name.rpartition("/")[2] for name in expected} >= {"pairs.jsonl", "unpaired.jsonl", "alpaca.json"}

    for answers in [round(kill * (len(asked) - 1) / (KILLS - 1)) for kill in range(KILLS)]:
        start_over(project, ollama)
        run_until_killed(project, ollama, answers)
        stage = "paired" if answers < of_pair else "generated"
        assert not (project / f"data/kill/10002/{stage}/receipt.json").exists()
        again = make(project, *RUN)
        assert again.returncode == 0, again.stderr
        assert results(project) == expected
        # the question that was not answered before the kill comes twice, no other does
        assert questions(ollama) == [*asked[: answers + 1], *asked[answers:]]
