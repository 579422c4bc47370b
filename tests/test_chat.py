"""chat, deploy and verify: what one does with the exported model."""

import json
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from helpers import CLEAN, ROOT, make, run_script
from ollama_server import Raw, whole
from scripts.tools.chat import as_messages

DEMO = ["CONFIG=demo", "RUN_IN=host"]
PARAMETERS = {"num_ctx": 512, "num_predict": 60, "temperature": 0.0, "top_p": 0.9, "top_k": 40, "repeat_penalty": 1.0}
OPENING = "/reset forgets the conversation, Ctrl-D ends it"


# ---- chat


@pytest.fixture
def chat(tmp_path, ollama):
    """Return a function that talks with the default model of the test server as if export had made it."""
    receipt = {"ollama": {"name": "qwen2.5:14b", "digest": ollama.models["qwen2.5:14b"]}, "parameters": PARAMETERS}
    (tmp_path / "receipt.json").write_text(json.dumps(receipt))
    (tmp_path / "llm.yaml").write_text(f"url: {ollama.url}\n")

    def talk(said, settings=""):
        (tmp_path / "chat.yaml").write_text(settings)
        return subprocess.run(
            [
                sys.executable,
                ROOT / "scripts/tools/chat.py",
                tmp_path,
                "--config",
                tmp_path / "chat.yaml",
                "--llm",
                tmp_path / "llm.yaml",
            ],
            env=CLEAN,
            input=said,
            capture_output=True,
            encoding="utf-8",
        )

    talk.path = tmp_path
    return talk


def test_a_chat_remembers_as_much_as_it_was_trained_with(chat, ollama):
    ollama.before_chat = lambda k, body: f"第{k}，句"
    done = chat("1\n2\n3\n4\n5\n\n/reset\n6\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{OPENING}\n> 第1\n句\n> 第2\n句\n> 第3\n句\n> 第4\n句\n> 第5\n句\n> > (forgotten)\n> 第6\n句\n> \n"
    )
    bodies = [request.body for request in ollama.requests if request.path == "/api/chat"]
    assert [[message["content"] for message in body["messages"]] for body in bodies] == [
        ["1"],
        ["1", "第1，句", "2"],
        ["1", "第1，句", "2", "第2，句", "3"],
        ["1", "第1，句", "2", "第2，句", "3", "第3，句", "4"],
        ["2", "第2，句", "3", "第3，句", "4", "第4，句", "5"],
        ["6"],
    ]
    assert {role["role"] for body in bodies for role in body["messages"]} == {"user", "assistant"}
    assert all(body["stream"] and "options" not in body for body in bodies), "the model's own parameters hold"


def test_a_chat_in_one_piece_and_without_memory(chat, ollama):
    ollama.before_chat = lambda k, body: f"第{k}，句"
    done = chat("1\n2\n", "split: false\nexchanges: 0\n")
    assert done.stdout.splitlines() == [OPENING, "> 第1，句", "> 第2，句", "> "]
    assert [len(request.body["messages"]) for request in ollama.requests if request.path == "/api/chat"] == [1, 1]


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["好，", "走"], "好\n走"),
        (["，好，，走，"], "好\n走"),
        (["，"], ""),
        (["a\nb"], "a\nb"),
        ([], ""),
    ],
)
def test_a_reply_is_shown_as_it_would_have_been_sent(pieces, shown):
    assert "".join(as_messages(pieces)) == shown


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (whole("")[:20], "broke off in the middle (JSONDecodeError); look into its log"),
        (b'{"error": "out of memory"}', "qwen2.5:14b: out of memory"),
    ],
)
def test_a_reply_that_breaks_off(chat, ollama, content, said):
    ollama.before_chat = lambda k, body: Raw(content, len(content))
    done = chat("1\n")
    assert done.returncode == 1
    assert done.stderr in (f"chat.py: Ollama at {ollama.url} {said}\n", f"chat.py: Ollama at {ollama.url}: {said}\n")


def test_no_exported_model(chat):
    (chat.path / "receipt.json").unlink()
    assert chat("").stderr == f"chat.py: {chat.path}/receipt.json: no such file; `make export` makes it\n"


def test_a_chat_with_no_ollama_there(chat):
    (chat.path / "llm.yaml").write_text("url: http://127.0.0.1:9\n")
    assert chat("").stderr == (
        "chat.py: no Ollama answers at http://127.0.0.1:9; start it (ollama serve), or set url or backend in llm.yaml\n"
    )


def test_the_demo_talks_in_process_and_ctrl_c_ends_it_cleanly(demo):
    exported = demo[0] / "data/demo/10002/exported"
    running = subprocess.Popen(
        [
            sys.executable,
            ROOT / "scripts/tools/chat.py",
            exported,
            "--config",
            ROOT / "config/chat.yaml",
            "--llm",
            ROOT / "config/demo/llm.yaml",
        ],
        env={**CLEAN, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert running.stdout.readline() == "loading the merged model ...\n"
    assert running.stdout.readline() == f"{OPENING}\n"
    running.stdin.write("/reset\n在吗？\n/reset\n")
    running.stdin.flush()
    while not running.stdout.readline().endswith("(forgotten)\n"):
        pass
    while not running.stdout.readline().endswith("(forgotten)\n"):  # the reply has come
        pass
    assert running.stdout.read(2) == "> "
    running.send_signal(signal.SIGINT)
    assert running.communicate() == ("\n", "")
    assert running.returncode == 0


def test_make_chat_ends_where_there_is_nothing_more_to_read(demo):
    done = make(demo[0], "chat", *DEMO)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"loading the merged model ...\n{OPENING}\n> \n"


def test_a_reply_in_process_streams_repeats_at_temperature_0_and_can_be_left(demo):
    from huiyin.serving.local import Merged

    model = Merged(demo[0] / "data/demo/10002/exported/merged", PARAMETERS)
    question = [{"role": "user", "content": "在吗？"}]
    assert "".join(model.talk(question)) == "".join(model.talk(question))
    hot = Merged(demo[0] / "data/demo/10002/exported/merged", {**PARAMETERS, "temperature": 9.0, "top_k": 0})
    long = [*question, {"role": "assistant", "content": "在" * 400}, *question]
    reply = hot.talk(long)  # does not fit: the oldest exchange is left out
    next(reply)
    reply.close()
    assert threading.active_count() == len(threading.enumerate())
    assert [thread for thread in threading.enumerate() if thread.name.endswith("(generate)")] == []


# ---- deploy


def test_deploy_says_what_a_platform_needs(demo, tmp_path):
    done = make(demo[0], "deploy", *DEMO)
    assert done.returncode == 0, done.stderr
    system = (demo[0] / "data/demo/10002/generated/system.txt").read_text(encoding="utf-8")
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        "There is no Ollama model yet; this makes it:",
        "  ollama create huiyin-10002 --quantize q8_0 -f data/demo/10002/exported/Modelfile",
    ]
    assert system in lines
    for line in (
        "    Provider        Ollama (ollama-chat)",
        "    Base URL        http://127.0.0.1:11434",
        "    Model name      huiyin-10002",
        "  Base URL          http://127.0.0.1:11434/v1",
        "  Model             huiyin-10002",
    ):
        assert line in lines
    assert "Set fixed_system: true in export.yaml and" in done.stdout

    receipt = json.loads((demo[0] / "data/demo/10002/exported/receipt.json").read_text(encoding="utf-8"))
    made = {**receipt, "ollama": {"name": "huiyin-10002", "digest": "0"}, "fixed_system": True}
    (tmp_path / "receipt.json").write_text(json.dumps(made))
    (tmp_path / "llm.yaml").write_text("url: http://192.168.1.2:11434/\n")
    done = run_script(
        "tools/deploy",
        tmp_path,
        "--generated",
        demo[0] / "data/demo/10002/generated",
        "--name",
        "huiyin-10002",
        "--llm",
        tmp_path / "llm.yaml",
    )
    assert done.stdout.startswith("The model huiyin-10002 at http://192.168.1.2:11434\n")
    assert "The model does not hear it:" in done.stdout

    (tmp_path / "llm.yaml").write_text("url: http://ollama:11434\n")
    done = run_script(
        "tools/deploy",
        tmp_path,
        "--generated",
        demo[0] / "data/demo/10002/generated",
        "--name",
        "huiyin-10002",
        "--llm",
        tmp_path / "llm.yaml",
    )
    assert done.stdout.startswith("This Ollama is inside the containers' own network, and no port of it is published")


# ---- verify


@pytest.fixture
def chain(demo, tmp_path):
    """A copy of the demo's results, with all files at the paths its receipts name."""
    for name in ("data", "config"):
        shutil.copytree(demo[0] / name, tmp_path / name, symlinks=True)

    def verify(llm="config/demo/llm.yaml"):
        stages = [
            "decrypted",
            "parsed",
            "combined",
            *(f"10002/{name}" for name in ("paired", "generated", "trained", "exported")),
        ]
        return subprocess.run(
            [sys.executable, ROOT / "scripts/tools/verify.py", *(f"data/demo/{name}" for name in stages), "--llm", llm],
            cwd=tmp_path,
            env=CLEAN,
            capture_output=True,
            encoding="utf-8",
        )

    verify.data = tmp_path / "data/demo"
    verify.path = tmp_path
    return verify


CLOSING = "verify.py: the chain is broken, see above; what lies behind the break was not made from what is there now\n"


def broken(done):
    assert (done.returncode, done.stderr) == (1, CLOSING)
    return [line.removeprefix("verify: ") for line in done.stdout.splitlines()]


def test_the_chain_holds_back_to_the_source(demo):
    done = make(demo[0], "verify", *DEMO)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "verify: export <- train <- gen <- pair <- combine <- parse <- decrypt <- "
        "data/demo/sample/group_info.db, data/demo/sample/nt_msg.db, "
    )
    assert done.stdout.endswith(" files are what their receipts say\n")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("data/demo/sample/nt_msg.db", "decrypt: input data/demo/sample/nt_msg.db has changed"),
        ("data/demo/combined/turns.parquet", "combine: output data/demo/combined/turns.parquet has changed"),
        ("config/prompts/persona.md", "gen: input config/prompts/persona.md has changed"),
        ("config/demo/train.yaml", "train: settings config/demo/train.yaml has changed"),
        (
            "data/tiny/tiny-qwen2/model.safetensors",
            "export: base model data/tiny/tiny-qwen2/model.safetensors has changed",
        ),
        (
            "data/demo/10002/exported/merged/config.json",
            "export: output data/demo/10002/exported/merged/config.json has changed",
        ),
    ],
)
def test_a_changed_file_breaks_the_chain_where_it_was_made(chain, name, line):
    with open(chain.path / name, "ab") as file:
        file.write(b"\n")
    assert broken(chain()) == [line]


def test_a_file_that_is_gone(chain):
    (chain.data / "10002/trained/training_loss.png").unlink()
    assert broken(chain()) == ["train: output data/demo/10002/trained/training_loss.png is gone"]


def test_a_stage_that_was_done_again_without_the_later_ones(chain):
    """The file is what its own receipt says, but not what the next stage read."""
    path = chain.data / "parsed/receipt.json"
    receipt = json.loads(path.read_text(encoding="utf-8"))
    receipt["outputs"]["messages.parquet"] = "0" * 64
    path.write_text(json.dumps(receipt))
    assert broken(chain()) == [
        "parse: output data/demo/parsed/messages.parquet has changed",
        "combine: input data/demo/parsed/messages.parquet is not what parse made; make combine again",
    ]


def test_a_stage_whose_receipt_is_missing(chain):
    (chain.data / "parsed/receipt.json").unlink()
    assert broken(chain()) == ["combine: input data/demo/parsed/messages.parquet is in no receipt of data/demo/parsed"]


def test_the_ollama_model_is_part_of_the_chain(chain, ollama):
    path = chain.data / "10002/exported/receipt.json"
    receipt = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**receipt, "ollama": {"name": "huiyin-10002", "digest": "1"}}))
    (chain.path / "llm.yaml").write_text(f"url: {ollama.url}\n")
    assert broken(chain("llm.yaml")) == ["the Ollama model huiyin-10002 is gone"]
    ollama.models["huiyin-10002:latest"] = "2"
    assert broken(chain("llm.yaml")) == ["the Ollama model huiyin-10002 is another one"]
    ollama.models["huiyin-10002:latest"] = "1"
    done = chain("llm.yaml")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "verify: the Ollama model huiyin-10002 is the one that export made"
    (chain.path / "llm.yaml").write_text("url: http://127.0.0.1:9\n")
    assert chain("llm.yaml").stdout.splitlines()[0] == (
        "verify: the Ollama model huiyin-10002 could not be looked at: no Ollama answers"
    )


def test_nothing_to_verify(tmp_path):
    done = run_script("tools/verify", tmp_path, "--llm", "config/llm.yaml")
    assert done.stderr == "verify.py: no stage is done yet: there is no receipt to verify\n"
