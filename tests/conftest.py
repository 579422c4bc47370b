"""What every test may use."""

import pytest

from helpers import copy_project, make
from llm_folder import Folder
from ollama_server import OllamaServer
from scripts.demo.tiny import write_gguf


@pytest.fixture(scope="session")
def gguf(tmp_path_factory):
    """A real GGUF model with random weights, made once."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.fixture
def ollama(gguf):
    """A server that speaks Ollama's API, with the model config/llm.yaml names by default."""
    with OllamaServer(gguf, ["qwen2.5:14b"]) as server:
        yield server


@pytest.fixture
def folder(tmp_path, ollama):
    """A folder in which pair and gen ask that server."""
    return Folder(tmp_path, ollama)


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A copy of the project in which `make demo` has run; returns (folder, its output). Tests leave it as it is."""
    project = copy_project(tmp_path_factory.mktemp("demo"))
    done = make(project, "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    return project, done.stdout
