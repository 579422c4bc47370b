"""Nothing leaves: redirects, passwords in addresses, words of the chat in error lines, the port of the own server."""

import json
import socket

import pytest
import requests

import ollama_server
from helpers import receipt, run_script
from huiyin.common.errors import UserError
from huiyin.llm.backend import ChatRequest
from huiyin.llm.embedded import Embedded
from huiyin.llm.ollama import Ollama
from huiyin.llm.openai import OpenAI
from llm_folder import complaint, succeeded
from ollama_server import Handler, Refusal

MODEL = "qwen2.5:14b"
QUESTION = ChatRequest([{"role": "user", "content": "你养猫吗"}], None, 0.0, 0, 8)


@pytest.fixture
def answers(monkeypatch):
    """Let the server answer a path with what a function returns or raises; it gets the handler."""

    def answer(method, path, make):
        other = Handler.answer

        def patched(handler, server, content):
            if (handler.command, handler.path[: len(path)]) == (method, path):
                return make(handler)
            return other(handler, server, content)

        monkeypatch.setattr(Handler, "answer", patched)

    return answer


# ---- Redirects

USES = [
    ("GET", "/api/tags", lambda model, file: model.digest()),
    ("POST", "/api/pull", lambda model, file: list(model.pull())),
    ("POST", "/api/show", lambda model, file: model.prepare()),
    ("POST", "/api/chat", lambda model, file: model.chat(QUESTION)),
    ("POST", "/api/chat", lambda model, file: list(model.talk(QUESTION.messages))),
    ("GET", "/api/ps", lambda model, file: model.unload()),
    ("POST", "/api/generate", lambda model, file: model.unload()),
    ("HEAD", "/api/blobs/", lambda model, file: model.upload(file, "sha256:0", None)),
    ("POST", "/api/blobs/", lambda model, file: model.create({"a": file}, "f16", "", "", {})),
    ("POST", "/api/create", lambda model, file: model.create({}, "f16", "", "", {})),
]
OPENAI_USES = [
    ("GET", "/v1/models", lambda model, file: model.identity()),
    ("POST", "/v1/chat/completions", lambda model, file: model.chat(QUESTION)),
]


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize(
    ("kind", "method", "path", "use"),
    [*((Ollama, *use) for use in USES), *((OpenAI, *use) for use in OPENAI_USES)],
)
def test_no_request_follows_a_redirect(ollama, answers, tmp_path, status, kind, method, path, use):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    ollama.load(MODEL, 512)
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        address = f"http://127.0.0.1:{elsewhere.getsockname()[1]}"

        def redirect(handler):
            raise Refusal(status, f"{address}{path}")

        answers(method, path, redirect)
        with pytest.raises(UserError) as error:
            use(kind(ollama.url, MODEL, 512, 60), file)
        with pytest.raises(BlockingIOError):  # nobody has connected
            elsewhere.accept()
    assert str(error.value).startswith(f"{ollama.url}{path}")
    assert str(error.value).endswith(f" redirects to {address}{path}; set the url of the server itself")


# ---- Passwords in addresses


@pytest.fixture
def guarded(ollama, monkeypatch):
    """The address of a server that wants the user `otto` and the password `ge:heim/夏`."""
    allowed, other = requests.auth._basic_auth_str(b"otto", "ge:heim/夏".encode()), Handler.answer

    def answer(handler, server, content):
        if handler.headers["Authorization"] != allowed:
            raise Refusal(401, "who are you?")
        other(handler, server, content)

    monkeypatch.setattr(Handler, "answer", answer)
    return ollama.url.replace("http://", "http://otto:ge%3Aheim%2F%E5%A4%8F@")


def assert_nothing_told(*texts):
    for text in texts:
        assert "otto" not in text and "heim" not in text, text


def test_a_password_is_sent_to_its_server_and_told_to_nobody(folder, guarded):
    folder.ollama.on_gpu = 0.4  # for the warning
    folder.llm(url=guarded)
    done = succeeded(folder.pair())
    assert folder.ollama.url in done.stderr
    settings = folder.json("paired/receipt.json")["settings"]
    assert settings[f"{folder.path}/llm.yaml"]["values"]["url"] == folder.ollama.url
    assert_nothing_told(done.stdout, done.stderr, (folder.path / "paired/receipt.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "settings",
    [
        "url: URL\nmodel: other:1b",
        "url: URL\nbackend: openai",
        "url: [URL, URL]\nmax_failures_in_a_row: 1",
        "url: http://otto:geheim@127.0.0.1:9",
        "url: http://otto:geheim@nowhere.invalid",
        "url: http://otto:geheim@8.8.8.8",
        "url: http://otto:geheim@127.0.0.1:99999",
        "url: http://otto:ge/heim@127.0.0.1",
        "url: [http://otto:geheim@a b]",
        "url: ftp://otto:geheim@127.0.0.1",
    ],
)
def test_no_error_line_has_a_password(folder, guarded, monkeypatch, settings):
    monkeypatch.setattr("socket.getaddrinfo", no_such_host(socket.getaddrinfo))
    folder.ollama.before_chat = lambda k, body: ollama_server.crashed()
    folder.settings("llm", settings.replace("URL", guarded))
    line = complaint(folder.pair())
    assert "http" in line or "127.0.0.1" in line
    assert_nothing_told(line)


def no_such_host(known):
    def look_up(host, *rest):
        if host == "nowhere.invalid":
            raise socket.gaierror
        return known(host, *rest)

    return look_up


def test_deploy_tells_no_password(tmp_path, guarded):
    (tmp_path / "system.txt").write_text("你是“阿岚”。", encoding="utf-8")
    (tmp_path / "export.yaml").write_text(f"ollama: {guarded}\n")
    fields = {"parameters": {"temperature": 0.8, "top_p": 0.9}, "quantize": "q8_0", "fixed_system": False}
    used = {"gen.yaml": {"sha256": "0", "values": {"history_turns": 3}}}  # one folder is both stages'
    (tmp_path / "receipt.json").write_text(json.dumps(receipt("export", **fields) | {"settings": used}))
    options = ["--generated", tmp_path, "--name", "huiyin-1", "--export", tmp_path / "export.yaml"]
    done = succeeded(run_script("tools/deploy", tmp_path, *options))
    assert_nothing_told(done.stdout, done.stderr)


# ---- Words of the chat

SECRET = "阿岚下个月辞职"


def test_what_the_model_says_is_in_no_error_line(folder):
    folder.settings("pair", "method: empty\nmerge_replies: llm\n")
    folder.llm("max_failures_in_a_row: 1\n")
    folder.ollama.before_chat = lambda k, body: json.dumps({"merged": [{"first": SECRET, "last": "3", "text": "x"}]})
    assert complaint(folder.pair()) == (
        "pair.py: the language model failed 1 times in a row, the last time: the answer is not in the form that was "
        "asked for; this model does not keep to the form it is given, take another model in llm.yaml; what is answered "
        "is kept, start again to go on"
    )


def test_what_a_server_says_is_cut(folder):
    def complain(k, body):
        raise Refusal(400, "no, " * 50_000)

    folder.ollama.before_chat = complain
    line = complaint(folder.pair())
    assert line.startswith(f"pair.py: {folder.ollama.url}/api/chat refuses the request with status 400: no, no, ")
    assert line.endswith("no, …") and len(line) < 400


# ---- The server within our own process


def test_the_embedded_server_answers_nobody_else(gguf):
    embedded = Embedded(str(gguf), 512, 1)
    address = embedded.server.listening_address
    asked = {"messages": QUESTION.messages, "prompt": "a", "content": "a", "tokens": [1], "input": "a", "max_tokens": 1}
    paths = [
        "completion",
        "v1/completions",
        "v1/chat/completions",
        "v1/messages",
        "tokenize",
        "detokenize",
        "embedding",
    ]
    found = {path: requests.post(f"{address}/{path}", json=asked) for path in [*paths, "apply-template", "infill"]}
    found |= {path: requests.get(f"{address}/{path}") for path in ("slots", "props", "metrics", "lora-adapters")}
    found["other key"] = requests.get(f"{address}/props", headers={"Authorization": "Bearer other"})
    assert {path: answer.status_code for path, answer in found.items()} == dict.fromkeys(found, 401)
    assert requests.get(f"{address}/").status_code == 404  # no web page
    assert embedded.chat(QUESTION).tokens > 0
