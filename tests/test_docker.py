"""RUN_IN=docker without an engine: what Make passes on, and the line for each thing that is missing.

What an engine itself says and does is in tests/containers.py.
"""

import re
import shutil

import pytest

from helpers import ROOT, copy_project, make

TOOLS = [
    "bash",
    "cat",
    "chmod",
    "cut",
    "dirname",
    "env",
    "false",
    "grep",
    "id",
    "make",
    "mkdir",
    "sed",
    "true",
    "uname",
]


@pytest.fixture
def project(tmp_path):
    """A copy of the project without .venv, and with a folder `bin` that holds all programs there are: no Docker."""
    project = copy_project(tmp_path)
    (project / ".venv").unlink()
    (project / "bin").mkdir()
    for tool in TOOLS:
        (project / "bin" / tool).symlink_to(shutil.which(tool))
    return project


def fake(project, name, body):
    program = project / "bin" / name
    program.write_text(f"#!/bin/bash\n{body}\n")
    program.chmod(0o755)


def complaint(project, **variables):
    """The one line on stderr of a stage in the container, Make's own closing line apart."""
    done = make(project, "sample", env={"PATH": str(project / "bin"), **variables})
    assert done.returncode == 2
    line, closing = done.stderr.splitlines()
    assert closing.startswith("make: *** [")
    assert not (project / ".venv").exists()
    return line


def test_no_engine(project):
    assert complaint(project) == (
        "docker: there is no Docker here: install it (see 'Docker' in README.md), or add RUN_IN=host"
    )


WSL = (
    "docker: Docker is not connected to this WSL: Docker Desktop, Settings, Resources, WSL integration, "
    "switch this distribution on; or add RUN_IN=host"
)


def test_wsl_without_integration(project):
    assert complaint(project, WSL_DISTRO_NAME="Ubuntu") == WSL


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
            "docker: Docker's daemon does not answer: start it (sudo systemctl start docker, or Docker Desktop), "
            "or add RUN_IN=host",
        ),
        ("The command 'docker' could not be found in this WSL 2 distro.", WSL),
        (
            "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock",
            "docker: Docker does not let you in: sudo usermod -aG docker $USER, then log in again",
        ),
    ],
)
def test_a_daemon_that_does_not_serve_us(project, message, line):
    fake(project, "docker", f'echo "{message}" >&2; exit 1')
    assert complaint(project) == line


def test_no_compose(project):
    fake(project, "docker", '[ "$1" != compose ] && echo 1000 []')
    done = make(project, "down", env={"PATH": str(project / "bin")})
    assert done.stderr.splitlines()[0] == (
        "docker: Docker is here, but Compose is not: sudo apt install docker-compose-v2 (Debian: docker-compose)"
    )


def test_a_repository_on_a_windows_disk(project):
    def warned(folder, **variables):
        return "is on a Windows disk" in make(project, "help", f"CURDIR={folder}", env=variables).stdout

    assert warned("/mnt/c/huiyin", WSL_DISTRO_NAME="Ubuntu")
    assert not warned("/home/me/huiyin", WSL_DISTRO_NAME="Ubuntu")
    assert not warned("/mnt/c/huiyin")


def test_each_stage_gets_the_image_it_needs_and_no_virtual_environment_is_made(project):
    planned = make(project, "--dry-run", "all", "CONFIG=demo").stdout
    assert re.findall(
        r"docker/run\.sh (\w+ (?:--\S+ (?:config/\S+ )?)*)python scripts/(?:demo/)?(\w+)\.py", planned
    ) == [
        *(("data ", stage) for stage in ("history", "decrypt", "parse", "combine")),
        ("train ", "tiny"),
        *(("data --llm config/demo/llm.yaml --pull ", stage) for stage in ("pair", "gen")),
        ("train ", "train"),
        ("train --llm config/demo/llm.yaml --export config/demo/export.yaml ", "export"),
    ]
    assert "venv" not in planned
    assert set(re.findall(r"--ollama-url (\S+)", planned)) == {"http://ollama:11434"}


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
