"""verify: where the chain of receipts breaks."""

import json
import shutil

import pytest

from helpers import make, run_script
from huiyin.common.errors import UserError
from scripts.tools import verify

STAGES = ["decrypted", "parsed", "combined", "10002/paired", "10002/generated", "10002/trained", "10002/exported"]
BROKEN = "the chain is broken, see above; the results after the break do not belong to the present files"


class Chain:
    """A copy of the demo's results, with all files at the paths that the receipts name."""

    def __init__(self, demo, path, capsys):
        self.path, self.data, self.capsys = path, path / "data/demo", capsys
        for name in ("data", "config"):
            shutil.copytree(demo[0] / name, path / name, symlinks=True)

    def lines(self, export="config/demo/export.yaml"):
        """Return the printed lines of a chain that holds."""
        verify.main([*(f"data/demo/{name}" for name in STAGES), "--export", export])
        return self.capsys.readouterr().out.splitlines()

    def breaks(self, export="config/demo/export.yaml"):
        """Return the lines that tell where the chain is broken."""
        with pytest.raises(UserError) as error:
            self.lines(export)
        assert str(error.value) == BROKEN
        return [line.removeprefix("verify: ") for line in self.capsys.readouterr().out.splitlines()]


@pytest.fixture
def chain(demo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Chain(demo, tmp_path, capsys)


def test_the_chain_holds_back_to_the_source(demo):
    done = make(demo[0], "verify", "CONFIG=demo", "RUN_IN=host")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "verify: export <- train <- gen <- pair <- combine <- parse <- decrypt <- "
        "data/demo/sample/group_info.db, data/demo/sample/nt_msg.db, "
    )
    assert done.stdout.endswith(" files are as in their receipts\n")


@pytest.mark.parametrize(
    ("who", "name"),
    [
        ("decrypt: input", "data/demo/sample/nt_msg.db"),
        ("combine: output", "data/demo/combined/turns.parquet"),
        ("gen: input", "config/prompts/persona.md"),
        ("train: settings", "config/demo/train.yaml"),
        ("export: base model", "data/tiny/tiny-qwen2/model.safetensors"),
        ("export: output", "data/demo/10002/exported/merged/config.json"),
    ],
)
def test_a_changed_or_missing_file_breaks_the_chain_where_it_was_made(chain, who, name):
    with open(chain.path / name, "ab") as file:
        file.write(b"\nweight_decay: 0.1\n" if "settings" in who else b"\n")  # a comment is no change
    assert chain.breaks() == [f"{who} {name} has changed"]
    (chain.path / name).unlink()
    assert chain.breaks() == [f"{who} {name} is gone"]


def test_a_stage_repeated_without_the_later_ones_or_without_its_receipt_breaks_the_chain(chain):
    """The file is what its own receipt says, but not what the next stage read."""
    path = chain.data / "parsed/receipt.json"
    receipt = json.loads(path.read_text(encoding="utf-8"))
    receipt["outputs"]["messages.parquet"] = "0" * 64
    path.write_text(json.dumps(receipt))
    assert chain.breaks() == [
        "parse: output data/demo/parsed/messages.parquet has changed",
        "combine: input data/demo/parsed/messages.parquet is not what parse made; make combine again",
    ]
    path.unlink()
    assert chain.breaks() == ["combine: input data/demo/parsed/messages.parquet is in no receipt of data/demo/parsed"]


def test_the_ollama_model_is_part_of_the_chain(chain, ollama):
    path = chain.data / "10002/exported/receipt.json"
    receipt = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**receipt, "ollama": {"name": "huiyin-10002", "digest": "1"}}))
    (chain.path / "export.yaml").write_text(f"ollama: {ollama.url}\n")
    assert chain.breaks("export.yaml") == ["the Ollama model huiyin-10002 is gone"]
    ollama.models["huiyin-10002:latest"] = "2"
    assert chain.breaks("export.yaml") == ["the Ollama model huiyin-10002 is another one"]
    ollama.models["huiyin-10002:latest"] = "1"
    assert chain.lines("export.yaml")[0] == "verify: the Ollama model huiyin-10002 is the one that export created"
    assert chain.lines()[0] == "verify: the Ollama model huiyin-10002 is not checked"
    (chain.path / "export.yaml").write_text("ollama: http://127.0.0.1:9\n")
    with pytest.raises(UserError, match=r"no Ollama answers at http://127\.0\.0\.1:9; start it"):
        chain.lines("export.yaml")


def test_without_any_receipt_there_is_nothing_to_verify(tmp_path):
    done = run_script("tools/verify", tmp_path, "--export", "config/export.yaml")
    assert done.stderr == "verify.py: no stage is done yet: there is no receipt to verify\n"
