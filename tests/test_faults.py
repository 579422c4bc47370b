"""A model that may fail at any moment: the results are those of a run without failures, or there is a clear error."""

import gzip
import itertools
import json
import os
import sqlite3
import threading
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime

import pytest
import xllamacpp

import ollama_server
from helpers import ROOT
from huiyin.common.errors import UserError
from huiyin.common.settings import read_settings
from huiyin.llm import answer_cache
from huiyin.llm.answer_cache import AnswerCache
from huiyin.llm.client import Client, Settings, unload_model
from huiyin.questions.pairing import which_turn
from huiyin.questions.prompts import read_prompt
from llm_folder import chats, complaint, prompt_of, reply_in, succeeded
from ollama_server import Endless, Handler, OllamaServer, exactly, whole

GZIP = b"Content-Encoding: gzip\r\n\r\n"


def valid_answer(body):
    """Return an answer to a question of pair or gen; the same whatever the seed and the temperature."""
    properties = body["format"]["properties"]
    if "answers" in properties:
        return json.dumps({"answers": "none" if reply_in(body) == "走起" else "1"})
    return json.dumps(dict.fromkeys(properties, "怎么样"))


def pair_and_gen(folder):
    succeeded(folder.pair())
    succeeded(folder.gen())
    names = ("paired/pairs.jsonl", "paired/unpaired.jsonl", "generated/alpaca.json", "generated/sources.jsonl")
    return {name: (folder.path / name).read_bytes() for name in names}


@pytest.fixture
def undisturbed(folder):
    """Return the results without failures, and how often each question was asked; the answer cache is empty again."""
    folder.ollama.before_chat = lambda k, body: valid_answer(body)
    results, asked = pair_and_gen(folder), Counter(map(prompt_of, folder.chats()))
    for file in folder.path.glob("answers.db*"):
        file.unlink()
    folder.ollama.requests.clear()
    return results, asked


OTHER_MODEL = "this model does not keep to the form it is given, take another model in llm.yaml; "
FAULTS = ["crashed", "busy", "not_done", "cut_off", "cut_json", "thinking_aloud", "no_json", "dropped"]


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_per_question_does_not_change_the_results(folder, undisturbed, fault):
    results, asked = undisturbed
    tries = Counter()

    def fail_once(k, body):
        tries[prompt_of(body)] += 1
        return getattr(ollama_server, fault)() if tries[prompt_of(body)] == 1 else valid_answer(body)

    folder.ollama.before_chat = fail_once
    assert pair_and_gen(folder) == results
    assert len(asked) == 4 and tries == Counter(dict.fromkeys(asked, 2))
    seeds = {prompt: set() for prompt in asked}
    for body in folder.chats():
        seeds[prompt_of(body)].add(body["options"]["seed"])
    assert all(len(used) == 2 for used in seeds.values()), "each try has a seed of its own"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("crashed", "{url}/api/chat: status 500, model runner has unexpectedly stopped"),
        ("not_done", "the answer was broken off: done_reason None"),
        ("cut_off", "the answer was broken off: done_reason length"),
        ("cut_json", "the answer is no whole JSON"),
        ("thinking_aloud", "the model thinks although thinking is switched off"),
        ("dropped", "{url}/api/chat: ChunkedEncodingError"),
    ],
)
def test_a_fault_that_stays_ends_the_stage_with_a_clear_error(folder, fault, error):
    folder.llm("max_failures_in_a_row: 3\n")
    folder.ollama.before_chat = lambda k, body: getattr(ollama_server, fault)()
    assert complaint(folder.pair()) == (
        f"pair.py: the language model failed 3 times in a row, the last time: {error.format(url=folder.ollama.url)}; "
        f"{OTHER_MODEL if 'JSON' in error else ''}"
        "what is answered is kept, start again to go on"
    )
    assert not (folder.path / "paired/receipt.json").exists()
    assert list((folder.path / "paired").glob("*")) == []


def test_a_question_beyond_the_time_out_is_asked_again(folder, undisturbed):
    results, asked = undisturbed
    released, tries = threading.Event(), Counter()

    def hang_once(k, body):
        tries[prompt_of(body)] += 1
        if tries.total() == 1:
            released.wait(60)
        else:
            released.set()
        return valid_answer(body)

    folder.llm("read_timeout_seconds: 1.0\n")
    folder.ollama.before_chat = hang_once
    assert pair_and_gen(folder) == results
    assert tries.total() == asked.total() + 1


@pytest.mark.parametrize(
    ("answer", "bound"),
    [
        (Endless(b"HTTP/1.1 200 OK\r\nServer: ", b"a", 0.02), "1 s"),
        (Endless(b"HTTP/1.1 200 OK\r\n\r\n", b"a", 0.02), "1 s"),
        (Endless(b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 65536), "8 MiB"),
        (Endless(b"HTTP/1.1 200 OK\r\n" + GZIP, gzip.compress(b"a" * 9_000_000)), "8 MiB"),
    ],
)
def test_an_answer_without_end_is_given_up(folder, answer, bound):
    folder.llm(f"read_timeout_seconds: {1 if 's' in bound else 60}\nmax_failures_in_a_row: 1\n")
    folder.ollama.before_chat = lambda k, body: answer
    assert complaint(folder.pair()) == (
        f"pair.py: the language model failed 1 times in a row, the last time: {folder.ollama.url}/api/chat: no whole "
        f"answer within {bound}; what is answered is kept, start again to go on"
    )


def test_a_question_beyond_the_context_stops_at_once(folder):
    folder.ollama.before_chat = lambda k, body: ollama_server.too_long()
    assert complaint(folder.pair()) == (
        f"pair.py: {folder.ollama.url}/api/chat: request (5000 tokens) exceeds the available context size "
        "(4096 tokens), try increasing it; raise num_ctx in llm.yaml or show less (pair.yaml, gen.yaml)"
    )
    assert len(folder.chats()) == 1


def test_more_failures_than_allowed_end_the_stage(folder):
    folder.settings("llm", f"url: {folder.ollama.url}\nnum_ctx: 16384\n")
    folder.ollama.before_chat = lambda k, body: '{"answers": "9"}' if "写完了" in prompt_of(body)[-60:] else None
    assert complaint(folder.pair()) == (
        "pair.py: 1 of 3 questions had no valid answer in 3 tries (the last: the answer is not one of the choices), "
        "more than max_failed_share in llm.yaml allows; what is answered is kept"
    )


@pytest.mark.parametrize("answer", ["{}", '["1"]', "```json\n"])
def test_a_model_that_cannot_keep_the_form_is_named_as_such(folder, answer):
    folder.settings("llm", f"url: {folder.ollama.url}\nnum_ctx: 16384\n")
    folder.ollama.before_chat = lambda k, body: answer
    assert f"more than max_failed_share in llm.yaml allows; {OTHER_MODEL}what is answered" in complaint(folder.pair())


def test_json_in_a_code_fence_is_understood(folder, undisturbed):
    results, asked = undisturbed
    folder.ollama.before_chat = lambda k, body: f"```json\n{valid_answer(body)}\n```\n"
    assert pair_and_gen(folder) == results
    assert len(folder.chats()) == asked.total()
    folder.ollama.requests.clear()
    assert pair_and_gen(folder) == results
    assert folder.chats() == []


# ---- A broken answers.db


DAMAGED = "`make forget-answers` deletes it, sqlite3's .recover may save some of it"


PROMPT = ROOT / "config/prompts/pair.md"
TURN = {"user_id": "2", "nickname": "阿木", "text": "在吗", "time": datetime(2024, 5, 1, tzinfo=UTC)}


def other_schema(path):
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE answers (question TEXT)")


def zeroed(path):
    path.write_bytes(path.read_bytes()[:4096] + bytes(path.stat().st_size - 4096))


BROKEN = {  # {what: (what is done to a file of answers, the line)}
    "garbage": (lambda path: path.write_bytes(b"garbage" * 1000), f"is damaged: file is not a database; {DAMAGED}"),
    "cut": (
        *(lambda path: os.truncate(path, path.stat().st_size - 5000),),
        f"is damaged: database disk image is malformed; {DAMAGED}",
    ),
    "zeroed": (zeroed, f"is damaged: database disk image is malformed; {DAMAGED}"),
    "another schema": (
        *(lambda path: [path.unlink(), other_schema(path)],),
        f"is damaged: no such column: answer; {DAMAGED}",
    ),
    "a folder": (
        lambda path: [path.unlink(), path.mkdir()],
        "is no file, but the answers belong there; move it away",
    ),
    "a pipe": (
        lambda path: [path.unlink(), os.mkfifo(path)],
        "is no file, but the answers belong there; move it away",
    ),
    "a link that leads nowhere": (
        lambda path: [path.unlink(), path.symlink_to("no/such/folder")],
        "cannot be opened (unable to open database file); make its folder and it readable and writable for you",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_answers_that_cannot_be_used_are_one_line(tmp_path, what):
    path = tmp_path / "answers.db"
    with closing(AnswerCache(path)) as answers:
        for key in range(100):
            answers.put(str(key), "x" * 1000)
    breaks, line = BROKEN[what]
    breaks(path)
    with pytest.raises(UserError) as error, closing(AnswerCache(path)) as answers:
        for key in range(100):
            answers.put(str(key), answers.get(str(key)).decode())
    assert str(error.value) == f"{path}: {line}"


def test_answers_that_another_program_has_locked_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(answer_cache, "LOCKED_SECONDS", 0.01)
    path = tmp_path / "answers.db"
    with closing(AnswerCache(path)) as answers, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            UserError, match=r"another program has locked it for 0\.01 s; close that one and start again"
        ):
            answers.put("key", "answer")


def test_a_full_disk_is_one_line(tmp_path):
    with closing(AnswerCache(tmp_path / "answers.db")) as answers:
        answers.database.execute("PRAGMA max_page_count = 3")
        with pytest.raises(
            UserError, match=r"no space left, or the disk fails \(database or disk is full\); free some"
        ):
            answers.put("key", "x" * 100_000)


UNREADABLE = ["no JSON", "null", '"text"', b"\xff\xfe", 5, '["{}", "high"]', '["{}", 7]', '["1", 1]', "[" * 9999, "[1]"]


def test_an_answer_that_cannot_be_read_counts_as_none(tmp_path):
    question = which_turn(read_prompt(PROMPT, ["name", "context", "reply"]), {**TURN, "text": "好"}, [TURN], 100, 0)
    client = Client(Settings(), "", tmp_path / "answers.db")
    client.model = "a model"
    with closing(AnswerCache(client.answers)) as client.cache:
        client.cache.put("sound", '["{\\"answers\\": \\"none\\"}", 0.5]')
        assert client.cached("sound", question) == ("none", 0.5)
        for entry in UNREADABLE:
            client.cache.put("key", entry)
            assert client.cached("key", question) is None


def test_an_answer_that_cannot_be_read_is_asked_anew(folder):
    folder.ollama.before_chat = lambda k, body: valid_answer(body)
    succeeded(folder.pair())
    with closing(sqlite3.connect(folder.path / "answers.db", isolation_level=None)) as database:
        database.execute("UPDATE answers SET answer = x'ff'")
    succeeded(folder.pair())
    succeeded(folder.pair())
    assert len(folder.chats()) == 6


def test_a_model_that_is_not_all_on_the_gpu_is_a_warning(folder):
    folder.ollama.on_gpu = 0.4
    done = succeeded(folder.pair())
    assert done.stderr.startswith(f"WARNING: only 40% of qwen2.5:14b at {folder.ollama.url} is on the GPU, ")
    before_first = [request.path for request in folder.ollama.requests][:4]
    assert before_first == ["/api/tags", "/api/show", "/api/chat", "/api/ps"]


def test_a_context_larger_than_that_of_the_model_is_refused(folder):
    folder.settings("llm", f"url: {folder.ollama.url}\nnum_ctx: 40000\n")
    assert complaint(folder.pair()) == (
        "pair.py: qwen2.5:14b has a context of 32768 tokens, less than num_ctx: 40000 in llm.yaml; "
        "lower it or take another model"
    )
    assert folder.chats() == []


def test_the_number_of_questions_is_printed_first(folder):
    done = succeeded(folder.pair())
    assert done.stdout.splitlines()[1].startswith("pair: 3 questions to ask, about ")
    again = succeeded(folder.pair())
    assert (
        again.stdout.splitlines()[1] == "pair: 0 questions to ask and 3 answered from the answer cache, about 0 tokens"
    )


# ---- Several servers


@pytest.fixture
def two(folder, gguf):
    """A folder whose work two servers share."""
    with OllamaServer(gguf, ["qwen2.5:14b"]) as second:
        folder.second = second
        folder.llm(url=f"[{folder.ollama.url}, {second.url}]")
        yield folder


def test_work_is_spread_over_servers(two):
    both = threading.Barrier(2, timeout=60)

    def wait_for_the_other(k, body):
        if next(asked) > 1:  # the longest goes first and alone
            both.wait()

    asked = itertools.count(1)
    two.ollama.before_chat = two.second.before_chat = wait_for_the_other
    succeeded(two.pair())
    assert {len(chats(two.ollama)), len(chats(two.second))} == {1, 2}


def test_a_server_that_is_down_is_left_out(two):
    two.llm(url=f"[http://127.0.0.1:9, {two.ollama.url}]")
    succeeded(two.pair())
    assert len(two.chats()) == 3


def test_a_server_that_fails_midway_is_left_out(two):
    two.ollama.before_chat = lambda k, body: ollama_server.crashed()
    succeeded(two.pair())
    assert len(chats(two.second)) == 3
    assert len(chats(two.ollama)) == 1


def test_servers_with_different_models_are_refused(two):
    two.second.models["qwen2.5:14b"] = "another digest"
    assert complaint(two.pair()) == (
        f"pair.py: {two.second.url} has another model under that name than {two.ollama.url}; "
        "pull the same one to all of them"
    )


def test_if_no_server_answers_the_stage_ends_with_a_clear_error(two):
    two.llm(url="[http://127.0.0.1:9, http://127.0.0.1:10]")
    assert complaint(two.pair()) == (
        "pair.py: no Ollama answers at http://127.0.0.1:10; start it (ollama serve), or change url in llm.yaml"
    )


NO_OLLAMA = "no Ollama answers at {url}; start it (ollama serve), or change url in llm.yaml"
OTHER_FORMAT = "{url}: the answer is not in the format of Ollama; the model cannot be loaded"


@pytest.mark.parametrize(
    ("method", "path", "content", "line"),
    [
        ("GET", "/api/tags", b"[" * 200_000, NO_OLLAMA),
        ("GET", "/api/tags", b'{"models": [null]}', NO_OLLAMA),
        ("POST", "/api/show", b"null", OTHER_FORMAT),
        ("POST", "/api/show", b'{"model_info": {"a.context_length": "many"}}', OTHER_FORMAT),
        ("POST", "/api/show", b"[" * 200_000, "{url}/api/show: the answer is not JSON; the model cannot be loaded"),
        ("GET", "/api/ps", b"{}", OTHER_FORMAT),
        ("GET", "/api/ps", b'{"models": [{"name": "qwen2.5:14b", "size": null}]}', OTHER_FORMAT),
    ],
)
def test_an_answer_in_another_format_is_one_line(folder, monkeypatch, method, path, content, line):
    monkeypatch.setitem(Handler.ANSWERS, (method, path), lambda ollama, body: exactly(content))
    assert complaint(folder.pair()) == f"pair.py: {line.format(url=folder.ollama.url)}"


@pytest.mark.parametrize("content", [b"null", b"[]", b'{"data": ["tiny"]}', b'{"data": 3}'])
def test_a_list_of_models_in_another_format_is_one_line(folder, monkeypatch, content):
    monkeypatch.setitem(Handler.ANSWERS, ("GET", "/v1/models"), lambda ollama, body: exactly(content))
    folder.llm("backend: openai\nmodel: tiny\n")
    assert complaint(folder.pair()) == f"pair.py: {folder.ollama.url}: the answer is not in the format of OpenAI"


# ---- OpenAI's protocol, with a real llama-server


@pytest.fixture
def llama_server(gguf):
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = str(gguf), {"tiny"}
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 32768, 2, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def test_an_openai_server_can_answer_the_questions(folder, llama_server):
    folder.llm("backend: openai\nmodel: tiny\n", url=f"{llama_server.listening_address}/v1")
    folder.settings("llm", (folder.path / "llm.yaml").read_text().replace("16384", "8192"))
    succeeded(folder.pair())
    decided = folder.lines("pairs.jsonl")
    assert all(line["decided_by"] == "llm" and 0 < line["confidence"] < 1 for line in decided)
    assert len(decided) + len(folder.lines("unpaired.jsonl")) == 3
    assert folder.json("paired/receipt.json")["llm"]["model"] == "tiny"
    assert folder.chats() == []


def test_an_openai_server_without_the_model_is_one_clear_line(folder, llama_server):
    folder.llm("backend: openai\nmodel: other\n", url=llama_server.listening_address)
    assert complaint(folder.pair()) == (
        f"pair.py: the server at {llama_server.listening_address} has no model 'other', but: tiny; "
        "set model in llm.yaml"
    )


def test_an_openai_server_without_an_address_is_one_clear_line(folder):
    folder.settings("llm", "backend: openai\n")
    assert complaint(folder.pair()) == (
        "pair.py: llm.yaml: backend openai needs the url of its server, such as http://127.0.0.1:8000"
    )


# ---- The model is exchanged under its name


MODEL = "qwen2.5:14b"


def exchanged(server):
    return (
        f"{MODEL} at {server.url} was exchanged or removed while it was asked; what it has answered before is kept, "
        "start again to ask the model that is there now"
    )


def test_a_model_exchanged_while_it_is_asked_is_noticed_and_its_answers_are_not_kept(folder):
    def exchange(k, body):
        if k == 2:
            folder.ollama.models[MODEL] = "another digest"
        return exactly(whole('{"answers": "none"}'))

    before = folder.ollama.models[MODEL]
    folder.ollama.before_chat = exchange
    folder.settings("llm", f"url: {folder.ollama.url}\nparallel: 1\n")
    assert complaint(folder.pair()) == f"pair.py: {exchanged(folder.ollama)}"
    folder.ollama.models[MODEL] = before
    folder.ollama.requests.clear()
    succeeded(folder.pair())
    assert len(folder.chats()) == 2  # of three


def test_a_model_exchanged_on_one_of_several_servers_is_noticed(two):
    asked = threading.Event()

    def exchange(k, body):
        two.second.models[MODEL] = "another digest"
        if k > 1:  # the longest goes first and alone
            assert asked.wait(60)

    two.ollama.before_chat, two.second.before_chat = exchange, lambda k, body: asked.set()
    assert complaint(two.pair()) == f"pair.py: {exchanged(two.second)}"


def test_a_model_exchanged_between_two_kinds_of_questions_is_noticed(folder, monkeypatch):
    ask_all = Client.ask_all

    def exchange_afterwards(self, name, questions, *others, **options):
        answers = ask_all(self, name, questions, *others, **options)
        folder.ollama.models[MODEL] = name
        return answers

    monkeypatch.setattr(Client, "ask_all", exchange_afterwards)
    folder.settings("pair", "merge_replies: llm\n")
    assert complaint(folder.pair()) == f"pair.py: {exchanged(folder.ollama)}"
    assert folder.ollama.models[MODEL] == "pair: turns that belong together"


# ---- Making room on the card


def test_our_model_is_unloaded_from_each_server_and_no_other_program_s(two):
    for server in (two.ollama, two.second):
        server.models["another:1b"] = "digest"
        server.loaded = {MODEL: 512, "another:1b": 512}
    two.ollama.loaded.pop(MODEL)
    unload_model(read_settings(two.path / "llm.yaml", Settings), "http://127.0.0.1:9")
    assert two.ollama.loaded == two.second.loaded == {"another:1b": 512}
