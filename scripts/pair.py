"""Decide which turn each turn of the target answers.

    python scripts/pair.py data/default/combined/turns.parquet --target 10001 --config config/pair.yaml \\
        --prompt config/prompts/pair.md --llm config/llm.yaml --answers data/answers.db --out data/default/10001/paired

Writes pairs.jsonl (turns with the turn they answer) and unpaired.jsonl (turns with the reason why not).
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import polars as pl

from common.errors import Mistake, run
from common.settings import read_settings
from common.stage import Stage, arguments, need
from llm.client import Client, Question, llm_arguments, open_backend, read_llm_settings
from llm.prompts import one_line, read_prompt

ANSWER_TOKENS = 32
NONE = "none"  # the model's word for "answers nobody"
NAME_CHARACTERS = 30


@dataclass
class Settings:
    method: Literal["cascade", "previous", "mention", "empty"] = "cascade"
    candidates: int = 10
    stop_at_own_turn: bool = False
    quotes_first: bool = True
    newest: int = 20_000
    characters_shown: int = 200

    PRESETS: ClassVar = {"default": {}, "seed": {"stop_at_own_turn": True, "quotes_first": False}}


@dataclass
class Case:
    """A turn of the target, what was said before it, and what became of it."""

    turn: dict
    window: list[dict]  # the turns before it that are looked at
    candidates: list[dict]  # those of other people: one of them may be the prompt
    prompt: dict | None = None
    decided_by: str | None = None
    confidence: float | None = None
    reason: str | None = None  # why it has no prompt

    def answered(self, prompt, decided_by, confidence=None):
        self.prompt, self.decided_by, self.confidence = prompt, decided_by, confidence

    def line(self):
        """The line of pairs.jsonl or unpaired.jsonl."""
        turn = self.turn
        line = {"turn_id": turn["turn_id"], "turn_ids": [turn["turn_id"]], "group_id": turn["group_id"],
                "reply": turn["text"], "time": turn["time"].strftime("%Y-%m-%dT%H:%M:%SZ")}
        if self.prompt is None:
            return {**line, "reason": self.reason}
        return {**line, "prompt_turn_id": self.prompt["turn_id"], "prompt": self.prompt["text"],
                "decided_by": self.decided_by, "confidence": self.confidence,
                "candidates": [other["turn_id"] for other in self.candidates]}


def cases_of(turns, target, settings, ledger):
    """Return a Case for each turn of the target that is kept, in the order of `turns`.

    Only the rows that some case looks at become Python objects: a history has millions of turns.
    """
    of_others = pl.when(pl.col("user_id") != target).then("turn_id")
    turns = turns.with_columns(
        previous_text=pl.col("text").shift().over("group_id"),
        previous_of_others=of_others.forward_fill().over("group_id"))
    own = turns.filter(pl.col("user_id") == target)
    newest = own.top_k(settings.newest, by=["time", "turn_id"])
    kept = newest.filter(pl.col("text").ne_missing(pl.col("previous_text"))).sort("turn_id")
    ledger.read = len(own)
    ledger.dropped["older"] = len(own) - len(newest)
    ledger.dropped["repeats_previous"] = len(newest) - len(kept)

    ids = kept["turn_id"].to_list()
    looked_at = {near for turn_id in ids for near in range(turn_id - settings.candidates, turn_id)}
    looked_at.update(kept["reply_to_turn"].drop_nulls(), kept["previous_of_others"].drop_nulls())
    rows = {row["turn_id"]: row for row in
            turns.filter(pl.col("turn_id").is_in(list(looked_at))).iter_rows(named=True)}
    cases = []
    for turn in kept.iter_rows(named=True):
        near = range(turn["turn_id"] - settings.candidates, turn["turn_id"])
        window = [rows[place] for place in near if place in rows and rows[place]["group_id"] == turn["group_id"]]
        if settings.stop_at_own_turn:
            last_own = max((place for place, other in enumerate(window) if other["user_id"] == target), default=-1)
            window = window[last_own + 1:]
        case = Case(turn, window, [other for other in window if other["user_id"] != target])
        decide(case, rows, settings)
        cases.append(case)
    return cases


def decide(case, rows, settings):
    """Decide what can be decided without a model; a case left with neither prompt nor reason is a question for it."""
    turn = case.turn
    if settings.method == "empty":
        case.reason = "empty_prompt"
    elif settings.method == "previous":
        if turn["previous_of_others"] is None:
            case.reason = "no_candidates"
        else:
            case.answered(rows[turn["previous_of_others"]], "previous")
    elif settings.method == "mention":
        naming = [other for other in case.candidates if turn["user_id"] in other["mentions"]]
        if naming:
            case.answered(naming[-1], "mention")
        else:
            case.reason = "none" if case.candidates else "no_candidates"
    elif settings.quotes_first and turn["reply_to_turn"] is not None:
        case.answered(rows[turn["reply_to_turn"]], "quote", 1.0)
    elif settings.quotes_first and turn["quotes_outside"]:
        case.reason = "quotes_outside"
    elif not case.candidates:
        case.reason = "no_candidates"


def question_about(case, prompt, settings, temperature):
    """Return the Question: the candidates numbered, the target's own turns without a number, the reply last."""
    turn, lines, number = case.turn, [], 0
    for other in case.window:
        label = "-"
        if other["user_id"] != turn["user_id"]:
            number += 1
            label = f"{number}."
        seconds = int((turn["time"] - other["time"]).total_seconds())
        text = one_line(other["text"], settings.characters_shown)
        lines.append(f"{label} {one_line(other['nickname'], NAME_CHARACTERS)}（{seconds}秒前）：{text}")
    choices = [*map(str, range(1, number + 1)), NONE]

    def accept(answer):
        if answer.get("answers") not in choices:
            raise ValueError("not one of the choices")
        return answer["answers"]

    text = prompt.substitute(name=one_line(turn["nickname"], NAME_CHARACTERS), context="\n".join(lines),
                             reply=one_line(turn["text"], settings.characters_shown))
    schema = {"type": "object", "properties": {"answers": {"enum": choices}}, "required": ["answers"],
              "additionalProperties": False}
    return Question(text, schema, accept, temperature, ANSWER_TOKENS)


def ask_about(cases, prompt, settings, llm, args):
    """Put the open cases to the language model; return what the receipt says of it."""
    client = Client(open_backend(llm, args.ollama_url), llm.parallel, args.answers)
    questions = [question_about(case, prompt, settings, llm.pair_temperature) for case in cases]
    for case, answer in zip(cases, client.ask_all("pair", questions), strict=True):
        if answer is None:
            case.reason = "failed"
        elif answer == NONE:
            case.reason = "none"
        else:
            case.answered(case.candidates[int(answer) - 1], "llm")
    client.close()
    return {"model": client.model, **client.counts}


def write_lines(path, lines):
    with open(path, "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def main():
    parser = arguments(__doc__, "turns")
    parser.add_argument("--target", required=True, help="user id (QQ number) of the member whose voice is learnt")
    parser.add_argument("--prompt", type=Path, required=True, metavar="FILE", help="prompts/pair.md")
    llm_arguments(parser)
    args = parser.parse_args()
    settings = read_settings(args.config, Settings)
    llm = read_llm_settings(args)
    prompt = read_prompt(args.prompt, ["name", "context", "reply"])

    with Stage("pair", args.out, packages=["polars", "requests"]) as stage:
        stage.use(args.config, settings), stage.use(args.llm, llm)
        stage.input(args.prompt)
        turns = pl.read_parquet(stage.input(need(args.turns, "`make combine` makes it")))
        cases = cases_of(turns, args.target, settings, stage.ledger)
        if not stage.ledger.read:
            raise Mistake(f"nobody with the id {args.target} has said anything here; "
                          "`make members` lists who is there, put one of those ids into config/target.txt")
        questions = [case for case in cases if case.prompt is None and case.reason is None]
        if questions:
            stage.receipt["llm"] = ask_about(questions, prompt, settings, llm, args)
        pairs = [case.line() for case in cases if case.prompt]
        unpaired = [case.line() for case in cases if not case.prompt]
        write_lines(stage.output("pairs.jsonl"), pairs)
        write_lines(stage.output("unpaired.jsonl"), unpaired)
        stage.ledger.written = len(pairs) + len(unpaired)
        stage.receipt["decided_by"] = Counter(line["decided_by"] for line in pairs)
        stage.receipt["unpaired"] = Counter(line["reason"] for line in unpaired)


if __name__ == "__main__":
    run(main)
