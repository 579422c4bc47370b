"""Fetching the language model into Ollama: what is said first, and each way it can fail."""

import re

import pytest

from helpers import run_script
from ollama_server import Handler


@pytest.fixture
def pull(tmp_path, ollama):
    """Call pull.py for the model other:1b, which the server lacks."""
    settings = tmp_path / "llm.yaml"
    settings.write_text("model: other:1b\n")
    return lambda: run_script("tools/pull", "--llm", settings, "--ollama-url", ollama.url)


def complaint(done):
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    return line


def test_a_missing_model_is_fetched_and_the_size_said_first(pull, ollama):
    done = pull()
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"other:1b is not here yet: 0\.0 GB to fetch, [\d.]+ GB of disk free\n", done.stdout)
    assert "other:1b" in ollama.models
    ollama.requests.clear()
    assert pull().stdout == ""
    assert [request.path for request in ollama.requests] == ["/api/tags"]


def events(monkeypatch, *given):
    monkeypatch.setitem(Handler.ANSWERS, ("POST", "/api/pull"), lambda ollama, body: iter(given))


def test_a_model_that_cannot_be_fetched(pull, monkeypatch):
    events(monkeypatch, {"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"})
    assert complaint(pull()) == (
        "pull.py: Ollama cannot fetch other:1b: pull model manifest: file does not exist; is the name right, is the "
        "network there? HTTPS_PROXY names a proxy"
    )


def test_a_model_larger_than_the_disk(pull, monkeypatch):
    events(monkeypatch, {"status": "pulling", "digest": "sha256:1", "total": 10**18}, {"status": "success"})
    done = pull()
    assert re.fullmatch(r"other:1b is not here yet: 1000000000\.0 GB to fetch, [\d.]+ GB of disk free\n", done.stdout)
    assert re.fullmatch(
        r"pull\.py: other:1b takes 1000000000\.0 GB and [\d.]+ are free on Docker's disk; make room "
        r"\(docker system df\), or name a smaller model in \S+/llm\.yaml",
        complaint(done),
    )


def test_a_fetch_that_breaks_off(pull, monkeypatch):
    events(monkeypatch, {"status": "verifying sha256 digest"})
    assert complaint(pull()) == (
        "pull.py: Ollama stopped fetching other:1b after: verifying sha256 digest; start again, what is there is kept"
    )
