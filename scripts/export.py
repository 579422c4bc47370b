"""Merge the adapter into its base model and create the Ollama model.

    python scripts/export.py data/default/10001/trained --generated data/default/10001/generated --name huiyin-10001 \\
        --config config/export.yaml --cache .cache --out data/default/10001/exported

Writes merged/ and Modelfile. The merged model must have the losses of the trained one on held-out rows; if it does not
have them in 16 bits, its weights are written in 32. If Ollama needs it or export.yaml wants it, model.gguf is written,
which in llama-server must give the next tokens the probabilities that the merged model gives them. In the Ollama of
export.yaml, if there is one, the Ollama model is created, and its digest is written to <out>.ollama.
Finally one question is asked, to the Ollama model if there is one, otherwise to the merged model: asked.json.
"""

import huiyin.common.starting  # noqa: F401

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from huiyin.common.errors import UserError, run
from huiyin.common.settings import read_settings
from huiyin.common.stage import Stage, arguments
from huiyin.llm.client import ollama_url_argument
from huiyin.llm.ollama import Ollama
from huiyin.serving.finished import Settings, find_ollama
from huiyin.serving.modelfile import modelfile
from huiyin.serving.ollama_limits import (
    OLLAMA_COPIES,
    check_servable,
    choose_quantize,
    create_command,
    flatten_rope,
    needs_gguf,
    on_disk_of,
    quantized_at_create,
    room_for_export,
)
from huiyin.serving.process import Models, Rows, ask
from huiyin.serving.sampling import SAMPLING
from huiyin.serving.templates.chat_format import ChatFormat
from huiyin.serving.tokenizer import save_tokenizer
from huiyin.training.base import check_disk
from huiyin.training.llamafactory import environment
from huiyin.training.memory import available_ram, check_memory
from huiyin.training.rows import read_rows
from huiyin.training.template import Encoding
from huiyin.training.trained import Trained, read_trained

RESULTS = 2  # to be raised when the same input gives another result
SAMPLES, SHOWN = 50, 5  # held-out rows for the losses, and those whose replies are printed
COMPARED = 5  # held-out rows whose next tokens are compared in llama-server
TYPES = {"float16": 2, "float32": 4}  # of the merged weights, and their bytes; the first that loses nothing is taken
TOLERANCE, LEAST_LOSS = (
    1e-4,
    0.1,
)  # relative difference of a loss; of a smaller one than the second, rounding is that much
EXCHANGES, LONG = 3, 0.95  # what the context has room for: exchanges as long as this share of the dataset's at most
PACKAGES = ["llamafactory", "transformers", "peft", "torch", "gguf"]
BEING_CREATED = "being created"
PREVIOUS = "previous"  # tag of the model that the one of this export replaces, and suffix of the file of its digest
GGUF = "model.gguf"


def read_held_out(generated: Path) -> tuple[Rows, Rows]:
    """Return (the rows of the dataset, those held out of the training; a very small dataset has none: all of them)."""
    names = "alpaca.json", "alpaca_eval.json"
    rows, held_out = ([asdict(row) for row in read_rows(generated / name)] for name in names)
    return rows + held_out, held_out or rows


def check_room(out: Path, size: int, store: Path | None, gguf: bool = False) -> None:
    """Raise `UserError` unless the disks have room for the merged model, for its GGUF file, if there is to be one, and
    for Ollama's copies in its `store`."""
    same_disk = on_disk_of(out, store)
    what = "the merged model" + " with its GGUF file" * gguf + " with Ollama's copies of it" * same_disk
    check_disk(out, room_for_export(size, gguf, same_disk), what)
    if store is not None and not same_disk:
        check_disk(store, OLLAMA_COPIES * size, "Ollama, for its copies of the model,")


def choose_context(
    settings: Settings, cutoff_len: int, encoding: Encoding, system: str, rows: Sequence[Mapping[str, Any]]
) -> int:
    """Return the context length of the finished model in tokens: that of the settings, or the row length of the
    training, more if `EXCHANGES` long ones of the dataset would not fit with the system prompt and a reply. Raise
    `UserError` if the setting has no room for system prompt and reply."""
    least = encoding.opening(system, "") + encoding.reply("") + settings.num_predict
    lengths = [encoding.prompt(row["instruction"]) + encoding.reply(row["output"]) for row in rows]
    if settings.num_ctx and settings.num_ctx < least:
        raise UserError(
            f"num_ctx {settings.num_ctx} in export.yaml: a reply (num_predict {settings.num_predict}) and the system "
            f"prompt need {least} tokens; raise num_ctx, lower num_predict, or leave num_ctx empty"
        )
    long = sorted(lengths)[int(LONG * (len(lengths) - 1))]
    return settings.num_ctx or max(cutoff_len, least + EXCHANGES * long)


def check_names(ollama: Ollama, digest_file: Path) -> None:
    """Raise `UserError` if Ollama has a model of that name, or a previous one, with another digest than those that we
    have noted, unless an export was killed while it created the model."""
    known = noted(digest_file)
    for name, file in ((ollama.model, digest_file), (previous(ollama), digest_file.with_suffix(f".{PREVIOUS}"))):
        present, state = ollama.digest(name), file.read_text() if file.exists() else None
        if present and present not in known and state not in (BEING_CREATED, ""):  # emptied as the machine went down
            raise UserError(
                f"Ollama already has a model {name} which this pipeline did not make; "
                f"rename it (ollama cp) and remove it: ollama rm {name}"
            )


def previous(ollama: Ollama) -> str:
    return f"{ollama.model}:{PREVIOUS}"


def noted(digest_file: Path) -> set[str]:
    """Return the digests of the models that are ours: the last one, and the one before it."""
    files = digest_file, digest_file.with_suffix(f".{PREVIOUS}")
    return {file.read_text() for file in files if file.exists()} - {BEING_CREATED, ""}


def differences(trained: Mapping[str, float], merged: Mapping[str, float]) -> dict[str, float]:
    """Return the relative difference of each loss."""
    return {name: abs(merged[name] - loss) / max(loss, LEAST_LOSS) for name, loss in trained.items()}


def compare(trained: Mapping[str, Any], merged: Mapping[str, Any], rows: Rows) -> dict[str, Any]:
    """Return the check, for the receipt, of two answers of `ask` on `rows`."""
    for name, loss in trained["loss"].items():
        print(f"export: mean loss, {name}: {loss:.4f} trained, {merged['loss'][name]:.4f} merged", flush=True)
    losses = {"trained_loss": trained["loss"], "merged_loss": merged["loss"]}
    return {"rows": len(rows), **losses, "difference": differences(*losses.values())}


def merge(
    base: Path, adapter: Path, merged: Path, rows: Rows, question: dict[str, Any], answers: Callable[..., list[Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the merged weights into the folder `merged`, in the first of `TYPES` that has the trained model's losses on
    `rows`; `UserError` if none has them. Return (what the receipt says of the model, its answers, of which the last
    reply is that to the row `question`). answers(models, asked, samples=..., lean=...): as `ask`."""
    from huiyin.serving.merge import merge_weights, size_of

    parameters, stored = size_of(base)
    shown = rows[-SHOWN:] if sys.stdout.isatty() else []  # not into a log: these are messages of the group
    before: list[Any] = []
    for kind, size in TYPES.items():
        lean = check_memory("export", parameters, max(stored, size * parameters), available_ram())
        if not merge_weights(base, adapter, merged, kind):
            print(f"export: a weight is too large for {kind}", flush=True)
            continue
        models: Models = [(base, adapter), (merged, None)]
        *before, after = before + answers(models[len(before) :], [*shown, question], samples=rows, lean=lean)
        found = compare(before[0], after, rows)
        if all(difference <= TOLERANCE for difference in found["difference"].values()):  # not if it is NaN
            for row, *replies in zip(shown, before[0]["replies"], after["replies"], strict=False):
                print(f"export: {row['instruction']!r}: trained {replies[0]!r}, merged {replies[1]!r}", flush=True)
            return {"check": found, "merged_as": kind}, after
        print(f"export: as {kind} it is not the trained model", flush=True)
    losses = (f"{name} {loss:.4f} and {found['merged_loss'][name]:.4f}" for name, loss in found["trained_loss"].items())
    raise UserError(
        f"the merged model is not the trained one: the mean losses on {found['rows']} rows, with the adapter and "
        f"merged, are {', '.join(losses)}, more than {TOLERANCE:.2%} apart; export again"
    )


def make_model(
    args: argparse.Namespace, settings: Settings, trained: Trained, ollama: Ollama | None, merged: Path, gguf: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make the folder `merged`, of which there will be a GGUF file if `gguf`. Return (what the receipt says of the
    model, its answers)."""
    from huiyin.serving.merge import size_of  # here: numpy would delay --help

    check_room(args.out, TYPES["float32"] * size_of(trained.base)[0], ollama.store() if ollama else None, gguf)
    rows, held_out = read_held_out(args.generated)
    cutoff_len = trained.used.get("cutoff_len", 2048)
    encoding = Encoding(trained.chat_format, trained.base)
    num_ctx = choose_context(settings, cutoff_len, encoding, trained.system, rows)
    work, adapter = args.out / ".work", args.trained / "adapter"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    merged.mkdir()
    variables = environment("none", args.cache, work, trained.threads)
    save_tokenizer(trained.base, trained.chat_format, trained.system, settings.fixed_system, merged)
    question = {"system": trained.system, "history": [], "instruction": settings.question}
    prompts = held_out[-COMPARED:] if gguf else []
    answers = partial(ask, folder=work, variables=variables, tokenizer=merged, prompts=prompts)
    result, answered = merge(trained.base, adapter, merged, held_out[-SAMPLES:], question, answers)
    flatten_rope(merged / "config.json", needed=ollama is not None)
    shutil.rmtree(work)
    sampling = {name: getattr(settings, name) for name in SAMPLING}
    parameters = {"stop": trained.chat_format.stop, "num_ctx": num_ctx, **sampling}
    return {**result, "parameters": parameters}, answered


def gguf_output(stage: Stage, base: Path, wanted: bool) -> Path | None:
    """Return the path to write the GGUF file to; None if there is to be none, `UserError` if it cannot be written."""
    from huiyin.serving.gguf import is_written  # here: it would delay --help

    return stage.output(GGUF) if is_written(base, wanted) else None


def make_gguf(
    name: str,
    merged: Path,
    gguf: Path,
    receipt: Mapping[str, Any],
    answered: Mapping[str, Any],
    threads: int | None,
) -> dict[str, Any]:
    """Write the model in `merged` as the file `gguf`, in a type that suits the `receipt`; `UserError` unless it has in
    llama-server the next tokens that were `answered`. Return what the receipt says of it."""
    from huiyin.serving.gguf import choose_type, compare_gguf, write_gguf

    kind = choose_type(receipt["quantize"], receipt["merged_as"])
    write_gguf(merged, gguf, kind, name)
    expected = answered["next_tokens"]
    compared = {"prompts": len(expected), "difference": compare_gguf(gguf, kind, expected, threads or 0)}
    return {"type": kind, "for_ollama": needs_gguf(merged / "config.json"), **compared}


def create(
    ollama: Ollama, weights: Path, chat_format: ChatFormat, system: str, receipt: Mapping[str, Any], digest_file: Path
) -> dict[str, str]:
    """Create the Ollama model as `receipt` says and return its digest, and that of the "previous" one, which is kept
    under a name of its own, if there was one. weights: the folder of the merged model, or its GGUF file."""
    kept = keep_previous(ollama, digest_file)
    names = "*.safetensors", "*.json", "tokenizer.model"
    files = {file.name: file for file in sorted(file for name in names for file in weights.glob(name))}
    if weights.is_file():
        files = {GGUF: weights}
    fixed = receipt["fixed_system"]
    template = chat_format.go_template(system if fixed else None, fixed)
    given = files, quantized_at_create(receipt), template, system, receipt["parameters"]
    return {"digest": note_digest(digest_file, lambda: ollama.create(*given)), **kept}


def keep_previous(ollama: Ollama, digest_file: Path) -> dict[str, str]:
    """Give the model that is to be replaced another name, too; return its digest. What a killed export has left is no
    version of the model: the previous one was kept before that."""
    present = ollama.digest()
    if present not in noted(digest_file):
        return {}
    return {PREVIOUS: note_digest(digest_file.with_suffix(f".{PREVIOUS}"), lambda: ollama.copy(previous(ollama)))}


def note_digest(file: Path, make: Callable[[], str]) -> str:
    """Call `make`, which makes a model, and return its digest, which `file` keeps for `check_names`."""
    write_whole(file, BEING_CREATED)  # killed from here on, the next export may replace what it finds
    digest = make()
    write_whole(file, digest)
    return digest


def write_whole(path: Path, text: str) -> None:
    """Write the file at `path` in one step: `check_names` would take a part of a digest for that of another model."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)


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

    with Stage("export", args.out, RESULTS, packages=PACKAGES) as stage:
        stage.use(args.config, settings)
        trained = read_trained(args.trained, args.generated, stage)
        stage.depends_on(args.name, trained.receipt["base_model"]["sha256"])
        ollama = find_ollama(settings, args.ollama_url, args.name)
        made = stage.earlier.get("ollama", {}).get("digest")
        if ollama is None or (made and ollama.digest() == made):  # one that is there is to have the model
            stage.stop_if_done()
        stage.begins()
        if ollama:
            check_servable(trained.base / "config.json")
            check_names(ollama, digest_file)
        gguf = gguf_output(stage, trained.base, settings.gguf)
        merged = stage.output("merged")
        made, answered = make_model(args, settings, trained, ollama, merged, gguf is not None)
        stage.receipt |= {
            **model_card(trained),
            **made,
            "quantize": choose_quantize(settings.quantize, merged),
            "fixed_system": settings.fixed_system,
        }
        if gguf:
            stage.receipt["gguf"] = make_gguf(args.name, merged, gguf, stage.receipt, answered, trained.threads)
        weights = gguf if gguf and needs_gguf(merged / "config.json") else merged
        given = trained.chat_format, trained.system, settings.fixed_system, made["parameters"]
        text = modelfile(*given, GGUF if weights is gguf else "merged")
        stage.output("Modelfile").write_text(text, encoding="utf-8")
        asked = {"who": "the merged model, loaded once", "question": settings.question}
        asked["reply"] = answered["replies"][-1]
        if ollama:
            created = create(ollama, weights, trained.chat_format, trained.system, stage.receipt, digest_file)
            stage.receipt["ollama"] = {"name": args.name, **created}
            asked["who"] = "the Ollama model"
            asked["reply"] = "".join(ollama.talk([{"role": "user", "content": settings.question}]))
        stage.output("asked.json").write_text(json.dumps(asked, ensure_ascii=False) + "\n", encoding="utf-8")
        stage.ledger.read = stage.ledger.written = len(list(merged.iterdir()))
        if not ollama:
            command = create_command(args.name, stage.receipt, args.out)
            print(f"export: no Ollama model was created; where Ollama runs, this creates it: {command}", flush=True)


if __name__ == "__main__":
    run(main)
