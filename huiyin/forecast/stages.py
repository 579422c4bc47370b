"""How much each stage will read and write, ask and take: from dry runs of the stages, often on a sample."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from huiyin.common.predicted import size_of
from huiyin.common.stage import read_receipt

# Seconds of a stage before its first row, on two cores; they do not grow with the history.
START = {"decrypt": 0.1, "parse": 0.6, "combine": 0.3, "pair": 1.0, "gen": 0.3}
COPIED = 100e6  # bytes per second that decrypt reads and writes, on two cores
WORTH_A_RATE = 5.0  # seconds; what a shorter run took says nothing of a longer one
# Tokens per second of a model of 14B in 4 bits, by the memory of the card (bytes): from, to. By experience, not
# measured; other sizes in proportion.
SPEEDS = {0: (5, 40), 6e9: (30, 150), 11e9: (150, 600), 23e9: (500, 2500)}
USUAL_SIZE = 14.0  # billions of parameters

Range = tuple[float, float]  # least, most


class Forecast(NamedTuple):
    """What a stage that is to do will be. Bytes that `stay` are its results; `passing` ones are there as it works."""

    stage: str
    read: int
    written: int
    seconds: Range | None  # None: nothing to tell it by
    stay: float
    passing: float = 0
    questions: int = 0  # to ask; those in the answer cache are `cached`
    tokens: int = 0
    cached: int = 0


@dataclass
class Tried:
    """The receipt of a stage that was tried, on the history itself or on a sample of it."""

    receipt: Mapping[str, Any]
    folder: Path  # of its results
    scale: float  # rows that the stage will write, for each of the sample
    scale_read: float

    @property
    def read(self) -> int:
        return round(self.receipt["ledger"]["read"] * self.scale_read)

    @property
    def written(self) -> int:
        return round(self.receipt["ledger"]["written"] * self.scale)

    @property
    def bytes(self) -> float:
        names = self.receipt["outputs"]
        return self.scale * sum(size_of(self.folder / name) for name in names)

    def seconds(self, stage: str, earlier: Mapping[str, Any]) -> float:
        """Return the seconds of the whole, without those of asking; earlier: a receipt of the stage that was made."""
        if earlier.get("seconds", 0) - asking(earlier) > WORTH_A_RATE:
            return (earlier["seconds"] - asking(earlier)) * self.read / max(1, earlier["ledger"]["read"])
        own = self.receipt["seconds"] - self.receipt.get("llm", {}).get("probe_seconds", 0.0)
        own -= self.receipt.get("sample", {}).get("seconds", 0.0)
        start = min(own, START[stage])
        return start + (own - start) * self.scale


def asking(receipt: Mapping[str, Any]) -> float:
    return receipt.get("llm", {}).get("seconds", 0.0)


def newest_receipt(folder: Path) -> dict[str, Any]:
    """Return the receipt in `folder`, else the newest of the same stage for another member, {} for none."""
    if receipt := read_receipt(folder):
        return receipt
    others = [read_receipt(path.parent) for path in folder.parent.parent.glob(f"*/{folder.name}/receipt.json")]
    return max(filter(None, others), key=lambda receipt: receipt.get("made_at", ""), default={})


def forecast_decrypt(source: Path, parsed: Tried, sample: Mapping[str, Any], earlier: Mapping[str, Any]) -> Forecast:
    """Return the forecast of decrypt: it copies the encrypted file, and writes the rows of it that parse reads."""
    size = source.stat().st_size
    seconds = START["decrypt"] + size / COPIED
    if earlier.get("seconds", 0) > WORTH_A_RATE:
        seconds = earlier["seconds"] * parsed.read / max(1, earlier["ledger"]["read"])
    return Forecast("decrypt", parsed.read, parsed.read, (seconds, seconds), sample["bytes"] * parsed.scale, size)


def forecast_rows(stage: str, tried: Tried, earlier: Mapping[str, Any]) -> Forecast:
    """Return the forecast of a stage that asks nothing."""
    seconds = tried.seconds(stage, earlier)
    return Forecast(stage, tried.read, tried.written, (seconds, seconds), tried.bytes)


def forecast_questions(stage: str, tried: Tried, earlier: Mapping[str, Any], speed: Range) -> Forecast:
    """Return the forecast of pair or gen. Of the earlier receipt, of the same model, or of the dry run's own questions
    the seconds of each question are taken; else they come from `speed`, tokens per second."""
    counts = tried.receipt.get("llm", {})
    answered = counts.get("answered", 0)  # by the dry run: these are in the cache by now
    left = 1 - answered / max(1, counts.get("to_ask", 0) * tried.scale)
    to_ask, tokens = (round(left * counts.get(name, 0) * tried.scale) for name in ("to_ask", "tokens_to_ask"))
    cached = round(counts.get("from_journal", 0) * tried.scale) + answered
    spent = {"asked": counts.get("probed", 0), "seconds": counts.get("seconds", 0.0)}
    known = next((each for each in (earlier.get("llm", {}), spent) if each.get("asked") and each["seconds"]), None)
    own = tried.seconds(stage, earlier)
    if known:
        each = known["seconds"] / known["asked"]
        seconds = own + to_ask * each, own + to_ask * each
    else:
        seconds = own + tokens / speed[1], own + tokens / speed[0]
    forecast = forecast_rows(stage, tried, earlier)
    return forecast._replace(seconds=seconds, questions=to_ask, tokens=tokens, cached=cached)


def billions_of(model: str) -> float | None:
    """Return how many billions of parameters a model of this name has, such as qwen2.5:14b; None if it does not say."""
    size = re.search(r"(\d+(?:\.\d+)?)b\b", model.lower())
    return float(size[1]) or None if size else None


def usual_speed(model: str, card_bytes: float) -> Range:
    """Return the tokens per second, from and to, that a model of this name usually has on a card with so much memory,
    0 for the processor."""
    factor = USUAL_SIZE / (billions_of(model) or USUAL_SIZE)
    least, most = SPEEDS[max(memory for memory in SPEEDS if memory <= card_bytes)]
    return least * factor, most * factor


def total(forecasts: Sequence[Forecast]) -> Range | None:
    """Return the seconds of all stages; None if those of one are not known."""
    ranges = [forecast.seconds for forecast in forecasts]
    if None in ranges:
        return None
    return sum(each[0] for each in ranges if each), sum(each[1] for each in ranges if each)
