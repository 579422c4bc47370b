"""The whole pipeline on a Telegram and on a WeFlow export of an invented history, with the demo's tiny models.

    PYTHONPATH=. python bench/from_exports.py FOLDER [--messages 2000] [--goals all members] [--formats telegram weflow]

For each a copy of this repository in FOLDER, with this one's .venv; what Make prints stays on the terminal. The exit
status is that of the first Make that fails.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from project import copy_project
from scripts.demo.history import GROUPS, TARGET
from written import FORMATS, messages, write

USERS = {"telegram": "user", "weflow": "wxid_"}


def set_up(project: Path, name: str) -> None:
    """Copy the repository, with the demo's settings as CONFIG=`name`."""
    copy_project(project)
    shutil.copytree(project / "config/demo", project / f"config/{name}")
    (project / f"config/{name}/target.txt").write_text(f"{USERS[name]}{TARGET.qq}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--goals", nargs="+", default=["all", "members"])
    parser.add_argument("--formats", nargs="+", default=list(USERS), choices=USERS)
    args = parser.parse_args()
    for name in args.formats:
        project = args.folder.resolve() / name
        set_up(project, name)
        write(name, project / "data/raw", messages(args.messages, GROUPS[0].number), GROUPS[0])
        words = [f"CONFIG={name}", f"SOURCE=data/raw/{FORMATS[name][0]}", "RUN_IN=host", "GPU=none"]
        for goal in args.goals:
            if status := subprocess.run(["make", goal, *words], cwd=project).returncode:
                sys.exit(status)


if __name__ == "__main__":
    main()
