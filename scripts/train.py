"""Train a LoRA adapter with LLaMA-Factory, after checking that it fits the card.

    python scripts/train.py data/default/10001/generated --config config/train.yaml --preflight config/preflight.yaml \\
        --models config/models.yaml --gpu 0 --cache .cache --llm config/llm.yaml --export config/export.yaml \\
        --out data/default/10001/trained [--dry-run]

config/train.yaml is in LLaMA-Factory's own format and is passed on; data, folders and what depends on the card are set
here. Rows longer than cutoff_len are split; a reply that does not fit even so is left out. With continue_from: previous
it starts from the adapter that is there. A killed run resumes from its last checkpoint; a finished one is not repeated.
Writes adapter/, training_loss.png, trainer_log.jsonl, llamafactory.log, and train.yaml (what was passed on).
"""

import huiyin.common.starting  # noqa: F401

import argparse
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from huiyin.common.digests import digest, sha256
from huiyin.common.errors import UserError, run
from huiyin.common.progress import Progress
from huiyin.common.settings import read_settings
from huiyin.common.stage import Stage, arguments, need
from huiyin.llm.client import llm_arguments, read_llm_settings, unload_model
from huiyin.serving.finished import Settings as Export
from huiyin.serving.process import ask
from huiyin.serving.templates.known import check_model, find_format
from huiyin.training.base import COUNTED, DESCRIBED, WHOLE, check_disk, ends_replies, find_base
from huiyin.training.card import Card
from huiyin.training.llamafactory import OutOfMemory, environment, run_program, world_size
from huiyin.training.memory import Precision, format_size, read_shape
from huiyin.training.models import Model, largest_that_fit, read_models
from huiyin.training.plan import Plan, Settings, Work, installed
from huiyin.training.previous import ADAPTER_FILES, KEPT, Previous, find_previous
from huiyin.training.rows import Dataset, Fitted, fit, read_dataset, read_times
from huiyin.training.settings import Values, read_train_settings
from huiyin.training.template import Encoding, template_settings
from huiyin.training.unfinished import Run, fingerprint, prepare, steps_done
from huiyin.training.watch import BrokenLoss, Watch, garbled
from huiyin.training.work import disk_bytes, find_device, names_in, preflight, spare_tokens, trained_parameters, work_of

RESULTS = 2  # to be raised when the same input gives another result
OTHER_FILES = ["training_loss.png", "trainer_log.jsonl", "llamafactory.log", "train.yaml"]
RUN, ROWS = ".run", ".run/dataset"  # what is there while a run goes on; its rows, which fit
PROMPTS = 5  # held-out rows that the trained model replies to
ADVICE = "more rows or steps may help, on a card fp16 instead of bf16, or flash_attn: disabled in train.yaml"
LEAST_STEPS = 100
# Where learning_rate is not set: 3e-4 was better than 1e-4 for 100 of 106 combinations of a model from 1B on and a rank
# (tinker-cookbook, recipes/chat_sl/results/sft_sweep.md); in 4 bits less is usual.
RATE, RATE_IN_4_BITS = 3e-4, 2e-4
# What few steps call for: the best rate is up to half as much again in short runs ("LoRA Without Regret", Thinking
# Machines); for small models see bench/README.md.
SHORT_RATE, SMALL_RATE, SMALL = 4.5e-4, 1e-3, 1e9  # of models with fewer parameters than SMALL
RESULTS_ARE = (
    "LLaMA-Factory's: eval_loss is a mean over the tokens of all replies of a row, those of its history and the end "
    "marks included, so it is a curve only; make voice measures the last reply, its words and its end mark apart"
)
OTHER_PRECISION: dict[Precision, Precision] = {"bf16": "fp16", "fp16": "bf16"}


def choose(
    args: argparse.Namespace,
    given: Values,
    work: Work,
    settings: Settings,
    files: Sequence[Path],
    base: Path,
    card: Card | None,
) -> Run:
    """Return the run, with the plan for it. One that can be resumed keeps its plan: with another one, for the memory
    that is free now, its checkpoints would be of no use."""
    kind, folders = card.precision if card else "processor", [str(base), str(args.out.absolute())]
    training = Run(
        args.out / RUN,
        digest(RESULTS, given, asdict(settings), kind, world_size(), folders, [sha256(file) for file in files]),
    )
    if training.attempts:
        done, total = steps_done(training.folder)
        print(f"preflight: {'resumed':<10} a run of which {done:,} of {total:,} steps are done, as it was", flush=True)
    else:
        training.add(preflight(card, given, work, settings))
    return training


def check_ends(given: Values, settings: Settings, base: Path, stop: Sequence[str]) -> None:
    """`UserError` if the model would learn from few examples that replies end: a Base model does not know the tokens in
    `stop`. Unless the row of the token is trained itself, or the user wants to see."""
    trained = "lm_head" in names_in(given.get("additional_target") or "")
    if stop and not (trained or settings.accept_base or ends_replies(base, stop)):
        raise UserError(
            f"{given['model_name_or_path']} is a Base model: it ends nothing with {stop[0]}, as template "
            f"{given['template']} does, so its replies may never end; take the model that was trained to chat "
            "(-Instruct, -it), or set accept_base: true in preflight.yaml and see in `make voice` whether they do"
        )


def fitting_base(args: argparse.Namespace, given: Values, settings: Settings) -> Path:
    """Return the folder of the base model without its weights; `UserError` if it is not one for this template, or none
    to train, as soon as what is downloaded by then tells it."""
    chat_format, name = find_format(given["template"]), given["model_name_or_path"]
    for files in (DESCRIBED, COUNTED):
        base = find_base(name, args.cache, files)
        read_shape(base / "config.json")
        check_model(chat_format, base, name)
        check_ends(given, settings, base, chat_format.stop)
    return base


def find_plan(
    args: argparse.Namespace, given: Values, settings: Settings, dataset: Dataset
) -> tuple[dict[str, Any], Work, Run, Fitted]:
    """Print and return (the device, for the receipt; the work; the run, with its plan; the rows, cut as that says)."""
    from huiyin.serving.gguf import is_written  # here: it would delay --help

    base = fitting_base(args, given, settings)
    is_written(base, read_settings(args.export, Export).gguf)
    measured = dataset.measure(Encoding(find_format(given["template"]), base), spare_tokens(given))
    work = work_of(given, measured.rows, read_shape(base / "config.json"))
    (device, card), models = find_device(args.gpu), read_models(args.models)
    trained = partial(trained_parameters, given)
    largest = largest_that_fit(models, card, work, settings, installed(), trained) if card else ""
    try:
        training = choose(args, given, work, settings, dataset.files, base, card)
    except UserError as error:
        raise UserError(f"{error}, such as {largest}" if largest else str(error)) from None
    rows = fit(measured, training.plan.cutoff_len)
    show(device, work, training.plan, notes(given, work, training.plan, models, largest))
    return device, work, training, rows


def find_start(args: argparse.Namespace, given: Values) -> Previous | None:
    """Return the training from whose adapter this one is to start, None to start anew. LLaMA-Factory is told by
    `adapter_name_or_path`, which is put into `given`."""
    previous = find_previous(args.out)
    if not previous:
        print("preflight: start      anew: no adapter is there to continue from", flush=True)
        return None
    previous.check_settings(args.config, given)
    previous.check_held_out(read_times(args.generated)["held_out_from"], args.config)
    given["adapter_name_or_path"] = str(previous.folder.absolute())
    chain = previous.chain()
    print(f"preflight: start      the adapter of {chain[-1]['made_at']}, training {len(chain)} of a chain", flush=True)
    return previous


def whole_base(stage: Stage, given: Values, cache: Path) -> Path:
    """Return the folder of the base model, fetched unless it is there; the result depends on its files."""
    base = find_base(given["model_name_or_path"], cache, WHOLE)
    stage.depends_on(stage.digests.of_tree(base))
    return base


def learning_rate(given: Values, plan: Plan) -> float:
    """Return the rate in train.yaml, or if there is none what the model needs."""
    return given["learning_rate"] or (RATE_IN_4_BITS if plan.four_bit else RATE)


def notes(given: Values, work: Work, plan: Plan, models: Mapping[str, Model], largest: str) -> dict[str, str]:
    """Return {name: line} of what else is to be shown. largest: models that fit."""
    model = models.get(given["model_name_or_path"])
    lines = {
        "rate": "" if given["learning_rate"] else f"{learning_rate(given, plan):.1e}, not set in train.yaml",
        "licence": model.terms if model and model.restricted else "",
        "largest": f"of config/models.yaml, rows uncut: {largest}" if largest else "",
        "warning": few_steps(given, plan, work.shape.parameters),
    }
    return {name: line for name, line in lines.items() if line}


def few_steps(given: Values, plan: Plan, parameters: int) -> str:
    """Return a warning if the training of a model with so many parameters has few steps; "" otherwise."""
    limit = given.get("max_steps", -1)
    limited = isinstance(limit, int) and limit > 0
    steps = limit if limited else math.ceil(plan.steps * given["num_train_epochs"])
    if steps >= LEAST_STEPS:
        return ""
    advice = ["raise max_steps" if limited else f"raise num_train_epochs to {math.ceil(LEAST_STEPS / plan.steps)}"]
    if not limited and plan.rows > world_size():  # a step can have fewer
        accumulates = given["gradient_accumulation_steps"] > 1
        advice.append(f"lower {'gradient_accumulation_steps' if accumulates else 'per_device_train_batch_size'}")
    rate = SMALL_RATE if parameters < SMALL else RATE_IN_4_BITS if plan.four_bit else SHORT_RATE
    if learning_rate(given, plan) < rate:
        advice.append(f"set learning_rate to {rate:.1e}, which so few call for")
    return (
        f"only {steps} steps; with fewer than {LEAST_STEPS} a model learns when to stop, and little else: in "
        f"train.yaml {' or '.join(advice)}"
    )


def show(device: Mapping[str, Any], work: Work, plan: Plan, others: Mapping[str, str]) -> None:
    """Print what was found, chosen and predicted, and `others`."""
    mean = sum(work.lengths) / len(work.lengths)
    lines = {
        "found": ", ".join(f"{name} {value}" for name, value in device.items()),
        "rows": f"{len(work.lengths):,}, longest {max(work.lengths):,} tokens, mean {mean:,.0f}",
        "chosen": f"{plan.precision}, micro-batch {plan.micro_batch} x {plan.accumulation} = {plan.rows} rows, about "
        f"{plan.replies:.0f} replies per step"
        f"{f', threads {plan.threads}' if plan.threads else ''}"
        f", checkpointing {'used' if plan.checkpointing else 'not needed'}"
        f"{', Liger' if plan.liger else ''}{', base model in 4 bits' if plan.four_bit else ''}",
        "padding": f"{plan.padding:.2f} tokens computed for each of the rows; shuffled it would be "
        f"{plan.padding_shuffled:.2f}",
        "cutoff": f"{plan.cutoff_len:,} tokens, {plan.rows_cut:,} longer rows are split, "
        f"{plan.too_long:,} replies that do not fit are left out",
        "predicted": f"peak {format_size(plan.peak)}, roughly {plan.hours:.1f} hours",
        **others,
    }
    for name, line in lines.items():
        print(f"preflight: {name:<10} {line}", flush=True)


def full_settings(
    args: argparse.Namespace, given: Values, dataset: Fitted, system: str, plan: Plan, base: Path
) -> Values:
    """Return all settings for LLaMA-Factory: the user's, the plan's and the pipeline's."""
    # on the processor a run that was killed and resumed gives the same adapter as an uninterrupted one
    device = {"use_cpu": True, "full_determinism": True} if args.gpu == "none" else {}
    processes = world_size()
    # the loss is the mean over batches, and several processes would have other ones: see `losses`
    evaluation = {"do_eval": processes == 1, "eval_dataset": "alpaca_eval"} if dataset.held_out else {}
    return {
        **given,
        **plan.values(),
        **template_settings(find_format(given["template"])),
        "learning_rate": learning_rate(given, plan),
        "gradient_accumulation_steps": plan.accumulation // processes,
        "model_name_or_path": str(base),
        **{"stage": "sft", "do_train": True, "dataset": "alpaca", "dataset_dir": str((args.out / ROWS).absolute())},
        "default_system": system,
        "output_dir": str((args.out / RUN).absolute()),
        **{"plot_loss": True, "logging_first_step": True, "report_to": "none"},
        "logging_nan_inf_filter": False,  # it would hide a loss that is NaN
        "include_num_input_tokens_seen": True,
        **evaluation,
        **device,
    }


def train_once(values: Values, run_folder: Path, variables: Mapping[str, str]) -> None:
    """Run LLaMA-Factory, unless the run in `run_folder` has finished before."""
    if (run_folder / "done").exists():
        return
    with Progress("train", None, "steps") as progress:
        watch = Watch(run_folder / "trainer_log.jsonl", progress, lambda text: print(f"train: {text}", flush=True))
        run_program("train", values, run_folder, variables, watch)
    (run_folder / "done").touch()


def train(args: argparse.Namespace, values: Values, training: Run, dataset: Dataset, rows: Fitted) -> list[str]:
    """Train on `rows` of `dataset`; return the replies to a few of them. When out of memory, resume with a
    smaller micro-batch; after a diverged loss or garbled replies start again, once, in the other precision."""
    run_folder, plan = training.folder, training.plan
    held_out = (rows.held_out or rows.rows)[-PROMPTS:]
    variables = environment(args.gpu, args.cache, run_folder, plan.threads)
    variables["ROWS_TOGETHER"] = str(plan.together)
    while True:
        attempt = training.attempts[-1]
        tried = {each["precision"] for each in training.attempts}
        last_precision = args.gpu == "none" or plan.precision == "fp32" or len(tried) > 1
        asked = {**values, "results": RESULTS, "rows": plan.rows}
        prepare(run_folder, fingerprint(asked, dataset.files), plan.micro_batch)
        training.keep()
        rows.write(args.out / ROWS, args.generated)
        try:
            train_once(values, run_folder, variables)
        except OutOfMemory as error:
            if plan.micro_batch == 1:
                raise UserError(
                    f"{error}; even a micro-batch of one row needs too much: close what uses the card, or take a "
                    "shorter cutoff_len or a smaller model"
                ) from None
            attempt["ended"] = "out of memory"
            plan = plan.smaller()
            print(f"train: out of memory; resuming with a micro-batch of {plan.micro_batch}", flush=True)
            values = {**values, **plan.values(), "gradient_accumulation_steps": plan.accumulation // world_size()}
            training.add(plan)
            continue
        except BrokenLoss as broken:
            if last_precision:
                raise UserError(
                    f"{broken}, in {plan.precision}; lower learning_rate in {args.config}, or try "
                    f"flash_attn: disabled there; the log is {run_folder}/llamafactory.log"
                ) from None
            problem = str(broken)
        else:
            [answers] = ask([(Path(values["model_name_or_path"]), run_folder)], held_out, run_folder, variables)
            replies = answers["replies"]
            count = sum(map(garbled, replies))
            problem = f"{count} of {len(replies)} held-out replies are garbled" if count else ""
            if last_precision or not problem:
                if problem:
                    print(f"train: {problem}; {ADVICE}", flush=True)
                attempt["ended"] = problem or "well"
                return replies
        attempt["ended"] = problem
        plan = replace(plan, precision=OTHER_PRECISION[plan.precision])
        print(f"train: {problem}; starting again in {plan.precision}", flush=True)
        shutil.rmtree(run_folder)
        values = {**values, "bf16": plan.precision == "bf16", "fp16": plan.precision == "fp16"}
        training.add(plan)


def losses(args: argparse.Namespace, values: Values, run_folder: Path, threads: int | None) -> dict[str, Any]:
    """Return LLaMA-Factory's results, with evaluation loss and perplexity of the adapter and of the base model."""
    results = json.loads((run_folder / "all_results.json").read_text(encoding="utf-8"))
    if "eval_dataset" not in values:
        return results
    if "eval_loss" not in results:
        adapter = {"adapter_name_or_path": str(run_folder.absolute())}
        results["eval_loss"] = held_out_loss(args, {**values, **adapter}, "adapter", threads)
    base_loss = held_out_loss(args, {**values, "adapter_name_or_path": None}, "base", threads)
    return {
        **results,
        "eval_perplexity": math.exp(results["eval_loss"]),
        "base_eval_loss": base_loss,
        "base_eval_perplexity": math.exp(base_loss),
        "eval_loss_gained": base_loss - results["eval_loss"],
    }


def held_out_loss(args: argparse.Namespace, values: Values, name: str, threads: int | None) -> float:
    """Return the loss of the held-out rows, from one process on one card; its files are in a folder `name` of the
    run's."""
    folder = args.out / RUN / name
    if not (folder / "all_results.json").exists():
        alone = {key: value for key, value in values.items() if key != "ddp_backend"}
        alone |= {"do_train": False, "do_eval": True, "output_dir": str(folder.absolute()), "plot_loss": False}
        variables = environment(args.gpu.split(",")[0], args.cache, args.out / RUN, threads) | {"FORCE_TORCHRUN": "0"}
        run_program("train", alone, folder, variables)
    return json.loads((folder / "all_results.json").read_text(encoding="utf-8"))["eval_loss"]


def copy_results(stage: Stage, run_folder: Path) -> None:
    """Copy the files of the finished run to the outputs of the stage."""
    adapter = stage.output("adapter")
    adapter.mkdir()
    targets = dict.fromkeys(ADAPTER_FILES, adapter) | {name: stage.output(name) for name in OTHER_FILES}
    for name, target in targets.items():
        shutil.copy2(need(run_folder / name, "LLaMA-Factory should have written it"), target)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__, "generated")
    parser.add_argument("--preflight", type=Path, required=True, metavar="FILE", help="preflight.yaml")
    parser.add_argument("--gpu", required=True, help="index of the card (several: 0,1), or none")
    parser.add_argument("--cache", type=Path, required=True, metavar="FOLDER", help="keeps the base models")
    parser.add_argument("--models", type=Path, required=True, metavar="FILE", help="models.yaml")
    parser.add_argument("--dry-run", action="store_true", help="check whether it fits, and stop")
    parser.add_argument("--export", type=Path, required=True, metavar="FILE", help="export.yaml")
    llm_arguments(parser, answers=False)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    given, settings = read_train_settings(args.config), read_settings(args.preflight, Settings)
    continues = given.pop("continue_from") == "previous"
    dataset = read_dataset(args.generated)
    if args.dry_run:
        if continues:
            find_start(args, given)
        find_plan(args, given, settings, dataset)
        return

    with Stage("train", args.out, RESULTS, packages=["llamafactory", "transformers", "peft", "torch"]) as stage:
        stage.use(args.config, given)
        stage.use(args.preflight, settings)
        for file in dataset.files:
            stage.input(file)
        # another base model is fetched only when it is known to fit
        known = stage.earlier.get("base_model", {}).get("name") == given["model_name_or_path"]
        base = whole_base(stage, given, args.cache) if known else None
        # if it was continued, and may be: from which adapter is no reason to do it again
        continued = continues and "continued_from" in stage.earlier
        if base:
            stage.depends_on(*["continued"] * continued)
            stage.stop_if_done()
        stage.begins()
        previous = find_start(args, given) if continues else None
        if args.gpu != "none":
            # before preflight, which counts the free memory of the card
            unload_model(read_llm_settings(args), args.ollama_url)
        device, work, training, fitted = find_plan(args, given, settings, dataset)
        base = base or whole_base(stage, given, args.cache)
        if previous:
            previous.check_base(stage.digests.of_tree(base), args.config)
            previous.keep(stage.digests)
            stage.depends_on(*["continued"] * (not continued))
        check_disk(args.out, disk_bytes(given, work, dataset.size), "training (checkpoints and prepared rows)")
        values = full_settings(args, given, fitted, dataset.system, training.plan, base)
        replies = train(args, values, training, dataset, fitted)
        values = full_settings(args, given, fitted, dataset.system, training.plan, base)  # as it ended

        copy_results(stage, training.folder)
        stage.ledger.read, stage.ledger.written = fitted.read, fitted.written
        stage.ledger.dropped["too_long"] = fitted.too_long
        stage.receipt |= {
            "base_model": {"name": given["model_name_or_path"], "sha256": stage.digests.of_tree(base)},
            "export": {
                "ollama": read_settings(args.export, Export).ollama
            },  # why the base was, or was not, to be one that Ollama can serve
            "found": device,
            "attempts": training.attempts,
            "rows": {"train": len(fitted.rows), "eval": len(fitted.held_out)},
            "results": losses(args, values, training.folder, training.plan.threads),
            "results_are": RESULTS_ARE,
            "garbled_replies": sum(map(garbled, replies)),
            "learnt_until": read_times(args.generated)["learnt_until"],
            **({"continued_from": previous.chain()} if previous else {}),
        }
    for name in (RUN, KEPT):
        shutil.rmtree(args.out / name, ignore_errors=True)


if __name__ == "__main__":
    run(main)
