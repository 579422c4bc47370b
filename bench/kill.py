"""Kill the pipeline at random moments and run it again: is the result the same, is anything asked twice or left behind?

    PYTHONPATH=.:tests python bench/kill.py FOLDER [--data 100] [--training 20] [--seed 1]

FOLDER, a new one, gets a copy of the repository and a history of the demo's kind, small so that a round is quick. A
round starts `make`, sends TERM, INT or KILL to its whole group of processes, to make, or to one of its descendants, and
runs `make` again, to the end. Rounds of `data` go from decrypt to gen, those of `training` from train to export.
Language model and Ollama are tests/ollama_server.py, in this process. Results are compared with those of a run that was
left alone: hashes of the outputs and receipts without times; of train and export the weights, within TOLERANCE, as the
last bits may differ between two processes. A question that was under way at the kill may come twice, no other. Prints a
line for everything that is wrong, and a table at the end; exits with status 1 if anything was.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy
import psutil
from safetensors.numpy import load_file

from llm_folder import chats
from project import ROOT, copy_project

MESSAGES = 400
SYLLABLES = "今明早晚山水书饭车票猫狗店票茶雨"  # of the answers of the language model
LIMIT = 120  # seconds until a run counts as one that hangs; five times the usual time, if that is more
GRACE = 5  # seconds after which nobody may be left of a group that was sent a signal
TOLERANCE = 1e-5  # of a weight
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGKILL]
VICTIMS = ["group", "make", "descendant"]
WRONG = ["different", "asked twice", "orphans", "hangs"]
PARTS = {"data": ["decrypted", "parsed", "combined", "10002/paired", "10002/generated"]}
PARTS["training"] = ["10002/trained", "10002/exported"]
GOALS = {"data": "gen", "training": "export"}
# What differs between two runs of the same: times, and which of them asked the language model
VARIABLE = {"made_at", "seconds", "mtime_ns", "asked", "from_journal", "tokens"}
VARIABLE |= {"found", "attempts", "results", "losses", "check"}


def answer(_, body):
    """Return an answer that is accepted, the same to the same question: what is refused may well be asked again. None,
    which leaves it to the model, where no form is asked for."""
    properties = (body.get("format") or {}).get("properties", {})
    if "answers" in properties:
        return json.dumps({"answers": "1"})
    digests = {name: zlib.crc32(f"{name} {body['messages']}".encode()) for name in properties}
    words = {
        name: "".join(SYLLABLES[digest >> shift & 15] for shift in range(0, 20, 4)) for name, digest in digests.items()
    }
    return json.dumps(words) if words else None


class Project:
    """A copy of the repository, with settings and a history of its own, and the server that it asks."""

    def __init__(self, folder, server):
        self.path, self.log, self.server = folder / "huiyin", folder / "make.log", server
        self.results = self.path / "data/kill"

    def start(self, goal):
        words = ["make", goal, "CONFIG=kill", "RUN_IN=host", "GPU=none", "TARGET=10002", "SOURCE=data/raw/nt_msg.db"]
        with open(self.log, "ab") as log:
            where = {"cwd": self.path, "env": environment(), "stdin": subprocess.DEVNULL, "start_new_session": True}
            return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, **where)

    def run(self, goal, limit):
        """Run `make` to its end; return its exit status, None if it hangs."""
        running = self.start(goal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return running.wait(limit)
        end_all(self.processes())
        running.wait()
        return None

    def processes(self):
        """Return the processes that work in the project, or were started from it."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.cwd().startswith(str(self.path)):
                    found.append(process)
        return found

    def wait_until_gone(self, seconds):
        """Return the processes that are left of the project after so many seconds."""
        end = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.05)
        return left

    def forget(self, part):
        """Delete the results of a part, and with those of the data stages everything that was answered."""
        for name in PARTS[part]:
            shutil.rmtree(self.results / name, ignore_errors=True)
        if part == "data":
            shutil.rmtree(self.results, ignore_errors=True)
            for file in (self.path / "data").glob("answers.db*"):
                file.unlink()
        else:
            (self.results / "10002/exported.ollama").unlink(missing_ok=True)
            for name in [name for name in self.server.models if name.startswith("huiyin-")]:
                del self.server.models[name]
        self.server.requests.clear()

    def content(self, part):
        """Return {file: content} of the results of a part: a hash, weights, or a receipt without what may differ."""
        receipts = {name: json.loads((self.results / name / "receipt.json").read_text()) for name in PARTS[part]}
        found = {name: constant(receipt, outputs=part == "data") for name, receipt in receipts.items()}
        if part == "training":
            for weights in self.results.glob("10002/*/*/*.safetensors"):
                found[str(weights.relative_to(self.results))] = load_file(weights)
        return found

    def questions(self):
        return Counter(json.dumps(body) for body in chats(self.server))


def environment():
    kept = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(("MAKE", "MFLAGS", "PYTHON", "QQ_DB_KEY"))
    }
    return {**kept, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}


def constant(value, outputs=True):
    """Return a receipt, or a part of one, without what may differ between two runs; without hashes too, if they may."""
    if not isinstance(value, dict):
        return value
    left_out = VARIABLE if outputs else VARIABLE | {"inputs", "outputs", "dataset", "ollama", "sha256", "size"}
    return {name: constant(item, outputs) for name, item in value.items() if name not in left_out}


def differences(found, expected):
    """Yield the names of the results in which two runs differ."""
    for name in sorted(found.keys() | expected.keys()):
        pair = found.get(name), expected.get(name)
        if name.endswith(".safetensors") and None not in pair and pair[0].keys() == pair[1].keys():
            apart = (numpy.abs(pair[0][key] - pair[1][key]).max(initial=0) for key in pair[0])
            if not all(distance <= TOLERANCE for distance in apart):
                yield name
        elif pair[0] != pair[1]:
            yield name


def end_all(processes):
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def strike(running, number, victim, chance):
    """Send the signal to the victim."""
    if victim == "group":
        os.killpg(running.pid, number)
    elif victim == "make":
        running.send_signal(number)
    else:
        with contextlib.suppress(psutil.Error):
            if descendants := psutil.Process(running.pid).children(recursive=True):
                chance.choice(descendants).send_signal(number)


def one_round(project, part, number, victim, moment, chance, expected, limit):
    """Do one round, `expected` being the results and questions of a run left alone; return {what is wrong: details}."""
    wrong = {}
    project.forget(part)
    running = project.start(GOALS[part])
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.wait(moment)
    if running.poll() is None:
        strike(running, number, victim, chance)
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.wait(limit)
    # whoever is left of make alone may finish what it does, one stage; of a group nobody may
    left = project.wait_until_gone(GRACE if victim == "group" else limit)
    if running.poll() is None or (left and victim != "group"):
        wrong["hangs"] = "after the signal"
    elif left:
        wrong["orphans"] = ", ".join(" ".join(process.cmdline())[:200] for process in left)
    end_all(left)
    running.wait()

    status = project.run(GOALS[part], limit)
    if status is None:
        wrong["hangs"] = "when run again"
    elif status:
        lines = project.log.read_text(errors="replace").splitlines()
        wrong["different"] = f"make ends with status {status}: {' | '.join(lines[-3:])}"
    elif different := list(differences(project.content(part), expected[0])):
        wrong["different"] = ", ".join(different)
    again = sum((project.questions() - expected[1]).values())
    if part == "data" and again > 1:  # parallel is 1, so that one question is under way
        wrong["asked twice"] = f"{again} questions"
    return wrong


def rounds(project, part, count, chance):
    """Do so many rounds; return {(part, signal, victim): Counter of rounds and of what was wrong}."""
    table = {(part, number.name, victim): Counter() for victim in VICTIMS for number in SIGNALS}
    for _ in range(2 if part == "data" else 1):  # the second has the server's answers in memory, as the rounds have
        project.forget(part)
        began = time.monotonic()
        if project.run(GOALS[part], 3600):
            sys.exit(f"make {GOALS[part]} failed; its output is in {project.log}")
        seconds = time.monotonic() - began
    expected = project.content(part), project.questions()
    print(f"{part}: left alone {seconds:.1f} s, {sum(expected[1].values())} questions", flush=True)
    began = time.monotonic()
    for index in range(count):
        number, victim = SIGNALS[index % 3], VICTIMS[index // 3 % 3]
        moment = chance.uniform(0, seconds)
        wrong = one_round(project, part, number, victim, moment, chance, expected, max(LIMIT, 5 * seconds))
        table[part, number.name, victim].update(["rounds", *wrong])
        for what, details in wrong.items():
            print(f"{part} {index}: {number.name} to {victim} after {moment:.2f} s: {what}: {details}", flush=True)
    if count:
        print(f"{part}: {(time.monotonic() - began) / count:.1f} s a round", flush=True)
    return table


def set_up(folder, server):
    project = Project(folder, server)
    copy_project(project.path)
    config = project.path / "config/kill"
    shutil.copytree(ROOT / "config/demo", config)
    llm = f"url: {server.url}\nmodel: tiny\nnum_ctx: 16384\nparallel: 1\npair_temperature: 3.0\nmax_failed_share: 1\n"
    (config / "llm.yaml").write_text(f"{llm}max_failures_in_a_row: 1000\n")
    (config / "export.yaml").write_text(f"ollama: {server.url}\n")
    training = (config / "train.yaml").read_text()
    (config / "train.yaml").write_text(training.replace("save_steps: 20", "save_steps: 2"))
    (project.path / "data/raw").mkdir(mode=0o700)
    sample = [sys.executable, "scripts/demo/history.py", "--out", "data/raw", "--messages", str(MESSAGES)]
    where = {"cwd": project.path, "env": {**environment(), "PYTHONPATH": str(project.path)}}
    subprocess.run(sample, check=True, **where)
    (project.path / "data/raw/receipt.json").unlink(missing_ok=True)
    shutil.copytree(folder / "tiny", project.path / "data/tiny")
    return project


def print_table(table):
    print("| stages | signal | to | rounds | " + " | ".join(WRONG) + " |\n|---|---|---|---|" + "---|" * len(WRONG))
    total = sum(table.values(), Counter())
    for (part, number, victim), counts in [*table.items(), (("all", "", ""), total)]:
        if counts["rounds"]:
            cells = [part, number, victim, counts["rounds"], *(counts[what] for what in WRONG)]
            print(f"| {' | '.join(map(str, cells))} |")
    return sum(total[what] for what in WRONG)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=int, default=100, help="rounds from decrypt to gen (default 100)")
    parser.add_argument("--training", type=int, default=20, help="rounds of train and export (default 20)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and victims (default 1)")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored, by children too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))

    from ollama_server import OllamaServer

    folder = args.folder.absolute()
    folder.mkdir(parents=True)
    subprocess.run([sys.executable, ROOT / "scripts/demo/tiny.py", "--out", folder / "tiny"], cwd=ROOT, check=True)
    with OllamaServer(folder / "tiny/tiny.gguf", ["tiny"]) as server:
        server.before_chat, server.remembered = answer, {}
        project, table = set_up(folder, server), {}
        try:
            for part in PARTS:
                table |= rounds(project, part, getattr(args, part), random.Random(f"{args.seed} {part}"))
        finally:
            end_all(project.processes())
    if print_table(table):
        sys.exit(1)


if __name__ == "__main__":
    main()
