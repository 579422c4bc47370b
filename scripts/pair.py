"""Decide which turn each turn of the target answers.

    python scripts/pair.py data/default/combined/turns.parquet --target 10001 --config config/pair.yaml \\
        --prompt config/prompts/pair.md --merge-prompt config/prompts/merge.md \\
        --llm config/llm.yaml --answers data/answers.db --out data/default/10001/paired

Writes pairs.jsonl (turns with the turn they answer) and unpaired.jsonl (turns with the reason why not).
"""

import json
import operator
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import polars as pl

from huiyin.common.errors import Mistake, run
from huiyin.common.settings import AtLeast0, AtLeast1, read_settings
from huiyin.common.stage import Stage, arguments, need
from huiyin.linking.calibration import blind_quotes, in_reach, thresholds_earned
from huiyin.linking.cases import cases_of
from huiyin.linking.linker import Linker
from huiyin.linking.names import named_by
from huiyin.linking.rule import link
from huiyin.llm.client import Client, llm_arguments, read_llm_settings
from huiyin.questions.prompts import read_prompt
from huiyin.questions.pairing import NONE, same_words, which_belong_together, which_turn


@dataclass
class Settings:
    method: Literal["cascade", "previous", "mention", "empty"] = "cascade"
    use_llm: bool = True
    candidates: AtLeast1 = 10
    stop_at_own_turn: bool = False
    quotes_first: bool = True
    quotes_tested: AtLeast0 = 200
    linker_alone: Literal["auto", "always", "never"] = "auto"
    linker_threshold: float = 0.8
    min_confidence: float = 0.0
    merge_replies: Literal["rule", "llm"] = "rule"
    batch_size: AtLeast1 = 20
    newest: AtLeast0 = 20_000
    characters_shown: AtLeast1 = 200

    PRESETS: ClassVar = {
        "default": {},
        "seed": {"stop_at_own_turn": True, "quotes_first": False, "quotes_tested": 0, "linker_alone": "never"},
    }


def line_of(case):
    """Return the line of pairs.jsonl or unpaired.jsonl."""
    turn = case.turn
    line = {
        "turn_id": turn["turn_id"],
        "turn_ids": turn["turn_ids"],
        "group_id": turn["group_id"],
        "reply": turn["text"],
        "time": turn["time"].strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if case.prompt is None:
        return {**line, "reason": case.reason}
    return {
        **line,
        "prompt_turn_id": case.prompt["turn_id"],
        "prompt": case.prompt["text"],
        "decided_by": case.decided_by,
        "confidence": case.confidence,
        "candidates": [other["turn_id"] for other in case.candidates],
    }


def turns_kept(turns, target, settings, ledger):
    """Return the turns of the target that are to be paired, as dicts in the order of `turns`."""
    of_others = pl.when(pl.col("user_id") != target).then("turn_id")
    turns = turns.with_columns(
        previous_text=pl.col("text").shift().over("group_id"),
        previous_of_others=of_others.forward_fill().over("group_id"),
    )
    own = turns.filter(pl.col("user_id") == target)
    kept = own.sort("time", maintain_order=True).tail(settings.newest) if settings.newest else own
    ledger.read = len(own)
    ledger.dropped["older"] = len(own) - len(kept)
    said_anew = kept.filter(pl.col("text") != pl.col("previous_text").fill_null("")).sort("turn_id")
    ledger.dropped["repeats_previous"] = len(kept) - len(said_anew)
    return [{**turn, "turn_ids": [turn["turn_id"]]} for turn in said_anew.iter_rows(named=True)]


def merged(kept, prompt, settings, client, temperature):
    """Let the model say which neighbours in `kept` are one turn; return the turns, fewer or as many."""
    batches = []
    for turn in kept:
        last = batches[-1] if batches else []
        if not last or len(last) == settings.batch_size or last[0]["group_id"] != turn["group_id"]:
            batches.append([turn])
        else:
            last.append(turn)
    several = [batch for batch in batches if len(batch) > 1]
    questions = [which_belong_together(prompt, batch, temperature) for batch in several]
    for batch, answer in zip(several, client.ask_all("pair: turns that belong together", questions), strict=True):
        for first, last, text in reversed(answer.value if answer else []):
            parts = batch[first : last + 1]
            if same_words([part["text"] for part in parts], text):
                batch[first : last + 1] = [as_one(parts, text)]
    return [turn for batch in batches for turn in batch]


def as_one(parts, text):
    """Return the turn that `parts` become; it stands where the first of them stood."""
    quoted = [part["reply_to_turn"] for part in parts if part["reply_to_turn"] is not None]
    return {
        **parts[0],
        "text": text,
        "turn_ids": [turn_id for part in parts for turn_id in part["turn_ids"]],
        "mentions": list(dict.fromkeys(user for part in parts for user in part["mentions"])),
        "reply_to_turn": quoted[0] if quoted else None,
        "quotes_outside": any(part["quotes_outside"] for part in parts),
    }


def decide(case, rows, settings):
    """Decide what is certain; a case left open is a question for the rule or the model."""
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
    # who quotes himself goes on; he answers nobody with that
    elif settings.quotes_first and rows.get(turn["reply_to_turn"], turn)["user_id"] != turn["user_id"]:
        case.answered(rows[turn["reply_to_turn"]], "quote", 1.0)
    elif settings.quotes_first and turn["quotes_outside"]:
        case.reason = "quotes_outside"
    elif not case.candidates:
        case.reason = "no_candidates"


def apply_rule(cases, named):
    for case in cases:
        prompt, confidence = link(case.turn, case.window, named)
        if prompt:
            case.answered(prompt, "rule", confidence)
        else:
            case.reason = "undecided"


def apply_linker(cases, decisions, least, min_confidence):
    """Take over what the linker is sure of; the rest of the cases stays open.

    decisions: [(turn_id or None, confidence), ...]; least: {group: the confidence that is enough there, or None}.
    """
    for case, (answered, confidence) in zip(cases, decisions, strict=False):
        enough = least[case.turn["group_id"]]
        if enough is None or confidence < enough:
            continue
        if answered is None:
            case.reason = "none"
        elif confidence < min_confidence:
            case.reason = "low_confidence"
        else:
            prompt = next(other for other in case.candidates if other["turn_id"] == answered)
            case.answered(prompt, "linker", confidence)


def apply_answers(cases, answers, min_confidence):
    for case, answer in zip(cases, answers, strict=True):
        if answer is None:
            case.reason = "failed"
        elif answer.value == NONE:
            case.reason = "none"
        elif answer.confidence is not None and answer.confidence < min_confidence:
            case.reason = "low_confidence"
        else:
            case.answered(case.candidates[int(answer.value) - 1], "llm", answer.confidence)


def report_on_quotes(tested, quotes, named, linked, answers):
    """Return what the receipt says of the quotes asked blind, and say it.

    quotes: those in reach, of `tested`; linked: {turn_id: turn_id or None} of the linker; answers: of the model; both
    may be None.
    """
    quoted = [case.turn["reply_to_turn"] for case in quotes]
    found = {"rule": [(link(case.turn, case.window, named)[0] or {}).get("turn_id") for case in quotes]}
    if linked is not None:
        found["linker"] = [linked[case.turn["turn_id"]] for case in quotes]
    if answers is not None:
        found["llm"] = [
            case.candidates[int(answer.value) - 1]["turn_id"] if answer and answer.value != NONE else None
            for case, answer in zip(quotes, answers, strict=True)
        ]
    counts = {f"found_by_{who}": sum(map(operator.eq, quoted, turn_ids)) for who, turn_ids in found.items()}
    names = {"found_by_rule": "the rule", "found_by_linker": "the linker", "found_by_llm": "the model"}
    print(
        f"pair: of {tested:,} quotes asked blind, {len(quotes):,} within the candidates: "
        + ", ".join(f"{names[who]} found {count:,}" for who, count in reversed(counts.items())),
        flush=True,
    )
    return {"tested": tested, "in_reach": len(quotes), **counts}


def cascade(cases, turns, settings, client, prompt, temperature):
    """Decide the cases that quotes have left open: the linker what it may, then the model, or without one the rule.

    Return what the receipt says of that.
    """
    groups, said = sorted({case.turn["group_id"] for case in cases}), {}
    named = named_by(turns, groups)
    blind = blind_quotes(turns, groups, settings) if settings.quotes_tested else []
    quotes = [case for case in blind if in_reach(case)]
    open_cases, answers, linked = [case for case in cases if case.open], None, None
    if settings.linker_alone != "never":
        found = Linker().decide([*open_cases, *quotes], turns, named, settings.candidates, settings.stop_at_own_turn)
        linked = found[len(open_cases) :]
        said["linker"] = thresholds_earned(groups, quotes, linked, settings)
        least = {group: earned["threshold"] for group, earned in said["linker"].items()}
        apply_linker(open_cases, found, least, settings.min_confidence)
        open_cases = [case for case in open_cases if case.open]
    newest = sorted(blind, key=lambda case: case.turn["time"])[-settings.quotes_tested :]
    asked = [case for case in newest if in_reach(case)]
    if settings.use_llm:
        questions = [
            which_turn(prompt, case.turn, case.window, settings.characters_shown, temperature)
            for case in [*open_cases, *asked]
        ]
        shares = Counter(case.decided_by for case in cases)
        answers = client.ask_all(
            "pair",
            questions,
            f"{shares['quote'] / len(cases):.0%} from quotes, {shares['linker'] / len(cases):.0%} from the linker",
        )
        apply_answers(open_cases, answers[: len(open_cases)], settings.min_confidence)
        answers = answers[len(open_cases) :]
    else:
        apply_rule(open_cases, named)
    if linked is not None:
        linked = {case.turn["turn_id"]: answered for case, (answered, _) in zip(quotes, linked, strict=True)}
    return {**said, "quotes": report_on_quotes(len(newest), asked, named, linked, answers)} if blind else said


def write_lines(path, lines):
    with open(path, "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def main():
    parser = arguments(__doc__, "turns")
    parser.add_argument("--target", required=True, help="user id (QQ number) of the member whose voice is learnt")
    parser.add_argument("--prompt", type=Path, required=True, metavar="FILE", help="prompts/pair.md")
    parser.add_argument("--merge-prompt", type=Path, required=True, metavar="FILE", help="prompts/merge.md")
    llm_arguments(parser)
    args = parser.parse_args()
    settings = read_settings(args.config, Settings)
    llm = read_llm_settings(args)
    prompt = read_prompt(args.prompt, ["name", "context", "reply"])
    merge_prompt = read_prompt(args.merge_prompt, ["context"])

    with (
        Stage("pair", args.out, packages=["polars", "requests", "lightgbm", "numpy"]) as stage,
        Client(llm, args.ollama_url, args.answers) as client,
    ):
        stage.use(args.config, settings), stage.use(args.llm, llm)
        stage.input(args.prompt), stage.input(args.merge_prompt)
        turns = pl.read_parquet(stage.input(need(args.turns, "`make combine` makes it")))
        kept = turns_kept(turns, args.target, settings, stage.ledger)
        if not stage.ledger.read:
            raise Mistake(
                f"nobody with the id {args.target} has said anything here; "
                "`make members` lists who is there, put one of those ids into config/target.txt"
            )
        if settings.merge_replies == "llm":
            before = len(kept)
            kept = merged(kept, merge_prompt, settings, client, llm.pair_temperature)
            stage.ledger.merged = before - len(kept)
        cases, rows = cases_of(kept, turns, settings.candidates, settings.stop_at_own_turn)
        for case in cases:
            decide(case, rows, settings)
        if settings.method == "cascade" and cases:
            stage.receipt |= cascade(cases, turns, settings, client, prompt, llm.pair_temperature)
        pairs = [line_of(case) for case in cases if case.prompt]
        unpaired = [line_of(case) for case in cases if not case.prompt]
        write_lines(stage.output("pairs.jsonl"), pairs)
        write_lines(stage.output("unpaired.jsonl"), unpaired)
        stage.ledger.written = len(pairs) + len(unpaired)
        stage.receipt["decided_by"] = Counter(line["decided_by"] for line in pairs)
        stage.receipt["unpaired"] = Counter(line["reason"] for line in unpaired)
        stage.receipt |= client.receipt()


if __name__ == "__main__":
    run(main)
