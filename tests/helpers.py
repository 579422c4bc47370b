"""How tests run things: as a user would, in a process of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXAMPLES = int(os.environ.get("EXAMPLES", 50))  # of each fuzz test; once in a while let it be thousands
# what the `make test` around us says must not reach the Make under test, nor may a key of the person running it
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "QQ_DB_KEY")
}
CLEAN["PYTHONPATH"] = str(ROOT)


def run_script(name, *arguments, env=None):
    """Run scripts/<name>.py from the repository's root; return the finished process, its output as text."""
    return subprocess.run(
        [sys.executable, ROOT / f"scripts/{name}.py", *map(str, arguments)],
        cwd=ROOT,
        env={**CLEAN, **(env or {})},
        capture_output=True,
        encoding="utf-8",
    )


def copy_project(folder):
    """Copy what git would hold into `folder`/huiyin, with our own .venv; return that folder."""
    project = folder / "huiyin"
    for name in ("config", "scripts", "huiyin", "requirements", "docker"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__", "target.txt"))
    shutil.copytree(ROOT / "config/demo", project / "config/demo", dirs_exist_ok=True)
    (project / "data").mkdir()
    for name in ("Makefile", "developers.mk", ".gitignore", ".dockerignore", "data/README.md"):
        shutil.copy2(ROOT / name, project / name)
    (project / ".venv").symlink_to(ROOT / ".venv")
    return project


def make(project, *arguments, env=None):
    """Run make in `project`; return the finished process, its output as text."""
    return subprocess.run(
        ["make", *arguments],
        cwd=project,
        env={**CLEAN, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
    )
