"""Run the whole pipeline with words that can be recognised, and look for them where they must not be.

    python bench/leaks.py FOLDER

A fresh copy of this repository in FOLDER, which must not exist, gets the demo's invented history with a key, a
nickname, 400 texts and the password of a URL of its own making. Home and temporary folder are in FOLDER, too. While
`make` runs, the arguments and the environment of all processes, and the ports they listen at, are read every 50 ms;
afterwards what was printed, every file in FOLDER and the system's temporary folders are searched. Prints where each was
found, and exits with status 1 where one was found that must not be there.
"""

import contextlib
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import psutil

from project import ROOT, copy_project
from scripts.demo import history

TEXTS, INTERVAL, PORT = 400, 0.05, 18434
LARGEST = 200_000_000  # bytes of a file that is searched; nothing of the demo's is larger
LETTERS = "bcdfghjkmnpqrstvwxyz"
# where each may be, as a pattern of the path in FOLDER; the nickname is part of the system text
HISTORY = r"data/raw/|data/canary/(decrypted|parsed|combined)/|data/canary/10002/(paired|generated)/"
ALLOWED = {
    "key": r"data/raw/key\.txt",
    "password": r"config/canary/(export|llm)\.yaml",
    "text": HISTORY,
    "nickname": rf"{HISTORY}|data/canary/10002/trained/train\.yaml"
    r"|data/canary/10002/exported/(Modelfile|merged/chat_template\.jinja)",
}
SECRETS = re.compile(rb"(key|password|text|nickname)zq[%s]{10}" % LETTERS.encode())


def secret(kind):
    """Return a new word of one of the four kinds, which no other file has and no redaction hides."""
    return f"{kind}zq{''.join(random.choices(LETTERS, k=10))}"


def write_sample(folder):
    """Write the demo's history, with secrets in it; the key has the 16 characters that QQNT's have on Windows."""
    name = secret("nickname")
    target = replace(history.TARGET, nickname=name, cards=(name, ""))
    history.MEMBERS = tuple(target if member == history.TARGET else member for member in history.MEMBERS)
    history.TARGET, history.KEY = target, f"{secret('key')}x"
    plain = history.history

    def with_secrets(seed, messages):
        left = TEXTS
        for message in plain(seed, messages):
            parts = message.parts or []
            if left and not message.dropped and [part.kind for part in parts] == ["text"]:
                parts, left = [replace(parts[0], text=f"{parts[0].text} {secret('text')}")], left - 1
                message = replace(message, parts=parts)
            yield message

    history.history = with_secrets
    history.main(["--out", str(folder)])


class Watch(Thread):
    """Looks at all processes until it is ended: `seen`, the secrets in their arguments and environments; `ports`."""

    def __init__(self, root):
        super().__init__(daemon=True)
        self.root, self.seen, self.ports, self.rounds, self.end = root, Counter(), set(), 0, Event()

    def run(self):
        while not self.end.wait(INTERVAL):
            self.rounds += 1
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    words = [*process.cmdline(), *(f"{name}={text}" for name, text in process.environ().items())]
                    for found in SECRETS.finditer("\n".join(words).encode()):
                        self.seen[f"{process.name()}: {found[1].decode()}"] += 1
            with contextlib.suppress(psutil.Error):
                for process in psutil.Process(self.root).children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        listening = [at for at in process.net_connections("inet") if at.status == psutil.CONN_LISTEN]
                        self.ports |= {(process.name(), at.laddr.ip) for at in listening}


def make(project, environment, *words):
    """Run make and watch; return the `Watch`. Its output goes to make.log beside the project."""
    words = ["make", *words, "CONFIG=canary", "RUN_IN=host", "GPU=none", "TARGET=10002"]
    with open(project.parent / "make.log", "ab") as log:
        running = subprocess.Popen(
            [*words, "SOURCE=data/raw/nt_msg.db"], cwd=project, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        watch = Watch(running.pid)
        watch.start()
        status = running.wait()
    watch.end.set()
    watch.join()
    if status:
        sys.exit(f"make failed; its output is in {log.name}")
    return watch


def found_in(folder, since):
    """Yield (path in `folder`, Counter of kinds) of each file with secrets that was written after `since`."""
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            facts = path.lstat()
            if not stat.S_ISREG(facts.st_mode) or facts.st_mtime < since or facts.st_size > LARGEST:
                continue
            if kinds := Counter(found[1].decode() for found in SECRETS.finditer(path.read_bytes())):
                yield str(path.relative_to(folder)), kinds


def report(watch, folder, project, since):
    """Print where secrets are, and what was watched; return the number of places that must not have any, of files that
    others may read, and of ports that others may reach."""
    print(f"processes read {watch.rounds} times; listening: {sorted(watch.ports) or 'nothing'}")
    wrong, expected = len(watch.seen) + sum(ip != "127.0.0.1" for _, ip in watch.ports), defaultdict(Counter)
    for process, count in watch.seen.items():
        print(f"NOT ALLOWED: in arguments or environment of {process} ({count} times)")
    places = {folder: found_in(folder, 0)}
    places |= {Path(name): found_in(Path(name), since) for name in ("/tmp", "/var/tmp", "/dev/shm")}
    for place, files in places.items():
        for path, kinds in files:
            inside = path.removeprefix(f"{project.name}/")
            if place != folder and (place / path).is_relative_to(folder):
                continue
            for kind, count in kinds.items():
                if place == folder and re.match(ALLOWED[kind], inside):
                    expected[kind][inside] += count
                else:
                    wrong += 1
                    print(f"NOT ALLOWED: {kind}, {count} times, in {place / path}")
    for kind, files in expected.items():
        print(f"{kind}: in {', '.join(sorted(files))}")
    for path in (project / "data").rglob("*"):
        if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o077 and "README" not in path.name:
            wrong += 1
            print(f"NOT ALLOWED: others may read {path}")
    return wrong


def main(folder):
    folder = Path(folder).absolute()
    project, since = folder / "huiyin", time.time()
    copy_project(project)
    shutil.copytree(project / "config/demo", project / "config/canary")
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("MAKE", "XDG_", "PYTHON"))}
    for name in ("HOME", "TMPDIR"):
        (folder / name.lower()).mkdir()
        environment[name] = str(folder / name.lower())
    (project / "data/raw").mkdir(mode=0o700)
    umask = os.umask(0o077)
    write_sample(project / "data/raw")
    os.umask(umask)
    make_tiny = subprocess.run(
        ["make", "data/tiny/receipt.json", "RUN_IN=host", "GPU=none"], cwd=project, env=environment
    )
    assert make_tiny.returncode == 0
    server = [
        sys.executable,
        ROOT / "tests/ollama_server.py",
        "--gguf",
        project / "data/tiny/tiny.gguf",
        "--port",
        str(PORT),
    ]
    with subprocess.Popen([*server, "--model", "tiny"], stdout=subprocess.DEVNULL) as ollama:
        url = f"http://huiyin:{secret('password')}@127.0.0.1:{PORT}"
        (project / "config/canary/export.yaml").write_text(f"ollama: {url}\n")
        print("pair and gen with the embedded model:")
        wrong = report(make(project, environment, "all"), folder, project, since)
        llm = (project / "config/canary/llm.yaml").read_text()
        llm = llm.replace("backend: embedded", f"url: {url}").replace("data/tiny/tiny.gguf", "tiny")
        (project / "config/canary/llm.yaml").write_text(llm)
        print("pair and gen with the server of that address:")
        wrong += report(make(project, environment, "clean-pair", "gen", "summary"), folder, project, since)
        ollama.terminate()
    sys.exit(f"{wrong} leaks" if wrong else None)


if __name__ == "__main__":
    main(*sys.argv[1:])
