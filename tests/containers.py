"""The containers, with a real engine: `.venv/bin/pytest tests/containers.py`. Only `.ci/run` calls it.

Engine, Compose, images and stages are real; the base image is a small Debian where the real one cannot be fetched. Only
Ollama is a stand-in: tests/ollama_server.py in a container, with a real llama-server and the tiny model.
"""

import gzip
import itertools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
import requests

from helpers import CLEAN, ROOT, copy_project, receipt, run_script
from ollama_server import OllamaServer

STRANGER = 54321  # a user the image does not know
PROJECT = "huiyin-test"
MODEL = "qwen2.5:14b"
LLM = "num_ctx: 16384\nparallel: 1\npair_temperature: 3.0\nmax_failed_share: 1\n"
NOT_FETCHED = (
    "docker: the image {0} could not be fetched; is the network there? "
    "{1}=<mirror>/{0} names a mirror, Docker's own settings a proxy"
)
STAND_IN = """FROM huiyin-data
COPY ollama_server.py tiny.gguf /stand-in/
COPY ollama /usr/local/bin/ollama
CMD ["python", "/stand-in/ollama_server.py", "--host", "0.0.0.0", "--gguf", "/stand-in/tiny.gguf"]
"""
LIST = """#!/bin/sh
exec python -c 'import urllib.request; urllib.request.urlopen("http://127.0.0.1:11434/api/tags")'
"""


def docker(*words, **options):
    done = subprocess.run(["docker", *words], capture_output=True, encoding="utf-8", check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def base_image():
    """The base of the images: the pinned one, or a small Debian with the certificates of this machine."""
    pinned = re.search(r"^ARG BASE_IMAGE=(.*)$", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)[1]
    if subprocess.run(["docker", "pull", "--quiet", pinned], capture_output=True, check=False).returncode == 0:
        return pinned
    made = "huiyin-test-base"
    if subprocess.run(["docker", "image", "inspect", made], capture_output=True, check=False).returncode:
        folder = Path(tempfile.mkdtemp())
        try:
            debootstrap = ["debootstrap", "--variant=minbase", "--include=python3-venv,ca-certificates", "bookworm"]
            subprocess.run([*debootstrap, folder / "base"], check=True, stdout=subprocess.DEVNULL)
            certificates = Path("etc/ssl/certs/ca-certificates.crt")
            shutil.copy("/" / certificates, folder / "base" / certificates)
            files = subprocess.Popen(["tar", "-C", folder / "base", "-c", "."], stdout=subprocess.PIPE)
            docker("import", "--change", f"ENV PIP_CERT=/{certificates}", "-", made, stdin=files.stdout)
        finally:
            shutil.rmtree(folder)
    reach = "python3 -m venv /tmp/venv && /tmp/venv/bin/pip download --no-deps --dest /tmp idna"
    run = ["docker", "run", "--rm", made, "sh", "-c", reach]
    tried = subprocess.run(run, capture_output=True, encoding="utf-8", check=False)
    if tried.returncode:
        pytest.skip(f"no package can be fetched from within a container here: {tried.stderr[-300:]}")
    return made


@pytest.fixture(scope="session")
def folder():
    """A folder with the sample history and its key, each in a folder of its own, outside any project."""
    folder = Path(tempfile.mkdtemp())  # not pytest's own, which is closed to strangers
    folder.chmod(0o755)
    made = run_script("demo/history", "--out", folder / "chat")
    assert made.returncode == 0, made.stderr
    (folder / "key").mkdir()
    (folder / "chat/key.txt").rename(folder / "key/key.txt")
    yield folder
    shutil.rmtree(folder)


class Box:
    """A copy of the project, and how to call Make in it; with Docker as a stranger, where we may become one."""

    def __init__(self, parent, folder, base_image, llm):
        self.project = copy_project(parent)
        pair, gen = "newest: 60\nquotes_tested: 10\n", "batch_size: 6\nmax_characters: 20\nmax_rubbish_share: 1\n"
        for name, settings in (("llm", llm), ("pair", pair), ("gen", gen)):
            (self.project / f"config/{name}.yaml").write_text(settings)
        self.words = ["TARGET=10002", f"SOURCE={folder}/chat/nt_msg.db", f"KEY={folder}/key/key.txt"]
        images = {"BASE_IMAGE": base_image, "OLLAMA_IMAGE": "huiyin-test-ollama"}
        self.environment = {**CLEAN, **images, "COMPOSE_PROJECT_NAME": PROJECT}
        self.who = {}
        self.data = self.project / "data/default"

    def become_a_stranger(self, folder):
        (self.project / ".venv").unlink()
        if os.geteuid() == 0:
            socket = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
            self.who = {"user": STRANGER, "group": STRANGER, "extra_groups": [Path(socket).stat().st_gid]}
            subprocess.run(["chown", "-R", f"{STRANGER}:{STRANGER}", folder], check=True)

    def start(self, *words, env=None):
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        options = {"cwd": self.project, "encoding": "utf-8", "start_new_session": True, **pipes, **self.who}
        return subprocess.Popen(words, env={**self.environment, **(env or {})}, **options)

    def run(self, *words, env=None):
        """Return (exit status, output) of a command in the project."""
        running = self.start(*words, env=env)
        output, _ = running.communicate()
        return running.returncode, output

    def make(self, *words, env=None):
        return self.run("make", "GPU=none", *self.words, *words, env=env)

    def results(self):
        return {
            str(path.relative_to(self.data)): path.read_bytes()
            for path in sorted(self.data.rglob("*"))
            if path.is_file() and path.name not in ("receipt.json", "source")
        }


@pytest.fixture(scope="session")
def box(folder, base_image, gguf):
    """A Box in which `make gen` has run in the containers; its output is in `box.output`."""
    box = Box(folder, folder, base_image, LLM)
    box.become_a_stranger(folder)
    status, output = box.run("docker/run.sh", "data", "true")
    assert status == 0, output
    with tempfile.TemporaryDirectory() as context:
        for file in (ROOT / "tests/ollama_server.py", gguf):
            shutil.copy(file, context)
        Path(context, "ollama").write_text(LIST)
        Path(context, "ollama").chmod(0o755)
        Path(context, "Dockerfile").write_text(STAND_IN)
        docker("build", "--tag", "huiyin-test-ollama", context)
    try:
        status, box.output = box.make("gen")
        assert status == 0, box.output
        yield box
    finally:
        box.make("down")
        docker("volume", "rm", "--force", f"{PROJECT}_models")


def containers(*filters):
    return docker("ps", "--quiet", *(f"--filter=label=com.docker.compose.{each}" for each in filters)).split()


def stages_running():
    return containers(f"project={PROJECT}", "service=pipeline")


def asked(output):
    """[(questions asked, answered from the answer cache)] of pair and gen, as they say."""
    found = re.findall(r"([\d,]+) questions to ask(?: and ([\d,]+) answered from the answer cache)?, about", output)
    return [tuple(int(number.replace(",", "") or 0) for number in pair) for pair in found]


def test_the_results_are_those_of_the_host(box, folder, base_image, gguf, tmp_path):
    with OllamaServer(gguf, [MODEL]) as server:
        host = Box(tmp_path, folder, base_image, f"{LLM}url: {server.url}\n")
        status, output = host.make("gen", "RUN_IN=host")
    assert status == 0, output
    expected, found = host.results(), box.results()
    names = "nt_msg.db messages.parquet messages.csv turns.parquet pairs.jsonl unpaired.jsonl alpaca.json".split()
    assert {Path(name).name for name in expected} >= set(names)
    assert [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)] == []


def test_the_missing_model_was_fetched_once_and_announced(box):
    line = r"^qwen2\.5:14b is not here yet: [\d.]+ GB to fetch, [\d.]+ GB of disk free$"
    assert len(re.findall(line, box.output, re.MULTILINE)) == 1


def test_all_that_was_made_belongs_to_the_caller_and_is_closed_to_others(box):
    owner = box.who.get("user", os.geteuid())
    made = [path for path in (box.project / "data").rglob("*") if path.name != "README.md"]
    assert {path.stat().st_uid for path in made} == {owner}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_file()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_dir()} == {0o700}


def test_nothing_is_published(box):
    [ollama] = containers(f"project={PROJECT}")  # the stages are gone
    [found] = json.loads(docker("inspect", ollama))
    assert found["Config"]["Labels"]["com.docker.compose.service"] == "ollama"
    assert [port for port in (found["NetworkSettings"]["Ports"] or {}).values() if port] == []
    assert not found["HostConfig"]["PortBindings"]
    assert list(found["NetworkSettings"]["Networks"]) == [f"{PROJECT}_private"]


def test_the_finished_model_is_looked_for_in_the_same_ollama(box):
    """export.yaml says `auto`; the container is not made anew, or a pair at work would lose its answers."""
    running = containers(f"project={PROJECT}")
    made = {"ollama": {"name": MODEL, "digest": "another"}}
    ledger = {"read": 0, "written": 0, "dropped": {}}
    empty = {"stage": "export", "seconds": 0, "ledger": ledger, "inputs": {}, "settings": {}, "outputs": {}}
    exported = box.data / "10002/exported"
    exported.mkdir()
    (exported / "receipt.json").write_text(json.dumps({**empty, **made}))
    try:
        status, output = box.make("verify")
    finally:
        shutil.rmtree(exported)
    assert f"verify: the Ollama model {MODEL} is another one" in output.splitlines(), output
    assert (status, containers(f"project={PROJECT}")) == (2, running)


def test_web_is_published_for_this_machine_alone_until_ctrl_c(box, gguf):
    exported = box.data / "10002/exported"
    exported.mkdir()
    shutil.copy(gguf, exported / "model.gguf")
    drawn = {"num_ctx": 512, "num_predict": 9, "temperature": 0.8, "top_p": 0.9, "top_k": 40, "repeat_penalty": 1.0}
    made = receipt("export", gguf={"type": "f32"}, parameters={"stop": ["<|im_end|>"], **drawn})
    (exported / "receipt.json").write_text(json.dumps(made))
    if box.who:
        subprocess.run(["chown", "-R", f"{STRANGER}:{STRANGER}", exported], check=True)
    try:
        running = box.start("make", *box.words, "web", "PORT=18630")
        lines = list(itertools.takewhile(lambda line: line != "Ctrl-C ends it\n", running.stdout))
        key = re.search(r"http://127\.0\.0\.1:18630/#key=(\S+)", "".join(lines))[1]
        [found] = json.loads(docker("inspect", *stages_running()))
        assert found["NetworkSettings"]["Ports"] == {"18630/tcp": [{"HostIp": "127.0.0.1", "HostPort": "18630"}]}
        models, page = ("http://127.0.0.1:18630/v1/models", "http://127.0.0.1:18630/")
        assert requests.get(models, headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert (requests.get(models).status_code, requests.get(page).status_code) == (401, 200)
        os.killpg(running.pid, signal.SIGINT)
        running.communicate()
        assert stages_running() == []
    finally:
        shutil.rmtree(exported)
        (box.data / "10002/web.key").unlink(missing_ok=True)


def test_a_second_make_starts_no_container(box):
    since = docker("info", "--format", "{{.SystemTime}}").strip()
    status, output = box.make("gen")
    assert (status, "docker/run.sh" in output) == (0, False)
    until = docker("info", "--format", "{{.SystemTime}}").strip()
    assert docker("events", "--since", since, "--until", until, "--filter", "event=create") == ""


def test_the_images_hold_nothing_of_ours(box, folder):
    texts = {
        text
        for row in json.loads((box.data / "10002/generated/alpaca.json").read_text(encoding="utf-8"))
        for text in (row["instruction"], row["output"])
    }
    code = (box.project / "scripts/parse.py").read_bytes()[:200]
    ours = [code, (folder / "key/key.txt").read_bytes().strip()]
    ours += [text.encode() for text in sorted(texts, key=len)[-10:]]
    saved = subprocess.Popen(["docker", "save", "huiyin-data"], stdout=subprocess.PIPE)
    names, leaked = [], []
    with tarfile.open(fileobj=saved.stdout, mode="r|") as image:
        for member in image:
            content = image.extractfile(member).read() if member.isfile() else b""
            content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
            names.append(member.name)
            leaked += [secret for secret in ours if secret in content]
    assert saved.wait() == 0
    assert len(names) > 5
    assert leaked == []


def pair_until_it_asks(box):
    """Start pair anew and return it when the model has answered the first twenty questions."""
    shutil.rmtree(box.data / "10002")
    for file in (box.project / "data").glob("answers.db*"):
        file.unlink()
    running = box.start("make", "GPU=none", *box.words, "gen")
    for line in running.stdout:
        if "minutes to go" in line:
            return running
    raise AssertionError("pair ended before it was stopped")


STOPS = {
    "killed container": lambda running: docker("kill", *stages_running()),
    "Ctrl-C": lambda running: os.killpg(running.pid, signal.SIGINT),
    "make stopped": lambda running: running.terminate(),
}


@pytest.mark.parametrize("how", STOPS)
def test_stopped_in_the_middle_of_pair_it_goes_on_where_it_was(box, how):
    expected = box.results()
    running = pair_until_it_asks(box)
    STOPS[how](running)
    running.communicate()
    assert running.returncode != 0
    assert stages_running() == []
    assert not (box.data / "10002/paired/receipt.json").exists()
    assert list((box.data / "10002/paired").glob(".*.part")) == [] or how == "killed container"
    status, output = box.make("gen")
    assert status == 0, output
    assert asked(output)[0][1] >= 20  # from the answer cache
    assert box.results() == expected


def test_the_key_in_the_environment_reaches_decrypt_only(box):
    paths = [box.project / f"scripts/{name}.py" for name in ("decrypt", "demo/history")]
    scripts = {path: path.read_text(encoding="utf-8") for path in paths}
    for script in scripts:
        script.write_text("import os\nprint('key is', repr(os.environ.get('QQ_DB_KEY')))")
    key = "a'b\"c$d #e\\"
    try:
        words = ["CONFIG=key", f"SOURCE={box.words[1].partition('=')[2]}"]
        shown = box.make("decrypt", *words, env={"QQ_DB_KEY": key})[1]
        shown += box.make("sample", *words, env={"QQ_DB_KEY": key})[1]
    finally:
        for script, text in scripts.items():
            script.write_text(text, encoding="utf-8")
    assert re.findall("^key is (.*)$", shown, re.MULTILINE) == [repr(key), "None"]
    assert not any(key in line for line in shown.splitlines() if not line.startswith("key is"))


def test_an_image_is_built_when_its_recipe_changed_and_then_only(box):
    recipe = box.project / "docker/Dockerfile"
    text = recipe.read_text(encoding="utf-8")
    built = "building the image huiyin-data"
    assert built not in box.run("docker/run.sh", "data", "true")[1]
    recipe.write_text(f"{text}\n# changed\n", encoding="utf-8")
    try:
        assert built in box.run("docker/run.sh", "data", "true")[1]
        assert built not in box.run("docker/run.sh", "data", "true")[1]
        recipe.write_text(f"{text}\n# changed again\n", encoding="utf-8")
        status, output = box.run("docker/run.sh", "data", "true", env={"BASE_IMAGE": "127.0.0.1:1/python:0"})
    finally:
        recipe.write_text(text, encoding="utf-8")
    assert (status, output.splitlines()[-1]) == (1, NOT_FETCHED.format("127.0.0.1:1/python:0", "BASE_IMAGE"))


def complaint(box, *words, **options):
    """The one line of a failing make, last but for Make's own."""
    status, output = box.make(*words, **options)
    assert status == 2
    *_, line, closing = output.splitlines()
    assert closing.startswith("make: *** [")
    return line


def test_ollamas_image_cannot_be_fetched(box):
    line = complaint(box, "pair", "TARGET=10003", env={"OLLAMA_IMAGE": "127.0.0.1:1/ollama:0"})
    assert line == NOT_FETCHED.format("127.0.0.1:1/ollama:0", "OLLAMA_IMAGE")


@pytest.mark.skipif(shutil.which("nvidia-ctk") is not None, reason="the toolkit is here")
def test_no_nvidia_toolkit(box):
    assert complaint(box, "pair", "TARGET=10003", "GPU=0") == (
        "docker: Docker has no access to a graphics card: install the NVIDIA Container Toolkit "
        "(see 'Docker' in README.md), or say GPU=none"
    )
    assert box.make("members", "GPU=0")[0] == 0  # which needs none


def test_down_leaves_nothing_running(box):
    assert box.make("down")[0] == 0
    assert containers(f"project={PROJECT}") == []
    assert f"{PROJECT}_models" in docker("volume", "ls", "--quiet").split()
