"""A run that has not finished: its folder keeps its checkpoints, and the plan with which the next start goes on."""

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from huiyin.common.digests import digest, sha256
from huiyin.training.plan import Plan
from huiyin.training.settings import Values


class Run:
    """The run in `folder`, which is asked for what the digest `asked` stands for: all but the memory that is free.

    attempts: a `Plan` each, and how it "ended"; the last one goes on. There is none if nothing can be resumed: the
    folder has no checkpoint, or the run in it was asked for something else.
    """

    def __init__(self, folder: Path, asked: str) -> None:
        self.folder, self.asked, self.file = folder, asked, folder / "attempts.json"
        self.attempts: list[dict[str, Any]] = []
        if steps_done(folder)[0] or (folder / "done").exists():
            with contextlib.suppress(FileNotFoundError, ValueError, TypeError, LookupError, msgspec.MsgspecError):
                kept = json.loads(self.file.read_text(encoding="utf-8"))
                if kept["asked"] == asked and msgspec.convert(kept["attempts"], list[Plan]):
                    self.attempts = kept["attempts"]

    @property
    def plan(self) -> Plan:
        return msgspec.convert(self.attempts[-1], Plan)

    def add(self, plan: Plan) -> None:
        self.attempts.append({**asdict(plan), "peak": int(plan.peak)})

    def keep(self) -> None:
        """Write the attempts beside the checkpoints, where the next start finds them."""
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps({"asked": self.asked, "attempts": self.attempts}) + "\n", encoding="utf-8")
        part.replace(self.file)


def fingerprint(values: Values, files: Sequence[Path]) -> str:
    """Return a digest of the settings and data of a run; the micro-batch and the accumulation do not count."""
    sizes = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
    rest = {name: value for name, value in values.items() if name not in sizes}
    return digest(rest, [sha256(file) for file in files])


def prepare(run_folder: Path, mark: str, micro_batch: int) -> None:
    """Keep the folder of a killed run with the fingerprint `mark` if it can be resumed; otherwise empty it, and say how
    much is lost."""
    kept = run_folder / "fingerprint"
    same = kept.exists() and kept.read_text() == mark
    if not same or not (fix_checkpoints(run_folder, micro_batch) or (run_folder / "done").exists()):
        done, total = steps_done(run_folder)
        if done:
            lost = f"{done:,} of {total:,} steps"
            print(f"train: the settings or the data have changed, so {lost} of an earlier run are lost", flush=True)
        shutil.rmtree(run_folder, ignore_errors=True)
        run_folder.mkdir(parents=True)
        kept.write_text(mark)


def fix_checkpoints(run_folder: Path, micro_batch: int) -> int:
    """Make the checkpoints fit to resume from; return their number. One without trainer_state.json, the last file to be
    written, is deleted. A resumed run takes its micro-batch from that file, not from the settings: it is set there."""
    count = 0
    for checkpoint in run_folder.glob("checkpoint-*"):
        if state := read_state(checkpoint):
            text = json.dumps({**state, "train_batch_size": micro_batch}, indent=2) + "\n"
            (checkpoint / "trainer_state.json").write_text(text, encoding="utf-8")
            count += 1
        else:
            shutil.rmtree(checkpoint)
    return count


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the content of trainer_state.json; {} if the checkpoint was not written to its end."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def steps_done(run_folder: Path) -> tuple[int, int]:
    """Return (the step of the newest whole checkpoint, the steps of the run); zeros if there is none."""
    states = map(read_state, run_folder.glob("checkpoint-*"))
    return max(((state.get("global_step", 0), state.get("max_steps", 0)) for state in states), default=(0, 0))
