"""The ledgers of pair and gen balance, with every method of pairing and every kind of source."""

import json

import pytest

from helpers import ROOT, run_script

TARGET = "10002"


def succeeded(name, *arguments):
    done = run_script(name, *arguments)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def turns(demo, tmp_path_factory):
    """{source: its turns.parquet}: the demo's history from the database, and read back from its CSV."""
    folder, data = tmp_path_factory.mktemp("csv"), demo[0] / "data/demo"
    succeeded("parse", data / "parsed/messages.csv", "--config", "config/parse.yaml", "--out", folder / "parsed")
    messages = folder / "parsed/messages.parquet"
    succeeded("combine", messages, "--config", "config/combine.yaml", "--out", folder / "combined")
    return {"database": data / "combined/turns.parquet", "csv": folder / "combined/turns.parquet"}


@pytest.mark.parametrize(
    "settings",
    [
        "method: previous",
        "method: mention",
        "method: empty",
        "use_llm: false",
        "preset: seed",
        "use_llm: false\nlinker_alone: never",
        "merge_replies: llm",
    ],
)
@pytest.mark.parametrize("source", ["database", "csv"])
def test_the_ledgers_balance_with_every_method(turns, gguf, tmp_path, settings, source):
    (tmp_path / "pair.yaml").write_text(f"{settings}\nnewest: 12\nquotes_tested: 20\n")
    llm = (ROOT / "config/demo/llm.yaml").read_text(encoding="utf-8").replace("data/tiny/tiny.gguf", str(gguf))
    (tmp_path / "llm.yaml").write_text(llm, encoding="utf-8")
    model = ["--llm", tmp_path / "llm.yaml", "--answers", tmp_path / "answers.db"]
    pair_options = ["--config", tmp_path / "pair.yaml", "--prompt", "config/prompts/pair.md"]
    gen_options = ["--config", "config/demo/gen.yaml", "--prompt", "config/prompts/gen.md"]
    merge = ["--merge-prompt", "config/prompts/merge.md"]
    persona = ["--persona", "config/prompts/persona.md", "--turns", turns[source]]
    paired, generated = tmp_path / "paired", tmp_path / "generated"
    succeeded("pair", turns[source], "--target", TARGET, *pair_options, *merge, *model, "--out", paired)
    succeeded("gen", paired, *gen_options, *persona, *model, "--out", generated)
    of_pair, of_gen = (json.loads((folder / "receipt.json").read_text())["ledger"] for folder in (paired, generated))
    for ledger in (of_pair, of_gen):
        assert ledger["read"] == ledger["written"] + ledger.get("merged", 0) + sum(ledger["dropped"].values())
    assert of_pair["written"] == of_gen["read"] > 0
