"""Decide which turn each turn of the target answers.

    python scripts/pair.py data/default/combined/turns.parquet --target 10001 --config config/pair.yaml \\
        --prompt config/prompts/pair.md --merge-prompt config/prompts/merge.md \\
        --llm config/llm.yaml --answers data/answers.db --out data/default/10001/paired

Writes pairs.jsonl (turns with the turn they answer) and unpaired.jsonl (turns with the reason why not).
"""

import operator
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from huiyin.common.errors import UserError, run
from huiyin.common.lazy import polars as pl
from huiyin.common.settings import AtLeast0, AtLeast1, read_settings
from huiyin.common.stage import Stage, arguments, need
from huiyin.common.tables import TURNS, scan_table, write_records
from huiyin.linking.calibration import calibrated_thresholds, held_out_quotes
from huiyin.linking.cases import History
from huiyin.linking.rule import link
from huiyin.llm.client import Client, llm_arguments, read_llm_settings
from huiyin.questions.pairing import NONE, same_words, which_belong_together, which_turn
from huiyin.questions.prompts import read_prompt

MADE_BY = "`make combine` makes it"


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


def decide(case, settings):
    """Decide what is certain; a case left open is a question for the linker, the model or the rule."""
    turn = case.turn
    if settings.method == "empty":
        case.reason = "empty_prompt"
    elif settings.method == "previous":
        if case.previous is None:
            case.reason = "no_candidates"
        else:
            case.decided(case.previous, "previous")
    elif settings.method == "mention":
        naming = [other for other in case.candidates if turn["user_id"] in other["mentions"]]
        if naming:
            case.decided(naming[-1], "mention")
        else:
            case.reason = "none" if case.candidates else "no_candidates"
    # a member who quotes their own turn is continuing it, not replying to anyone
    elif settings.quotes_first and case.quoted and case.quoted["user_id"] != turn["user_id"]:
        case.decided(case.quoted, "quote", 1.0)
    elif settings.quotes_first and turn["quotes_outside"]:
        case.reason = "quotes_outside"
    elif not case.candidates:
        case.reason = "no_candidates"


def cascade(cases, history, settings, ask):
    """Decide the open cases: the linker those it is sure of, then the model, or without a model the rule.

    ask: (name of the work, cases, final) -> the model's answer to each; in a test a failure is not `final`. Return what
    the receipt says: the linker's threshold in each group, and how many held-out quotes rule, linker and model find.
    """
    groups, receipt, found = sorted({case.turn["group_id"] for case in cases}), {}, {}
    quotes = held_out_quotes(history, groups) if settings.quotes_tested else []
    newest = sorted(quotes, key=lambda case: case.turn["time"])[-settings.quotes_tested :]
    tested = [case for case in newest if case.quote_in_reach]
    found["rule"] = [id_of(link(case.turn, case.window, history.named)[0]) for case in tested]
    if settings.linker_alone != "never":
        from huiyin.linking.linker import Linker  # scipy and LightGBM take half a second

        in_reach = [case for case in quotes if case.quote_in_reach]
        open_cases = [case for case in cases if case.open]
        decisions = Linker().decide([*open_cases, *in_reach], history)
        receipt["linker"] = calibrated_thresholds(groups, in_reach, decisions, settings)
        apply_linker(open_cases, decisions, receipt["linker"], settings.min_confidence)
        found["linker"] = [decisions[case.turn["turn_id"]][0] for case in tested]
    open_cases = [case for case in cases if case.open]
    if settings.use_llm:
        apply_answers(open_cases, ask("pair", open_cases), settings.min_confidence)
        answers = ask("pair: held-out quotes", tested, final=False)
        found["llm"] = [id_of(chosen(case, answer)) for case, answer in zip(tested, answers, strict=True)]
    else:
        apply_rule(open_cases, history.named)
    return {**receipt, "quotes": report_on_quotes(len(newest), tested, found)} if quotes else receipt


def apply_linker(cases, decisions, thresholds, min_confidence):
    """Take over what the linker is sure of; the rest of the cases stays open."""
    for case in cases:
        replied_to, confidence = decisions[case.turn["turn_id"]]
        threshold = thresholds[case.turn["group_id"]]["threshold"]
        if threshold is None or confidence < threshold:
            continue
        if replied_to is None:
            case.reason = "none"
        elif confidence < min_confidence:
            case.reason = "low_confidence"
        else:
            prompt = next(other for other in case.candidates if other["turn_id"] == replied_to)
            case.decided(prompt, "linker", confidence)


def apply_answers(cases, answers, min_confidence):
    for case, answer in zip(cases, answers, strict=True):
        if answer is None:
            case.reason = "failed"
        elif answer.value == NONE:
            case.reason = "none"
        elif answer.confidence is not None and answer.confidence < min_confidence:
            case.reason = "low_confidence"
        else:
            case.decided(chosen(case, answer), "llm", answer.confidence)


def chosen(case, answer):
    """Return the candidate that the model has named, None where it has named none."""
    return case.candidates[int(answer.value) - 1] if answer and answer.value != NONE else None


def id_of(turn):
    return turn and turn["turn_id"]


def apply_rule(cases, named):
    for case in cases:
        prompt, confidence = link(case.turn, case.window, named)
        if prompt:
            case.decided(prompt, "rule", confidence)
        else:
            case.reason = "undecided"


def share_decided(cases):
    """Return how many are decided without the model, for its progress."""
    count = Counter(case.decided_by for case in cases)
    return f"{count['quote'] / len(cases):.0%} from quotes, {count['linker'] / len(cases):.0%} from the linker"


def report_on_quotes(count, tested, found):
    """Print and return how many of the held-out quotes `tested` were found; `count`: those out of reach included.

    found: {"rule", "linker", "llm": the ids of the turns that they name, None for none}.
    """
    quoted = [case.turn["reply_to_turn"] for case in tested]
    counts = {f"found_by_{who}": sum(map(operator.eq, quoted, turn_ids)) for who, turn_ids in found.items()}
    names = {"found_by_rule": "the rule", "found_by_linker": "the linker", "found_by_llm": "the model"}
    print(
        f"pair: of {count:,} held-out quotes, {len(tested):,} within the candidates: "
        + ", ".join(f"{names[who]} found {number:,}" for who, number in reversed(counts.items())),
        flush=True,
    )
    return {"tested": count, "in_reach": len(tested), **counts}


def main(argv=None):
    parser = arguments(__doc__, "turns")
    parser.add_argument("--target", required=True, help="user id (QQ number) of the member whose voice is learnt")
    parser.add_argument("--prompt", type=Path, required=True, metavar="FILE", help="prompts/pair.md")
    parser.add_argument("--merge-prompt", type=Path, required=True, metavar="FILE", help="prompts/merge.md")
    llm_arguments(parser)
    args = parser.parse_args(argv)
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
        turns = scan_table(stage.input(need(args.turns, MADE_BY)), TURNS, MADE_BY).collect()
        kept = turns_kept(turns, args.target, settings, stage.ledger)
        if not stage.ledger.read:
            raise UserError(
                f"nobody with the id {args.target} has said anything here; "
                "`make members` lists who is there, put one of those ids into config/target.txt"
            )
        if settings.merge_replies == "llm":
            before = len(kept)
            kept = merged(kept, merge_prompt, settings, client, llm.pair_temperature)
            stage.ledger.merged = before - len(kept)
        history = History(turns, settings.candidates, settings.stop_at_own_turn)
        cases = history.cases(kept)
        for case in cases:
            decide(case, settings)

        def ask(name, asked, final=True):
            shown = settings.characters_shown
            questions = [which_turn(prompt, case.turn, case.window, shown, llm.pair_temperature) for case in asked]
            return client.ask_all(name, questions, share_decided(cases), final)

        if settings.method == "cascade" and cases:
            stage.receipt |= cascade(cases, history, settings, ask)
        pairs = [line_of(case) for case in cases if case.prompt]
        unpaired = [line_of(case) for case in cases if not case.prompt]
        write_records(stage.output("pairs.jsonl"), pairs)
        write_records(stage.output("unpaired.jsonl"), unpaired)
        stage.ledger.written = len(pairs) + len(unpaired)
        stage.receipt["decided_by"] = Counter(line["decided_by"] for line in pairs)
        stage.receipt["unpaired"] = Counter(line["reason"] for line in unpaired)
        stage.receipt |= client.receipt()


if __name__ == "__main__":
    run(main)
