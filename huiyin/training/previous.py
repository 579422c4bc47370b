"""The last adapter, from which a training starts if train.yaml says `continue_from: previous`.

LLaMA-Factory goes on with the weights of `adapter_name_or_path`; rank, layers and the like are those of that adapter,
whatever the settings say. Before the run, its files and its receipt are copied to KEPT, where they stay until the
result is written: train replaces its own folder, and a run that was killed at any moment starts from the same weights.
"""

import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from huiyin.common.digests import Digests
from huiyin.common.errors import UserError
from huiyin.common.stage import read_receipt, remove
from huiyin.training.settings import Values
from huiyin.training.trained import AGAIN, check_unchanged

KEPT = ".previous"  # a folder in that of the training; in it one that is named after its weights
ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors"]
OF_ADAPTER = ["use_rslora", "use_dora", "additional_target"]  # settings that it brings along, and all of lora_...
ANEW = "or say continue_from: none"


class Previous:
    """A finished training in the folder `trained`: its `receipt`, and the `folder` that keeps its adapter."""

    def __init__(self, trained: Path, receipt: dict[str, Any]) -> None:
        self.trained, self.receipt = trained, receipt
        self.adapter = receipt["outputs"].get("adapter")
        values = [used.get("values", {}) for used in receipt["settings"].values()]
        self.settings: Values = next((one for one in values if "lora_rank" in one), {})
        whole = isinstance(self.adapter, dict) and self.adapter.keys() >= {*ADAPTER_FILES}
        if not whole or not self.settings or not receipt.get("base_model"):
            raise UserError(f"{trained}/receipt.json: not the receipt of a training; {AGAIN}")
        self.folder = trained / KEPT / self.adapter[ADAPTER_FILES[1]][:16]

    def chain(self) -> list[dict[str, Any]]:
        """Return, for the receipt of the training that starts from it, each training before that, the oldest first."""
        noted = {
            "made_at": self.receipt.get("made_at", ""),
            "adapter": self.adapter[ADAPTER_FILES[1]],
            "samples": self.receipt["ledger"]["written"],
            "learnt_until": self.receipt.get("learnt_until"),
        }
        return [*self.receipt.get("continued_from", []), noted]

    def check_settings(self, config: Path, given: Values) -> None:
        """`UserError` unless the adapter is of that base model, template, rank and so on."""
        names = {*OF_ADAPTER, *(name for name in {**given, **self.settings} if name.startswith("lora_"))}
        for name in ["model_name_or_path", "template", *sorted(names)]:
            before, now = self.settings.get(name), given.get(name)
            if before != now:
                now, before = ("not set" if value is None else value for value in (now, before))
                raise UserError(
                    f"{config}: {name} is {now}, and {before} in the training from which this one is to continue; "
                    f"set it back, {ANEW}"
                )

    def check_base(self, digests: dict[str, str], config: Path) -> None:
        """`UserError` unless the files of the base model, with these `digests`, are those of then."""
        base, name = self.receipt["base_model"], self.settings["model_name_or_path"]
        changed = sorted(file for file, before in base["sha256"].items() if digests.get(file) != before)
        if changed:
            raise UserError(
                f"{name}: {', '.join(changed)} changed or gone since the training from which this one is to "
                f"continue; bring the base model back, {ANEW} in {config}"
            )

    def check_held_out(self, held_out_from: str | None, config: Path) -> None:
        """`UserError` if replies that are held out now, from that time on, may have been learnt then: what is measured
        on them would be too good."""
        learnt = [one["learnt_until"] for one in self.chain()]
        if held_out_from and None in learnt:
            raise UserError(
                "an earlier version of Huiyin trained the adapter from which this training is to continue, and noted "
                f"not until when it has learnt; say continue_from: none in {config} this time"
            )
        if held_out_from and not max(map(datetime.fromisoformat, learnt)) < datetime.fromisoformat(held_out_from):
            raise UserError(
                f"the replies from {held_out_from} on are held out, and the adapter from which this training is to "
                f"continue has learnt those until {max(learnt)}; lower eval_share in gen.yaml, {ANEW} in {config}"
            )

    def keep(self, digests: Digests) -> None:
        """Copy the adapter to its folder, unless it is there; `UserError` if it is not as it was made."""
        if self.folder.exists():
            return
        check_unchanged(digests, self.trained / "adapter", self.adapter, AGAIN)
        part = self.trained / f"{KEPT}.part"
        (part / self.folder.name).mkdir(parents=True)
        for name in [*(f"adapter/{name}" for name in ADAPTER_FILES), "receipt.json"]:
            shutil.copy2(self.trained / name, part / self.folder.name)
        remove(self.trained / KEPT)  # killed here, the receipt is still there, and it is copied again
        part.replace(self.trained / KEPT)


def find_previous(trained: Path) -> Previous | None:
    """Return the last training in the folder `trained`; None if there is none. One that was killed while it wrote its
    results has no receipt: then it is the one that it had started from."""
    kept = sorted((trained / KEPT).glob("*"))
    receipts = filter(None, map(read_receipt, [trained, *kept]))
    receipt = next(receipts, None)
    return Previous(trained, receipt) if receipt else None
