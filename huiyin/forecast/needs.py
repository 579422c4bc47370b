"""What the stages that are to do need of disk and network, and the table of all of it."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from huiyin.common.chinese import translated
from huiyin.common.terminal import columns, fit, right
from huiyin.forecast.stages import Forecast, Range, billions_of

BYTES_OF_A_BILLION = 0.65e9  # a language model in Ollama, in 4 bits, for each billion of parameters
GIB = 1 << 30
HEADER = ("stage", "read", "written", "questions", "tokens", "cached", "time", "disk")


class Needs(NamedTuple):
    """Bytes of disk: the most that are needed at a time, those that stay, and those that are free."""

    most: float
    stay: float
    free: float


class Download(NamedTuple):
    """What is fetched from the network."""

    what: str
    where: str
    bytes: float  # 0: not known


def disk_needs(folder: Path, forecasts: Sequence[Forecast], fetched: float) -> Needs:
    """Return what the stages need on the disk of `folder`, where `fetched` bytes of models come first."""
    while not folder.exists():
        folder = folder.parent
    stay = most = fetched
    for forecast in forecasts:
        most = max(most, stay + forecast.stay + forecast.passing)
        stay += forecast.stay
    return Needs(most, stay, shutil.disk_usage(folder).free)


def size_in_ollama(model: str) -> float:
    """Return the bytes of a language model of that name in 4 bits; 0 where it does not tell its size."""
    return BYTES_OF_A_BILLION * (billions_of(model) or 0)


def shown_size(size: float) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):,.0f} MiB"


def shown_time(seconds: Range | None) -> str:
    """Return how long it takes, in a unit that suits it; a range where that is all that is known."""
    if seconds is None:
        return "?"
    unit, name = next((each for each in ((3600, "h"), (60, "min")) if seconds[1] >= 2 * each[0]), (1, "s"))
    least, most = (
        f"{part / unit:,.1f}" if unit > 1 and part < 10 * unit else f"{part / unit:,.0f}" for part in seconds
    )
    return f"{least} {name}" if least == most else f"{least}-{most} {name}"


def table(forecasts: Sequence[Forecast]) -> Iterator[str]:
    """Yield the lines of the table."""
    rows = [tuple(map(translated, HEADER))]
    for forecast in forecasts:
        numbers = [forecast.questions, forecast.tokens, forecast.cached]
        counts = [f"{number:,}" if number else "" for number in (forecast.read, forecast.written, *numbers)]
        rows.append((forecast.stage, *counts, shown_time(forecast.seconds), shown_size(forecast.stay)))  # type: ignore[arg-type]
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [right(cell, width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([fit(first, widths[0]), *cells]).rstrip()
