"""Progress of long work: a bar with rate and ETA on a terminal, plain lines in a log."""

import sys
import time
from typing import Self

SECONDS_BETWEEN_LINES = 30


class Progress:
    """Count `total` units of work (None: unknown); `bytes=True` shows them as sizes.

    with Progress("parse", total, "rows") as progress:
        progress.add(1000)
    """

    def __init__(self, name: str, total: int | None, unit: str, bytes: bool = False):
        from tqdm import tqdm  # here: --help shows no progress

        self.name, self.total, self.unit = name, total, unit
        scale = {"unit_scale": True, "unit_divisor": 1024} if bytes else {}
        unit = unit if bytes else f" {unit}"
        self.bar = tqdm(total=total, desc=name, unit=unit, leave=False, disable=None, **scale)  # type: ignore[call-overload]
        self.done, self.started = 0, time.monotonic()
        self.note = ""  # shown after the rate
        self.next_line = self.started + SECONDS_BETWEEN_LINES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def set_total(self, total: int) -> None:
        self.total = self.bar.total = total

    def add(self, count: int = 1) -> None:
        self.done += count
        self.bar.set_postfix_str(self.note, refresh=False)
        self.bar.update(count)
        now = time.monotonic()
        if self.bar.disable and now >= self.next_line:
            self.next_line = now + SECONDS_BETWEEN_LINES
            rate = self.done / (now - self.started)
            left = self.bar.format_interval((self.total - self.done) / rate) if self.total and rate else None
            of = f" of {self.total:,}, {left} left" if left else ""
            note = f", {self.note}" if self.note else ""
            speed = f"{rate:,.1f} {self.unit}/s" if rate >= 1 else f"{60 * rate:,.1f} {self.unit}/min"
            print(f"{self.name}: {self.done:,}{of}, {speed}{note}", file=sys.stderr, flush=True)
