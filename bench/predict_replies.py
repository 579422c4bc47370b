"""Say for every line of annotated chat which earlier one it answers, by the linker or the rule of scripts/linking.

    python bench/predict_replies.py dev.jsonl.gz predictions.jsonl linker

Reads JSON lines of log_id, line_no, time, user, text, is_system; the chat takes the pipeline's own road: CSV, parse,
combine. Writes one line a message: log_id, line_no, parent (a line_no, or null: answers nothing) and conf. What
follows in the same turn has the line before it as parent. Nothing before the author's own previous turn is named.
"""

import gzip
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import polars as pl

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "scripts")]

import irc_to_csv  # noqa: E402
from linking.features import Talk, features  # noqa: E402
from linking.linker import Linker, decisions  # noqa: E402
from linking.names import Names  # noqa: E402
from linking.rule import link  # noqa: E402
from linking.window import window  # noqa: E402

CANDIDATES = 10


def groups_of(source):
    """Return [(its turns as dicts, oldest first), ...] and [(log_id, line_no) of each message id]."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        irc_to_csv.main(source, folder / "chat.csv")
        (folder / "combine.yaml").write_text("preset: seed\n")
        for script, given, settings in (("parse", "chat.csv", ROOT / "config/parse.yaml"),
                                        ("combine", "parse/messages.parquet", folder / "combine.yaml")):
            subprocess.run([sys.executable, ROOT / f"scripts/{script}.py", folder / given, "--config", settings,
                            "--out", folder / script], check=True, stdout=subprocess.DEVNULL)
        turns = pl.read_parquet(folder / "combine/turns.parquet")
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        messages = map(json.loads, lines)
        ids = [(line["log_id"], line["line_no"]) for line in messages if not line.get("is_system")]
    return [group.rows(named=True) for _, group in turns.group_by("group_id", maintain_order=True)], ids


def add_named(turns):
    """Give each of the turns of a group `named`: the user ids it names."""
    names = Names([(turn["nickname"], turn["user_id"]) for turn in turns], [turn["text"] for turn in turns])
    for turn in turns:
        turn["named"] = list(dict.fromkeys([*turn["mentions"], *names.named(turn["text"])]))


def talk_of(turns, with_names=True):
    """Return the Talk of the turns of a group, dicts with `named`."""
    said, many = [], Counter()
    for turn in turns:
        said.append(many[turn["user_id"]])
        many[turn["user_id"]] += 1
    return Talk([turn["user_id"] for turn in turns], [turn["first_time"].timestamp() for turn in turns],
                [turn["last_time"].timestamp() for turn in turns], [turn["text"] for turn in turns],
                [turn["named"] if with_names else [] for turn in turns], said)


def by_rule(turns, stop_at_own_turn):
    """Yield (turn, the turn it answers or None, confidence) for the turns of a group."""
    for place, turn in enumerate(turns):
        near = window(turns[max(0, place - CANDIDATES):place], turn["user_id"], CANDIDATES, stop_at_own_turn)
        yield turn, *link(turn, near, lambda of: of["named"])


def by_linker(linker, with_names=True):
    """Return a function that does what `by_rule` does."""
    def decide(turns, stop_at_own_turn):
        rows, sizes, candidates = features(talk_of(turns, with_names), range(len(turns)), stop_at_own_turn)
        found = decisions(rows, sizes, candidates, linker.shares(rows, sizes), CANDIDATES)
        for turn, place, confidence in zip(turns, *found, strict=True):
            yield turn, turns[place] if place >= 0 else None, float(confidence)

    return decide


def main(source, target, method="linker"):
    decide = {"linker": by_linker(Linker()), "rule": by_rule}[method]
    groups, ids = groups_of(source)
    with open(target, "w", encoding="utf-8") as file:
        for turns in groups:
            add_named(turns)
            for turn, answered, confidence in decide(turns, stop_at_own_turn=True):
                parents = [answered["message_ids"][-1] if answered else None, *turn["message_ids"]]
                for message, parent in zip(turn["message_ids"], parents, strict=False):
                    log, line = ids[message]
                    row = {"log_id": log, "line_no": line, "parent": None if parent is None else ids[parent][1],
                           "conf": confidence}
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
