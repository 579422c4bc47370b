"""Fetching the language model into Ollama: its size is printed first, and each failure is one line."""

import itertools
import re
import threading

import pytest

from helpers import run_script
from llm_folder import complaint
from ollama_server import Handler, Raw, exactly

ADVICE = "is the name right, is the network there? HTTPS_PROXY names a proxy; start again, what is fetched is kept"


@pytest.fixture
def pull(tmp_path, ollama):
    """Call pull.py for the model other:1b, which the server lacks."""
    settings = tmp_path / "llm.yaml"
    settings.write_text("model: other:1b\n")
    return lambda: run_script("tools/pull", "--llm", settings, "--ollama-url", ollama.url)


@pytest.fixture
def answer(monkeypatch):
    """Let the server answer a path with what a function returns."""
    return lambda method, path, make: monkeypatch.setitem(Handler.ANSWERS, (method, path), lambda ollama, body: make())


def test_a_missing_model_is_fetched_and_its_size_printed_first(pull, ollama):
    done = pull()
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"other:1b is not here yet: 0\.0 GB to fetch, [\d.]+ GB of disk free\n", done.stdout)
    assert "other:1b" in ollama.models
    ollama.requests.clear()
    assert pull().stdout == ""
    assert [request.path for request in ollama.requests] == ["/api/tags"]


def test_a_model_that_no_registry_has_is_one_clear_line(pull, answer, ollama):
    failure = {"error": "pull model manifest: file does not exist"}
    answer("POST", "/api/pull", lambda: iter([{"status": "pulling manifest"}, failure]))
    assert complaint(pull()) == (
        f"pull.py: Ollama at {ollama.url}: other:1b: pull model manifest: file does not exist; {ADVICE}"
    )


def test_a_model_larger_than_the_disk_is_not_fetched(pull, answer):
    layer = {"status": "pulling", "digest": "sha256:1", "total": 10**18}
    answer("POST", "/api/pull", lambda: iter([layer, {"status": "success"}]))
    done = pull()
    assert re.fullmatch(r"other:1b is not here yet: 1000000000\.0 GB to fetch, [\d.]+ GB of disk free\n", done.stdout)
    assert re.fullmatch(
        r"pull\.py: other:1b takes 1000000000\.0 GB and [\d.]+ are free on Docker's disk; make room "
        r"\(docker system df\), or name a smaller model in \S+/llm\.yaml",
        complaint(done),
    )


def test_a_fetch_that_ends_too_early_can_be_started_again(pull, answer):
    answer("POST", "/api/pull", lambda: iter([{"status": "verifying sha256 digest"}]))
    assert complaint(pull()) == (
        "pull.py: Ollama stopped fetching other:1b after: verifying sha256 digest; start again, what is fetched is kept"
    )


@pytest.mark.parametrize("event", [b"null", b"[]", b"3", b"[" * 200_000])
def test_an_event_that_is_none_is_one_clear_line(pull, answer, event):
    answer("POST", "/api/pull", lambda: exactly(event + b"\n"))
    assert re.search(r" broke off in the middle \(\w+Error\); look into its log; ", complaint(pull()))


def test_sizes_that_are_none_are_not_shown(pull, answer):
    events = [{"status": "a", "total": None}, {"total": "b", "completed": []}, {"total": 3, "digest": None}]
    answer("POST", "/api/pull", lambda: iter([*events, {"status": "success"}]))
    assert pull().returncode == 0


def test_a_connection_that_drops_during_the_fetch_is_one_clear_line(pull, answer, ollama):
    answer("POST", "/api/pull", lambda: Raw(b'{"status": "pulling manifest"}\n', 500))
    assert complaint(pull()) == (
        f"pull.py: Ollama at {ollama.url} broke off in the middle (ChunkedEncodingError); look into its log; {ADVICE}"
    )


def test_a_server_that_falls_silent_during_the_fetch_is_one_clear_line(pull, answer, ollama, monkeypatch):
    released = threading.Event()

    def fall_silent():
        yield {"status": "pulling manifest"}
        released.wait(60)

    monkeypatch.setattr("huiyin.llm.ollama.PULL_SECONDS", 0.1)
    answer("POST", "/api/pull", fall_silent)
    done = pull()
    released.set()
    assert complaint(done) == (
        f"pull.py: {ollama.url}/api/pull: no whole answer within 0.1 s; look into the log of Ollama; {ADVICE}"
    )


def test_a_fetch_without_progress_is_given_up(pull, answer, ollama, monkeypatch):
    layer = {"status": "pulling", "digest": "sha256:1", "total": 1000, "completed": 10}
    monkeypatch.setattr("huiyin.llm.ollama.PULL_SECONDS", 0.1)
    answer("POST", "/api/pull", lambda: itertools.repeat(layer))
    assert complaint(pull()) == (
        f"pull.py: {ollama.url}/api/pull: no whole answer within 0.1 s; look into the log of Ollama; {ADVICE}"
    )


def test_a_fetch_goes_on_as_long_as_there_is_progress(pull, answer, monkeypatch):
    """Its answer has no end in sight before it has more bytes than other answers may have."""
    layers = ({"status": "a" * 100_000, "digest": "sha256:1", "total": 100, "completed": k} for k in range(100))
    answer("POST", "/api/pull", lambda: itertools.chain(layers, [{"status": "success"}]))
    done = pull()
    assert done.returncode == 0, done.stderr
