"""Which rows should a model learn from? The replies of a character of Shakespeare's, made into rows in several ways.

    PYTHONPATH=. python bench/rows.py FOLDER [--target falstaff] [--ways thread time ...] [--gpu none]

thread: conversations, as gen makes them; time: conversations by time alone; alone: without history; repeated: with the
three replies before in the history of each row, where they are learnt again, and so up to four times; earlier: the same
rows, 6 of them a step, for as many epochs as `thread`, as it was once; capped: as thread, of the replies to one person
the latest 30. The others have 6 replies a step, and epochs for the same number of tokens. All are trained with the
settings of `make showcase`, in a copy of this repository in FOLDER (what is there is not trained again), and asked for
the same held-out replies, with the history that gen gives them. Prints a table in Markdown: nats a token of the words,
and the gain over the last of the ways, with an interval that holds the mean in 95 % of samples.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import yaml

from huiyin.common.tables import PAIR, TURNS, read_records, scan_table
from huiyin.questions.conversations import order, with_threads
from huiyin.questions.dataset import row_of, training_rows
from huiyin.serving.process import Work, do
from huiyin.serving.templates.known import find_format
from huiyin.serving.tokenizer import save_tokenizer
from huiyin.training.llamafactory import environment
from huiyin.training.rows import read_dataset
from huiyin.training.template import Encoding
from huiyin.voice.interval import ratio_interval
from project import copy_project

WAYS = ["thread", "time", "alone", "capped", "repeated", "earlier"]
PLAYS = "henry_iv_part_1 henry_iv_part_2 merry_wives_of_windsor hamlet"
DATA, EPOCHS, REPLIES = Path("data/showcase"), 2.0, 6  # REPLIES: of a step
CAP = 30  # replies to one person, of 97 to the one whom Falstaff speaks to most
GEN = SimpleNamespace(history_turns=3, history_gap_minutes=10)


def prepare(project, target):
    """Make the dataset with its held-out rows, and the base model."""
    copy_project(project)
    gen = project / "config/showcase/gen.yaml"
    gen.write_text("preset: seed\nfill: false\neval_share: 0.2\n", encoding="utf-8")
    words = ["CONFIG=showcase", "RUN_IN=host", "GPU=none", f"TARGET={target}", f"plays={PLAYS}"]
    goals = [DATA / target / "generated/receipt.json", "data/smollm2/receipt.json"]
    subprocess.run(["make", *goals, *words], cwd=project, check=True)


def samples_of(project, target, held_out):
    """Return what is learnt from, as gen sees it: no play has personal data or control tokens."""
    turns = scan_table(project / DATA / "combined/turns.parquet", TURNS, "").collect()
    pairs = read_records(project / DATA / target / "paired/pairs.jsonl", PAIR, "")
    return sorted(with_threads(pairs, turns), key=order)[:-held_out]


def repeated(samples, system):
    """Return a row for each sample, with the latest before it in its history."""
    by_time = [{**sample, "partner": None, "thread": []} for sample in samples]
    parts = training_rows(by_time, system, SimpleNamespace(**{**vars(GEN), "history_turns": len(samples)}))
    conversations = [part for _, part in parts]
    return [row_of(part[max(0, stop - 4) : stop], system) for part in conversations for stop in range(1, len(part) + 1)]


def capped(samples):
    """Return the samples without those that have more than CAP later ones with the same partner."""
    later = Counter()
    kept = []
    for sample in reversed(samples):
        later[sample["partner"]] += 1
        if sample["partner"] is None or later[sample["partner"]] <= CAP:
            kept.append(sample)
    return kept[::-1]


def rows_of(way, samples, system):
    if way in ("repeated", "earlier"):
        return repeated(samples, system)
    turns = 0 if way == "alone" else GEN.history_turns
    if way == "capped":
        samples = capped(samples)
    if way == "time":
        samples = [{**sample, "partner": None, "thread": []} for sample in samples]
    return [row for row, _ in training_rows(samples, system, SimpleNamespace(**{**vars(GEN), "history_turns": turns}))]


def write_all(project, target, ways):
    """Write a dataset for `thread` and each of the ways."""
    generated, folder = (project / DATA / target / name for name in ("generated", "rows"))
    held_out = len(json.loads((generated / "alpaca_eval.json").read_text(encoding="utf-8")))
    samples, system = samples_of(project, target, held_out), (generated / "system.txt").read_text(encoding="utf-8")
    for way in {"thread", *ways}:
        write_dataset(generated, folder / way / "generated", rows_of(way, samples, system))


def write_dataset(generated, folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("dataset_info.json", "system.txt", "receipt.json"):
        (folder / name).write_bytes((generated / name).read_bytes())
    (folder / "alpaca.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    (folder / "alpaca_eval.json").write_text("[]", encoding="utf-8")  # LLaMA-Factory's own measurement takes a while


def sizes(folder, template, base, cutoff_len):
    """Return (rows, replies learnt, tokens computed) in an epoch."""
    rows = read_dataset(folder).measure(Encoding(find_format(template), base), 0).rows
    parts = [(row, *part) for row in rows for part in row.parts(cutoff_len) if row.tokens(*part) <= cutoff_len]
    replies = sum(stop - start for _, start, stop in parts)
    return len(rows), replies, sum(row.tokens(start, stop) for row, start, stop in parts)


def cost(way, folder, template, base, cutoff_len):
    """Return ((rows, replies a step, steps, tokens computed), epochs) of a training."""
    rows, replies, tokens = sizes(folder / way / "generated", template, base, cutoff_len)
    epochs, rows_a_step = EPOCHS, REPLIES
    if way != "earlier":
        epochs *= sizes(folder / "thread/generated", template, base, cutoff_len)[2] / tokens
        rows_a_step = max(1, round(REPLIES * rows / replies))
    steps = math.ceil(math.ceil(rows / rows_a_step) * epochs)
    return (rows, rows_a_step * replies / rows, steps, round(tokens * epochs)), epochs


def train(project, folder, gpu, values):
    """Train on the dataset in `folder`/generated; return the adapter."""
    settings = folder / "train.yaml"
    settings.write_text(yaml.safe_dump(values), encoding="utf-8")
    options = {
        "--config": settings,
        "--preflight": project / "config/showcase/preflight.yaml",
        "--models": project / "config/models.yaml",
        "--llm": project / "config/llm.yaml",
        "--export": project / "config/showcase/export.yaml",
        **{"--gpu": gpu, "--cache": project / ".cache", "--out": folder / "trained"},
    }
    words = ["scripts/train.py", folder / "generated", *(word for pair in options.items() for word in pair)]
    where = {"cwd": project, "env": {**os.environ, "PYTHONPATH": str(project)}}
    subprocess.run([sys.executable, *words], check=True, **where)
    return folder / "trained/adapter"


def measure(project, target, ways, gpu, base, template):
    """Return the losses of the base model and of each of the `ways` on the held-out replies."""
    folder = project / DATA / target / "rows"
    generated = project / DATA / target / "generated"
    held_out = json.loads((generated / "alpaca_eval.json").read_text(encoding="utf-8"))
    variables = environment(gpu, project / ".cache", folder, 1)
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    save_tokenizer(base, find_format(template), (generated / "system.txt").read_text(), False, tokenizer)
    adapters = [None, *(folder / way / "trained/adapter" for way in ways)]
    answers = do([Work(base, adapter, held_out) for adapter in adapters], "rows", folder, variables, tokenizer)
    return dict(zip(["base", *ways], (one.losses for one in answers), strict=True))


def table(losses, facts):
    """Yield the lines of the table; facts: {way: (rows, replies a step, steps, tokens computed)}."""
    yield "| rows | number | replies a step | steps | tokens computed | words | end mark | gain in words |"
    yield "|---|---|---|---|---|---|---|---|"
    against = [math.fsum(row["words"]) for row in losses[list(losses)[-1]]]
    tokens = [len(row["words"]) for row in losses["base"]]
    for way, of_way in losses.items():
        nats = [math.fsum(row["words"]) for row in of_way]
        gain = ratio_interval([old - new for old, new in zip(against, nats, strict=True)], tokens, 1).as_dict()
        end = math.fsum(row["end"] for row in of_way) / len(of_way)
        cells = "{} | {:.1f} | {} | {:,}".format(*facts[way]) if way in facts else "| | |"
        shown = "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**gain)
        yield f"| {way} | {cells} | {sum(nats) / sum(tokens):.3f} | {end:.3f} | {shown} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="falstaff")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--gpu", default="none", help="index of the card, or none (default)")
    args = parser.parse_args()
    project = args.folder.absolute()
    prepare(project, args.target)
    values = yaml.safe_load((project / "config/showcase/train.yaml").read_text(encoding="utf-8"))
    base, template = project / values["model_name_or_path"], values["template"]
    folder, facts = project / DATA / args.target / "rows", {}
    write_all(project, args.target, args.ways)
    for way in args.ways:
        facts[way], epochs = cost(way, folder, template, base, values["cutoff_len"])
        print(f"{way}: rows, replies a step, steps, tokens: {facts[way]}", flush=True)
        of_way = {"gradient_accumulation_steps": round(facts[way][1]), "num_train_epochs": round(epochs, 3)}
        train(project, folder / way, args.gpu, {**values, **of_way, "model_name_or_path": str(base)})
    losses = measure(project, args.target, args.ways, args.gpu, base, template)
    print("\n".join(table(losses, facts)))


if __name__ == "__main__":
    main()
