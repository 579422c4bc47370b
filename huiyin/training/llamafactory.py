"""LLaMA-Factory as a program: how train.py and export.py run it."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from huiyin.common.errors import Mistake
from huiyin.common.progress import Progress

POLL_SECONDS = 0.5
PR_SET_PDEATHSIG = 1  # linux/prctl.h
OUT_OF_MEMORY = ["OutOfMemoryError", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"]  # torch's names for it
PROGRAM = [Path(sys.executable).parent / "llamafactory-cli"]


class OutOfMemory(Mistake):
    """The card's memory did not do; fewer rows at a time may."""


def environment(gpu, cache, run_folder):
    """Return the environment of a run: the card it may use, and caches that stay in the repository.

    The datasets cache holds the corpus, so it lies in the run's own folder and goes with it.
    """
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # it calls a bare `torchrun`
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "" if gpu == "none" else gpu,
        "HF_HUB_CACHE": str(cache.absolute() / "huggingface"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_CACHE": str(run_folder.absolute() / "datasets"),
        "RECORD_VRAM": "1",
        "FORCE_TORCHRUN": "1" if world_size() > 1 else "0",
        "MPLCONFIGDIR": str(cache.absolute() / "matplotlib"),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUTF8": "1",
        "MKL_CBWR": "AUTO,STRICT",  # on the processor the same sums are the same bits in every run
    }


def world_size():
    """How many processes train together, by the variables of LLaMA-Factory's own launcher, torchrun."""
    return int(os.environ.get("NPROC_PER_NODE") or 1) * int(os.environ.get("NNODES") or 1)


def end_with_parent():
    """Called in the child: Linux shall kill it when we are killed, or it would train on beside our next run."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_program(command, values, folder, variables, watch=lambda: None):
    """Run `llamafactory-cli command` on the settings `values`, calling `watch` now and then; a failure is a `Mistake`.

    Its standard output is thrown away, since it prints samples of the chat there; the rest is in
    folder/llamafactory.log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / f"{command}.yaml"
    settings.write_text(json.dumps(values, indent=1), encoding="utf-8")  # JSON is YAML without its traps
    log = folder / "llamafactory.log"
    with open(log, "w", encoding="utf-8") as errors:
        child = subprocess.Popen(
            [*PROGRAM, command, settings],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            preexec_fn=end_with_parent,
        )
        try:
            while child.poll() is None:
                time.sleep(POLL_SECONDS)
                watch()
        finally:
            child.terminate()
            child.wait()
    watch()
    if child.returncode != 0:
        said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        if any(name in line for line in said for name in OUT_OF_MEMORY):
            raise OutOfMemory(f"llamafactory-cli {command} ran out of the card's memory; all it said is in {log}")
        reason = said[-1] if said else f"exit status {child.returncode}"
        raise Mistake(f"llamafactory-cli {command} failed: {reason}; all it said is in {log}")


def answer(values, adapter, rows, folder, variables):
    """Return the replies of the model with `adapter` (None: as it is) to the last words of each of `rows`, greedily.

    It runs in a process of its own, which gives the card back when it ends.
    """
    content = {"model": values["model_name_or_path"], "adapter": adapter and str(adapter), "rows": rows}
    return ask_program("answer", content, folder, variables)


def compare(content, folder, variables):
    """Return what compare.py finds out, in a process of its own; it says what `content` is."""
    with Progress("compare", 2 * (len(content["samples"]) + len(content["asked"])), "rows") as progress:
        return ask_program("compare", content, folder, variables, progress.add)


def ask_program(name, content, folder, variables, tick=lambda: None):
    """Run the program `name` beside us on `content` and return its answer; `tick` is called for each line it prints."""
    question, answers = folder / f"{name}.questions.json", folder / f"{name}.answers.json"
    question.write_text(json.dumps(content), encoding="utf-8")
    program = Path(__file__).parent.parent / f"serving/{name}.py"
    with (
        open(folder / f"{name}.log", "w", encoding="utf-8") as errors,
        subprocess.Popen(
            [sys.executable, program, question, answers],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            preexec_fn=end_with_parent,
        ) as child,
    ):
        for _ in child.stdout:
            tick()
    if child.returncode:
        raise Mistake(f"the trained model cannot be asked; what it said is in {folder}/{name}.log")
    return json.loads(answers.read_text(encoding="utf-8"))
