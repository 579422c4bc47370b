"""web: the finished model in a real browser, and for clients of OpenAI's protocol."""

import io
import json
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from forked import SERVER
from helpers import CLEAN, ROOT, receipt, run_script
from huiyin.common.errors import UserError
from huiyin.serving.gguf import write_gguf
from huiyin.serving.templates.known import find_format
from huiyin.serving.tokenizer import save_tokenizer
from huiyin.serving.web import own_key
from scripts.demo.tiny import write_hugging_face
from scripts.tools.chat import as_messages

QWEN = find_format("qwen")
PARAMETERS = {"num_ctx": 512, "num_predict": 12, "temperature": 0.0, "top_p": 0.9, "top_k": 40, "repeat_penalty": 1.0}
QUESTIONS = ["hello", "哈哈哈哈<|im_end|>"]  # in reply to these, each likeliest token is 0.2 nats ahead of the next
LISTENS, LOOPBACK = "0A", "0100007F"  # in /proc/net/tcp


def write_model(path):
    """Write the exported tiny model into `path`, as a folder and as a GGUF file."""
    base, merged = write_hugging_face(path / "base"), path / "exported/merged"
    merged.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copyfile(base / name, merged / name)
    save_tokenizer(base, QWEN, "你是阿宝，话不多。", False, merged)
    write_gguf(merged, path / "exported/model.gguf", "f32", "阿宝")


def write_rest(path):
    """Write the receipts and settings that go with the model."""
    for folder in ("exported", "generated"):
        (path / folder).mkdir()
    made = receipt("export", parameters={"stop": QWEN.stop, **PARAMETERS}, gguf={"type": "f32"})
    (path / "exported/receipt.json").write_text(json.dumps(made))
    (path / "export.yaml").write_text("ollama: none\n")
    (path / "chat.yaml").write_text("split: false\n")
    write_gen(path, "\n")


def write_gen(path, separator):
    used = {"gen.yaml": {"sha256": "0", "values": {"history_turns": 3, "message_separator": separator}}}
    (path / "generated/receipt.json").write_text(json.dumps(receipt("gen") | {"settings": used}))


def arguments(path, port=0):
    given = [path / "exported", "--generated", path / "generated", "--config", path / "chat.yaml"]
    return [*given, "--name", "huiyin-10002", "--key", path / "web.key", "--port", port]


def chat(path):
    """Write into a file what `make chat` prints in reply to each of QUESTIONS, in one conversation."""
    import torch

    torch.set_num_threads(1)  # tests run side by side: more get in the way
    given = [*arguments(path)[:5], "--export", path / "export.yaml"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stdin", io.StringIO("".join(f"{question}\n" for question in QUESTIONS)))
        done = run_script("tools/chat", *given)
    assert done.returncode == 0, done.stderr
    replies = [reply.rstrip("\n") for reply in done.stdout.split("> ")[1:-1]]
    (path / "replies.json").write_text(json.dumps(replies))


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """The running command: its `process`, `url` and `key`, what it has `shown`, and the `replies` of chat."""
    path = tmp_path_factory.mktemp("web")
    write_rest(path)
    write_model(path)
    child = SERVER.Process(target=chat, args=(path,))
    child.start()
    child.join()
    replies = json.loads((path / "replies.json").read_text())
    separator = replies[0][len(replies[0]) // 2]  # so that the first reply is of several messages
    write_gen(path, separator)
    (path / "chat.yaml").write_text("split: true\n")
    command = [sys.executable, ROOT / "scripts/tools/web.py", *map(str, arguments(path))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    # threads of llama.cpp that wait for each other take the time of the tests beside them
    with subprocess.Popen(command, env={**CLEAN, "OMP_THREAD_LIMIT": "1"}, **pipes) as process:
        lines = [process.stdout.readline() for _ in range(4)]
        url, key = lines[1].split()[-1].split("/#key=")
        shown = "".join(lines).replace(url, "URL").replace(key, "KEY")
        yield SimpleNamespace(process=process, url=url, key=key, shown=shown, replies=replies, separator=separator)
        process.kill()


def test_a_conversation_in_the_browser_has_the_words_of_chat(web, browser):
    page, wrong = browser.new_context(locale="zh-CN", viewport={"width": 400, "height": 800}).new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("request", lambda request: None if request.url.startswith(web.url) else wrong.append(request.url))
    page.goto(f"{web.url}/#key={web.key}")
    page.get_by_role("heading", name="huiyin-10002").wait_for()
    for number, question in enumerate(QUESTIONS):
        page.fill("#text", question)
        page.press("#text", "Enter")
        page.locator("#send:enabled").wait_for()
        assert page.locator(".own").nth(number).inner_text() == question
        messages = page.locator(".turn:not(.own)").nth(number).locator("p").all_text_contents()
        assert messages == "".join(as_messages(web.replies[number], web.separator)).split("\n")
        assert number > 0 or len(messages) > 1
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    page.get_by_role("button", name="新对话").click()
    assert page.locator(".turn").count() == 0
    assert wrong == []


def test_a_wrong_key_is_said_on_the_page(web, browser):
    page = browser.new_context(locale="en-US").new_page()
    page.goto(f"{web.url}/#key=another")
    page.get_by_text("The key is missing or wrong").wait_for()
    assert page.get_by_role("heading").inner_text() == "回音 Huiyin"


def test_nobody_is_answered_without_the_key(web):
    question = {"messages": [{"role": "user", "content": QUESTIONS[0]}]}
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {web.key[:-1]}"}):
        answers = [requests.get(f"{web.url}{path}", headers=headers) for path in ("/props", "/v1/models", "/slots")]
        answers.append(requests.post(f"{web.url}/v1/chat/completions", json=question, headers=headers))
        assert [answer.status_code for answer in answers] == [401] * 4
    assert requests.get(web.url).content == (ROOT / "huiyin/serving/page/index.html").read_bytes()
    command = Path(f"/proc/{web.process.pid}/cmdline").read_bytes()
    assert web.key.encode() not in command and web.shown == (
        "loading the model ...\nin the browser      URL/#key=KEY\n"
        "for other programs  URL/v1 with that key; the model is huiyin-10002\nCtrl-C ends it\n"
    )


def test_a_client_that_sends_nothing_but_messages_gets_our_system_text_and_sampling(web):
    content = [{"type": "text", "text": QUESTIONS[0]}]  # as LangBot sends it
    question = {"model": "huiyin-10002", "messages": [{"role": "user", "content": content}]}
    headers = {"Authorization": f"Bearer {web.key}"}
    answer = requests.post(f"{web.url}/v1/chat/completions", json=question, headers=headers)
    assert answer.json()["choices"][0]["message"]["content"] == web.replies[0]
    other = {"role": "system", "content": "我是别人"}
    question["messages"].insert(0, other)
    answer = requests.post(f"{web.url}/v1/chat/completions", json=question, headers=headers)
    assert answer.json()["choices"][0]["message"]["content"] != web.replies[0]


def test_it_listens_on_this_machine_alone_until_ctrl_c(web):
    port = f"{int(web.url.rpartition(':')[2]):04X}"
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    assert [row[1] for row in rows if row[1].endswith(f":{port}") and row[3] == LISTENS] == [f"{LOOPBACK}:{port}"]
    web.process.send_signal(signal.SIGINT)
    assert web.process.communicate() == ("\n", "") and web.process.returncode == 0


def test_what_is_missing_or_taken_is_one_line(tmp_path):
    write_rest(tmp_path)
    gguf = tmp_path / "exported/model.gguf"
    gguf.touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_script("tools/web", *arguments(tmp_path, port))
    assert done.stderr == f"web.py: port {port}: address already in use; take another one: make web PORT=8081\n"
    gguf.unlink()
    done = run_script("tools/web", *arguments(tmp_path))
    assert done.stderr == f"web.py: {gguf}: no such file; say gguf: true in export.yaml, and export again\n"
    assert done.returncode == 1


def test_the_key_is_made_once_and_an_empty_one_is_none(tmp_path):
    path = tmp_path / "web.key"
    assert own_key(path) == own_key(path)
    assert path.stat().st_mode & 0o777 == 0o600 and list(tmp_path.iterdir()) == [path]
    path.write_text("\n")
    with pytest.raises(UserError) as error:
        own_key(path)
    assert str(error.value) == f"{path}: not a key that `make web` made; remove the file, and it makes another one"
