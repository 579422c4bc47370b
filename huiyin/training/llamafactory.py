"""Run LLaMA-Factory as a program, for train.py and export.py."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from huiyin.common.errors import UserError
from huiyin.serving.process import ended_by, start
from huiyin.training.settings import Values

POLL_SECONDS = 0.5
OUT_OF_MEMORY = ["OutOfMemoryError", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"]  # as torch words it
PROGRAM: list[str | Path] = [sys.executable, Path(__file__).with_name("launch.py")]
WORKER_KILLED = re.compile(r"Signal (\d+) \(SIG\w+\) received by PID")  # as torchrun words it


class OutOfMemory(UserError):
    """The card has too little memory for this micro-batch; a smaller one may fit."""


def environment(gpu: str, cache: Path, run_folder: Path, threads: int | None = None) -> dict[str, str]:
    """Return the environment variables of a run: the card that it may use, or the threads, and its caches. That of
    `datasets` contains the corpus, so it is in the run's own folder and is deleted with it."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # for torchrun
        **{"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "" if gpu == "none" else gpu},
        **({"OMP_NUM_THREADS": str(threads)} if threads else {}),
        "HF_HUB_CACHE": str(cache.absolute() / "huggingface"),
        "HF_DATASETS_CACHE": str(run_folder.absolute() / "datasets"),
        "FORCE_TORCHRUN": "1" if world_size() > 1 else "0",
        "MPLCONFIGDIR": str(cache.absolute() / "matplotlib"),
        **{"HF_HUB_DISABLE_TELEMETRY": "1", "RECORD_VRAM": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUTF8": "1"},
        "PYTHONSAFEPATH": "1",  # beside the programs there are modules with names of packages
        "MKL_CBWR": "AUTO,STRICT",  # bit-identical results in every run on the processor
    }


def world_size() -> int:
    """Return the number of training processes, from the variables that LLaMA-Factory hands to torchrun."""
    return int(os.environ.get("NPROC_PER_NODE") or 1) * int(os.environ.get("NNODES") or 1)


def run_program(
    command: str, values: Values, folder: Path, variables: Mapping[str, str], watch: Callable[[], None] = lambda: None
) -> None:
    """Run `llamafactory-cli command` with the settings `values` and call `watch` every `POLL_SECONDS`.

    Standard output is discarded, because samples of the chat are printed there; standard error goes to
    folder/llamafactory.log. Raises `OutOfMemory` (the card's memory) or `UserError` if the program fails, and whatever
    `watch` raises, after ending the program.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / f"{command}.yaml"
    settings.write_text(json.dumps(values, indent=1), encoding="utf-8")  # JSON is a subset of YAML without its pitfalls
    log = folder / "llamafactory.log"
    with open(log, "w", encoding="utf-8") as errors:
        child = start([*PROGRAM, command, settings], variables, errors)
        try:
            while child.poll() is None:
                time.sleep(POLL_SECONDS)
                watch()
        finally:
            child.kill()  # the checkpoints are whole at every moment, or known not to be
            child.wait()
    watch()
    if child.returncode != 0:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        if any(name in line for line in lines for name in OUT_OF_MEMORY):
            raise OutOfMemory(f"llamafactory-cli {command} ran out of the card's memory; its output is in {log}")
        workers = [-int(number) for line in lines for number in WORKER_KILLED.findall(line)]
        if killed := next(filter(None, map(ended_by, [child.returncode, *workers])), ""):
            raise UserError(f"llamafactory-cli {command} {killed}; its output is in {log}")
        reason = lines[-1] if lines else f"exit status {child.returncode}"
        raise UserError(f"llamafactory-cli {command} failed: {reason}; its output is in {log}")
