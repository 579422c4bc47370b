"""A model that may fail at any moment: the results are those of a run without failures, or there is a clear error."""

import itertools
import json
import threading
from collections import Counter

import pytest
import xllamacpp

import ollama_server
from llm_folder import chats, complaint, prompt_of, reply_in, succeeded
from ollama_server import OllamaServer


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
        "what is answered is kept, start again to go on"
    )
    assert not (folder.path / "paired/receipt.json").exists()
    assert list((folder.path / "paired").iterdir()) == []


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
