"""A copy of this repository, for benchmarks that run the whole pipeline with other settings or another history."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def copy_project(project: Path) -> None:
    """Copy what git knows, dates and all: Make compares them with those of the environment, which both share."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, project / name)
    if not (project / ".venv").exists():
        (project / ".venv").symlink_to(ROOT / ".venv")
