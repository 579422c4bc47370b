"""Watch a training run through its trainer_log.jsonl: progress, and a loss that has gone wrong."""

import json
import math
import unicodedata

ZEROS = 2  # exactly 0 happens once in a blue moon, never twice
FIRST_STEPS, FIRST_SHARE = 50, 0.05  # by then the loss should have fallen
REPEATED = 12  # the same again and again, this often and nothing else


class BrokenLoss(Exception):
    """The loss is no number, infinite, or 0 again and again: the run cannot come to any good."""


class Watch:
    """Call it now and then while the run goes on; it reads what is new in `log`, shows it and raises `BrokenLoss`."""

    def __init__(self, log, progress, warn):
        self.log, self.progress, self.warn = log, progress, warn
        self.place, self.zeros, self.first, self.warned = 0, 0, None, False

    def __call__(self):
        if not self.log.exists():
            return
        with open(self.log, encoding="utf-8") as file:
            file.seek(self.place)
            while (line := file.readline()).endswith("\n"):  # the last one may be being written
                self.place = file.tell()
                self.look_at(json.loads(line))

    def look_at(self, entry):
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


def garbled(reply):
    """Whether `reply` shows what a broken precision looks like: no characters, control characters, or one for ever."""
    if any(
        character == "\ufffd" or (unicodedata.category(character) == "Cc" and character not in "\n\t")
        for character in reply
    ):
        return True
    words = reply.split() if " " in reply.strip() else list(reply.strip())
    return len(words) >= REPEATED and len(set(words)) == 1
