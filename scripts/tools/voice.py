"""Does the trained model sound like the member? Measured on the latest replies, which nobody trained on.

    python scripts/tools/voice.py data/default/10001/trained --generated data/default/10001/generated \\
        --exported data/default/10001/exported --turns data/default/combined/turns.parquet \\
        --adapters data/default/10002/trained --config config/voice.yaml --export config/export.yaml --gpu 0 \\
        --cache .cache --out data/default/10001/voice

Writes voice.json (the numbers) and replies.jsonl (what both models said); docs/voice.md explains them. The merged model
is measured if export has made one of this adapter, else the base model with the adapter. A killed run goes on.
"""

from __future__ import annotations

import huiyin.common.starting  # noqa: F401

import argparse
import json
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import Meta

from huiyin.common.errors import run
from huiyin.common.settings import AtLeast1, From1To1000, UpTo1000, read_settings
from huiyin.common.stage import Stage, arguments
from huiyin.common.tables import write_records
from huiyin.serving.finished import Settings as Export
from huiyin.serving.process import Rows
from huiyin.serving.sampling import SAMPLING
from huiyin.training.card import check_card, find_card, torch_cuda
from huiyin.training.llamafactory import environment
from huiyin.training.memory import available_ram, check_memory
from huiyin.training.template import Encoding
from huiyin.training.trained import read_trained

if TYPE_CHECKING:
    from huiyin.voice.material import Material
    from huiyin.voice.models import Answered
    from huiyin.voice.sampling import Texts

RESULTS = 1  # to be raised when the same input gives another result
ENOUGH = 30  # held-out replies; with fewer the numbers come with a warning
FEW = "only {} held-out replies: the numbers are rough with fewer than {}; raise eval_share in gen.yaml"
TRIPLES = 10
PREVIOUS = "previous.json"
WEIGHTS = "adapter/adapter_model.safetensors"
WORK = ".work"  # questions and answers of a run that goes on


@dataclass
class Settings:
    replies: AtLeast1 = 200
    other_members: UpTo1000 = 3
    continued: UpTo1000 = 50
    batch_size: From1To1000 = 16
    seed: Annotated[int, Meta(ge=0, le=1_000_000)] = 1

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}


def measure(material: Material, answered: Answered, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Return (what goes into voice.json, a sentence for each number)."""
    from huiyin.voice import authorship, copies, habits, losses

    real, replies = [row["output"] for row in material.own], texts_of(answered)
    member, others, others_real = (material.texts[name] for name in ("member", "others", "others_real"))
    begun = [row["output"] for row in material.begun]
    found: dict[str, Any] = {
        "losses": losses.measure_losses(answered.own, answered.others, answered.adapters, seed),
        "ended": {name: share_ended(of_one) for name, of_one in answered.replies.items()},
        "authorship": authorship.measure_authorship(member, others, real, others_real, replies, seed),
        "habits": habits.measure_habits(real, replies, member, others, material.separator, seed),
        "copies": copies.measure_copies(material.training, real, replies, material.system, material.redaction),
        "drawn_out": copies.drawn_out(begun, answered.continued),
    }
    ended = "{trained:.0%} of the trained model's replies, {base:.0%} of the base model's".format(**found["ended"])
    return found, [
        *losses.say(found["losses"]),
        f"Ended by the model itself, not by num_predict: {ended}.",
        authorship.say(found["authorship"]),
        habits.say(found["habits"]),
        copies.say(found["copies"]),
        copies.say_drawn_out(found["drawn_out"]),
    ]


def texts_of(answered: Answered) -> dict[str, Texts]:
    return {name: [reply["text"] for reply in replies] for name, replies in answered.replies.items()}


def share_ended(replies: Rows) -> float:
    return round(fmean(reply["ended"] for reply in replies), 4)


def lines_of(material: Material, answered: Answered) -> Iterator[dict[str, Any]]:
    """Yield the lines of replies.jsonl, one for each held-out row."""
    own, replies = answered.own, answered.replies
    for index, (row, source) in enumerate(zip(material.own, material.sources, strict=True)):
        bits = {name: loss.words[index] for name, loss in (("base", own.base), ("trained", own.trained))}
        yield {
            **{"row": source["row"], "turn_ids": source["turn_ids"], "decided_by": source["decided_by"]},
            **{"prompt": row["instruction"], "reply": row["output"]},
            **{name: replies[name][index]["text"] for name in ("trained", "base")},
            "ended": {name: replies[name][index]["ended"] for name in ("trained", "base")},
            "bits_per_character": {name: round(words / len(row["output"]), 4) for name, words in bits.items()},
        }


def draw_triples(lines: Rows, seed: int) -> Rows:
    """Return some of the lines, drawn at random: the prompt and the three replies."""
    chosen = sorted(random.Random(seed).sample(range(len(lines)), min(TRIPLES, len(lines))))
    return [{name: lines[index][name] for name in ("prompt", "reply", "trained", "base")} for index in chosen]


def version_before(stage: Stage, adapter: Path) -> dict[str, Any]:
    """Return the numbers of the version before this one, {} if there are none: if what is there was measured of another
    adapter, these; else what they had beside them."""
    made = stage.earlier.get("inputs", {}).get(str(adapter))
    name = PREVIOUS if made == stage.inputs[str(adapter)] else "voice.json"
    if name not in stage.earlier.get("outputs", {}):
        return {}
    try:
        numbers = json.loads((stage.out / name).read_text(encoding="utf-8"))
        return {"made_at": stage.earlier["made_at"], **{key: numbers[key] for key in numbers if key != "triples"}}
    except (OSError, ValueError, TypeError):
        print(f"voice: {stage.out / name} cannot be read, so the numbers of the version before are lost", flush=True)
        return {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def show(found: dict[str, Any], said: list[str], triples: int | None) -> None:
    """Print what was found; what people and models said only on a terminal, since a log may be passed on, or if the
    number of `triples` is said."""
    if "warning" in found:
        said = [f"Warning: {found['warning']}.", *said]
    model = {"merged": "the merged model", "adapter": "the base model with the adapter"}[found["model"]]
    print(f"voice: {found['held_out']:,} replies that nobody trained on; measured is {model}", flush=True)
    for line in said:
        print(f"voice: {line}", flush=True)
    shown = found["triples"][:triples] if triples is not None or sys.stdout.isatty() else []
    for number, triple in enumerate(shown, 1):
        print(f"\n{number}. {triple['prompt']}")
        for name, who in (("reply", "member"), ("trained", "trained"), ("base", "base")):
            print(f"   {who + ':':<9}{triple[name]!r}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__, "trained")
    parser.add_argument("--generated", type=Path, required=True, metavar="FOLDER", help="the dataset")
    parser.add_argument("--exported", type=Path, required=True, metavar="FOLDER", help="the exported model, if any")
    parser.add_argument("--turns", type=Path, required=True, metavar="FILE", help="turns.parquet of combine")
    parser.add_argument(
        "--adapters", type=Path, nargs="*", default=[], metavar="FOLDER", help="other members' trainings"
    )
    parser.add_argument("--export", type=Path, required=True, metavar="FILE", help="export.yaml")
    parser.add_argument("--gpu", required=True, help="index of the card, or none")
    parser.add_argument("--cache", type=Path, required=True, metavar="FOLDER", help="keeps the base models")
    parser.add_argument(
        "--triples", type=int, metavar="N", help="print so many, into a log, too (default: all, on a terminal only)"
    )
    return parser.parse_args(argv)


def ask(args: argparse.Namespace, settings: Settings, stage: Stage) -> tuple[str, Material, Answered]:
    """Return (merged or adapter, what is measured with, what the models make of it)."""
    from huiyin.serving.merge import size_of  # here and in main: what takes time to load
    from huiyin.voice.material import read_material
    from huiyin.voice.models import ask_models, find_adapters, find_model

    export = stage.use(args.export, read_settings(args.export, Export))
    if args.gpu != "none":
        check_card(find_card(args.gpu.partition(",")[0]), torch_cuda())  # one model at a time needs no second card
    trained = read_trained(args.trained, args.generated, stage)
    encoding, cutoff_len = Encoding(trained.chat_format, trained.base), trained.used.get("cutoff_len", 2048)
    material = read_material(args.generated, args.turns, encoding, cutoff_len, settings, stage)
    work = args.out / WORK
    work.mkdir(exist_ok=True)
    variables = environment(args.gpu, args.cache, work, trained.threads)
    model = find_model(trained, args.trained / "adapter", args.exported, work, stage)
    adapters = find_adapters(args.adapters, trained, settings.other_members, stage)
    stage.stop_if_done()
    lean = args.gpu == "none" and check_memory("voice", *size_of(trained.base), available_ram())
    parameters = {name: getattr(export, name) for name in SAMPLING}
    answered = ask_models(trained.base, model, adapters, material, settings, parameters, work, variables, lean)
    return model.name, material, answered


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    settings = read_settings(args.config, Settings)
    with Stage("voice", args.out, RESULTS, packages=["transformers", "torch", "peft", "scikit-learn"]) as stage:
        stage.use(args.config, settings)
        model, material, answered = ask(args, settings, stage)
        stage.receipt["model"] = model
        found, said = measure(material, answered, settings.seed)
        lines = list(lines_of(material, answered))
        found = {
            **{"model": model, "held_out": len(lines)},
            "prompts_written": sum(line["decided_by"] == "written" for line in lines),
            **({"warning": FEW.format(len(lines), ENOUGH)} if len(lines) < ENOUGH else {}),
            **found,
            "triples": draw_triples(lines, settings.seed),
        }
        write_records(stage.output("replies.jsonl"), lines)
        if before := version_before(stage, args.trained / WEIGHTS):
            write_json(stage.output(PREVIOUS), before)
        write_json(stage.output("voice.json"), found)
        show(found, said, args.triples)
    shutil.rmtree(args.out / WORK, ignore_errors=True)


if __name__ == "__main__":
    run(main)
