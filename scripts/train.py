"""Train a LoRA adapter with LLaMA-Factory, after looking whether it fits.

    python scripts/train.py data/default/10001/generated --config config/train.yaml --preflight config/preflight.yaml \\
        --gpu 0 --cache .cache --llm config/llm.yaml --out data/default/10001/trained [--dry-run]

config/train.yaml is LLaMA-Factory's own format and is passed on; the data, the folders and what depends on the card are
ours. Killed and started again it goes on from its last checkpoint; a finished run is never entered again.
Writes adapter/, training_loss.png, trainer_log.jsonl, llamafactory.log, and train.yaml (what was passed on).
"""

import json
import math
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import yaml

from huiyin.common.errors import UserError, run
from huiyin.common.progress import Progress
from huiyin.common.settings import read_mapping, read_settings
from huiyin.common.stage import Stage, arguments, digest_tree, need, sha256
from huiyin.llm.answer_cache import digest
from huiyin.llm.client import llm_arguments, read_llm_settings, unload_model
from huiyin.serving.ollama_limits import check_served
from huiyin.serving.process import ask
from huiyin.training.base import check_disk, find_base, token_lengths
from huiyin.training.card import check_card, find_card, torch_cuda
from huiyin.training.llamafactory import OutOfMemory, environment, run_program, world_size
from huiyin.training.memory import GIB, LORA_BYTES, as_text, read_shape
from huiyin.training.plan import Settings, Work, installed, plan_for_card, plan_for_processor
from huiyin.training.watch import BrokenLoss, Watch, garbled

ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors"]
OTHER_FILES = ["training_loss.png", "trainer_log.jsonl", "llamafactory.log", "train.yaml"]
OURS = [
    "stage",
    "do_train",
    "do_eval",
    "dataset",
    "eval_dataset",
    "val_size",
    "dataset_dir",
    "output_dir",
    "default_system",
    "overwrite_output_dir",
    "plot_loss",
    "report_to",
    "logging_first_step",
    "use_cpu",
    "logging_nan_inf_filter",
    "include_num_input_tokens_seen",
    "full_determinism",
]
FROM_PREFLIGHT = ["bf16", "fp16", "quantization_bit", "enable_liger_kernel", "disable_gradient_checkpointing"]
HELD_OUT = 5
ADVICE = "more rows or steps may help, on a card fp16 instead of bf16, or flash_attn: disabled in train.yaml"
OTHER = {"bf16": "fp16", "fp16": "bf16"}


def read_train_settings(path):
    """Return LLaMA-Factory's settings of the user; LLaMA-Factory itself refuses the keys it does not know."""
    given = read_mapping(path, yaml.SafeLoader)
    for name in [*OURS, *FROM_PREFLIGHT]:
        if name in given:
            where = "chosen in preflight.yaml" if name in FROM_PREFLIGHT else "set by the pipeline"
            raise UserError(f"{path}: {name} is {where}; take it out")
    for name in ("model_name_or_path", "template"):
        if not given.get(name):
            raise UserError(f"{path}: {name} is missing")
    return given


def work_of(given, rows, base):
    """Return the `Work` that the dataset and the settings make."""
    shape = read_shape(base / "config.json")
    targets = str(given.get("lora_target", "all")).replace(" ", "").split(",")
    batch = given.get("per_device_train_batch_size", 1) * given.get("gradient_accumulation_steps", 1)
    return Work(
        shape,
        token_lengths(rows, base),
        shape.lora_parameters(given.get("lora_rank", 8), targets),
        batch,
        given.get("cutoff_len", 2048),
        float(given.get("num_train_epochs", 3)),
    )


def preflight(gpu, given, work, settings):
    """Return (what was found, the `Plan`); `UserError` where nothing fits."""
    if gpu == "none":
        memory, cores = psutil.virtual_memory(), os.cpu_count()
        found = {
            "device": "processor",
            "cores": cores,
            "total_gib": gib(memory.total),
            "free_gib": gib(memory.available),
        }
        rows_at_once = given.get("per_device_train_batch_size", 1)
        return found, plan_for_processor(memory.available, cores, work, rows_at_once, settings)
    cards = [find_card(index) for index in gpu.split(",")]
    built_with = torch_cuda()
    for card in cards:
        check_card(card, built_with)
    card = min(cards, key=lambda card: card.free)  # the others will have room if this one has
    found = {
        "device": card.name,
        "cards": len(cards),
        "total_gib": gib(card.total),
        "free_gib": gib(card.free),
        "capability": ".".join(map(str, card.capability)),
        "driver": card.driver,
        "driver_cuda": ".".join(map(str, card.cuda)),
        "torch_cuda": built_with,
    }
    return found, plan_for_card(card, work, settings, installed())


def gib(size):
    return round(size / GIB, 1)


def show(found, work, plan):
    """Print the table: found, chosen, predicted."""
    mean = sum(work.lengths) / len(work.lengths)
    lines = {
        "found": ", ".join(f"{name} {value}" for name, value in found.items()),
        "rows": f"{len(work.lengths):,}, longest {max(work.lengths):,} tokens, mean {mean:,.0f}",
        "chosen": f"{plan.precision}, {plan.micro_batch} rows at a time x {plan.accumulation} = {work.batch} a step, "
        f"checkpointing {'used' if plan.checkpointing else 'not needed'}"
        f"{', Liger' if plan.liger else ''}{', base model in 4 bits' if plan.four_bit else ''}",
        "cutoff": f"{plan.cutoff_len:,} tokens, {plan.rows_cut:,} rows are cut",
        "predicted": f"peak {as_text(plan.peak)}, roughly {plan.hours:.1f} hours",
    }
    for name, line in lines.items():
        print(f"preflight: {name:<10} {line}", flush=True)


def full_settings(given, data, has_eval, gpu, plan, base, run_folder):
    """Return all that LLaMA-Factory is given: the user's settings with ours on top."""
    evaluation = {"do_eval": True, "eval_dataset": "alpaca_eval"} if has_eval else {}
    # on the processor a run that was killed shall end with the very adapter of one that was not
    device = {"use_cpu": True, "full_determinism": True} if gpu == "none" else {}
    processes = world_size()
    if plan.accumulation % processes:
        raise UserError(
            f"{plan.accumulation} rows accumulated cannot be shared out among {processes} processes; "
            "choose gradient_accumulation_steps in train.yaml accordingly"
        )
    return {
        **given,
        **plan.values(),
        "gradient_accumulation_steps": plan.accumulation // processes,
        "model_name_or_path": str(base),
        "stage": "sft",
        "do_train": True,
        "dataset": "alpaca",
        "dataset_dir": str(data.absolute()),
        "default_system": (data / "system.txt").read_text(encoding="utf-8"),
        "output_dir": str(run_folder.absolute()),
        "plot_loss": True,
        "logging_first_step": True,
        "report_to": "none",
        # a loss that is no number must be seen, not smoothed over
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": True,
        **evaluation,
        **device,
    }


def fingerprint(values, files):
    """What makes a run the same work: all but how many rows are taken at a time."""
    rest = {
        name: value
        for name, value in values.items()
        if name not in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
    }
    return digest(rest, [sha256(file) for file in files])


def prepare(run_folder, mark, micro_batch):
    """Keep the run folder of a killed run of the same work, if it has a checkpoint; otherwise start an empty one."""
    kept = run_folder / "fingerprint"
    same = kept.exists() and kept.read_text() == mark
    if not same or not (mend_checkpoints(run_folder, micro_batch) or (run_folder / "done").exists()):
        shutil.rmtree(run_folder, ignore_errors=True)
        run_folder.mkdir(parents=True)
        kept.write_text(mark)


def mend_checkpoints(run_folder, micro_batch):
    """Make the checkpoints such that a run can go on from them; return how many there are.

    The state is the last file of a checkpoint: one without was being written, or removed, when the run was killed. The
    rows at a time are taken from there, whatever the settings say, so `micro_batch` is put in.
    """
    count = 0
    for checkpoint in run_folder.glob("checkpoint-*"):
        file = checkpoint / "trainer_state.json"
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            shutil.rmtree(checkpoint)
            continue
        file.write_text(json.dumps({**state, "train_batch_size": micro_batch}, indent=2) + "\n", encoding="utf-8")
        count += 1
    return count


def train_once(values, run_folder, variables):
    """Run LLaMA-Factory, unless this very run has ended already."""
    if (run_folder / "done").exists():
        return
    with Progress("train", None, "steps") as progress:
        watch = Watch(run_folder / "trainer_log.jsonl", progress, lambda text: print(f"train: {text}", flush=True))
        run_program("train", values, run_folder, variables, watch)
    (run_folder / "done").touch()


def train(args, values, plan, files, run_folder, held_out):
    """Train until it is well, with few retries; return (attempts for the receipt, five held-out replies).

    Out of memory: half the rows at a time, on from the last checkpoint. A broken loss or garbled replies: once in the
    other precision, from the start.
    """
    attempts, variables = [], environment(args.gpu, args.cache, run_folder)
    other_tried = args.gpu == "none"
    while True:
        prepare(run_folder, fingerprint(values, files), plan.micro_batch)
        attempts.append({**asdict(plan), "peak": int(plan.peak)})
        try:
            train_once(values, run_folder, variables)
            [asked] = ask([(values["model_name_or_path"], run_folder)], held_out, run_folder, variables)
            replies = asked["replies"]
            attempts[-1]["ended"] = "well"
            count = sum(map(garbled, replies))
            problem = f"{count} of {len(replies)} held-out replies are garbled"
            if count:
                attempts[-1]["ended"] = problem
            if not count or other_tried:
                if count:
                    print(f"train: {problem}; {ADVICE}", flush=True)
                return attempts, replies
        except OutOfMemory as error:
            attempts[-1]["ended"] = "out of memory"
            if plan.micro_batch == 1:
                raise UserError(
                    f"{error}; even with one row at a time: close what uses the card, or take a shorter "
                    "cutoff_len or a smaller model"
                ) from None
            plan = replace(plan, micro_batch=plan.micro_batch // 2, accumulation=plan.accumulation * 2)
            print(f"train: out of memory, going on with {plan.micro_batch} rows at a time", flush=True)
            values = {**values, **plan.values(), "gradient_accumulation_steps": plan.accumulation // world_size()}
            continue
        except BrokenLoss as broken:
            attempts[-1]["ended"] = problem = str(broken)
            if other_tried:
                raise UserError(
                    f"{broken}, in {plan.precision}; lower learning_rate in {args.config}, or try "
                    f"flash_attn: disabled there; the log is {run_folder}/llamafactory.log"
                ) from None
        other_tried = True
        plan = replace(plan, precision=OTHER[plan.precision])
        print(f"train: {problem}; once more in {plan.precision}", flush=True)
        values = {**values, "bf16": plan.precision == "bf16", "fp16": plan.precision == "fp16"}


def losses(values, run_folder, variables):
    """Return evaluation loss and perplexity of the adapter and of the untouched base model."""
    results = json.loads((run_folder / "all_results.json").read_text(encoding="utf-8"))
    if "eval_loss" not in results:
        return results
    folder = run_folder / "base"
    untouched = {**values, "do_train": False, "output_dir": str(folder.absolute()), "plot_loss": False}
    if not (folder / "all_results.json").exists():
        run_program("train", untouched, folder, variables)
    base_loss = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))["eval_loss"]
    return {
        **results,
        "eval_perplexity": math.exp(results["eval_loss"]),
        "base_eval_loss": base_loss,
        "base_eval_perplexity": math.exp(base_loss),
        "eval_loss_gained": base_loss - results["eval_loss"],
    }


def main(argv=None):
    parser = arguments(__doc__, "generated")
    parser.add_argument("--preflight", type=Path, required=True, metavar="FILE", help="preflight.yaml")
    parser.add_argument("--gpu", required=True, help="index of the card (several: 0,1), or none")
    parser.add_argument("--cache", type=Path, required=True, metavar="FOLDER", help="keeps the base models")
    parser.add_argument("--dry-run", action="store_true", help="say whether it fits, and stop")
    llm_arguments(parser, answers=False)
    args = parser.parse_args(argv)
    given = read_train_settings(args.config)
    settings = read_settings(args.preflight, Settings)
    llm = read_llm_settings(args)
    files = [
        need(args.generated / f"{name}.json", "`make gen` makes it")
        for name in ("alpaca", "alpaca_eval", "dataset_info")
    ]
    rows, held_out = (json.loads(file.read_text(encoding="utf-8")) for file in files[:2])
    if not rows:
        raise UserError(f"{files[0]}: no rows to learn from; the receipt beside it says what became of the turns")

    if args.gpu != "none" and not args.dry_run:
        unload_model(llm, args.ollama_url)  # one card, two tenants; only now is its memory what training will find
    base = find_base(given["model_name_or_path"], args.cache, whole=False)
    check_served(given["template"], base / "config.json", llm.backend)
    work = work_of(given, rows, base)
    found, plan = preflight(args.gpu, given, work, settings)
    show(found, work, plan)
    if args.dry_run:
        return

    with Stage("train", args.out, packages=["llamafactory", "transformers", "peft", "torch"]) as stage:
        stage.use(args.config, given), stage.use(args.preflight, settings)
        for file in files:
            stage.input(file)
        base, run_folder = find_base(given["model_name_or_path"], args.cache, whole=True), args.out / ".run"
        checkpoints = (given.get("save_total_limit", 5) + 1) * LORA_BYTES * work.lora
        check_disk(args.out, checkpoints + 20 * files[0].stat().st_size, "training (checkpoints and prepared rows)")
        values = full_settings(given, args.generated, bool(held_out), args.gpu, plan, base, run_folder)
        asked = (held_out or rows)[-HELD_OUT:]
        attempts, replies = train(args, values, plan, files, run_folder, asked)

        adapter = stage.output("adapter")
        adapter.mkdir()
        for name in ADAPTER_FILES:
            shutil.copy2(need(run_folder / name, "LLaMA-Factory should have written it"), adapter)
        for name in OTHER_FILES:
            shutil.copy2(need(run_folder / name, "LLaMA-Factory should have written it"), stage.output(name))
        stage.ledger.read = stage.ledger.written = len(rows) + len(held_out)
        stage.receipt |= {
            "base_model": {"name": given["model_name_or_path"], "sha256": digest_tree(base)},
            "found": found,
            "attempts": attempts,
            "rows": {"train": len(rows), "eval": len(held_out)},
            "results": losses(values, run_folder, environment(args.gpu, args.cache, run_folder)),
            "garbled_replies": sum(map(garbled, replies)),
        }
    shutil.rmtree(run_folder)


if __name__ == "__main__":
    run(main)
