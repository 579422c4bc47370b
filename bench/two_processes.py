"""Train with one process and with two, on the processor: are the losses the same, is anybody left after a kill?

    PYTHONPATH=. python bench/two_processes.py FOLDER

FOLDER, a new one, gets a tiny random model, invented rows and the trainings. The last step of an epoch has fewer rows
than the others, and so has the last batch of the held-out rows. Prints a table of the losses of each step and of the
held-out rows, before and after the training. Then a longer training with two processes gets a signal at its first step,
to the whole group or to train.py alone, and who is left after `GRACE` seconds is counted. Exits with status 1 for a
difference above `TOLERANCE`, or if anybody is left.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from huiyin.serving.process import end_with_parent

ROOT = Path(__file__).parent.parent

TOLERANCE = 1e-4  # of a loss
GRACE = 5  # seconds after a signal
ROWS, HELD_OUT, EPOCHS = 53, 7, 2  # steps of 16 rows, the last one of an epoch of 5
LONG = 1_000  # steps of the trainings that are killed
WORDS = (
    "今天 明天 谁 去 跑步 下雨 的话 不去 作业 写完 了 吗 食堂 排队 好长 周末 看 电影 随便 都行 哈哈 真的 假的".split()
)


def write_inputs(folder):
    """Write the base model and a dataset with rows of many lengths."""
    run("scripts/demo/tiny.py", "--out", folder / "tiny")
    chance, generated = random.Random(1), folder / "generated"
    generated.mkdir()

    def text():
        return "".join(chance.choices(WORDS, k=chance.randint(1, 25)))

    def rows(number):
        history = [[[text(), text()] for _ in range(chance.randrange(3))] for _ in range(number)]
        return [
            {"instruction": text(), "input": "", "output": text(), "system": "群友", "history": earlier}
            for earlier in history
        ]

    columns = {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "system": "system",
        "history": "history",
    }
    names = {"alpaca": rows(ROWS), "alpaca_eval": rows(HELD_OUT)}
    info = {name: {"file_name": f"{name}.json", "columns": columns} for name in names}
    for name, content in {**names, "dataset_info": info}.items():
        (generated / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (generated / "system.txt").write_text("群友", encoding="utf-8")


def run(script, *words):
    subprocess.run([sys.executable, script, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def start(folder, name, processes, changed):
    """Start train.py in a session of its own, with so many processes."""
    values = {
        **{"model_name_or_path": str(folder / "tiny/tiny-qwen2"), "template": "qwen"},
        **{"finetuning_type": "lora", "lora_rank": 8, "lora_target": "all", "cutoff_len": 512},
        **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "learning_rate": 5.0e-3},
        **{"num_train_epochs": EPOCHS, "logging_steps": 1, "save_steps": 100, "save_total_limit": 1},
        **{"seed": 42, "preprocessing_num_workers": 1, **changed},
        **({"ddp_backend": "gloo"} if processes > 1 else {}),
    }
    settings = folder / f"{name}.yaml"
    settings.write_text(json.dumps(values))
    config = ["--preflight", "config/preflight.yaml", "--llm", "config/demo/llm.yaml"]
    config += ["--export", "config/demo/export.yaml", "--config", settings, "--gpu", "none"]
    config += ["--models", "config/models.yaml"]
    words = [folder / "generated", *config, "--cache", folder / "cache", "--out", folder / name]
    together = {"NPROC_PER_NODE": str(processes), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **together}
    with open(folder / f"{name}.log", "w") as log:
        where = {"cwd": ROOT, "env": variables, "stdout": log, "stderr": log, "start_new_session": True}
        program = [sys.executable, "scripts/train.py", *words]
        return subprocess.Popen(program, preexec_fn=end_with_parent, **where)


def losses(folder, processes):
    """Return {step, or what it is of: loss} of a training with so many processes."""
    name = f"with_{processes}"
    if start(folder, name, processes, {}).wait():
        sys.exit(f"the training failed; its output is in {folder / name}.log")
    lines = (folder / name / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    steps = {entry["current_steps"]: entry["loss"] for entry in map(json.loads, lines) if "loss" in entry}
    results = json.loads((folder / name / "receipt.json").read_text(encoding="utf-8"))["results"]
    return {**steps, "held out, before": results["base_eval_loss"], "held out, after": results["eval_loss"]}


def compare(folder):
    """Print the table of losses; return whether each is the same."""
    one, two = losses(folder, 1), losses(folder, 2)
    print("| step | one process | two | difference |\n|---|---|---|---|")
    for step in one:
        print(f"| {step} | {one[step]:.6f} | {two[step]:.6f} | {abs(one[step] - two[step]):.1e} |", flush=True)
    return one.keys() == two.keys() and all(abs(one[step] - two[step]) <= TOLERANCE for step in one)


def left_after(folder, number, group):
    """Start a training with two processes and send the signal at its first step; return (processes before, seconds
    until nobody was left, processes left)."""
    name = f"killed_by_{number.name}_{'group' if group else 'alone'}"
    running = start(folder, name, 2, {"max_steps": LONG})
    while not (folder / name / ".run/trainer_log.jsonl").exists():
        if running.poll() is not None:
            sys.exit(f"the training failed; its output is in {folder / name}.log")
        time.sleep(0.05)
    family = [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]
    began = time.monotonic()
    (os.killpg if group else os.kill)(running.pid, number)
    _, left = psutil.wait_procs(family, timeout=GRACE)
    seconds = time.monotonic() - began
    for process in left:
        process.kill()
    return len(family), seconds, len(left)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder.absolute()
    folder.mkdir(parents=True)
    write_inputs(folder)
    good = compare(folder)
    print("\n| signal | to | processes | seconds | left |\n|---|---|---|---|---|")
    for number in (signal.SIGTERM, signal.SIGKILL):
        for group in (True, False):
            before, seconds, left = left_after(folder, number, group)
            print(
                f"| {number.name} | {'group' if group else 'train.py'} | {before} | {seconds:.1f} | {left} |",
                flush=True,
            )
            good &= not left
    if not good:
        sys.exit("the losses differ, or somebody is left")


if __name__ == "__main__":
    main()
