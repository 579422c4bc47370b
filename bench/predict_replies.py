"""Say for every line of annotated chat which earlier one it answers, by the linker or the rule of huiyin/linking.

    python bench/predict_replies.py dev.jsonl.gz predictions.jsonl linker

Reads JSON lines of log_id, line_no, time, user, text, is_system; the chat takes the pipeline's own road: CSV, parse,
combine. Writes one line a message: log_id, line_no, parent (a line_no, or null: answers nothing) and conf. What
follows in the same turn has the line before it as parent. Nothing before the author's own previous turn is named.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

import irc_to_csv
from huiyin.common.errors import run
from huiyin.common.stage import need
from huiyin.linking.cases import window
from huiyin.linking.lines import with_said
from huiyin.linking.linker import Linker
from huiyin.linking.names import Names
from huiyin.linking.rule import link

ROOT = Path(__file__).parent.parent
CANDIDATES = 10


def groups_of(source):
    """Return [(its turns as dicts, oldest first), ...] and [(log_id, line_no) of each message id]."""
    need(source, "annotated chat is wanted, huiyin/linking/README.md says which")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        irc_to_csv.main(source, folder / "chat.csv")
        (folder / "combine.yaml").write_text("preset: seed\n")
        for script, given, settings in (
            ("parse", "chat.csv", ROOT / "config/parse.yaml"),
            ("combine", "parse/messages.parquet", folder / "combine.yaml"),
        ):
            subprocess.run(
                [
                    sys.executable,
                    ROOT / f"scripts/{script}.py",
                    folder / given,
                    "--config",
                    settings,
                    "--out",
                    folder / script,
                ],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        turns = pl.read_parquet(folder / "combine/turns.parquet")
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        messages = map(json.loads, lines)
        ids = [(line["log_id"], line["line_no"]) for line in messages if not line.get("is_system")]
    return [group.rows(named=True) for _, group in with_said(turns).group_by("group_id", maintain_order=True)], ids


def namer(turns):
    """Return a function: turn -> the user ids it names, for the turns of a group."""
    names = Names([(turn["nickname"], turn["user_id"]) for turn in turns], [turn["text"] for turn in turns])
    return lambda turn: list(dict.fromkeys([*turn["mentions"], *names.named(turn["text"])]))


def nobody(_):
    return []


def by_rule(turns, stop_at_own_turn):
    """Yield (the turn that each of the turns of a group answers, or None, confidence)."""
    named = namer(turns)
    names = {turn["turn_id"]: named(turn) for turn in turns}
    for place, turn in enumerate(turns):
        near = window(turns[max(0, place - CANDIDATES) : place], turn["user_id"], CANDIDATES, stop_at_own_turn)
        yield link(turn, near, lambda of: names[of["turn_id"]])


def by_linker(linker, with_names=True):
    """Return a function that does what `by_rule` does."""

    def decide(turns, stop_at_own_turn):
        named = namer(turns) if with_names else nobody
        found = linker.answered(turns, named, np.arange(len(turns)), CANDIDATES, stop_at_own_turn)
        for place, confidence in zip(*found, strict=True):
            yield turns[place] if place >= 0 else None, float(confidence)

    return decide


def parser_of(script):
    return argparse.ArgumentParser(description=script, formatter_class=argparse.RawDescriptionHelpFormatter)


def main():
    parser = parser_of(__doc__)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("method", nargs="?", choices=["linker", "rule"], default="linker")
    args = parser.parse_args()
    decide = {"linker": by_linker(Linker()), "rule": by_rule}[args.method]
    groups, ids = groups_of(args.source)
    with open(args.target, "w", encoding="utf-8") as file:
        for turns in groups:
            for turn, (answered, confidence) in zip(turns, decide(turns, stop_at_own_turn=True), strict=True):
                parents = [answered["message_ids"][-1] if answered else None, *turn["message_ids"]]
                for message, parent in zip(turn["message_ids"], parents, strict=False):
                    log, line = ids[message]
                    row = {
                        "log_id": log,
                        "line_no": line,
                        "parent": None if parent is None else ids[parent][1],
                        "conf": confidence,
                    }
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    run(main)
