"""The ledgers of pair and gen balance, with every method of pairing and every kind of source."""

import json
import shutil

import pytest

from helpers import ROOT, run_script
from llm_folder import arguments, succeeded


@pytest.fixture(scope="module")
def turns(demo, tmp_path_factory):
    """{source: its turns.parquet}: the demo's history from the database, and read back from its CSV."""
    folder, data = tmp_path_factory.mktemp("csv"), demo[0] / "data/demo"
    for stage, source in (("parse", data / "parsed/messages.csv"), ("combine", folder / "parse/messages.parquet")):
        succeeded(run_script(stage, source, "--config", f"config/{stage}.yaml", "--out", folder / stage))
    return {"database": data / "combined/turns.parquet", "csv": folder / "combine/turns.parquet"}


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
    shutil.copy(turns[source], tmp_path)
    succeeded(run_script("pair", *arguments("pair", tmp_path, target="10002")))
    succeeded(run_script("gen", *arguments("gen", tmp_path, config="config/demo/gen.yaml")))
    folders = "paired", "generated"
    of_pair, of_gen = (json.loads((tmp_path / name / "receipt.json").read_text())["ledger"] for name in folders)
    for ledger in (of_pair, of_gen):
        assert ledger["read"] == ledger["written"] + ledger.get("merged", 0) + sum(ledger["dropped"].values())
    assert of_pair["written"] == of_gen["read"] > 0
