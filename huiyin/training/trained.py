"""A finished training, as the stages after it read it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from huiyin.common.digests import Digests
from huiyin.common.errors import UserError
from huiyin.common.settings import read_mapping
from huiyin.common.stage import Stage, anew, need, need_receipt
from huiyin.serving.templates.chat_format import ChatFormat
from huiyin.training.rows import read_system
from huiyin.training.template import trained_format

MADE_BY, AGAIN = "`make train` makes it", "train again (make clean-train)"


@dataclass(frozen=True)
class Trained:
    """A finished training: LLaMA-Factory's settings, its receipt, the system prompt of its dataset, its base model, and
    the format of its conversations."""

    used: dict[str, Any]
    receipt: dict[str, Any]
    system: str
    base: Path
    chat_format: ChatFormat

    @property
    def threads(self) -> int | None:
        """How many threads of the processor trained the model, as preflight chose; None: it was trained on a card."""
        return self.receipt.get("attempts", [{}])[-1].get("threads")


def read_trained(trained: Path, generated: Path, stage: Stage) -> Trained:
    """Return the training in the folder `trained`, whose dataset is in `generated`; note their files as inputs.
    `UserError` unless adapter and base model are those of the training."""
    for name in ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "train.yaml"):
        stage.input(need(trained / name, MADE_BY))
    for name in ("alpaca.json", "alpaca_eval.json", "system.txt"):
        stage.input(need(generated / name, "`make gen` makes it"))
    try:
        used = read_mapping(trained / "train.yaml", yaml.SafeLoader)
    except UserError as error:
        raise UserError(f"{error}; {anew(trained / 'train.yaml', MADE_BY)}") from None
    receipt = need_receipt(trained, MADE_BY, "base_model", "results", "versions")
    if not receipt["base_model"] or not isinstance(receipt["outputs"].get("adapter"), dict):
        raise UserError(f"{trained}/receipt.json: not the receipt of a training; {MADE_BY}")
    base = Path(used["model_name_or_path"])
    check_unchanged(stage.digests, base, receipt["base_model"]["sha256"], f"bring the base model back, or {AGAIN}")
    check_unchanged(stage.digests, trained / "adapter", receipt["outputs"]["adapter"], AGAIN)
    return Trained(used, receipt, read_system(generated), base, trained_format(used))


def check_unchanged(digests: Digests, folder: Path, made: Mapping[str, str], advice: str) -> None:
    """Raise `UserError`, which ends with `advice`, unless the files in `folder` are those of the training, `made`."""
    now = digests.of_tree(folder) if folder.is_dir() else {}
    changed = sorted(name for name, digest in made.items() if now.get(name) != digest)
    if changed:
        raise UserError(f"{folder}: {', '.join(changed)} changed or gone since the training; {advice}")
