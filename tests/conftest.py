"""What every test may use."""

import contextlib
import fcntl
import os
import shutil
import subprocess
from importlib.util import find_spec

import pytest

from helpers import CLEAN, copy_project, run_script
from llm_folder import Folder
from ollama_server import OllamaServer

BROWSERS = ["chromium", "chromium-browser", "chrome", "google-chrome", "google-chrome-stable"]
HAS_TORCH = find_spec("torch") is not None
if not HAS_TORCH:  # as where CI tests the data stages on every Python
    needs_train = "export preflight prompt rows train train_resumes voice voice_authorship web".split()
    collect_ignore = [f"test_{name}.py" for name in needs_train]
LONGEST = ["test_train_resumes", "test_train", "test_export", "test_kill"]  # to start first, so that none ends last


def pytest_collection_modifyitems(items):
    """Files that need the demo come last: it is made meanwhile. Workers get whole files, in this order."""
    with_demo = {item.path for item in items if "demo" in item.fixturenames}
    rank = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (item.path in with_demo, rank.get(item.path.stem, len(rank))))
    if not HAS_TORCH:
        for item in items:
            if "demo" in item.fixturenames:
                item.add_marker(pytest.mark.skip("needs the train environment: make .venv/train"))


@pytest.fixture(scope="session")
def gguf(tmp_path_factory):
    """A real GGUF model with random weights, made once."""
    folder = tmp_path_factory.mktemp("model")
    assert run_script("demo/tiny", "--out", folder).returncode == 0
    return folder / "tiny.gguf"


@pytest.fixture
def ollama(gguf):
    """A server that speaks Ollama's API, with the model config/llm.yaml names by default."""
    with OllamaServer(gguf, ["qwen2.5:14b"]) as server:
        yield server


@pytest.fixture
def folder(tmp_path, ollama):
    """A folder in which pair and gen ask that server."""
    return Folder(tmp_path, ollama)


@pytest.fixture
def browser():
    """A real browser, where there is one."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip("no Chromium or Chrome here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])


def shared_folder(tmp_path_factory):
    """Return the folder that all workers of pytest-xdist have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def demo_in_background(request, tmp_path_factory):
    """From the first test on, if any needs it, `make demo` runs in a copy of the project, once for all workers.

    Its process holds the lock, so that whoever gets the lock too finds it done.
    """
    if not HAS_TORCH or not any("demo" in item.fixturenames for item in request.session.items):
        return
    shared = shared_folder(tmp_path_factory)
    with contextlib.suppress(BlockingIOError), open(shared / "demo.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (shared / "demo").exists():
            project = copy_project(shared / "demo")
            with open(shared / "demo.out", "w") as output, open(shared / "demo.err", "w") as errors:
                subprocess.Popen(
                    ["make", "demo"],
                    cwd=project,
                    env=CLEAN,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=errors,
                    pass_fds=[lock.fileno()],
                )
    os.nice(5)  # many tests wait for the demo, so it goes before the others


@pytest.fixture(scope="session")
def demo(demo_in_background, tmp_path_factory):
    """A copy of the project in which `make demo` has run; returns (folder, its output). Tests leave it as it is."""
    shared = shared_folder(tmp_path_factory)
    with open(shared / "demo.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
    output, errors = ((shared / f"demo.{end}").read_text(encoding="utf-8") for end in ("out", "err"))
    assert "export: read" in output, output + errors
    # each worker changes settings in a copy of its own; dates are kept, since Make compares them
    project = tmp_path_factory.mktemp("demo") / "huiyin"
    shutil.copytree(shared / "demo/huiyin", project, symlinks=True)
    return project, output
