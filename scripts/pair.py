"""Decide which turn each turn of the member (the target) replies to.

    python scripts/pair.py data/default/combined/turns.parquet --target 10001 --config config/pair.yaml \\
        --prompt config/prompts/pair.md --merge-prompt config/prompts/merge.md \\
        --llm config/llm.yaml --answers data/answers.db --out data/default/10001/paired

Writes pairs.jsonl (turns with the turn they reply to) and unpaired.jsonl (turns without one, with the reason).
"""

from __future__ import annotations

import huiyin.common.starting  # noqa: F401

import operator
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from huiyin.common.errors import UserError, run
from huiyin.common.settings import AtLeast0, AtLeast1, From1To1000, Share, read_settings
from huiyin.common.stage import Stage, arguments, need
from huiyin.common.tables import TURNS, other_ids, scan_table, write_records
from huiyin.linking.calibration import calibrated_thresholds, held_out_quotes
from huiyin.linking.cases import Case, History, Turn
from huiyin.linking.pairing import apply_linker, decide_by_quote, record_of, turns_of
from huiyin.linking.rule import link
from huiyin.llm.client import Accepted, Client, llm_arguments, read_llm_settings
from huiyin.llm.counting import dry_run_arguments, new_client
from huiyin.questions.batches import batches_of
from huiyin.questions.pairing import NONE, same_words, which_belong_together, which_turn
from huiyin.questions.prompts import Prompt, read_prompt

RESULTS = 2  # to be raised when the same input gives another result
MADE_BY = "`make combine` makes it"
ONE_POSITION_FROM, ONE_POSITION_SHARE = 20, 2 / 3  # answers, and the share of them that is no judgement any more
OF_MESSAGES = ["message_ids", "texts", "times", "mentioned"]  # what a turn has for each of its messages
COLUMNS = ["turn_id", "group_id", "user_id", "nickname", "time", "text", "mentions", "reply_to_turn", "quotes_outside"]
COLUMNS += OF_MESSAGES  # that are read: a history has millions of turns


@dataclass
class Settings:
    method: Literal["cascade", "previous", "mention", "empty"] = "cascade"
    use_llm: bool = True
    candidates: From1To1000 = 10
    stop_at_own_turn: bool = False
    quotes_first: bool = True
    quotes_tested: AtLeast0 = 200
    linker_alone: Literal["auto", "always", "never"] = "auto"
    linker_threshold: Share = 0.8
    min_confidence: Share = 0.0
    merge_replies: Literal["rule", "llm"] = "rule"
    batch_size: From1To1000 = 20
    newest: AtLeast0 = 20_000
    characters_shown: AtLeast1 = 200

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "seed": {"stop_at_own_turn": True, "quotes_first": False, "quotes_tested": 0, "linker_alone": "never"},
    }


def merged(kept: list[Turn], prompt: Prompt, settings: Settings, client: Client, temperature: float) -> list[Turn]:
    """Let the model decide which neighbours in `kept` are one turn; return the turns, fewer or as many."""
    batches = batches_of(kept, settings.batch_size, lambda turn: turn)
    several = [batch for batch in batches if len(batch) > 1]
    questions = [which_belong_together(prompt, batch, temperature) for batch in several]
    answers: list[Any] = client.ask_all("pair: turns that belong together", questions)
    for batch, answer in zip(several, answers, strict=True):
        for first, last, text in reversed(answer.value if answer else []):
            parts = batch[first : last + 1]
            if same_words([part["text"] for part in parts], text):
                batch[first : last + 1] = [as_one(parts, text)]
    return [turn for batch in batches for turn in batch]


def as_one(parts: Sequence[Turn], text: str) -> Turn:
    """Return the turn that `parts` become; it has the position of the first of them."""
    quoted = [part["reply_to_turn"] for part in parts if part["reply_to_turn"] is not None]
    return {
        **parts[0],
        "text": text,
        **{name: [item for part in parts for item in part[name]] for name in ("turn_ids", *OF_MESSAGES)},
        "mentions": list(dict.fromkeys(user for part in parts for user in part["mentions"])),
        "reply_to_turn": quoted[0] if quoted else None,
        "quotes_outside": any(part["quotes_outside"] for part in parts),
    }


def decide(case: Case, settings: Settings) -> None:
    """Decide what is certain; the linker, the model or the rule decides the cases that stay open."""
    turn = case.turn
    if settings.method == "empty":
        case.reason = "empty_prompt"
    elif settings.method == "previous":
        case.decide(case.previous, "previous", otherwise="no_candidates")
    elif settings.method == "mention":
        naming = [other for other in case.candidates if turn["user_id"] in other["mentions"]]
        otherwise = "none" if case.candidates else "no_candidates"
        case.decide(naming[-1] if naming else None, "mention", otherwise=otherwise)
    else:
        decide_by_quote(case, settings.quotes_first)


def cascade(
    cases: list[Case],
    history: History,
    settings: Settings,
    ask: Callable[[str, list[Case], int], list[Any]],
    earlier: Mapping[str, Any],
) -> dict[str, Any]:
    """Decide the open cases: the linker those it is confident about, then the model, or without a model the rule.

    ask: (name of the work, cases, number of cases in all calls) -> the model's answer to each. earlier: the thresholds
    of the last time, which stay if they still do. Return the entries of
    the receipt: the linker's threshold in each group, and how many held-out quotes rule, linker and model find.
    """
    groups = sorted({case.turn["group_id"] for case in cases})
    receipt: dict[str, Any] = {}
    predicted: dict[str, list[int | None]] = {}
    quotes = held_out_quotes(history, groups) if settings.quotes_tested else []
    newest = sorted(quotes, key=lambda case: case.turn["time"])[-settings.quotes_tested :]
    tested = [case for case in newest if case.quotes_a_candidate]
    predicted["rule"] = [id_of(link(case.turn, case.window, history.named)[0]) for case in tested]
    if settings.linker_alone != "never":
        from huiyin.linking.linker import Linker  # scipy and LightGBM take half a second

        findable = [case for case in quotes if case.quotes_a_candidate]
        open_cases = [case for case in cases if case.open]
        decisions = Linker().decide_cases([*open_cases, *findable], history)
        receipt["linker"] = calibrated_thresholds(groups, findable, decisions, settings, earlier)
        apply_linker(open_cases, decisions, receipt["linker"], settings.min_confidence)
        predicted["linker"] = [decisions[case.turn["turn_id"]][0] for case in tested]
    open_cases = [case for case in cases if case.open]
    if settings.use_llm:
        total = len(open_cases) + len(tested)
        for case, answer in zip(open_cases, ask("pair", open_cases, total), strict=True):
            if answer:
                case.decide(chosen(case, answer), "llm", answer.confidence, settings.min_confidence)
            else:
                case.reason = "failed"
        answers = ask("pair: held-out quotes", tested, total)
        predicted["llm"] = [id_of(chosen(case, answer)) for case, answer in zip(tested, answers, strict=True)]
    else:
        by_rule(open_cases, history)
    return {**receipt, "quotes": report_on_quotes(len(newest), tested, predicted)} if quotes else receipt


def by_rule(cases: list[Case], history: History) -> None:
    for case in cases:
        prompt, confidence = link(case.turn, case.window, history.named)
        case.decide(prompt, "rule", confidence, otherwise="undecided")


def decide_unasked(cases: list[Case], history: History, choices: list[str]) -> None:
    """Decide cases that a dry run has not asked about: each position as often as the model chose it elsewhere, which
    are the `choices`; without these by the rule."""
    if not choices:
        return by_rule(cases, history)
    for place, case in enumerate(cases):
        choice = choices[place * len(choices) // len(cases)]
        number = 0 if choice == NONE else int(choice)
        case.decide(case.candidates[number - 1] if 0 < number <= len(case.candidates) else None, "llm")


def chosen(case: Case, answer: Any) -> Turn | None:
    """Return the candidate that the model has chosen, or None if it has chosen none."""
    return case.candidates[int(answer.value) - 1] if answer and answer.value != NONE else None


def id_of(turn: Turn | None) -> int | None:
    return turn["turn_id"] if turn else None


def share_decided(cases: Sequence[Case]) -> str:
    """Return which share is decided without the model, for its progress."""
    count = Counter(case.decided_by for case in cases)
    return f"{count['quote'] / len(cases):.0%} from quotes, {count['linker'] / len(cases):.0%} from the linker"


def report_on_quotes(
    count: int, tested: Sequence[Case], predicted: Mapping[str, Sequence[int | None]]
) -> dict[str, int]:
    """Print and return how many of the held-out quotes `tested` were found.

    count: the number of quotes, with those that quote no candidate; predicted: "rule", "linker", "llm" -> the ids of
    the turns that they found, None for none.
    """
    quoted = [case.turn["reply_to_turn"] for case in tested]
    counts = {f"found_by_{who}": sum(map(operator.eq, quoted, turn_ids)) for who, turn_ids in predicted.items()}
    names = {"found_by_rule": "the rule", "found_by_linker": "the linker", "found_by_llm": "the model"}
    print(
        f"pair: of {count:,} held-out quotes, {len(tested):,} within the candidates: "
        + ", ".join(f"{names[who]} found {number:,}" for who, number in reversed(counts.items())),
        flush=True,
    )
    return {"tested": count, "in_reach": len(tested), **counts}


def by_position(choices: Counter[str]) -> dict[str, int]:
    """Return {position: how often the model chose it}, in their order, NONE last; warn if it is nearly always one."""
    total, (position, count) = choices.total(), choices.most_common(1)[0]
    if total >= ONE_POSITION_FROM and count > ONE_POSITION_SHARE * total:
        print(
            f"WARNING: the model answered {position} to {count:,} of {total:,} questions, so it may not have judged at "
            "all; take a larger model in llm.yaml, or say use_llm: false in pair.yaml",
            file=sys.stderr,
            flush=True,
        )
    return {name: choices[name] for name in sorted(choices, key=lambda name: (name == NONE, len(name), name))}


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "turns")
    parser.add_argument("--target", required=True, help="user id (QQ number) of the member to imitate")
    parser.add_argument("--prompt", type=Path, required=True, metavar="FILE", help="prompts/pair.md")
    parser.add_argument("--merge-prompt", type=Path, required=True, metavar="FILE", help="prompts/merge.md")
    llm_arguments(parser)
    dry_run_arguments(parser)
    args = parser.parse_args(argv)
    settings = read_settings(args.config, Settings)
    llm = read_llm_settings(args)
    prompt = read_prompt(args.prompt, ["name", "context", "reply"])
    merge_prompt = read_prompt(args.merge_prompt, ["context"])

    with (
        Stage("pair", args.out, RESULTS, packages=["polars", "requests", "lightgbm", "numpy"]) as stage,
        new_client(args, llm) as client,
    ):
        stage.use(args.config, settings), stage.use(args.llm, llm)
        for file in (args.prompt, args.merge_prompt):
            stage.after(stage.input(file))
        stage.input(need(args.turns, MADE_BY))
        stage.depends_on(args.target)
        stage.stop_if_done()
        client.known_until = stage.earlier.get("newest_turn")
        turns = scan_table(args.turns, {name: TURNS[name] for name in COLUMNS}, MADE_BY).collect()
        kept, counts = turns_of(turns, other_ids(args.turns).get(args.target, args.target), settings.newest)
        stage.ledger.read = counts.pop("read")
        stage.ledger.dropped.update(counts)
        if not stage.ledger.read:
            raise UserError(
                f"nobody with the id {args.target} has written anything here; "
                "`make members` lists who is there, take one of those ids as TARGET"
            )
        if settings.merge_replies == "llm":
            before = len(kept)
            kept = merged(kept, merge_prompt, settings, client, llm.pair_temperature)
            stage.ledger.merged = before - len(kept)
        history = History(turns, settings.candidates, settings.stop_at_own_turn)
        cases = history.cases(kept)
        for case in cases:
            decide(case, settings)

        choices: Counter[str] = Counter()  # of the model

        def ask(name: str, asked: list[Case], total: int) -> list[Any]:
            shown = settings.characters_shown
            questions = [which_turn(prompt, case.turn, case.window, shown, llm.pair_temperature) for case in asked]
            answers = client.ask_all(name, questions, share_decided(cases), total=total)
            choices.update(answer.value for answer in answers if isinstance(answer, Accepted))
            return answers

        if settings.method == "cascade" and cases:
            stage.receipt |= cascade(cases, history, settings, ask, stage.earlier.get("linker", {}))
        if args.dry_run:
            decide_unasked([case for case in cases if case.reason == "failed"], history, list(choices.elements()))
        if choices:
            stage.receipt["choices_by_position"] = by_position(choices)
        pairs = [record_of(case) for case in cases if case.prompt]
        unpaired = [record_of(case) for case in cases if not case.prompt]
        write_records(stage.output("pairs.jsonl"), pairs)
        write_records(stage.output("unpaired.jsonl"), unpaired)
        stage.ledger.written = len(pairs) + len(unpaired)
        stage.receipt |= {
            "decided_by": Counter(record["decided_by"] for record in pairs),
            "unpaired": Counter(record["reason"] for record in unpaired),
            "newest_turn": max((record["time"] for record in pairs + unpaired), default=None),
            **client.receipt(),
        }
        client.say_share_of_old("pair")


if __name__ == "__main__":
    run(main)
