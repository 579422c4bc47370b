"""Which models are measured, what they are asked, and their answers."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huiyin.common.errors import UserError
from huiyin.common.stage import Stage, anew, read_receipt
from huiyin.serving.process import Rows, Work, batch, do
from huiyin.serving.sampling import generation_options
from huiyin.serving.tokenizer import save_tokenizer
from huiyin.training.trained import Trained
from huiyin.voice.losses import Loss, Measured
from huiyin.voice.material import Material


@dataclass(frozen=True)
class Model:
    """The trained model."""

    name: str  # merged or adapter
    folder: Path
    adapter: Path | None
    tokenizer: Path


def find_model(trained: Trained, adapter: Path, exported: Path, work: Path, stage: Stage) -> Model:
    """Return the model in `exported` if it was merged from `adapter`, else the base model with the adapter. work: a
    folder for files."""
    merged, receipt = exported / "merged", read_receipt(exported)
    stage.after(exported / "receipt.json")
    if stage.digests.of(adapter / "adapter_model.safetensors") in receipt.get("inputs", {}).values():
        made = stage.digests.of_tree(merged) if merged.is_dir() else {}
        if made != receipt["outputs"].get("merged"):
            raise UserError(f"{merged}: changed or gone since the export; {anew(merged, '`make export` makes it')}")
        stage.depends_on(made)
        return Model("merged", merged, None, merged)
    tokenizer = work / "tokenizer"
    shutil.rmtree(tokenizer, ignore_errors=True)
    tokenizer.mkdir()
    save_tokenizer(trained.base, trained.chat_format, trained.system, False, tokenizer)
    return Model("adapter", trained.base, adapter, tokenizer)


def find_adapters(folders: Sequence[Path], trained: Trained, most: int, stage: Stage) -> dict[str, Path]:
    """Return {user id: adapter}, at most so many, of other members' trainings in `folders` on the same base model."""
    found: dict[str, Path] = {}
    for folder in folders:
        weights = folder / "adapter/adapter_model.safetensors"
        base = read_receipt(folder).get("base_model", {})
        if base.get("sha256") == trained.receipt["base_model"]["sha256"] and weights.is_file() and len(found) < most:
            stage.input(weights)
            found[folder.parent.name] = weights.parent
    return found


@dataclass(frozen=True)
class Answered:
    """What the models made of the material."""

    own: Measured
    others: dict[str, Measured]
    adapters: dict[str, Loss]  # of other members, on the member's rows
    replies: dict[str, list[dict[str, Any]]]  # "trained", "base": to the prompts of the held-out rows
    continued: list[str]  # the trained model's continuations of the beginnings


def batches(rows: Rows, size: int, parameters: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Return `rows` in batches, the same in each run, each with a seed of its own."""
    options, starts = generation_options(parameters), range(0, len(rows), size)
    return [batch(rows[start : start + size], options, seed + number) for number, start in enumerate(starts)]


def ask_models(
    base: Path,
    model: Model,
    adapters: Mapping[str, Path],
    material: Material,
    settings: Any,
    parameters: Mapping[str, Any],
    folder: Path,
    variables: Mapping[str, str],
    lean: bool,
) -> Answered:
    """Ask the base model, the trained one and the `adapters` of others. settings: those of voice; parameters: the
    sampling of the finished model; the others are those of `do`. Continuations are greedy: what a model knows by heart
    it finds most likely."""
    rows = [*material.own, *(row for of_one in material.others.values() for row in of_one)]
    drawn = batches(material.own, settings.batch_size, parameters, settings.seed)
    begun = batches(material.begun, settings.batch_size, {**parameters, "temperature": 0}, settings.seed)
    works = [
        Work(base, None, rows, drawn),
        Work(model.folder, model.adapter, rows, drawn + begun),
        *(Work(base, adapter, material.own) for adapter in adapters.values()),
    ]
    before, after, *of_adapters = do(works, "voice", folder, variables, model.tokenizer, lean)
    members, start = [], 0
    for of_one in [material.own, *material.others.values()]:
        stop = start + len(of_one)
        losses = (Loss.of(answers.losses[start:stop]) for answers in (before, after))
        members.append(Measured([len(row["output"]) for row in of_one], *losses))
        start = stop
    count = len(material.own)
    return Answered(
        own=members[0],
        others=dict(zip(material.others, members[1:], strict=True)),
        adapters={user: Loss.of(one.losses) for user, one in zip(adapters, of_adapters, strict=True)},
        replies={"trained": after.replies[:count], "base": before.replies},
        continued=[reply["text"] for reply in after.replies[count:]],
    )
