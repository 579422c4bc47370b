"""The linker: when it may decide alone, and what it makes of odd histories."""

import json
import re

from llm_folder import prompt_of, succeeded
from test_cases import cases, compare, ledger_of, read_lines, turns


@cases("pair_with_a_model")
def test_pair_with_a_model(case, folder):
    """answers.json: {reply: what the model answers}; of quotes asked blind it says none."""
    turns(read_lines(case / "turns.jsonl")).write_parquet(folder.path / "turns.parquet")
    answers = json.loads((case / "answers.json").read_text(encoding="utf-8"))

    def answer(k, body):
        return json.dumps({"answers": next((number for reply, number in answers.items()
                                            if f"<发言>\n名me：{reply}\n" in prompt_of(body)), "none")})

    folder.ollama.before_chat = answer
    folder.settings("pair", (case / "pair.yaml").read_text(encoding="utf-8"))
    done = succeeded(folder.pair())
    said = [line for line in done.stdout.splitlines() if "quotes" in line]
    linker = json.dumps(folder.json("paired/receipt.json")["linker"], indent=1) + "\n"
    lines = {name: (folder.path / "paired" / name).read_text(encoding="utf-8")
             for name in ("pairs.jsonl", "unpaired.jsonl")}
    # how sure the tiny model is of an answer it was given says nothing
    lines["pairs.jsonl"] = re.sub(r'("llm", "confidence": )[^,]+', r"\1null", lines["pairs.jsonl"])
    compare(case, {"ledger.json": ledger_of(folder.path / "paired"), "linker.json": linker, **lines,
                   "said.txt": "\n".join(said) + "\n"})
