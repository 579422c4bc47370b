"""Merge the adapter into its base model and create the Ollama model.

    python scripts/export.py data/default/10001/trained --generated data/default/10001/generated --name huiyin-10001 \\
        --config config/export.yaml --cache .cache --out data/default/10001/exported

Writes merged/ and Modelfile. The merged model must have the loss of the trained one on held-out rows. In the Ollama of
export.yaml, if there is one, the Ollama model is created, and its digest is written to <out>.ollama.
Finally one question is asked, to the Ollama model if there is one, otherwise to the merged model: asked.json.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from huiyin.common.errors import UserError, run
from huiyin.common.settings import read_mapping, read_settings
from huiyin.common.stage import Stage, arguments, digest_tree, need, need_receipt
from huiyin.llm.client import ollama_url_argument
from huiyin.llm.ollama import Ollama
from huiyin.serving.finished import Settings, find_ollama
from huiyin.serving.ollama_limits import check_servable, choose_quantize, flatten_rope
from huiyin.serving.process import Models, ask
from huiyin.serving.template import Prompt, modelfile, read_prompt
from huiyin.training.base import check_disk
from huiyin.training.llamafactory import environment, run_program
from huiyin.training.memory import GIB, format_size

EXPECTED = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "Modelfile"]
SAMPLING = ["temperature", "top_p", "top_k", "repeat_penalty", "num_predict"]
SAMPLES, SHOWN = 50, 5  # held-out rows for the loss, and those whose replies are printed
TOLERANCE = {"float32": 1e-4}  # relative difference of the loss by type of the weights
TOLERANCE_16_BITS = 0.01  # merging in 16 bits rounds the weights
PROGRAM_BYTES = 1.5 * GIB  # torch and LLaMA-Factory themselves
OLLAMA_COPIES = 3.3  # copies of the weights in Ollama's store: uploaded, converted, the layer, and the result in 4 bits


@dataclass(frozen=True)
class Trained:
    """A finished training: LLaMA-Factory's settings, its receipt, the system prompt of its dataset, its base model."""

    used: dict[str, Any]
    receipt: dict[str, Any]
    system: str
    base: Path


def read_trained(args: argparse.Namespace, stage: Stage) -> Trained:
    for name in ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "train.yaml", "receipt.json"):
        stage.input(need(args.trained / name, "`make train` makes it"))
    for name in ("alpaca.json", "alpaca_eval.json"):
        stage.input(need(args.generated / name, "`make gen` makes it"))
    system = stage.input(args.generated / "system.txt").read_text(encoding="utf-8")
    used = read_mapping(args.trained / "train.yaml", yaml.SafeLoader)
    receipt = need_receipt(args.trained, "`make train` makes it", "base_model", "results")
    return Trained(used, receipt, system, Path(used["model_name_or_path"]))


def check_base(base: Path, digests: Mapping[str, str]) -> None:
    """Raise `UserError` unless the base model is unchanged since the training."""
    now = digest_tree(base) if base.is_dir() else {}
    changed = sorted(name for name, digest in digests.items() if now.get(name) != digest)
    if changed:
        raise UserError(
            f"{base}: {', '.join(changed)} changed or gone since the training; bring the base model back, "
            "or train again (make clean-train)"
        )


def check_memory(size: int, available: int) -> None:
    """Print the RAM that merging weights of `size` bytes needs; `UserError` if it is more than `available`."""
    needed = size + PROGRAM_BYTES
    print(f"export: merging needs about {format_size(needed)} of RAM, {format_size(available)} are free", flush=True)
    if needed > available:
        raise UserError(
            f"merging needs {format_size(needed)} of RAM and {format_size(available)} are free; close programs, or in "
            "WSL, which gets half of the machine's, set memory= in .wslconfig"
        )


def check_room(out: Path, size: int, store: Path | None) -> None:
    """Raise `UserError` unless the disks have room for the merged model, and for Ollama's copies in its `store`."""
    same_disk = store is not None and store.stat().st_dev == out.stat().st_dev
    copies = OLLAMA_COPIES if same_disk else 0
    check_disk(out, (1 + copies) * size, "the merged model" + (" with Ollama's copies of it" if same_disk else ""))
    if store is not None and not same_disk:
        check_disk(store, OLLAMA_COPIES * size, "Ollama, for its copies of the model,")


def check_resources(out: Path, base: Path, ollama: Ollama | None) -> None:
    """Raise `UserError` if there is too little RAM or disk to merge `base` and to create the Ollama model."""
    import psutil

    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    check_memory(size, psutil.virtual_memory().available + psutil.swap_memory().free)
    check_room(out, size, ollama.store() if ollama else None)


def check_name(ollama: Ollama, digest_file: Path) -> None:
    """Raise `UserError` if Ollama has a model of that name with another digest than that in `digest_file`."""
    present = ollama.digest()
    if present and not (digest_file.exists() and digest_file.read_text() == present):
        raise UserError(
            f"Ollama already has a model {ollama.model} which this pipeline did not make; "
            f"rename it (ollama cp) and remove it: ollama rm {ollama.model}"
        )


def merge(trained: Trained, adapter: Path, cache: Path, work: Path, merged: Path) -> Prompt:
    """Merge with LLaMA-Factory, whose log goes to the folder `work`, into the folder `merged`, on the processor, in the
    type of the base model. Return the `Prompt` of the training."""
    values = {
        **{name: trained.used[name] for name in ("model_name_or_path", "template")},
        **{"adapter_name_or_path": str(adapter.absolute()), "finetuning_type": "lora", "default_system": ""},
        "trust_remote_code": bool(trained.used.get("trust_remote_code")),
        **{"export_dir": str(merged.absolute()), "export_size": 2, "export_device": "cpu"},
        "export_legacy_format": False,
    }
    run_program("export", values, work, environment("none", cache, work))
    check_merged(merged)
    prompt = read_prompt(merged / "Modelfile", merged / "tokenizer_config.json")
    (merged / "Modelfile").unlink()  # it has another num_ctx and no system prompt
    return prompt


def check_merged(merged: Path) -> None:
    """Raise `UserError` unless all files of a model are there; LLaMA-Factory has ended with status 0 without them."""
    index = merged / "model.safetensors.index.json"
    weights = ["model.safetensors"]
    if index.exists():
        weights = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in [*EXPECTED, *weights]:
        need(merged / name, "LLaMA-Factory should have written it; export again")


def set_chat_template(merged: Path, prompt: Prompt, system: str, fixed: bool) -> None:
    """Give the merged model the chat template of the training, for transformers, vLLM and llama-server."""
    (merged / "chat_template.jinja").write_text(prompt.jinja_template(system, fixed), encoding="utf-8")
    path = merged / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("chat_template", None)
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def check_loss(trained: float, merged: float, kind: str, samples: int) -> float:
    """Return the relative difference of the mean losses; `UserError` if it is too large for weights of type `kind`."""
    difference, allowed = abs(merged - trained) / trained, TOLERANCE.get(kind, TOLERANCE_16_BITS)
    if not difference <= allowed:  # also if it is NaN
        raise UserError(
            f"the merged model is not the trained one: its mean loss on {samples} rows is {merged:.4f}, with "
            f"the adapter it is {trained:.4f}, more than {allowed:.2%} apart; export again"
        )
    return difference


def check_merge(
    models: Models, generated: Path, question: Mapping[str, Any], work: Path, variables: Mapping[str, str]
) -> tuple[dict[str, Any], str]:
    """Compare the merged model with the trained one, `models`: [(base model, adapter), (merged model, None)]; print
    replies of both on a terminal. Return (the check, for the receipt; the merged model's reply to the row `question`).
    work: a folder for files; variables: the environment of the process that asks."""
    merged = models[1][0]
    rows = [json.loads((generated / f"{name}.json").read_text(encoding="utf-8")) for name in ("alpaca_eval", "alpaca")]
    samples = (rows[0] or rows[1])[-SAMPLES:]  # a very small dataset has no rows for evaluation
    prompts = [*samples[-SHOWN:], question]
    before, after = ask(models, prompts, work, variables, samples, tokenizer=merged)
    if sys.stdout.isatty():  # not into a log: these are messages of the group
        for row, *replies in zip(samples[-SHOWN:], before["replies"], after["replies"], strict=False):
            print(f"export: {row['instruction']!r}: trained {replies[0]!r}, merged {replies[1]!r}", flush=True)
    config = json.loads((merged / "config.json").read_text(encoding="utf-8"))
    kind = config.get("dtype", config.get("torch_dtype"))
    difference = check_loss(before["loss"], after["loss"], kind, len(samples))
    print(f"export: mean loss on {len(samples)} rows {before['loss']:.4f} trained, {after['loss']:.4f} merged")
    losses = {"trained_loss": before["loss"], "merged_loss": after["loss"], "difference": difference}
    return {"rows": len(samples), **losses}, after["replies"][-1]


def create(
    ollama: Ollama, merged: Path, prompt: Prompt, system: str, receipt: Mapping[str, Any], digest_file: Path
) -> str:
    """Create the Ollama model as `receipt` says and return its digest, which `digest_file` keeps for `check_name`."""
    names = "*.safetensors", "*.json", "tokenizer.model"
    files = {file.name: file for file in sorted(file for name in names for file in merged.glob(name))}
    fixed = receipt["fixed_system"]
    template = prompt.go_template_with(system, fixed) if fixed else prompt.go_template()
    digest = ollama.create(files, receipt["quantize"], template, system, receipt["parameters"])
    digest_file.write_text(digest)
    return digest


def model_card(trained: Trained) -> dict[str, Any]:
    """Return what the receipt says about the origin of the model."""
    receipt = trained.receipt
    return {
        "base_model": {**receipt["base_model"], "folder": trained.used["model_name_or_path"]},
        "dataset": receipt["inputs"],
        "training": {"settings": receipt["settings"], "versions": receipt["versions"]},
        "losses": receipt["results"],
    }


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__, "trained")
    parser.add_argument("--generated", type=Path, required=True, metavar="FOLDER", help="the dataset")
    parser.add_argument("--name", required=True, help="name of the Ollama model")
    parser.add_argument("--cache", type=Path, required=True, metavar="FOLDER", help="keeps the base models")
    ollama_url_argument(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    settings = read_settings(args.config, Settings)
    digest_file = args.out.with_name(f"{args.out.name}.ollama")

    with Stage("export", args.out, packages=["llamafactory", "transformers", "peft", "torch"]) as stage:
        stage.use(args.config, settings)
        trained = read_trained(args, stage)
        check_base(trained.base, trained.receipt["base_model"]["sha256"])
        ollama = find_ollama(settings, args.ollama_url, args.name)
        if ollama:
            check_servable(trained.used["template"], trained.base / "config.json")
            check_name(ollama, digest_file)
        check_resources(args.out, trained.base, ollama)

        work, merged = args.out / ".work", stage.output("merged")
        shutil.rmtree(work, ignore_errors=True)
        prompt = merge(trained, args.trained / "adapter", args.cache, work, merged)
        flatten_rope(merged / "config.json", needed=ollama is not None)
        set_chat_template(merged, prompt, trained.system, settings.fixed_system)
        check, reply = check_merge(
            [(trained.base, args.trained / "adapter"), (merged, None)],
            args.generated,
            {"system": trained.system, "history": [], "instruction": settings.question},
            work,
            environment("none", args.cache, work),
        )

        stage.receipt |= {
            **model_card(trained),
            "check": check,
            "parameters": {
                "stop": prompt.stop,
                "num_ctx": settings.num_ctx or trained.used.get("cutoff_len", 2048),
                **{name: getattr(settings, name) for name in SAMPLING},
            },
            "quantize": choose_quantize(settings.quantize, merged),
            "fixed_system": settings.fixed_system,
        }
        text = modelfile(prompt, trained.system, settings.fixed_system, stage.receipt["parameters"])
        stage.output("Modelfile").write_text(text, encoding="utf-8")
        who = "the merged model, loaded once"
        if ollama:
            digest = create(ollama, merged, prompt, trained.system, stage.receipt, digest_file)
            stage.receipt["ollama"] = {"name": args.name, "digest": digest}
            reply = "".join(ollama.talk([{"role": "user", "content": settings.question}]))
            who = "the Ollama model"
        asked = {"who": who, "question": settings.question, "reply": reply}
        stage.output("asked.json").write_text(json.dumps(asked, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.rmtree(work)
        stage.ledger.read = stage.ledger.written = len(list(merged.iterdir()))
    if not ollama:
        command = f"ollama create {args.name} --quantize {stage.receipt['quantize']} -f {args.out}/Modelfile"
        print(f"export: no Ollama model was created; where Ollama runs, this creates it: {command}")


if __name__ == "__main__":
    run(main)
