"""LLaMA-Factory as a program: what train.py and export.py share about running it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from common.errors import Mistake

POLL_SECONDS = 0.5


def environment(gpu, cache, run_folder):
    """Return the environment of a run: the card it may use, and caches that stay in the repository.

    The datasets cache holds the corpus, so it lies in the run's own folder and goes with it.
    """
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # it calls a bare `torchrun`
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "" if gpu == "none" else gpu,
        "HF_HUB_CACHE": str(cache.absolute() / "huggingface"), "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_CACHE": str(run_folder.absolute() / "datasets"),
        "MPLCONFIGDIR": str(cache.absolute() / "matplotlib"), "TOKENIZERS_PARALLELISM": "false", "PYTHONUTF8": "1",
    }


def run_program(command, values, folder, variables, watch=lambda: None):
    """Run `llamafactory-cli command` on the settings `values`, calling `watch` now and then; a failure is a `Mistake`.

    Its standard output is thrown away, since it prints samples of the chat there; the rest is in
    folder/llamafactory.log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / f"{command}.yaml"
    settings.write_text(json.dumps(values, indent=1), encoding="utf-8")  # JSON is YAML without its traps
    program = Path(sys.executable).parent / "llamafactory-cli"
    log = folder / "llamafactory.log"
    with open(log, "w", encoding="utf-8") as errors:
        child = subprocess.Popen([program, command, settings], env=variables, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=errors)
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
        reason = said[-1] if said else f"exit status {child.returncode}"
        raise Mistake(f"llamafactory-cli {command} failed: {reason}; all it said is in {log}")
