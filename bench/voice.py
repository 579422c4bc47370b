"""Does a model sound like its member, and like nobody else? Two characters, each measured with both trained models.

    python bench/voice.py FOLDER [--settings FILE ...] [--gpu none]

Falstaff and Hamlet learn from the plays of Shakespeare with the settings of `make showcase`; each FILE (its name is
that in config/, such as train.yaml or persona.md) replaces one of them. A copy of this repository in FOLDER is trained
and measured as `make voice` does; run again, it redoes what other settings change. Prints a table in Markdown, of
replies that no model has seen; numbers in brackets are an interval that holds the mean in 95 % of samples.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

from project import copy_project

CHARACTERS = ["falstaff", "hamlet"]
PLAYS = "henry_iv_part_1 henry_iv_part_2 merry_wives_of_windsor hamlet"
DATA = Path("data/showcase")


def prepare(project, settings):
    copy_project(project)
    for file in settings:
        folder = "prompts" if file.suffix == ".md" else "."
        shutil.copy2(file, project / "config/showcase" / folder / file.name)


def train(project, gpu, target):
    words = ["CONFIG=showcase", "RUN_IN=host", f"GPU={gpu}", f"TARGET={target}", f"plays={PLAYS}"]
    subprocess.run(["make", "train", *words], cwd=project, check=True)


def measure(project, gpu, target, learner):
    """Return voice.json of the model that learnt from `learner`, on the replies of `target`."""
    [other] = {*CHARACTERS} - {learner}
    out = DATA / target / f"voice-{learner}"
    voice = project / "config/showcase/voice.yaml"
    options = {
        "--generated": DATA / target / "generated",
        "--exported": DATA / target / "none",  # the adapter is measured
        "--turns": DATA / "combined/turns.parquet",
        "--adapters": DATA / other / "trained",
        "--config": "config/showcase/voice.yaml" if voice.exists() else "config/voice.yaml",
        "--export": "config/showcase/export.yaml",
        **{"--gpu": gpu, "--cache": ".cache", "--out": out},
    }
    words = ["scripts/tools/voice.py", DATA / learner / "trained", *(word for pair in options.items() for word in pair)]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    subprocess.run([sys.executable, *words], cwd=project, env=environment, check=True)
    return json.loads((project / out / "voice.json").read_text(encoding="utf-8"))


def bracketed(interval):
    return "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**interval)


def of_losses(own, other):
    """Yield (name, real, base, own adapter, the other's) of what the models make of the real replies."""
    both = [own["losses"], other["losses"]]
    for name, part in (("words, bits per character", "words"), ("end mark, bits", "end")):
        yield name, None, own["losses"][part]["base"], *(losses[part]["trained"] for losses in both)
        yield f"{name}: gain", None, None, *(losses[part]["gain"] for losses in both)
    yield "gain in words minus that on others", None, None, *(losses["own_gain"] for losses in both)
    [against] = own["losses"]["over_adapter"].values()
    yield "gain in words over the other's", None, None, against, None


def of_authorship(own, other):
    """Yield the same of who seems to have written the replies."""
    found = own["authorship"]
    yield "AUC of real replies against those of others", found["auc"], None, None, None
    if found["usable"]:
        for name, field in (("log odds of being the character's", "log_odds"), ("share over even odds", "share")):
            texts = [found["real"], found["base"], found["trained"], other["authorship"]["trained"]]
            yield name, *(of_one[field] for of_one in texts)


def of_habits(own, other):
    """Yield the same of the distances to the real replies; real: between two halves of them."""
    for habit, values in own["habits"].items():
        distances = [values["distance_of_halves"], values["distance_base"], values["distance_trained"]]
        distances.append(other["habits"][habit]["distance_trained"])
        if any(distances):  # nobody on stage sends faces or links
            yield f"distance in {habit}", *distances


def of_copies(own, other):
    """Yield the same of shares of the replies."""
    yield "ended by the model itself", None, own["ended"]["base"], own["ended"]["trained"], other["ended"]["trained"]
    for field in ("word_for_word", "30_characters", "personal_data", "system_text"):
        texts = [own["copies"]["real"], own["copies"]["base"], own["copies"]["trained"], other["copies"]["trained"]]
        yield field.replace("_", " "), *(of_one[field] for of_one in texts)
    yield "drawn out by their first third", None, None, own["drawn_out"]["share"], other["drawn_out"]["share"]


def table(found):
    """Yield the lines of the table of one character; found: {who learnt: voice.json}, the character first."""
    own, other = found.values()
    yield f"\n| {own['held_out']} replies of {next(iter(found))} | real | base | own adapter | the other's |"
    yield "|---|---|---|---|---|"
    parts = [
        (of_losses, bracketed),
        (of_authorship, bracketed),
        (of_habits, "{:.3f}".format),
        (of_copies, "{:.1%}".format),
    ]
    for part, form in parts:
        for name, *cells in part(own, other):
            yield f"| {name} | {' | '.join('' if cell is None else form(cell) for cell in cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--settings", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--gpu", default="none", help="index of the card, or none (default)")
    args = parser.parse_args()
    started, project = time.monotonic(), args.folder.absolute()
    prepare(project, args.settings)
    for target in CHARACTERS:
        train(project, args.gpu, target)
    found = {pair: measure(project, args.gpu, *pair) for pair in product(CHARACTERS, CHARACTERS)}
    for target, other in zip(CHARACTERS, reversed(CHARACTERS), strict=True):
        print("\n".join(table({learner: found[target, learner] for learner in (target, other)})))
    print(f"\n{(time.monotonic() - started) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
