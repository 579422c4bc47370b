"""Write the missing half of unpaired turns, and make the dataset.

    python scripts/gen.py data/default/10001/paired --turns data/default/combined/turns.parquet \\
        --config config/gen.yaml --prompt config/prompts/gen.md --persona config/prompts/persona.md \\
        --llm config/llm.yaml --answers data/answers.db --out data/default/10001/generated

Writes alpaca.json, alpaca_eval.json, dataset_info.json (as LLaMA-Factory reads them), system.txt and sources.jsonl.
"""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar

from huiyin.common.errors import UserError, run
from huiyin.common.lazy import polars as pl
from huiyin.common.settings import AtLeast0, AtLeast1, read_settings
from huiyin.common.stage import Stage, arguments, need
from huiyin.common.tables import PAIR, SOURCE, TURNS, UNPAIRED, read_records, scan_table, write_records
from huiyin.llm.backend import TooLong
from huiyin.llm.client import Accepted, Client, llm_arguments, read_llm_settings
from huiyin.questions.filling import missing_halves
from huiyin.questions.prompts import name_of, read_prompt
from huiyin.questions.redaction import Redaction

MADE_BY, TURNS_BY = "`make pair` makes it", "`make combine` makes it"
SMALLER = 4  # what a batch leaves out is asked for again in batches of a quarter the size
ROUNDS = 3
EVAL_SHARE = 0.05
EVAL_FROM_SAMPLES = 20


@dataclass
class Settings:
    fill: bool = True
    min_confidence: float = 0.0
    batch_size: AtLeast1 = 15
    context_turns: AtLeast0 = 3
    characters_shown: AtLeast1 = 100
    max_characters: AtLeast1 = 60
    hide_personal_data: bool = True
    hide_names: bool = False
    history_turns: AtLeast0 = 3
    history_gap_minutes: AtLeast0 = 10

    PRESETS: ClassVar = {"default": {}}


def context_of(lines, turns, settings):
    """Return {turn_id: the few turns before it, oldest first} for the unpaired `lines`."""
    near = {first: range(first - settings.context_turns, first) for first in (line["turn_ids"][0] for line in lines)}
    looked_at = {place for places in near.values() for place in places}
    rows = {row["turn_id"]: row for row in turns.filter(pl.col("turn_id").is_in(list(looked_at))).iter_rows(named=True)}
    return {
        line["turn_id"]: [
            rows[place]
            for place in near[line["turn_ids"][0]]
            if place in rows and rows[place]["group_id"] == line["group_id"]
        ]
        for line in lines
    }


def fill(lines, turns, name, prompt, settings, client, temperature):
    """Return {turn_id: the prompt the model has written} for those of `lines` for which it has written a good one."""
    contexts = context_of(lines, turns, settings)
    missing, written = [(line, contexts[line["turn_id"]]) for line in lines], {}
    for round_ in range(ROUNDS):
        size = max(1, settings.batch_size // SMALLER**round_)
        batches = [missing[start : start + size] for start in range(0, len(missing), size)]
        while batches:
            questions = [missing_halves(prompt, batch, name, settings, temperature, round_) for batch in batches]
            answers = client.ask_all("gen", questions, final=False)
            too_long = [batch for batch, answer in zip(batches, answers, strict=True) if answer is TooLong]
            if any(len(batch) == 1 for batch in too_long):
                raise UserError(
                    "even a single question does not fit into the context of the model; "
                    "raise num_ctx in llm.yaml or lower characters_shown in gen.yaml"
                )
            for batch, answer in zip(batches, answers, strict=True):
                good = answer.value if isinstance(answer, Accepted) else {}
                written |= {batch[place][0]["turn_id"]: text for place, text in good.items()}
            batches = [half for batch in too_long for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :])]
        missing = [item for item in missing if item[0]["turn_id"] not in written]
    client.check_failures(len(missing), len(lines))
    return written


def without_duplicates(samples, system, settings):
    """Return the dataset rows (training, evaluation), and the samples they come from; equal rows stay once."""
    while True:
        cut = len(samples) - (round(len(samples) * EVAL_SHARE) if len(samples) >= EVAL_FROM_SAMPLES else 0)
        rows = [rows_of(part, system, settings) for part in (samples[:cut], samples[cut:])]
        first = {}
        for place, row in enumerate(rows[0] + rows[1]):
            first.setdefault(json.dumps(row), place)
        if len(first) == len(samples):
            return rows, samples
        samples = [samples[place] for place in first.values()]  # which changes the history of others, so once more


def rows_of(samples, system, settings):
    """Return the dataset rows of one split; `samples` are sorted by time, `history` never leaves the split."""
    gap, earlier, rows = timedelta(minutes=settings.history_gap_minutes), {}, []
    for sample in samples:
        chain = earlier.setdefault(sample["group_id"], [])
        if chain and moment(sample) - moment(chain[-1]) >= gap:
            chain.clear()
        history = chain[-settings.history_turns :] if settings.history_turns else []
        rows.append(
            {
                "instruction": sample["prompt"],
                "input": "",
                "output": sample["reply"],
                "system": system,
                "history": [[old["prompt"], old["reply"]] for old in history],
            }
        )
        chain.append(sample)
    return rows


def redaction_for(turns, settings):
    """Return the Redaction that knows the accounts of this history, and its names if they are to go, too."""
    ids = [turns["user_id"], turns["group_id"], turns["mentions"].explode()]
    accounts = pl.concat([column.drop_nulls().unique() for column in ids]).to_list()
    return Redaction(accounts, turns["nickname"].unique().to_list() if settings.hide_names else ())


def moment(sample):
    return datetime.fromisoformat(sample["time"])


def dataset_info():
    columns = {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "system": "system",
        "history": "history",
    }
    return {name: {"file_name": f"{name}.json", "columns": columns} for name in ("alpaca", "alpaca_eval")}


def write_json(path, content, ascii_only=False):
    path.write_text(json.dumps(content, ensure_ascii=ascii_only, indent=1) + "\n", encoding="utf-8")


def main(argv=None):
    parser = arguments(__doc__, "paired")
    parser.add_argument("--turns", type=Path, required=True, metavar="FILE", help="turns.parquet of combine")
    parser.add_argument("--prompt", type=Path, required=True, metavar="FILE", help="prompts/gen.md")
    parser.add_argument("--persona", type=Path, required=True, metavar="FILE", help="the system text")
    llm_arguments(parser)
    args = parser.parse_args(argv)
    settings = read_settings(args.config, Settings)
    llm = read_llm_settings(args)
    prompt = read_prompt(args.prompt, ["name", "items"])
    persona = read_prompt(args.persona, ["name"])

    with (
        Stage("gen", args.out, packages=["polars", "requests", "phonenumberslite", "python-stdnum"]) as stage,
        Client(llm, args.ollama_url, args.answers) as client,
    ):
        stage.use(args.config, settings), stage.use(args.llm, llm)
        stage.input(args.prompt), stage.input(args.persona)
        pairs = read_records(stage.input(need(args.paired / "pairs.jsonl", MADE_BY)), PAIR, MADE_BY)
        unpaired = read_records(stage.input(need(args.paired / "unpaired.jsonl", MADE_BY)), UNPAIRED, MADE_BY)
        if not pairs and not unpaired:
            raise UserError(f"{args.paired}: no turns to make a dataset of")
        turns = scan_table(stage.input(need(args.turns, TURNS_BY)), TURNS, TURNS_BY).collect()
        newest = max([*pairs, *unpaired], key=moment)["turn_id"]
        name = name_of(turns.row(by_predicate=pl.col("turn_id") == newest, named=True))

        stage.ledger.read = len(pairs) + len(unpaired)
        sure = pairs
        if settings.min_confidence:
            sure = [
                line for line in pairs if line["confidence"] is None or line["confidence"] >= settings.min_confidence
            ]
            stage.ledger.dropped["doubtful"] = len(pairs) - len(sure)
        written = {}
        if settings.fill:
            written = fill(unpaired, turns, name, prompt, settings, client, llm.gen_temperature)
            stage.ledger.dropped["failed"] = len(unpaired) - len(written)
        else:
            stage.ledger.dropped["unfilled"] = len(unpaired)
        filled = [
            {**line, "prompt": written[line["turn_id"]], "decided_by": "written"}
            for line in unpaired
            if line["turn_id"] in written
        ]
        samples = sorted(sure + filled, key=lambda line: (line["time"], line["turn_id"]))
        if settings.hide_personal_data:
            hide = redaction_for(turns, settings)
            samples = [
                {**sample, "prompt": hide(sample["prompt"]), "reply": hide(sample["reply"])} for sample in samples
            ]
            stage.receipt["personal_data"] = hide.counts

        system = persona.fill(name=name)[1]
        if '"""' in system:
            raise UserError(
                f"{args.persona} or the name {name}: three quotes in a row cannot stand in a Modelfile; take them out"
            )
        rows, kept = without_duplicates(samples, system, settings)
        stage.ledger.dropped["duplicate"] = len(samples) - len(kept)
        write_json(stage.output("alpaca.json"), rows[0])
        write_json(stage.output("alpaca_eval.json"), rows[1])
        # LLaMA-Factory opens this one without naming an encoding
        write_json(stage.output("dataset_info.json"), dataset_info(), ascii_only=True)
        stage.output("system.txt").write_text(system, encoding="utf-8")
        sources = ({**sample, "row": row} for row, sample in enumerate(kept))
        write_records(stage.output("sources.jsonl"), ({key: of.get(key) for key in SOURCE} for of in sources))
        stage.ledger.written = len(kept)
        stage.receipt |= client.receipt()


if __name__ == "__main__":
    run(main)
