"""Say what is still to do: rows, questions, hours, disk, memory, downloads; and whether it fits.

The stages up to gen that are to do are tried: parse on a sample of the history, the others on what comes of it, without
a question, but for a few seconds in which some are asked, whose answers are kept. Nothing is fetched. What is said is
noted in plan.json, to be compared with what happens.

    python scripts/tools/plan.py data/raw/nt_msg.db --messages data/default/decrypted/nt_msg.db \\
        --key data/raw/key.txt --target=10001 --to-do parse combine pair ... \\
        --results data/default/decrypted ... data/default/10001/exported --settings config/parse.yaml ... \\
        --answers data/answers.db --cache .cache --gpu 0 --probe yes --out data/default/10001/plan
"""

import huiyin.common.starting  # noqa: F401

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huiyin.common.chinese import translated
from huiyin.common.errors import UserError, run
from huiyin.common.settings import read_settings
from huiyin.common.stage import STAGES, arguments, read_receipt, say
from huiyin.common.terminal import fit
from huiyin.forecast.needs import Download, Needs, disk_needs, shown_size, shown_time, size_in_ollama, table
from huiyin.forecast.stages import (
    Forecast,
    Tried,
    forecast_decrypt,
    forecast_questions,
    forecast_rows,
    newest_receipt,
    total,
    usual_speed,
)
from huiyin.forecast.training import (
    Training,
    find_known_base,
    find_training,
    forecast_export,
    forecast_train,
    ram_for_export,
)
from huiyin.llm.client import Settings as Llm
from huiyin.llm.client import ollama_url_argument
from huiyin.llm.ollama import Ollama
from huiyin.serving.finished import Settings as Export
from huiyin.serving.ollama_limits import on_disk_of
from huiyin.serving.process import end_with_parent
from huiyin.training.plan import Settings as Preflight
from huiyin.training.settings import read_train_settings

SCRIPTS = Path(__file__).parents[1]
SAMPLE = 50_000  # rows
PROBE = 10.0  # seconds in which pair, and gen, ask
DATA = STAGES[1:5]  # those that are tried


@dataclass
class Plan:
    """What is to do, and what is known of it."""

    args: argparse.Namespace
    results: dict[str, Path]  # {stage: folder}
    settings: dict[str, Path]  # {name of a settings file: path}
    llm: Llm

    def folder(self, stage: str) -> Path:
        """Return the folder with the results of a stage: its own, or those of having tried it."""
        return self.args.out / ".tried" / stage if stage in self.args.to_do else self.results[stage]

    def command(self, stage: str) -> list[str | Path]:
        """Return the arguments with which a stage is tried."""
        args, settings = self.args, self.settings
        config: list[str | Path] = ["--config", settings[f"{stage}.yaml"], "--out", self.folder(stage)]
        turns = self.folder("combine") / "turns.parquet"
        if stage == "parse":
            source = args.source if "decrypt" in args.to_do else args.messages
            return [source, *config, "--sample", str(SAMPLE), "--key", args.key]
        if stage == "combine":
            return [self.folder("parse") / "messages.parquet", *config]
        config += ["--prompt", settings[f"{stage}.md"], "--llm", settings["llm.yaml"], "--answers", args.answers]
        config += ["--ollama-url", args.ollama_url, "--dry-run", "--probe", str(PROBE if args.probe == "yes" else 0.0)]
        if stage == "pair":
            return [turns, *config, "--merge-prompt", settings["merge.md"], f"--target={args.target}"]
        return [self.folder("pair"), *config, "--persona", settings["persona.md"], "--turns", turns]


def try_stage(plan: Plan, stage: str, hint: str) -> None:
    """Run a stage into a folder of the plan; `UserError` with its own line, and `hint`, if it fails."""
    say(f"plan: trying {stage}")
    command = [sys.executable, SCRIPTS / f"{stage}.py", *plan.command(stage)]
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run(command, **quiet, preexec_fn=end_with_parent, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"{stage} failed without a message"]
        raise UserError(lines[-1].removeprefix(f"{stage}.py: ") + hint)


def try_stages(plan: Plan) -> dict[str, Tried]:
    """Return {stage: what came of trying it} of the stages up to gen that are to do; and of gen, if it is done."""
    tried: dict[str, Tried] = {}
    scale = 1.0
    for stage in DATA:
        folder = plan.folder(stage)
        if stage not in plan.args.to_do and stage != "gen":
            continue
        if stage in plan.args.to_do:
            in_sample = " (in the rows that were tried; after `make combine` all are known)"
            try_stage(plan, stage, in_sample if stage == "pair" and scale > 1 else "")
        tried[stage] = Tried(read_receipt(folder), folder, scale, scale)
        if stage == "parse":
            share = tried[stage].receipt.get("sample", {}).get("share", 1.0)
            scale = tried[stage].scale = tried[stage].scale_read = 1 / max(share, 1e-9)
        if stage == "pair":
            scale = tried[stage].scale = scaled_to_newest(tried[stage])
    return tried


def scaled_to_newest(paired: Tried) -> float:
    """Return the scale of what pair writes: of a long history it looks at the newest turns only."""
    values = [used["values"] for used in paired.receipt["settings"].values()]
    newest = next((value["newest"] for value in values if "newest" in value), 0)
    turns = paired.receipt["ledger"]["written"] + paired.receipt["ledger"]["dropped"].get("repeats_previous", 0)
    return min(paired.scale, newest / turns) if newest and turns else paired.scale


def known_training(plan: Plan, given: dict[str, Any]) -> Training:
    args, models = plan.args, plan.settings["models.yaml"]
    base = find_known_base(given["model_name_or_path"], args.cache, models)
    preflight = read_settings(plan.settings["preflight.yaml"], Preflight)
    return find_training(plan.folder("gen"), given, preflight, base, args.gpu, models, args.probe == "yes")


# ---- what is to be said


def forecasts_of(plan: Plan, tried: Mapping[str, Tried], known: Training, given: dict[str, Any]) -> list[Forecast]:
    """Return the forecast of each stage that is to do, in their order."""
    args, found = plan.args, []
    earlier = {stage: newest_receipt(folder) for stage, folder in plan.results.items()}
    speed = usual_speed(plan.llm.model, known.free if known.plan and known.plan.threads is None else 0.0)
    for stage in args.to_do:
        before = earlier[stage]
        if stage == "decrypt":
            sample = tried["parse"].receipt["sample"]
            found.append(forecast_decrypt(args.source, tried["parse"], sample, before))
        elif stage in ("pair", "gen"):
            used = [each["values"].get("model") for each in before.get("settings", {}).values()]
            found.append(forecast_questions(stage, tried[stage], before if plan.llm.model in used else {}, speed))
        elif stage in DATA:
            found.append(forecast_rows(stage, tried[stage], before))
        elif stage == "train":
            found.append(forecast_train(known, given, tried["gen"], before))
        else:
            export = read_settings(plan.settings["export.yaml"], Export)
            url = args.ollama_url if export.ollama == "auto" else export.ollama
            store = None if url == "none" else Ollama(url, "", allow_remote=export.allow_remote).store()
            found.append(forecast_export(known, export.gguf, on_disk_of(args.out, store), before))
    return found


def model_problem(plan: Plan, tried: Mapping[str, Tried]) -> str:
    """Return why the language model cannot be asked, although there are questions; "" if it can."""
    answers = [tried[stage].receipt.get("llm", {}) for stage in ("pair", "gen") if stage in plan.args.to_do]
    return next((each["problem"] for each in answers if each.get("to_ask") and each.get("problem")), "")


def fetched(plan: Plan, known: Training, problem: str) -> list[Download]:
    """Return what is fetched from the network."""
    found = []
    if "train" in plan.args.to_do and known.base.folder is None:
        found.append(Download(known.base.name, "the hub of Hugging Face", known.base.bytes))
    if "has no model" in problem:
        found.append(Download(plan.llm.model, "Ollama's registry", size_in_ollama(plan.llm.model)))
    return found


def problems_of(plan: Plan, known: Training, disk: Needs) -> list[str]:
    """Return what does not fit, each with what to do."""
    found = []
    if disk.most > disk.free:
        found.append(
            f"{shown_size(disk.most)} of disk are needed at a time and {shown_size(disk.free)} are free; make room"
        )
    if known.device and known.problem and "train" in plan.args.to_do:
        found.append(known.problem)
    if known.base.shape and "export" in plan.args.to_do:
        least, free = ram_for_export(known.base.shape)
        if least > free:
            found.append(
                f"export needs {shown_size(least)} of memory and {shown_size(free)} are free; close programs, or take "
                "a smaller model in train.yaml"
            )
    return found


def waits_of(plan: Plan, known: Training, problem: str) -> list[str]:
    """Return what must be there before it can begin: the language model, which in containers is started and fetched by
    then, and the device."""
    found = [problem] if problem and not plan.args.in_container else []
    return found + ([known.problem] if known.problem and not known.device and "train" in plan.args.to_do else [])


def notes_of(
    plan: Plan, known: Training, forecasts: Sequence[Forecast], disk: Needs, downloads: Sequence[Download], problem: str
) -> dict[str, str]:
    """Return {name: line} of what else is to be said."""
    most, stay, free = map(shown_size, disk)
    sizes = [
        f"{each.what} from {each.where}{f', {shown_size(each.bytes)}' if each.bytes else ''}" for each in downloads
    ]
    rough = [each.stage for each in forecasts if each.seconds and each.seconds[0] != each.seconds[1]]
    peak = f"{shown_size(known.plan.peak)} at the peak of the training, " if known.plan else ""
    usual = f"the time of {' and '.join(rough)} is usual for such a card and model, not measured here"
    unknown = f"{known.base.name} is not in models.yaml; `make preflight` fetches its sizes"
    lines = {
        "memory": f"{known.device}: {peak}{shown_size(known.free)} are free" if known.device else "",
        "disk": f"{most} at most at a time, {stay} stay, {free} are free",
        "network": "; ".join(sizes) or "nothing is fetched",
        "model": f"{plan.llm.model}: {problem}" if problem and plan.args.in_container else "",
        "rough": usual if rough else "",
        "unknown": "" if known.base.shape else unknown,
    }
    return {name: line for name, line in lines.items() if line}


def note(path: Path, forecasts: Sequence[Forecast]) -> None:
    """Write the forecasts into plan.json; those of stages that are done by now stay as they were."""
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8"))["stages"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        before = {}
    stages = {**before, **{each.stage: each._asdict() for each in forecasts}}
    content = {"made_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "stages": stages}
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__, "source", config=False)
    parser.add_argument("--messages", type=Path, required=True, metavar="FILE", help="what parse reads")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="file with the key of the database")
    parser.add_argument("--target", required=True, help="user id of the member")
    parser.add_argument("--to-do", nargs="*", required=True, choices=STAGES, metavar="STAGE", help="stages to do")
    parser.add_argument(
        "--results", nargs=len(STAGES), type=Path, required=True, metavar="FOLDER", help="of each stage"
    )
    parser.add_argument("--settings", nargs="+", type=Path, required=True, metavar="FILE", help="settings and prompts")
    parser.add_argument("--answers", type=Path, required=True, metavar="FILE", help="the answer cache, answers.db")
    parser.add_argument("--cache", type=Path, required=True, metavar="FOLDER", help="keeps the base models")
    parser.add_argument("--gpu", required=True, help="index of the card (several: 0,1), or none")
    parser.add_argument("--probe", choices=["yes", "no"], required=True, help="may models and processor be tried?")
    parser.add_argument("--in-container", action="store_true", help="Ollama is started when it is needed")
    parser.add_argument("--or-stop", action="store_true", help="exit status 1 if it does not fit")
    ollama_url_argument(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    if not args.to_do:
        say("plan: nothing is to do")
        return
    settings = {path.name: path for path in args.settings}
    results = dict(zip(STAGES, args.results, strict=True))
    plan = Plan(args, results, settings, read_settings(settings["llm.yaml"], Llm))
    args.out.mkdir(parents=True, exist_ok=True)
    args.out.chmod(0o700)
    work = args.out / ".tried"
    shutil.rmtree(work, ignore_errors=True)
    try:
        try:
            tried = try_stages(plan)
        except UserError as error:
            if not args.or_stop:
                raise
            say(f"plan: nothing can be said before this is mended: {error}")  # the stage itself will say so
            return
        given = read_train_settings(settings["train.yaml"])
        known = known_training(plan, given)
        forecasts = forecasts_of(plan, tried, known, given)
        problem = model_problem(plan, tried)
        downloads = fetched(plan, known, problem)
        disk = disk_needs(args.out, forecasts, sum(each.bytes for each in downloads))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for line in table(forecasts):
        say(line)
    for name, line in notes_of(plan, known, forecasts, disk, downloads, problem).items():
        say(f"{fit(translated(name), 9)}{translated(line)}")
    note(args.out / "plan.json", forecasts)
    problems, waits = problems_of(plan, known, disk), waits_of(plan, known, problem)
    if (problems or waits) and args.or_stop:
        raise UserError(f"{'; '.join(problems + waits)} (ANYWAY=yes goes on)")
    if problems:
        say(f"plan: does not fit: {'; '.join(problems)}")
    elif seconds := total(forecasts):
        say(f"plan: fits, about {shown_time(seconds)}")
    if waits:
        say(f"plan: cannot begin yet: {'; '.join(waits)}")


if __name__ == "__main__":
    run(main)
