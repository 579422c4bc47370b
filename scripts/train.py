"""Train a LoRA adapter with LLaMA-Factory.

    python scripts/train.py data/default/10001/generated --config config/train.yaml --gpu 0 --cache .cache \\
        --llm config/llm.yaml --out data/default/10001/trained

config/train.yaml is LLaMA-Factory's own format and is passed on; the data, the folders and the device are ours.
Writes adapter/, training_loss.png, train.yaml (what was passed on) and trainer_log.jsonl. Killed and started again
it goes on from its last checkpoint.
"""

import json
import shutil
from pathlib import Path

import pynvml
import yaml

from common.errors import Mistake, run
from common.progress import Progress
from common.settings import read_mapping
from common.stage import Stage, arguments, digest_tree, need, sha256
from llamafactory_cli import environment, run_program
from llm.client import llm_arguments, read_llm_settings, unload_model
from llm.journal import digest

ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors"]
OURS = ["stage", "do_train", "do_eval", "dataset", "eval_dataset", "val_size", "dataset_dir", "output_dir",
        "default_system", "overwrite_output_dir", "plot_loss", "report_to", "logging_first_step", "use_cpu"]


def read_train_settings(path):
    """Return LLaMA-Factory's settings of the user; LLaMA-Factory itself refuses the keys it does not know."""
    given = read_mapping(path, yaml.SafeLoader)
    for name in OURS:
        if name in given:
            raise Mistake(f"{path}: {name} is set by the pipeline; take it out")
    for name in ("model_name_or_path", "template"):
        if not given.get(name):
            raise Mistake(f"{path}: {name} is missing")
    return given


def full_settings(given, data, has_eval, gpu, run_folder):
    """Return all that LLaMA-Factory is given: the user's settings with ours on top."""
    device = {"use_cpu": True, "bf16": False, "fp16": False} if gpu == "none" else {}
    evaluation = {"do_eval": True, "eval_dataset": "alpaca_eval"} if has_eval else {}
    return {
        **given, "stage": "sft", "do_train": True, "dataset": "alpaca", "dataset_dir": str(data.absolute()),
        "default_system": (data / "system.txt").read_text(encoding="utf-8"), "output_dir": str(run_folder.absolute()),
        "plot_loss": True, "logging_first_step": True, "report_to": "none", **evaluation, **device,
    }


def check_card(gpu):
    """Raise `Mistake` unless the card `gpu` is there; the processor has to be asked for by name."""
    if gpu == "none":
        return
    try:
        pynvml.nvmlInit()
        cards = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        raise Mistake(f"GPU={gpu}, but no NVIDIA driver answers ({error}); "
                      "say GPU=none to train on the processor") from None
    if not gpu.isdigit() or int(gpu) >= cards:
        raise Mistake(f"GPU={gpu}, but there are {cards} cards, counted from 0; `nvidia-smi` lists them")


def prepare(run_folder, fingerprint):
    """Keep the run folder of a killed run of the same work, if it has a checkpoint; otherwise start an empty one."""
    mark = run_folder / "fingerprint"
    same = mark.exists() and mark.read_text() == fingerprint
    if not same or not (any(run_folder.glob("checkpoint-*")) or (run_folder / "done").exists()):
        shutil.rmtree(run_folder, ignore_errors=True)
        run_folder.mkdir(parents=True)
        mark.write_text(fingerprint)


def watcher(log, progress):
    """Return a function that brings `progress` up to the last line of trainer_log.jsonl."""

    def watch():
        if not log.exists():
            return
        lines = log.read_text(encoding="utf-8").splitlines()
        whole = [line for line in lines if line.endswith("}")]  # the last one may be being written
        if whole:
            last = json.loads(whole[-1])
            progress.set_total(last["total_steps"])
            progress.add(last["current_steps"] - progress.done)

    return watch


def main():
    parser = arguments(__doc__, "generated")
    parser.add_argument("--gpu", required=True, help="index of the card, or none")
    parser.add_argument("--cache", type=Path, required=True, metavar="FOLDER", help="keeps the base models")
    llm_arguments(parser, answers=False)
    args = parser.parse_args()
    given = read_train_settings(args.config)
    llm = read_llm_settings(args)
    need(args.generated / "alpaca.json", "`make gen` makes it")
    check_card(args.gpu)

    with Stage("train", args.out, packages=["llamafactory", "transformers", "peft", "torch"]) as stage:
        stage.use(args.config, given)
        files = [stage.input(args.generated / f"{name}.json") for name in ("alpaca", "alpaca_eval", "dataset_info")]
        train_rows, eval_rows = (len(json.loads(file.read_text(encoding="utf-8"))) for file in files[:2])
        if not train_rows:
            raise Mistake(f"{files[0]}: no rows to learn from; the receipt beside it says what became of the turns")
        base = Path(given["model_name_or_path"])
        run_folder = args.out / ".run"
        values = full_settings(given, args.generated, eval_rows > 0, args.gpu, run_folder)
        prepare(run_folder, digest(values, [sha256(file) for file in files]))

        if not (run_folder / "done").exists():
            if args.gpu != "none":
                unload_model(llm, args.ollama_url)  # one card, two tenants
            with Progress("train", None, "steps") as progress:
                run_program("train", values, run_folder, environment(args.gpu, args.cache, run_folder),
                            watcher(run_folder / "trainer_log.jsonl", progress))
            (run_folder / "done").touch()

        adapter = stage.output("adapter")
        adapter.mkdir()
        for name in ADAPTER_FILES:
            shutil.copy2(need(run_folder / name, "LLaMA-Factory should have written it"), adapter)
        for name in ("training_loss.png", "trainer_log.jsonl", "llamafactory.log", "train.yaml"):
            shutil.copy2(need(run_folder / name, "LLaMA-Factory should have written it"), stage.output(name))
        stage.ledger.read = stage.ledger.written = train_rows + eval_rows
        stage.receipt["base_model"] = {"name": str(base), "sha256": digest_tree(base) if base.is_dir() else None}
        stage.receipt["rows"] = {"train": train_rows, "eval": eval_rows}
        stage.receipt["results"] = json.loads((run_folder / "all_results.json").read_text(encoding="utf-8"))
    shutil.rmtree(run_folder)


if __name__ == "__main__":
    run(main)
