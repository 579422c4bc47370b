"""LLaMA-Factory as a program: how train.py and export.py run it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from huiyin.common.errors import UserError
from huiyin.serving.process import end_with_parent

POLL_SECONDS = 0.5
OUT_OF_MEMORY = ["OutOfMemoryError", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"]  # torch's names for it
PROGRAM = [Path(sys.executable).parent / "llamafactory-cli"]


class OutOfMemory(UserError):
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


def run_program(command, values, folder, variables, watch=lambda: None):
    """Run `llamafactory-cli command` on the settings `values`, calling `watch` now and then; a failure is `UserError`.

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
        raise UserError(f"llamafactory-cli {command} failed: {reason}; all it said is in {log}")
