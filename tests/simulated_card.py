"""A simulated card: LLaMA-Factory's own program on the processor, failing as a card does.

    python simulated_card.py train SETTINGS.yaml

Environment variables: CARD_ROWS, a larger micro-batch than this raises torch's out-of-memory error from step CARD_STEP
on; CARD_BREAKS, in this precision (bf16 or fp16) the loss is NaN.
"""

import json
import os
import sys
from pathlib import Path

import torch
from llamafactory.cli import main
from transformers import Trainer

from huiyin.training.launch import order_rows

settings = Path(sys.argv[2])
values = json.loads(settings.read_text(encoding="utf-8"))
ON_THE_PROCESSOR = {"use_cpu": True, "bf16": False, "fp16": False, "enable_liger_kernel": False}
rows, step = int(os.environ.get("CARD_ROWS", 1000)), int(os.environ.get("CARD_STEP", 0))
broken = values.get(os.environ.get("CARD_BREAKS"), False)
real_step = Trainer.training_step


def training_step(self, model, inputs, *others):
    if len(inputs["input_ids"]) > rows and self.state.global_step >= step:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    loss = real_step(self, model, inputs, *others)
    return loss * float("nan") if broken else loss


Trainer.training_step = training_step
order_rows(int(os.environ["ROWS_TOGETHER"]))
settings.write_text(json.dumps({**values, **ON_THE_PROCESSOR}), encoding="utf-8")
main()
