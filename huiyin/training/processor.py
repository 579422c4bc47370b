"""What trains fastest on the processor: the precision and the number of threads, measured by a short child process."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, run
from typing import Literal

from huiyin.common.errors import UserError
from huiyin.serving.process import end_with_parent, ended_by
from huiyin.training.memory import Precision

NATIVE = 1.5  # a processor that computes bf16 natively is about twice as fast with it, another one slower
WORTHWHILE = 1.2  # what more threads must gain; where other programs use the cores, threads wait for each other

Measure = Callable[[Precision, int], float]  # operations per second in this precision with so many threads


@dataclass(frozen=True)
class Processor:
    """How to train on the processor; `flops`: the operations per second that were measured, 0 if nothing was."""

    precision: Precision  # bf16 or fp32
    threads: int
    flops: float = 0.0


def choose(measure: Measure, cores: int, precision: Precision | None, threads: int | None) -> Processor:
    """Return the fastest precision and number of threads, of at most `cores`; None: to be chosen."""
    alone = threads or 1
    names: list[Precision] = [precision] if precision else ["fp32", "bf16"]
    speeds = {name: measure(name, alone) for name in names}
    chosen: Precision = precision or ("bf16" if speeds["bf16"] >= NATIVE * speeds["fp32"] else "fp32")
    best = Processor(chosen, alone, speeds[chosen])
    while threads is None and best.threads < cores:
        more = min(2 * best.threads, cores)
        speed = measure(chosen, more)
        if speed < WORTHWHILE * best.flops:
            break
        best = Processor(chosen, more, speed)
    return best


def find_processor(precision: Precision | Literal["auto"], threads: int | None) -> Processor:
    """Return how to train on the processor, with these settings of preflight.yaml. What they leave open ("auto", None)
    is chosen by `probe.py`, in two seconds and the time that torch takes to load; `UserError` if it fails."""
    if precision == "fp16":
        raise UserError("preflight.yaml: precision fp16 is for a card; the processor (GPU=none) takes bf16 or fp32")
    fixed = None if precision == "auto" else precision
    if fixed and threads:
        return Processor(fixed, threads)
    # -P: beside the program there are modules with names of packages
    command: list[str | Path] = [
        sys.executable,
        "-P",
        Path(__file__).with_name("probe.py"),
        json.dumps([fixed, threads]),
    ]
    done = run(command, stdin=DEVNULL, capture_output=True, preexec_fn=end_with_parent, text=True, check=False)
    if done.returncode:
        why = ended_by(done.returncode) or f"failed: {(done.stderr.splitlines() or ['without a message'])[-1]}"
        raise UserError(f"measuring the processor {why}; or set precision and threads in preflight.yaml")
    return Processor(**json.loads(done.stdout))
