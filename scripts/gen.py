"""Write the missing half of unpaired turns, and make the dataset.

    python scripts/gen.py data/default/10001/paired --turns data/default/combined/turns.parquet \\
        --config config/gen.yaml --prompt config/prompts/gen.md --persona config/prompts/persona.md \\
        --llm config/llm.yaml --answers data/answers.db --out data/default/10001/generated

Writes alpaca.json, alpaca_eval.json, dataset_info.json (as LLaMA-Factory reads them), system.txt and sources.jsonl.
"""

from __future__ import annotations

import huiyin.common.starting  # noqa: F401

import argparse
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from huiyin.common.control import harmless
from huiyin.common.errors import UserError, run
from huiyin.common.lazy import polars as pl
from huiyin.common.settings import AtLeast0, AtLeast1, From1To1000, Share, UpTo1000, read_settings
from huiyin.common.stage import Stage, arguments, need
from huiyin.common.tables import COMMA, ORIGIN, PAIR, TURNS, UNPAIRED, read_records, scan_table, write_records
from huiyin.llm.backend import TooLong
from huiyin.llm.client import Accepted, Client, llm_arguments, read_llm_settings
from huiyin.llm.counting import dry_run_arguments, new_client
from huiyin.questions.batches import batches_of
from huiyin.questions.conversations import Conversation, order, time_of, with_threads
from huiyin.questions.dataset import Record, held_out_rows, redaction_for, training_rows, without_control_tokens
from huiyin.questions.filling import missing_halves, repeated
from huiyin.questions.messages import Separator, joiner, with_messages
from huiyin.questions.prompts import Prompt, name_in_quotes, read_prompt

RESULTS = 4  # to be raised when the same input gives another result
MADE_BY, TURNS_BY = "`make pair` makes it", "`make combine` makes it"
ROUNDS = 3  # in which a prompt is asked for, from the second on alone
RUBBISH_FROM = 20  # prompts, from which the share of the refused ones says something about the model
EVAL_FROM_SAMPLES = 20  # with fewer none is held out
ENOUGH_SAMPLES = 500  # from here on, at least eval_rows_at_least

Made = tuple[Record, Conversation]  # a row, and the samples that it teaches or measures


@dataclass
class Settings:
    fill: bool = True
    min_confidence: Share = 0.0
    batch_size: From1To1000 = 15
    context_turns: UpTo1000 = 3
    characters_shown: AtLeast1 = 100
    max_characters: AtLeast1 = 60
    max_rubbish_share: Share = 0.2
    message_separator: Separator = "\n"
    hide_personal_data: bool = True
    hide_names: bool = False
    history_turns: UpTo1000 = 3
    history_gap_minutes: AtLeast0 = 10
    eval_share: Share = 0.05
    eval_rows_at_least: AtLeast0 = 50
    at_most_same: AtLeast0 = 0

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"default": {}, "seed": {"message_separator": COMMA}}


# ---- The missing half of unpaired turns


def with_context(lines: list[Record], turns: pl.DataFrame, count: int) -> list[tuple[Record, Record, list[Record]]]:
    """Return (line, its turn, the `count` turns of its group before it, oldest first) for the unpaired `lines`."""
    before = [range(line["turn_id"] - count, line["turn_id"]) for line in lines]
    shown = {turn_id for turn_ids in before for turn_id in turn_ids} | {line["turn_id"] for line in lines}
    rows = {row["turn_id"]: row for row in turns.filter(pl.col("turn_id").is_in(list(shown))).iter_rows(named=True)}
    near = [[rows[turn_id] for turn_id in turn_ids if turn_id in rows] for turn_ids in before]
    return [
        (line, rows[line["turn_id"]], [turn for turn in others if turn["group_id"] == line["group_id"]])
        for line, others in zip(lines, near, strict=True)
    ]


def fill(
    lines: list[Record], turns: pl.DataFrame, prompt: Prompt, settings: Settings, client: Client, rounds: int
) -> tuple[dict[int, str], dict[str, float]]:
    """Return {turn_id: the prompt that the model wrote} of those of `lines` for which it wrote a good one, and {reason:
    share of the first prompts that were refused for it}. What a batch leaves out is asked for again, each alone; a
    batch that does not fit is halved. rounds: in which prompts are asked for.

    The answer cache gets each prompt as the answer to a question of its own: with turns before and after it that were
    not there the last time, a turn is in another batch."""
    items = with_context(lines, turns, settings.context_turns)
    temperature = client.settings.gen_temperature
    alone = {
        item[0]["turn_id"]: replace(missing_halves(prompt, [item], settings, temperature, 0, {}), time=item[1]["time"])
        for item in items
    }
    recalled = zip(alone, client.recall("gen", list(alone.values())), strict=True)
    known = {turn_id: answer.value[0] for turn_id, answer in recalled if isinstance(answer, Accepted)}
    written, shares = dict(known), dict[str, float]()
    for round_ in range(rounds):
        missing = [item for item in items if item[0]["turn_id"] not in written]
        refused: dict[int, str] = {}  # {turn_id: why}
        batches = batches_of(missing, 1 if round_ else settings.batch_size, lambda item: item[1])
        while batches:
            questions = [missing_halves(prompt, batch, settings, temperature, round_, refused) for batch in batches]
            answers = client.ask_all("gen", questions, final=False)
            too_long = [batch for batch, answer in zip(batches, answers, strict=True) if answer is TooLong]
            for batch, answer in zip(batches, answers, strict=True):
                if isinstance(answer, Accepted):
                    written |= {batch[index][0]["turn_id"]: text for index, text in answer.value.items()}
            if any(len(batch) == 1 for batch in too_long):
                raise UserError(
                    "even a single question does not fit into the context of the model; "
                    "raise num_ctx in llm.yaml or lower characters_shown in gen.yaml"
                )
            batches = [half for batch in too_long for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :])]
        for turn_id in repeated(written):  # by several answers
            refused[turn_id] = "same"
            del written[turn_id]
        if not round_:
            shares = shares_refused(refused, len(written), settings)
    client.remember((alone[turn_id], {"1": text}) for turn_id, text in written.items() if turn_id not in known)
    client.check_failures(len(lines) - len(written), len(lines))
    return written, shares


def words_for(turn_id: int) -> str:
    """Return a prompt, another one for each turn, of a usual length: of what the model would write in its place only
    the length counts."""
    return f"{chr(0x4E00 + turn_id % 20_000)}{chr(0x4E00 + turn_id // 20_000)}什么意思"


def shares_refused(refused: dict[int, str], good: int, settings: Settings) -> dict[str, float]:
    """Return {reason: share of the prompts that were refused for it}; `UserError` if there are too many.

    refused: {turn_id: reason}. good: number of the other prompts that were written, or are in the answer cache.
    """
    counts, total = Counter(refused.values()), len(refused) + good
    if total >= RUBBISH_FROM and len(refused) > settings.max_rubbish_share * total:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common())
        raise UserError(
            f"{len(refused):,} of {total:,} prompts that the model wrote are rubbish ({reasons}), more than "
            "max_rubbish_share in gen.yaml allows; take a larger model in llm.yaml"
        )
    return {reason: round(count / total, 4) for reason, count in sorted(counts.items())}


# ---- The rows of the dataset


def held_out(samples: int, settings: Settings) -> int:
    """Return how many of so many samples are held out for evaluation: the latest."""
    if samples < EVAL_FROM_SAMPLES:
        return 0
    least = settings.eval_rows_at_least if samples >= ENOUGH_SAMPLES else 0
    return min(samples, max(round(samples * settings.eval_share), least))


def newest_of_each_reply(samples: list[Record], count: int) -> list[Record]:
    """Return of the samples with the same reply, whatever the prompt, the newest `count`; `samples` are sorted."""
    left: Counter[str] = Counter()
    kept = []
    for sample in reversed(samples):
        left[sample["reply"]] += 1
        if left[sample["reply"]] <= count:
            kept.append(sample)
    return kept[::-1]


def without_duplicates(samples: list[Record], system: str, settings: Settings) -> list[list[Made]]:
    """Return the rows [training, evaluation] of the samples, each with its own; of equal rows the first stays."""
    while True:
        cut = len(samples) - held_out(len(samples), settings)
        made = training_rows(samples[:cut], system, settings), held_out_rows(samples[cut:], system, settings)
        first: dict[str, Made] = {}
        for row, of_row in made[0] + made[1]:
            first.setdefault(json.dumps(row), (row, of_row))
        if len(first) == len(made[0]) + len(made[1]):
            return list(made)
        # with fewer samples others are held out, and their history differs, so that rows may be equal now
        samples = sorted((sample for _, of_row in first.values() for sample in of_row), key=order)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


# ---- The stage


def read_inputs(args: argparse.Namespace, stage: Stage) -> tuple[list[Record], list[Record], pl.DataFrame, Record]:
    """Return pairs, unpaired turns, all turns, and the member's newest turn."""
    files = [stage.input(need(args.paired / name, MADE_BY)) for name in ("pairs.jsonl", "unpaired.jsonl")]
    path = stage.input(need(args.turns, TURNS_BY))
    stage.stop_if_done()
    pairs, unpaired = (read_records(file, kind, MADE_BY) for file, kind in zip(files, (PAIR, UNPAIRED), strict=True))
    if not pairs and not unpaired:
        raise UserError(f"{args.paired}: no turns to make a dataset of")
    turns = scan_table(path, TURNS, TURNS_BY).drop("times", "mentioned").collect()  # the linker alone needs these
    newest = max([*pairs, *unpaired], key=time_of)["turn_id"]
    ids = [line["turn_id"] for line in unpaired]
    named = {turn_id for line in pairs for turn_id in (line["turn_id"], line["prompt_turn_id"])}
    if len(set(ids)) < len(ids) or max(named.union(ids)) >= len(turns):  # a turn's id is its place
        raise UserError(f"{args.paired}: lines that stand there twice, or not of turns in {args.turns}; {MADE_BY}")
    return pairs, unpaired, turns, turns.row(by_predicate=pl.col("turn_id") == newest, named=True)


def system_text(persona: Prompt, newest: Record) -> tuple[str, bool]:
    """Return the system text, and whether it would hold a control token if nothing were done about it."""
    plain = persona.fill(name=newest["nickname"])[1]
    return harmless(persona.fill(name=name_in_quotes(newest))[1]), harmless(plain) != plain


def write_dataset(stage: Stage, rows: list[list[Made]], system: str) -> None:
    """Write the five files; rows: [training, evaluation]."""
    for name, part in zip(("alpaca.json", "alpaca_eval.json"), rows, strict=True):
        write_json(stage.output(name), [row for row, _ in part])
    # which field of a row is what; all ASCII, since LLaMA-Factory opens this one without naming an encoding
    fields = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
    info = {name: {"file_name": f"{name}.json", "columns": fields} for name in ("alpaca", "alpaca_eval")}
    write_json(stage.output("dataset_info.json"), info)
    stage.output("system.txt").write_text(system, encoding="utf-8")
    write_records(stage.output("sources.jsonl"), (source(row, made) for row, (_, made) in enumerate(rows[0] + rows[1])))


def times(rows: list[list[Made]]) -> dict[str, str]:
    """Return, for the receipt, until when there are samples to learn from, and from when on samples are held out."""
    learnt, measured = ([sample for _, of_row in part for sample in of_row] for part in rows)
    return {
        **({"learnt_until": max(learnt, key=order)["time"]} if learnt else {}),
        **({"held_out_from": min(measured, key=order)["time"]} if measured else {}),
    }


def source(row: int, samples: Conversation) -> Record:
    """Return the line of sources.jsonl of a row with these samples."""
    origins = [{key: sample.get(key) for key in ORIGIN} for sample in samples]
    return {"row": row, **origins[-1], "samples": origins}


def main(argv: list[str] | None = None) -> None:  # noqa: PLR0914 the stage, from its arguments to its receipt
    parser = arguments(__doc__, "paired")
    parser.add_argument("--turns", type=Path, required=True, metavar="FILE", help="turns.parquet of combine")
    parser.add_argument("--prompt", type=Path, required=True, metavar="FILE", help="prompts/gen.md")
    parser.add_argument("--persona", type=Path, required=True, metavar="FILE", help="the system text")
    llm_arguments(parser)
    dry_run_arguments(parser)
    args = parser.parse_args(argv)
    settings, llm = read_settings(args.config, Settings), read_llm_settings(args)
    prompt = read_prompt(args.prompt, ["name", "items"], optional=["name"])
    persona = read_prompt(args.persona, ["name"])

    with (
        Stage("gen", args.out, RESULTS, packages=["polars", "requests", "phonenumberslite", "python-stdnum"]) as stage,
        new_client(args, llm) as client,
    ):
        stage.use(args.config, settings)
        stage.use(args.llm, llm)
        for file in (args.prompt, args.persona):
            stage.after(stage.input(file))
        pairs, unpaired, turns, newest = read_inputs(args, stage)
        stage.ledger.read = len(pairs) + len(unpaired)
        stage.receipt["newest_turn"], client.known_until = newest["time"].isoformat(), stage.earlier.get("newest_turn")
        least = settings.min_confidence
        kept = [line for line in pairs if not least or line["confidence"] is None or line["confidence"] >= least]
        if least:
            stage.ledger.dropped["doubtful"] = len(pairs) - len(kept)
        written: dict[int, str] = {}
        if settings.fill:
            rounds = 1 if args.dry_run else ROUNDS
            written, stage.receipt["rubbish"] = fill(unpaired, turns, prompt, settings, client, rounds)
            if args.dry_run:
                written = {line["turn_id"]: words_for(line["turn_id"]) for line in unpaired} | written
        stage.ledger.dropped["failed" if settings.fill else "unfilled"] = len(unpaired) - len(written)
        answered = [line for line in unpaired if line["turn_id"] in written]
        samples = kept + [{**line, "prompt": written[line["turn_id"]], "decided_by": "written"} for line in answered]
        hide = redaction_for(turns, settings.hide_names) if settings.hide_personal_data else None
        samples = with_messages(samples, turns, joiner(settings.message_separator, hide or str))
        samples = sorted(with_threads(samples, turns), key=order)
        if hide:
            stage.receipt["personal_data"] = hide.counts
        if settings.at_most_same:
            count, samples = len(samples), newest_of_each_reply(samples, settings.at_most_same)
            stage.ledger.dropped["formula"] = count - len(samples)
        samples, changed = without_control_tokens(samples)
        system, system_changed = system_text(persona, newest)
        stage.receipt["made_harmless"] = changed + system_changed
        rows = without_duplicates(samples, system, settings)
        stage.ledger.written = len(rows[0]) + len(rows[1])
        used = sum(len(of_row) for part in rows for _, of_row in part)
        stage.ledger.merged = used - stage.ledger.written
        stage.ledger.dropped["duplicate"] = len(samples) - used
        write_dataset(stage, rows, system)
        client.say_share_of_old("gen")
        stage.receipt |= {**times(rows), **client.receipt()}


if __name__ == "__main__":
    run(main)
