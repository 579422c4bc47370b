"""chat: talking to the exported model, in Ollama or in this process."""

import io
import json
import signal
import subprocess
import sys
import threading

import pytest

from helpers import CLEAN, ROOT, receipt, run_script
from huiyin.serving.local import MergedModel
from ollama_server import Raw, whole
from scripts.tools.chat import as_messages

PARAMETERS = {"num_ctx": 512, "num_predict": 60, "temperature": 0.0, "top_p": 0.9, "top_k": 40, "repeat_penalty": 1.0}
OPENING = "/reset clears the conversation, Ctrl-D ends it"
QUESTION = [{"role": "user", "content": "在吗？"}]


def write_receipt_of_gen(path, **settings):
    used = {"gen.yaml": {"sha256": "0", "values": {"history_turns": 3, **settings}}}
    (path / "generated/receipt.json").write_text(json.dumps(receipt("gen") | {"settings": used}))


@pytest.fixture
def chat(tmp_path, ollama, monkeypatch):
    """Return a function that talks with the default model of the test server as if export had made it."""
    made = {"name": "qwen2.5:14b", "digest": ollama.models["qwen2.5:14b"]}
    (tmp_path / "receipt.json").write_text(json.dumps(receipt("export", ollama=made, parameters=PARAMETERS)))
    (tmp_path / "export.yaml").write_text(f"ollama: {ollama.url}\n")
    (tmp_path / "generated").mkdir()
    write_receipt_of_gen(tmp_path, message_separator="\n")

    def talk(lines, settings=""):
        (tmp_path / "chat.yaml").write_text(settings)
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return run_script("tools/chat", *talk.arguments)

    talk.path = tmp_path
    talk.arguments = [tmp_path, "--config", tmp_path / "chat.yaml", "--export", tmp_path / "export.yaml"]
    talk.arguments += ["--generated", tmp_path / "generated"]
    return talk


def test_a_chat_remembers_as_much_as_it_was_trained_with(chat, ollama):
    ollama.before_chat = lambda k, body: f"第{k}\n句"
    done = chat("1\n2\n3\n4\n5\n\n/reset\n6\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{OPENING}\n> 第1\n句\n> 第2\n句\n> 第3\n句\n> 第4\n句\n> 第5\n句\n> > (cleared)\n> 第6\n句\n> \n"
    )
    bodies = [request.body for request in ollama.requests if request.path == "/api/chat"]
    assert [[message["content"] for message in body["messages"]] for body in bodies] == [
        ["1"],
        ["1", "第1\n句", "2"],
        ["1", "第1\n句", "2", "第2\n句", "3"],
        ["1", "第1\n句", "2", "第2\n句", "3", "第3\n句", "4"],
        ["2", "第2\n句", "3", "第3\n句", "4", "第4\n句", "5"],
        ["6"],
    ]
    assert {role["role"] for body in bodies for role in body["messages"]} == {"user", "assistant"}
    assert all(body["stream"] and "options" not in body for body in bodies), "the model's own parameters hold"


def test_what_is_typed_and_what_was_answered_ends_no_turn(chat, ollama):
    ollama.before_chat = lambda k, body: "嗯<|im_end|>[/INST]"
    assert chat("在<|im_end|>\n</think>好\n").stdout.splitlines()[1] == "> 嗯<|im_end|>[/INST]"
    bodies = [request.body for request in ollama.requests if request.path == "/api/chat"]
    texts = ["在＜|im_end|＞", "嗯＜|im_end|＞［/INST］", "＜/think＞好"]
    assert [message["content"] for message in bodies[-1]["messages"]] == texts


def test_a_chat_in_one_piece_and_without_memory(chat, ollama):
    ollama.before_chat = lambda k, body: f"第{k}，句"
    done = chat("1\n2\n", "split: false\nexchanges: 0\n")
    assert done.stdout.splitlines() == [OPENING, "> 第1，句", "> 第2，句", "> "]
    assert [len(request.body["messages"]) for request in ollama.requests if request.path == "/api/chat"] == [1, 1]


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["好|", "|走"], "好\n走"),
        (["||好||", "||走||"], "好\n走"),
        (["||"], ""),
        ([], ""),
        (["好|走|||来|"], "好|走\n|来|"),
    ],
)
def test_a_reply_is_shown_as_separate_messages(pieces, shown):
    assert "".join(as_messages(pieces, "||")) == shown


@pytest.mark.parametrize(("settings", "shown"), [({}, "第1\n句\n好"), ({"message_separator": "\n"}, "第1，句\n好")])
def test_messages_are_parted_where_the_training_had_it(chat, ollama, settings, shown):
    """An adapter of an earlier version has learnt commas."""
    write_receipt_of_gen(chat.path, **settings)
    ollama.before_chat = lambda k, body: "第1，句\n好"
    assert chat("1\n").stdout == f"{OPENING}\n> {shown}\n> \n"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (whole("")[:20], " broke off in the middle (JSONDecodeError); look into its log"),
        (b'{"error": "out of memory"}', ": qwen2.5:14b: out of memory"),
    ],
)
def test_a_reply_that_breaks_off_is_one_line(chat, ollama, content, line):
    ollama.before_chat = lambda k, body: Raw(content, len(content))
    done = chat("1\n")
    assert done.returncode == 1
    assert done.stderr == f"chat.py: Ollama at {ollama.url}{line}\n"


def test_a_chat_that_cannot_be_says_what_to_do(chat, ollama):
    ollama.models["qwen2.5:14b"] = "another"
    line = "the Ollama model qwen2.5:14b is not the one that export created; make export again"
    assert chat("").stderr == f"chat.py: {line}\n"
    (chat.path / "export.yaml").write_text("ollama: http://127.0.0.1:9\n")
    line = "no Ollama answers at http://127.0.0.1:9; start it (ollama serve), or change ollama in export.yaml"
    assert chat("").stderr == f"chat.py: {line}\n"
    (chat.path / "receipt.json").unlink()
    assert chat("").stderr == f"chat.py: {chat.path}/receipt.json: no such file; `make export` makes it\n"
    (chat.path / "receipt.json").write_text("[]")
    assert (
        chat("").stderr == f"chat.py: {chat.path}/receipt.json: not the receipt of that stage; `make export` makes it\n"
    )


def start(program, **options):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(program, env={**CLEAN, "PYTHONUNBUFFERED": "1"}, encoding="utf-8", **pipes, **options)


def test_ctrl_c_ends_a_chat_cleanly(chat):
    (chat.path / "chat.yaml").touch()
    with start([sys.executable, ROOT / "scripts/tools/chat.py", *chat.arguments]) as running:
        assert running.stdout.readline() == f"{OPENING}\n"
        assert running.stdout.read(2) == "> "
        running.send_signal(signal.SIGINT)
        assert running.communicate() == ("\n", "")
    assert running.returncode == 0


def test_make_chat_talks_to_the_merged_model_until_the_input_ends(demo):
    with start(["make", "--silent", "chat", "CONFIG=demo", "RUN_IN=host"], cwd=demo[0]) as running:
        output, errors = running.communicate("/reset\n在吗？\n/reset\n")
    assert (running.returncode, errors) == (0, "")
    assert output.startswith(f"loading the merged model ...\n{OPENING}\n> (cleared)\n> ")
    assert output.endswith("\n> (cleared)\n> \n")


@pytest.fixture(scope="module")
def merged_model(demo):
    return MergedModel(demo[0] / "data/demo/10002/exported/merged", PARAMETERS)


def test_the_merged_model_repeats_its_reply_at_temperature_0(merged_model):
    assert "".join(merged_model.talk(QUESTION)) == "".join(merged_model.talk(QUESTION))


def test_a_prompt_too_long_for_the_merged_model_loses_its_oldest_exchange(merged_model):
    long = [*QUESTION, {"role": "assistant", "content": "在" * 600}]
    assert merged_model.prompt_of([*long, *QUESTION]).tolist() == merged_model.prompt_of(QUESTION).tolist()


def test_the_merged_model_stops_when_nobody_reads_on(merged_model, monkeypatch):
    monkeypatch.setattr(merged_model, "parameters", {**PARAMETERS, "num_ctx": 20_000, "num_predict": 10_000})
    monkeypatch.setattr(merged_model.model.generation_config, "eos_token_id", None)  # it would never end by itself
    steps, before = [], set(threading.enumerate())
    hook = merged_model.model.register_forward_hook(lambda *_: steps.append(1))
    try:
        reply = merged_model.talk(QUESTION)
        next(reply)
        assert len(set(threading.enumerate()) - before) == 1  # it is at work
        reply.close()
    finally:
        hook.remove()
    assert set(threading.enumerate()) <= before
    assert len(steps) < 10_000
