"""Watch a training run through its trainer_log.jsonl: progress, and a loss that diverges."""

import json
import math
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huiyin.common.progress import Progress

ZEROS = 2  # in a row; a loss of exactly 0 can be a fluke once
FIRST_STEPS, FIRST_SHARE = 50, 0.05  # steps, and share of all steps, after which the loss should have fallen
REPEATED = 12  # words or characters; a reply of that many and all the same is garbled


class BrokenLoss(Exception):
    """The loss is NaN, infinite, or repeatedly 0: the run has diverged."""


class Watch:
    """Call it repeatedly during a run: it shows the new lines of `log` as progress and may raise `BrokenLoss`. `warn`
    is called at most once, with a line that says the loss does not fall."""

    def __init__(self, log: Path, progress: Progress, warn: Callable[[str], None]) -> None:
        self.log, self.progress, self.warn = log, progress, warn
        self.offset, self.zeros, self.warned = 0, 0, False
        self.first: float | None = None

    def __call__(self) -> None:
        if not self.log.exists():
            return
        with open(self.log, encoding="utf-8") as file:
            file.seek(self.offset)
            while (line := file.readline()).endswith("\n"):  # the last line may be incomplete
                self.offset = file.tell()
                self.read_entry(json.loads(line))

    def read_entry(self, entry: dict[str, Any]) -> None:
        step, total = entry["current_steps"], entry["total_steps"]
        self.progress.set_total(total)
        self.progress.add(step - self.progress.done)
        if "loss" not in entry:
            return
        loss = entry["loss"]
        self.zeros = self.zeros + 1 if loss == 0 else 0
        if not math.isfinite(loss) or self.zeros >= ZEROS:
            raise BrokenLoss(f"the loss is {loss} at step {step}")
        memory = f", {entry['vram_reserved']:.1f} GiB" if entry.get("vram_reserved") else ""
        speed = f", {entry['throughput']:,.0f} tokens/s" if "throughput" in entry else ""
        self.progress.note = f"loss {loss:.3f}{speed}{memory}"
        self.first = self.first or loss
        if step >= max(FIRST_STEPS, FIRST_SHARE * total) and not self.warned:
            self.warned = True
            if loss >= self.first:
                self.warn(
                    f"the loss has not fallen in {step} steps ({self.first:.3f} to {loss:.3f}); "
                    "a smaller or larger learning_rate in train.yaml may help"
                )


def garbled(reply: str) -> bool:
    """Does `reply` look like a numerically broken model: invalid or control characters, or one word repeated?"""
    invalid = any(one == "\ufffd" or (unicodedata.category(one) == "Cc" and one not in "\n\t") for one in reply)
    words = reply.split() if " " in reply.strip() else list(reply.strip())
    return invalid or (len(words) >= REPEATED and len(set(words)) == 1)
