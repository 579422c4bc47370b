"""How tests run things: stages and tools in this process, Make in one of its own."""

import contextlib
import importlib
import io
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from unittest import mock

from huiyin.common.errors import run

ROOT = Path(__file__).parent.parent
EXAMPLES = int(os.environ.get("EXAMPLES", 50))  # of each fuzz test; once in a while let it be thousands
# what the `make test` around us says must not reach the Make under test, nor may a key of the person running it
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "QQ_DB_KEY")
}
# tests run side by side: more threads get in the way; and no training here gains from torch.compile, slow to load
CLEAN |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}


def run_script(name, *arguments, env=None):
    """Run scripts/<name>.py from the repository's root, in this process; return what a finished process would hold.

    To start Python and load polars anew for every error line would take most of the time of the tests.
    """
    program = ROOT / f"scripts/{name}.py"
    output, errors, status = io.StringIO(), io.StringIO(), 0
    main = importlib.import_module(f"scripts.{name.replace('/', '.')}").main
    argv = [str(program), *map(str, arguments)]
    umask = os.umask(0o077)
    with (
        mock.patch.dict(os.environ, {**CLEAN, **(env or {})}, clear=True),
        mock.patch.object(sys, "argv", argv),
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        try:
            run(main)
        except SystemExit as end:
            status = end.code or 0
        except Exception:
            traceback.print_exc()
            status = 1
        finally:
            os.umask(umask)
    return subprocess.CompletedProcess(argv, status, output.getvalue(), errors.getvalue())


def receipt(stage, **fields):
    """Return the receipt of a stage that read and made nothing, with these `fields`."""
    nothing = {"read": 0, "written": 0, "dropped": {}}
    return {"stage": stage, "seconds": 0, "ledger": nothing, "inputs": {}, "settings": {}, "outputs": {}, **fields}


def copy_project(folder):
    """Copy what git would hold into `folder`/huiyin, with our own .venv; return that folder."""
    project = folder / "huiyin"
    project.mkdir(parents=True)
    for name in ("config", "scripts", "huiyin", "requirements", "docker"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__", "target.txt"))
    for name in ("demo", "showcase"):  # these bring a target of their own
        shutil.copytree(ROOT / "config" / name, project / "config" / name, dirs_exist_ok=True)
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
