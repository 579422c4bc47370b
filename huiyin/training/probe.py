"""A child process that finds out how the processor trains fastest (processor.py): `python probe.py "[null, null]"`.

Its argument is a JSON list of the precision and the number of threads, null where it shall choose; it prints a JSON
object. No more threads are tried than torch would take, which heeds OMP_NUM_THREADS.
"""

import json
import sys
import time
from dataclasses import asdict

import torch

from huiyin.training.processor import choose

ROWS, WIDTH = 256, 512  # of the matrices: small, since a type that is not native takes up to a hundred times as long
SECONDS = 0.15  # of one measurement; at most two precisions, and a doubling of the threads up to all cores
TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def measure(precision: str, threads: int) -> float:
    """Return the operations per second of products of two matrices."""
    torch.set_num_threads(threads)
    left, right = (torch.ones(rows, WIDTH, dtype=TYPES[precision]) for rows in (ROWS, WIDTH))
    left @ right  # the first time is slower
    started, products = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < SECONDS:
        left @ right
        products += 1
    return 2 * ROWS * WIDTH * WIDTH * products / seconds


if __name__ == "__main__":
    with torch.inference_mode():
        print(json.dumps(asdict(choose(measure, torch.get_num_threads(), *json.loads(sys.argv[1])))))
