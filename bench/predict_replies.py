"""Predict for each message of annotated chat which earlier one it replies to, with the linker or the rule.

    python bench/predict_replies.py dev.jsonl.gz predictions.jsonl linker

Reads JSON lines of log_id, line_no, time, user, text, is_system. The chat goes through the pipeline: CSV, parse,
combine. Writes one line per message: log_id, line_no, parent (a line_no, or null: replies to none) and conf. The parent
of a later message of a turn is the one before it. No parent is before the previous turn of the author.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

import irc_to_csv
from huiyin.common.errors import run
from huiyin.common.stage import arguments, need
from huiyin.linking.cases import Namer, Turn, window
from huiyin.linking.linker import Linker
from huiyin.linking.messages import with_earlier_turns
from huiyin.linking.names import Names
from huiyin.linking.rule import link
from scripts import combine, parse

ROOT = Path(__file__).parent.parent
CANDIDATES = 10

LineId = tuple[str, int]  # (log_id, line_no)
Method = Callable[[Sequence[Turn], bool], Iterator[tuple[Turn | None, float]]]


def groups_of(source: Path) -> tuple[list[list[Turn]], list[LineId]]:
    """Return the turns of each group, oldest first, and the line of each message id."""
    need(source, "annotated chat is needed, huiyin/linking/README.md says which")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        irc_to_csv.main(source, folder / "chat.csv")
        (folder / "combine.yaml").write_text("preset: seed\n")
        with contextlib.redirect_stdout(None):
            parse.main([f"{folder}/chat.csv", "--config", f"{ROOT}/config/parse.yaml", "--out", f"{folder}/parse"])
            messages = f"{folder}/parse/messages.parquet"
            combine.main([messages, "--config", f"{folder}/combine.yaml", "--out", f"{folder}/combine"])
        turns = pl.read_parquet(folder / "combine/turns.parquet")
    groups = with_earlier_turns(turns).group_by("group_id", maintain_order=True)
    ids = [(message["log_id"], message["line_no"]) for message in irc_to_csv.read_messages(source)]
    return [group.rows(named=True) for _, group in groups], ids


def namer(turns: Sequence[Turn]) -> Namer:
    """Return a function: turn -> the user ids it names, for the turns of a group."""
    names = Names([(turn["nickname"], turn["user_id"]) for turn in turns], [turn["text"] for turn in turns])
    return lambda turn: list(dict.fromkeys([*turn["mentions"], *names.named(turn["text"])]))


def nobody(_: Turn) -> list[str]:
    return []


def window_of(turns: Sequence[Turn], index: int, stop_at_own_turn: bool) -> list[Turn]:
    """Return the turns that the one at `index` may reply to, and those of its author among them."""
    return window(turns[max(0, index - CANDIDATES) : index], turns[index]["user_id"], CANDIDATES, stop_at_own_turn)


def by_rule(turns: Sequence[Turn], stop_at_own_turn: bool) -> Iterator[tuple[Turn | None, float]]:
    """Yield (the turn that it replies to or None, confidence) for each of the turns of a group."""
    named = namer(turns)
    names = {turn["turn_id"]: named(turn) for turn in turns}
    for index, turn in enumerate(turns):
        yield link(turn, window_of(turns, index, stop_at_own_turn), lambda of: names[of["turn_id"]])


def by_linker(linker: Linker, with_names: bool = True) -> Method:
    """Return a function that does what `by_rule` does, with the linker."""

    def decide(turns: Sequence[Turn], stop_at_own_turn: bool) -> Iterator[tuple[Turn | None, float]]:
        named, everything = namer(turns) if with_names else nobody, np.arange(len(turns))
        decided = linker.decide_turns(turns, named, everything, CANDIDATES, stop_at_own_turn)
        for index, confidence in zip(*decided, strict=True):
            yield turns[index] if index >= 0 else None, float(confidence)

    return decide


def main() -> None:
    parser = arguments(__doc__, "source", "target", config=False, out=False)
    parser.add_argument("method", nargs="?", choices=["linker", "rule"], default="linker")
    args = parser.parse_args()
    method = by_linker(Linker()) if args.method == "linker" else by_rule
    groups, ids = groups_of(args.source)
    with open(args.target, "w", encoding="utf-8") as file:
        for turns in groups:
            for turn, (prompt, confidence) in zip(turns, method(turns, True), strict=True):
                parents = [prompt["message_ids"][-1] if prompt else None, *turn["message_ids"]]
                for message, parent in zip(turn["message_ids"], parents, strict=False):
                    log, line = ids[message]
                    parent_line = None if parent is None else ids[parent][1]
                    row = {"log_id": log, "line_no": line, "parent": parent_line, "conf": confidence}
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    run(main)
