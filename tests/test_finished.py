"""Where the finished model goes: `ollama` in export.yaml."""

import socket

import pytest

from helpers import run_script
from huiyin.common.errors import UserError
from huiyin.llm import client
from huiyin.serving.finished import Settings, find_ollama

NOWHERE, ELSEWHERE = "http://127.0.0.1:9", "http://10.0.0.1:11434"


def test_auto_is_the_ollama_at_the_default_address_if_it_answers(ollama, capsys):
    assert find_ollama(Settings(), ollama.url, "huiyin-1").url == ollama.url
    assert capsys.readouterr().out == ""
    assert find_ollama(Settings(), NOWHERE, "huiyin-1") is None
    line = f"no Ollama answers at {NOWHERE}, so none is used (ollama: auto in export.yaml)\n"
    assert capsys.readouterr().out == line


def test_a_container_that_is_not_started_is_an_ollama_that_does_not_answer(monkeypatch):
    """Its name is in no network then."""

    def no_host(*_):
        raise socket.gaierror

    monkeypatch.setattr("socket.getaddrinfo", no_host)
    assert find_ollama(Settings(), "http://ollama:11434", "huiyin-1") is None
    client.unload_model(client.Settings(), "http://ollama:11434")
    with pytest.raises(UserError, match="there is no host 'ollama'"):
        find_ollama(Settings(ollama="http://ollama:11434"), NOWHERE, "huiyin-1")


def test_an_address_of_its_own_wins_and_none_asks_nobody(ollama):
    assert find_ollama(Settings(ollama=ollama.url), NOWHERE, "huiyin-1").url == ollama.url
    ollama.requests.clear()
    assert find_ollama(Settings(ollama="none"), ollama.url, "huiyin-1") is None
    assert ollama.requests == []


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        (NOWHERE, f"no Ollama answers at {NOWHERE}; start it (ollama serve), or change ollama in export.yaml"),
        ("off", "ollama in export.yaml: 'off' is no address; write it like http://127.0.0.1:11434"),
        (
            "http://8.8.8.8:11434",
            "ollama in export.yaml: http://8.8.8.8:11434 is outside your own network, and what comes from your chats "
            "would go there; set allow_remote: true if that is what you want",
        ),
    ],
)
def test_an_address_that_does_not_serve_is_one_line(ollama, setting, line):
    with pytest.raises(UserError) as error:
        find_ollama(Settings(ollama=setting), ollama.url, "huiyin-1")
    assert str(error.value) == line
    assert ollama.requests == []


@pytest.mark.parametrize(
    ("llm", "export", "needed"),
    [
        ("", None, True),
        (f"url: [{ELSEWHERE}, auto]", None, True),
        (f"url: {ELSEWHERE}", None, False),
        ("backend: embedded", None, False),
        ("backend: embedded", "", True),
        ("", "ollama: none", False),
        ("", f"ollama: {ELSEWHERE}", False),
    ],
)
def test_ollamas_container_is_started_for_auto_only(tmp_path, llm, export, needed):
    words = ["--llm", tmp_path / "llm.yaml"]
    (tmp_path / "llm.yaml").write_text(f"parallel: 2\n{llm}\n")
    if export is not None:
        (tmp_path / "export.yaml").write_text(export)
        words += ["--export", tmp_path / "export.yaml"]
    done = run_script("tools/needs", *words)
    assert (done.stdout, done.stderr) == ("OLLAMA_NUM_PARALLEL=2\nOLLAMA_CONTEXT_LENGTH=4096\n" * needed, "")
