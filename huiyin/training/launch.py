"""llamafactory-cli, of whose processes none outlives the one that started it, and which loads a model as it computes.

    python launch.py train SETTINGS.yaml

For several cards it starts torchrun, and that the workers, each in a session of its own: after the end of the first the
others would go on beside our next run, on full cards. So Linux kills each when its parent ends.

The rows of each epoch are in an order in which those of like length stand together (order.py), as many as
ROWS_TOGETHER says. The workers divide them so that each step has the rows that it has with one process. Accelerate
would fill up the last batches of an epoch with rows that were there already.
"""

import ctypes
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huiyin.serving.process import end_with_parent
from huiyin.training.order import Batch, together


def load_in(precision: str) -> None:
    """Let LLaMA-Factory load base models in `precision` (a type of torch): it takes the type of the file, most often
    bf16. fp32 would then be computed in that: with few digits, and by a processor that does not know it a hundred times
    as slow; and for fp16 a copy of each weight would be made, which stays until the backward pass has used it."""
    from llamafactory.model import loader

    load_config = loader.load_config

    def with_type(*arguments: Any) -> Any:
        import torch  # which is there by now

        config = load_config(*arguments)
        config.dtype = getattr(torch, precision)
        return config

    loader.load_config = with_type


def divide(batches: list[Batch], accumulation: int, processes: int, process: int) -> list[Batch]:
    """Return the batches of a process, `accumulation` of them a step, of those that one process would have in an epoch.

    batches: all of the same size, but for the last one. The loss of a step is the sum over all words divided by their
    number, so the batches of the last step may have any sizes. But each process must have as many of them: all wait for
    each other at each. So all processes get all rows of a step that has fewer rows than there are processes. Where
    batches of one row cannot be divided evenly, a row counts twice.
    """
    size = len(batches[0])
    rows = [row for batch in batches for row in batch]
    own: list[Batch] = []
    for start in range(0, len(rows), size * accumulation * processes):
        step = rows[start : start + size * accumulation * processes]
        whole = len(step) < processes and len(step) <= size * accumulation
        share = step if whole else piece(step, processes, process) or step[:1]
        number = math.ceil((len(step) if whole else math.ceil(len(step) / processes)) / size)
        own += [piece(share, number, index) or share[:1] for index in range(number)]
    return own


def piece(rows: Batch, number: int, index: int) -> Batch:
    """Return one of so many pieces of `rows` of about the same size: rows that stand together stay so."""
    return rows[len(rows) * index // number : len(rows) * (index + 1) // number]


def divide_rows(accumulation: int) -> None:
    """Let Accelerate divide the rows of each epoch by `divide`."""
    from accelerate.data_loader import BatchSamplerShard

    def batches(shard: BatchSamplerShard) -> Iterator[Batch]:
        yield from divide(list(shard.batch_sampler), accumulation, shard.num_processes, shard.process_index)

    def number(shard: BatchSamplerShard) -> int:
        total, size = len(shard.batch_sampler.sampler), shard.batch_size
        rows = [list(range(start, min(start + size, total))) for start in range(0, total, size)]
        return len(divide(rows, accumulation, shard.num_processes, shard.process_index))

    BatchSamplerShard.__iter__, BatchSamplerShard.__len__ = batches, number


def order_rows(size: int) -> None:
    """Let the rows of each epoch be in the order of `together`, in groups of `size`."""
    from accelerate.data_loader import SeedableRandomSampler

    shuffle = SeedableRandomSampler.__iter__

    def ordered(sampler: SeedableRandomSampler) -> Iterator[int]:
        lengths = [len(tokens) for tokens in sampler.data_source["input_ids"]]
        yield from together(list(shuffle(sampler)), lengths, size)

    SeedableRandomSampler.__iter__ = ordered


def give_memory_back() -> None:
    """Let glibc give back what is free after each micro-batch on the processor. Small gradients that lie between large
    tensors keep it from doing so, and half as much again would be held (bench/ram.py)."""
    from transformers import Trainer

    step, trim = Trainer.training_step, ctypes.CDLL(None).malloc_trim

    def training_step(*arguments: Any) -> Any:
        loss = step(*arguments)
        trim(0)
        return loss

    Trainer.training_step = training_step


if __name__ == "__main__":
    end_with_parent()
    values = json.loads(Path(sys.argv[-1]).read_text(encoding="utf-8"))
    load_in("bfloat16" if values.get("bf16") else "float16" if values.get("fp16") else "float32")
    if values.get("use_cpu"):
        give_memory_back()
    order_rows(int(os.environ.get("ROWS_TOGETHER", 1)))
    from llamafactory import launcher

    if "TORCHELASTIC_RUN_ID" in os.environ:  # a worker
        from llamafactory.train.tuner import run_exp

        divide_rows(values.get("gradient_accumulation_steps", 1))
        run_exp()
    else:
        launcher.__file__ = __file__  # what torchrun is to start
        launcher.subprocess = SimpleNamespace(run=partial(subprocess.run, preexec_fn=end_with_parent))
        launcher.launch()
