"""RUN_IN=docker without an engine: what Make passes on, and the line for each thing that is missing.

What an engine itself says and does is in tests/containers.py.
"""

import os
import re
import shutil
import subprocess

import pytest

from helpers import CLEAN, ROOT, copy_project, make

TOOLS = "bash cat chmod cut dirname env false grep id make mkdir sed true uname".split()
WSL = (
    "Docker is not connected to this WSL: Docker Desktop, Settings, Resources, WSL integration, "
    "switch this distribution on; or add RUN_IN=host"
)


@pytest.fixture
def project(tmp_path):
    """A copy of the project without .venv, and with a folder `bin` that holds all programs there are: no Docker."""
    project = copy_project(tmp_path)
    (project / ".venv").unlink()
    (project / "bin").mkdir()
    for tool in TOOLS:
        (project / "bin" / tool).symlink_to(shutil.which(tool))
    return project


FAILS = 'echo "%s" >&2; exit 1'
COMPLAINTS = {  # {what is wrong: (the program docker, variables, the line)}
    "no engine": (None, {}, "there is no Docker here: install it (see 'Docker' in README.md), or add RUN_IN=host"),
    "WSL without integration": (None, {"WSL_DISTRO_NAME": "Ubuntu"}, WSL),
    "a stand-in in WSL": (FAILS % "The command 'docker' could not be found in this WSL 2 distro.", {}, WSL),
    "no daemon": (
        FAILS % "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
        {},
        "Docker's daemon does not answer: start it (sudo systemctl start docker, or Docker Desktop), "
        "or add RUN_IN=host",
    ),
    "no permission": (
        FAILS % "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock",
        {},
        "Docker does not let you in: sudo usermod -aG docker $USER, then log in again",
    ),
    "no Compose": (
        '[ "$1" != compose ] && echo 1000 []',
        {},
        "Docker is here, but Compose is not: sudo apt install docker-compose-v2 (Debian: docker-compose)",
    ),
}


@pytest.mark.parametrize("what", COMPLAINTS)
def test_docker_that_does_not_serve_us_is_one_line(project, what):
    docker, variables, line = COMPLAINTS[what]
    if docker:
        (project / "bin/docker").write_text(f"#!/bin/bash\n{docker}\n")
        (project / "bin/docker").chmod(0o755)
    target = "down" if what == "no Compose" else "sample"  # which builds an image first
    done = make(project, target, env={"PATH": str(project / "bin"), **variables})
    complaint, closing = done.stderr.splitlines()  # the second is Make's own
    assert (done.returncode, complaint) == (2, f"docker: {line}")
    assert closing.startswith("make: *** [")
    assert not (project / ".venv").exists()


def test_a_repository_on_a_windows_disk(project):
    def warned(folder, **variables):
        return "is on a Windows disk" in make(project, "help", f"CURDIR={folder}", env=variables).stdout

    assert warned("/mnt/c/huiyin", WSL_DISTRO_NAME="Ubuntu")
    assert not warned("/home/me/huiyin", WSL_DISTRO_NAME="Ubuntu")
    assert not warned("/mnt/c/huiyin")


def test_each_stage_gets_the_image_it_needs_and_no_virtual_environment_is_made(project):
    planned = make(project, "--dry-run", "all", "CONFIG=demo").stdout
    assert "docker/run.sh train python scripts/tools/plan.py" in planned  # which reads the card, as train does
    assert re.findall(
        r"docker/run\.sh (\w+ (?:--\S+ (?:config/\S+ )?)*)python scripts/(?:demo/)?(\w+)\.py", planned
    ) == [
        ("data ", "history"),
        ("train ", "tiny"),
        *(("data ", stage) for stage in ("decrypt", "parse", "combine")),
        *(("data --llm config/demo/llm.yaml --pull ", stage) for stage in ("pair", "gen")),
        ("train ", "train"),
        ("train --llm config/demo/llm.yaml --export config/demo/export.yaml ", "export"),
    ]
    assert "venv" not in planned
    assert set(re.findall(r"--ollama-url (\S+)", planned)) == {"http://ollama:11434"}


def compose_words(project, *words):
    """Return what docker/run.sh, called with `words`, gives to Compose, a word a line."""
    digest = "cat docker/Dockerfile requirements/base.txt | sha256sum | cut -c1-16"
    stand_in = f'case "$1" in info) echo 1000 [];; image) {digest};; compose) printf "%s\\n" "$@";; esac'
    (project / "bin/docker").write_text(f"#!/bin/bash\n{stand_in}\n")
    (project / "bin/docker").chmod(0o755)
    environment = {**CLEAN, "PATH": f"{project / 'bin'}:{os.environ['PATH']}"}
    options = {"cwd": project, "env": environment, "capture_output": True, "encoding": "utf-8", "check": True}
    return subprocess.run(["docker/run.sh", *words], **options).stdout


def test_the_port_of_web_is_published_for_this_machine_alone(project):
    planned = make(project, "--dry-run", "web", "TARGET=10002", "PORT=8123").stdout
    assert "docker/run.sh data --publish 8123 python scripts/tools/web.py " in planned
    assert planned.endswith(" --port 8123 --host 0.0.0.0\n")
    words = compose_words(project, "data", "--publish", "8123", "python", "scripts/tools/web.py").splitlines()
    assert words[words.index("--publish") + 1] == "127.0.0.1:8123:8123"
    on_host = make(project, "--dry-run", "web", "TARGET=10002", "PORT=8123", "RUN_IN=host").stdout
    assert "--publish" not in on_host and "--host" not in on_host


def test_every_folder_on_the_way_of_a_link_is_mounted(project, tmp_path):
    folders = [tmp_path / name for name in ("first", "Tencent Files", "third", "linked")]
    for folder in folders[:3]:
        folder.mkdir()
    folders[3].symlink_to("third")
    (folders[2] / "nt_msg.db").touch()
    (folders[1] / "nt_msg.db").symlink_to("../linked/nt_msg.db")
    (folders[0] / "nt_msg.db").symlink_to(folders[1] / "nt_msg.db")
    (project / "nt_msg.db").symlink_to(folders[0] / "nt_msg.db")
    given = compose_words(project, "data", "python", "scripts/decrypt.py", "nt_msg.db")
    mounted = re.findall(r"^(.*):\1:ro$", given, re.MULTILINE)
    assert sorted(mounted) == sorted(map(str, folders))


@pytest.mark.parametrize(("outside", "inside"), [("none", "none"), ("0", "0"), ("1", "0"), ("2,3", "0,1")])
def test_cards_are_counted_from_0_inside(project, outside, inside):
    planned = make(project, "--dry-run", "train", "CONFIG=demo", f"GPU={outside}").stdout
    assert f" GPU={outside} docker/run.sh train " in planned
    assert f" --gpu {inside} " in planned
    on_host = make(project, "--dry-run", "train", "CONFIG=demo", "RUN_IN=host", f"GPU={outside}").stdout
    assert f" --gpu {outside} " in on_host


def test_images_are_pinned_by_digest():
    for name in ("docker/Dockerfile", "docker/compose.yaml"):
        assert re.search(r":[\w.-]+@sha256:[0-9a-f]{64}\b", (ROOT / name).read_text(encoding="utf-8")), name
