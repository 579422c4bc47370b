"""The locked packages, and how they are installed."""

import os
import re
import subprocess

import pytest

from helpers import CLEAN, ROOT, copy_project

FOLDER = ROOT / "requirements"
LOCKS = ["uv", "base", "train", "dev"]
PIN = r"([a-z0-9-]+)==(\S+)(?: ; .+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)"
COMMENT = r" *# [\w .-]*(?:requirements/\w+\.(?:in|txt)|:)?\n"


def text(name):
    return (FOLDER / name).read_text(encoding="utf-8")


def pins(lock):
    return {name: version for name, version, _ in re.findall(PIN, text(f"{lock}.txt"))}


@pytest.mark.parametrize("lock", LOCKS)
def test_each_direct_need_is_locked(lock):
    needs = re.findall(r"^(\w[\w-]*)(?:==(\S+))?", text(f"{lock}.in"), re.MULTILINE)
    locked = pins(lock)
    assert needs
    assert [name for name, _ in needs if name.lower() not in locked] == []
    assert [name for name, version in needs if version not in ("", locked[name.lower()])] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_pins_with_hashes_and_no_address(lock):
    assert re.sub(f"{PIN}|{COMMENT}", "", text(f"{lock}.txt")) == ""


def test_locks_agree():
    """They go into one environment: what comes later must not replace what is there."""
    versions = {}
    for lock in LOCKS:
        for name, version in pins(lock).items():
            assert versions.setdefault(name, version) == version, name


def test_what_is_left_out_is_not_locked():
    assert set(re.findall(r"^([\w-]+);", text("overrides.txt"), re.MULTILINE)) & set(pins("train")) == set()


@pytest.fixture
def project(tmp_path):
    """A copy with a .venv in which pip tells its real settings and uv which variables and words it was given."""
    project = copy_project(tmp_path)
    (project / ".venv").unlink()
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/pip").symlink_to(ROOT / ".venv/bin/pip")
    program(project, "uv", 'env | grep -E "^(UV_|SSL_|ALL_)"; echo "$@"')
    return project


def program(project, name, body):
    path = project / ".venv/bin" / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def install(project, **variables):
    bare = {name: value for name, value in CLEAN.items() if not name.startswith(("PIP_", "UV_", "SSL_", "ALL_"))}
    environment = {**bare, "PIP_CONFIG_FILE": os.devnull, **variables}
    words = [project / "requirements/install", "-r", "x.txt"]
    return subprocess.run(words, cwd=project, env=environment, capture_output=True, encoding="utf-8")


ALWAYS = ["UV_INDEX_STRATEGY=unsafe-best-match", "UV_SYSTEM_CERTS=true", "pip install --quiet -r x.txt"]


@pytest.mark.parametrize(
    ("variables", "passed_on"),
    [
        ({}, []),
        ({"PIP_INDEX_URL": "https://a/simple"}, ["UV_DEFAULT_INDEX=https://a/simple"]),
        ({"PIP_EXTRA_INDEX_URL": "https://a https://b"}, ["UV_INDEX=https://a https://b"]),
        ({"PIP_EXTRA_INDEX_URL": ""}, []),
        ({"PIP_FIND_LINKS": "/a /b", "PIP_NO_INDEX": "1"}, ["UV_FIND_LINKS=/a,/b", "UV_OFFLINE=1"]),
        ({"PIP_CERT": "/a.pem", "PIP_PROXY": "http://p:1"}, ["ALL_PROXY=http://p:1", "SSL_CERT_FILE=/a.pem"]),
        ({"PIP_TRUSTED_HOST": "a"}, ["UV_INSECURE_HOST=a"]),
        ({"PIP_INDEX_URL": "https://a", "UV_DEFAULT_INDEX": "https://b"}, ["UV_DEFAULT_INDEX=https://b"]),
    ],
)
def test_settings_of_pip_are_passed_on(project, variables, passed_on):
    assert sorted(install(project, **variables).stdout.splitlines()) == sorted([*passed_on, *ALWAYS])


def test_settings_in_a_file_of_pip_are_passed_on(project, tmp_path):
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex-url = https://a\nextra-index-url =\n  https://b\n  https://c\n")
    done = install(project, PIP_CONFIG_FILE=str(file), PIP_INDEX_URL="https://first")
    assert {"UV_DEFAULT_INDEX=https://first", "UV_INDEX= https://b https://c"} <= set(done.stdout.splitlines())


@pytest.mark.parametrize("broken", ["pip", "uv"])
def test_packages_that_cannot_be_installed(project, broken):
    if broken == "pip":
        (project / ".venv/bin/uv").unlink()
    program(project, broken, "echo the reason >&2; exit 2")
    done = install(project)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "the reason",
        "packages could not be installed, the reason stands above; PIP_INDEX_URL names a mirror, HTTPS_PROXY a proxy",
    ]
