"""Say for every line of annotated chat which earlier one it answers, by the rule of scripts/linking, without a model.

    python bench/predict_replies.py dev.jsonl.gz predictions.jsonl

Reads JSON lines of log_id, line_no, time, user, text, is_system; the chat takes the pipeline's own road: CSV, parse,
combine. Writes one line a message: log_id, line_no, parent (a line_no, or null: answers nothing) and conf. What
follows in the same turn has the line before it as parent.
"""

import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "scripts")]

import irc_to_csv  # noqa: E402
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


def linked(turns, stop_at_own_turn):
    """Yield (turn, the turn it answers or None, confidence) for the turns of a group."""
    for place, turn in enumerate(turns):
        near = window(turns[max(0, place - CANDIDATES):place], turn["user_id"], CANDIDATES, stop_at_own_turn)
        yield turn, *link(turn, near, lambda of: of["named"])


def main(source, target):
    groups, ids = groups_of(source)
    with open(target, "w", encoding="utf-8") as file:
        for turns in groups:
            add_named(turns)
            for turn, answered, confidence in linked(turns, stop_at_own_turn=False):
                parents = [answered["message_ids"][-1] if answered else None, *turn["message_ids"]]
                for message, parent in zip(turn["message_ids"], parents, strict=False):
                    log, line = ids[message]
                    row = {"log_id": log, "line_no": line, "parent": None if parent is None else ids[parent][1],
                           "conf": confidence}
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
