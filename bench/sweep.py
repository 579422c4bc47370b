"""Which rate, rank and number of epochs? One character of Shakespeare's, taught with one setting changed at a time.

    PYTHONPATH=. python bench/sweep.py FOLDER [--target falstaff] [--runs learning_rate=3.0e-4,num_train_epochs=2 ...]

FOLDER is that of `rows.py`: the same rows (`thread`) and held-out replies, and a folder for each run, which is not
trained again. The other settings are those of `make showcase`; 6 replies a step. Each run is measured after each of its
epochs. Prints a table in Markdown: nats a token of the words and the gain over the base model, with an interval that
holds the mean in 95 % of samples, nats of the end mark; and of replies drawn from the finished adapter the shares that
end by themselves, that stand word for word in the training, and that have 30 characters in a row from it.
"""

import argparse
import json
import math
from pathlib import Path

import yaml

from huiyin.serving.finished import Settings as Export
from huiyin.serving.process import Work, do
from huiyin.serving.sampling import SAMPLING
from huiyin.serving.templates.known import find_format
from huiyin.serving.tokenizer import save_tokenizer
from huiyin.training.llamafactory import environment, run_program
from huiyin.training.rows import fit, read_dataset
from huiyin.training.template import Encoding, template_settings
from huiyin.voice.copies import measure_copies
from huiyin.voice.interval import ratio_interval
from huiyin.voice.models import batches
from rows import DATA, REPLIES, prepare, write_all

RUNS = [f"learning_rate={rate},num_train_epochs=2" for rate in ("1.0e-4", "3.0e-4", "1.0e-3")]
DRAWN, AT_A_TIME = 48, 16  # replies of the last epoch, and those that are drawn at once


def train(project, rows, folder, given, threads):
    """Train with the settings `given`, and keep the adapter of each epoch; return (folders, steps, tokens) of them."""
    base, template = Path(given["model_name_or_path"]), find_format(given["template"])
    dataset = read_dataset(rows)
    fitted = fit(dataset.measure(Encoding(template, base), 0), given["cutoff_len"])
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        fitted.write(folder / "rows", rows)
        values = {
            **given,
            **template_settings(template),
            **{"stage": "sft", "do_train": True, "dataset": "alpaca", "dataset_dir": str(folder / "rows")},
            **{"default_system": dataset.system, "output_dir": str(folder / "run"), "save_strategy": "epoch"},
            **{"save_total_limit": 100, "save_only_model": True, "bf16": True, "use_cpu": True},
            **{"disable_gradient_checkpointing": True, "include_num_input_tokens_seen": True, "report_to": "none"},
            "gradient_accumulation_steps": round(REPLIES * len(fitted.rows) / fitted.read),
        }
        run_program("train", values, folder / "run", environment("none", project / ".cache", folder / "run", threads))
        (folder / "done").touch()
    checkpoints = sorted(folder.glob("run/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    states = [json.loads((path / "trainer_state.json").read_text(encoding="utf-8")) for path in checkpoints]
    return checkpoints, [(state["global_step"], state["num_input_tokens_seen"]) for state in states]


def measure(project, generated, given, checkpoints):
    """Return the answers of the base model and of each of the checkpoints; the replies of the last of each run."""
    held_out = json.loads((generated / "alpaca_eval.json").read_text(encoding="utf-8"))
    base, folder = Path(given["model_name_or_path"]), project / DATA / "sweep"
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    system = (generated / "system.txt").read_text(encoding="utf-8")
    save_tokenizer(base, find_format(given["template"]), system, False, tokenizer)
    parameters = {name: getattr(Export(num_predict=120), name) for name in SAMPLING}
    drawn = batches(held_out[-DRAWN:], AT_A_TIME, parameters, 1)
    works = [Work(base, None, held_out)]
    for of_run in checkpoints:
        works += [Work(base, path, held_out, drawn if path == of_run[-1] else []) for path in of_run]
    return do(works, "sweep", folder, environment("none", project / ".cache", folder, 1), tokenizer), held_out


def table(names, sizes, answers, learnt, real):
    """Yield the lines of the table."""
    columns = ["settings", "epoch", "steps", "tokens computed", "words", "gain", "end mark", "ended", "word for word"]
    yield f"| {' | '.join([*columns, '30 characters'])} |\n|{'---|' * (len(columns) + 1)}"
    base, *answers = answers
    before = [math.fsum(row["words"]) for row in base.losses]
    tokens = [len(row["words"]) for row in base.losses]
    end = math.fsum(row["end"] for row in base.losses) / len(real)
    yield f"| base model | | | | {sum(before) / sum(tokens):.3f} | | {end:.3f} | | | |"
    answers = iter(answers)
    for name, of_run in zip(names, sizes, strict=True):
        for epoch, (steps, computed) in enumerate(of_run, 1):
            one = next(answers)
            nats = [math.fsum(row["words"]) for row in one.losses]
            gain = ratio_interval([old - new for old, new in zip(before, nats, strict=True)], tokens, 1).as_dict()
            end = math.fsum(row["end"] for row in one.losses) / len(real)
            cells = ["{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**gain), f"{end:.3f}"]
            if one.replies:
                texts = [reply["text"] for reply in one.replies]
                copies = measure_copies(learnt, real, {"own": texts}, "", str)["own"]
                ended = sum(reply["ended"] for reply in one.replies) / len(texts)
                cells += [f"{share:.1%}" for share in (ended, copies["word_for_word"], copies["30_characters"])]
            else:
                cells += [""] * 3
            words = f"{sum(nats) / sum(tokens):.3f}"
            yield f"| {name} | {epoch} | {steps} | {computed:,} | {words} | {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="falstaff")
    parser.add_argument("--runs", nargs="+", default=RUNS, metavar="NAME=VALUE,...")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    project = args.folder.absolute()
    prepare(project, args.target)
    write_all(project, args.target, [])
    folder, generated = project / DATA / args.target, project / DATA / args.target / "generated"
    given = yaml.safe_load((project / "config/showcase/train.yaml").read_text(encoding="utf-8"))
    given["model_name_or_path"] = str(project / given["model_name_or_path"])
    found = []
    for run in args.runs:
        changed = {name: yaml.safe_load(value) for name, value in (part.split("=") for part in run.split(","))}
        found.append(
            train(project, folder / "rows/thread/generated", folder / "sweep" / run, {**given, **changed}, args.threads)
        )
        print(f"{run}: trained", flush=True)
    answers, held_out = measure(project, generated, given, [checkpoints for checkpoints, _ in found])
    rows = json.loads((folder / "rows/thread/generated/alpaca.json").read_text(encoding="utf-8"))
    learnt = [reply for row in rows for reply in (*(reply for _, reply in row["history"]), row["output"])]
    print(
        "\n".join(table(args.runs, [sizes for _, sizes in found], answers, learnt, [row["output"] for row in held_out]))
    )


if __name__ == "__main__":
    main()
