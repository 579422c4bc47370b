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

import polars as pl

from common.errors import Mistake, run
from common.settings import read_settings
from common.stage import Stage, arguments, need
from llm.client import Client, Question, llm_arguments, open_backend, read_llm_settings
from llm.prompts import one_line, read_prompt

NAME_CHARACTERS = 30
TOKENS_PER_CHARACTER = 3  # a byte-level vocabulary writes a Chinese character in up to 3 tokens
EVAL_SHARE = 0.05
EVAL_FROM_SAMPLES = 20


@dataclass
class Settings:
    fill: bool = True
    context_turns: int = 5
    characters_shown: int = 200
    max_characters: int = 60
    history_turns: int = 3
    history_gap_minutes: int = 10

    PRESETS: ClassVar = {"default": {}}


def read_lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def context_of(lines, turns, settings):
    """Return {turn_id: the few turns before it, oldest first} for the unpaired `lines`."""
    near = {first: range(first - settings.context_turns, first) for first in (line["turn_ids"][0] for line in lines)}
    looked_at = {place for places in near.values() for place in places}
    rows = {row["turn_id"]: row for row in
            turns.filter(pl.col("turn_id").is_in(list(looked_at))).iter_rows(named=True)}
    return {line["turn_id"]: [rows[place] for place in near[line["turn_ids"][0]]
                              if place in rows and rows[place]["group_id"] == line["group_id"]] for line in lines}


def question_about(line, context, name, prompt, settings, temperature):
    """Return the Question: what could somebody have said that `line["reply"]` answers?"""
    shown = [f"{one_line(turn['nickname'], NAME_CHARACTERS)}：{one_line(turn['text'], settings.characters_shown)}"
             for turn in context]

    def accept(answer):
        text = " ".join(answer["text"].split())
        if not text or text == line["reply"] or len(text) > settings.max_characters:
            raise ValueError("empty, too long, or only the reply again")
        return text

    text = prompt.substitute(name=name, context="\n".join(shown) or "（没有）",
                             reply=one_line(line["reply"], settings.characters_shown))
    said = {"type": "string", "minLength": 1, "maxLength": settings.max_characters}
    schema = {"type": "object", "properties": {"text": said}, "required": ["text"], "additionalProperties": False}
    return Question(text, schema, accept, temperature, settings.max_characters * TOKENS_PER_CHARACTER + 40)


def fill(lines, turns, name, prompt, settings, llm, args):
    """Return ({turn_id: written prompt}, what the receipt says of the model)."""
    client = Client(open_backend(llm, args.ollama_url), llm.parallel, args.answers)
    contexts = context_of(lines, turns, settings)
    questions = [question_about(line, contexts[line["turn_id"]], name, prompt, settings, llm.gen_temperature)
                 for line in lines]
    answers = client.ask_all("gen", questions)
    client.close()
    written = {line["turn_id"]: text for line, text in zip(lines, answers, strict=True) if text}
    return written, {"model": client.model, **client.counts}


def rows_of(samples, system, settings):
    """Return the dataset rows of one split; `samples` are sorted by time, `history` never leaves the split."""
    gap, earlier, rows = timedelta(minutes=settings.history_gap_minutes), {}, []
    for sample in samples:
        chain = earlier.setdefault(sample["group_id"], [])
        if chain and moment(sample) - moment(chain[-1]) >= gap:
            chain.clear()
        history = chain[-settings.history_turns:] if settings.history_turns else []
        rows.append({"instruction": sample["prompt"], "input": "", "output": sample["reply"], "system": system,
                     "history": [[old["prompt"], old["reply"]] for old in history]})
        chain.append(sample)
    return rows


def moment(sample):
    return datetime.fromisoformat(sample["time"])


def dataset_info():
    columns = {"prompt": "instruction", "query": "input", "response": "output",
               "system": "system", "history": "history"}
    return {name: {"file_name": f"{name}.json", "columns": columns} for name in ("alpaca", "alpaca_eval")}


def write_json(path, content, ascii_only=False):
    path.write_text(json.dumps(content, ensure_ascii=ascii_only, indent=1) + "\n", encoding="utf-8")


def main():
    parser = arguments(__doc__, "paired")
    parser.add_argument("--turns", type=Path, required=True, metavar="FILE", help="turns.parquet of combine")
    parser.add_argument("--prompt", type=Path, required=True, metavar="FILE", help="prompts/gen.md")
    parser.add_argument("--persona", type=Path, required=True, metavar="FILE", help="the system text")
    llm_arguments(parser)
    args = parser.parse_args()
    settings = read_settings(args.config, Settings)
    llm = read_llm_settings(args)
    prompt = read_prompt(args.prompt, ["name", "context", "reply"])
    persona = read_prompt(args.persona, ["name"])

    with Stage("gen", args.out, packages=["polars", "requests"]) as stage:
        stage.use(args.config, settings), stage.use(args.llm, llm)
        stage.input(args.prompt), stage.input(args.persona)
        pairs = read_lines(stage.input(need(args.paired / "pairs.jsonl", "`make pair` makes it")))
        unpaired = read_lines(stage.input(args.paired / "unpaired.jsonl"))
        if not pairs and not unpaired:
            raise Mistake(f"{args.paired}: no turns to make a dataset of")
        turns = pl.read_parquet(stage.input(args.turns))
        newest = max([*pairs, *unpaired], key=moment)["turn_id"]
        name = one_line(turns.filter(pl.col("turn_id") == newest)["nickname"].item(), NAME_CHARACTERS)

        stage.ledger.read = len(pairs) + len(unpaired)
        written = {}
        if unpaired and settings.fill:
            written, stage.receipt["llm"] = fill(unpaired, turns, name, prompt, settings, llm, args)
            stage.ledger.dropped["failed"] = len(unpaired) - len(written)
        else:
            stage.ledger.dropped["unfilled"] = len(unpaired)
        filled = [{**line, "prompt": written[line["turn_id"]], "decided_by": "written"}
                  for line in unpaired if line["turn_id"] in written]
        samples = sorted(pairs + filled, key=lambda line: (line["time"], line["turn_id"]))

        system = persona.substitute(name=name)
        cut = len(samples) - (round(len(samples) * EVAL_SHARE) if len(samples) >= EVAL_FROM_SAMPLES else 0)
        rows = [rows_of(part, system, settings) for part in (samples[:cut], samples[cut:])]
        write_json(stage.output("alpaca.json"), rows[0])
        write_json(stage.output("alpaca_eval.json"), rows[1])
        # LLaMA-Factory opens this one without naming an encoding
        write_json(stage.output("dataset_info.json"), dataset_info(), ascii_only=True)
        stage.output("system.txt").write_text(system, encoding="utf-8")
        with open(stage.output("sources.jsonl"), "w", encoding="utf-8") as file:
            for row, sample in enumerate(samples):
                source = {"row": row, **{key: sample.get(key) for key in ("turn_ids", "decided_by", "confidence")}}
                file.write(json.dumps(source) + "\n")
        stage.ledger.written = len(samples)


if __name__ == "__main__":
    run(main)
