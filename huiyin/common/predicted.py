"""What `make plan` has said of each stage, beside what happened."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec


class Prediction(msgspec.Struct):
    """What plan.json says of a stage: rows, seconds (least, most; None: not known), and the bytes of its results."""

    written: int
    seconds: tuple[float, float] | None
    stay: float


class Compared(NamedTuple):
    """A stage: (predicted, seen) of its rows, if it has some, its seconds and the bytes of its results."""

    stage: str
    written: tuple[int, int] | None
    seconds: tuple[float, float] | None
    size: tuple[float, float]


def read_predictions(path: Path) -> dict[str, Prediction]:
    """Return {stage: prediction} of the plan.json at `path`; {} where there is none that can be read."""
    try:
        stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
        return {stage: msgspec.convert(each, Prediction, strict=False) for stage, each in stages.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def compared(path: Path, found: Mapping[Path, Mapping[str, Any]]) -> Iterator[Compared]:
    """Yield what the plan.json at `path` said of each of the stages that are done, {folder: receipt}, and what is. Of a
    range of seconds the mean counts."""
    predictions = read_predictions(path)
    for folder, receipt in found.items():
        said = predictions.get(receipt["stage"])
        if said:
            seconds = (sum(said.seconds) / 2, receipt["seconds"]) if said.seconds else None
            sizes = said.stay, sum(size_of(folder / name) for name in receipt["outputs"])
            written = (said.written, receipt["ledger"]["written"]) if said.written else None
            yield Compared(receipt["stage"], written, seconds, sizes)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; 0 for what is not there."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
