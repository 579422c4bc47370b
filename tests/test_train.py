"""train: what it refuses, and that the settings we ship are settings LLaMA-Factory knows."""

import json
import shutil

import pytest
import yaml

from helpers import ROOT, run_script


class Training:
    """A folder with the demo's dataset and training settings of its own."""

    def __init__(self, demo, path):
        self.path, self.tiny = path, demo[0] / "data/tiny/tiny-qwen2"
        shutil.copytree(demo[0] / "data/demo/10002/generated", path / "generated")
        self.settings = yaml.safe_load((ROOT / "config/train.yaml").read_text(encoding="utf-8"))
        self.settings["model_name_or_path"] = str(self.tiny)

    def run(self, gpu="none"):
        (self.path / "train.yaml").write_text(yaml.safe_dump(self.settings))
        return run_script("train", self.path / "generated", "--config", self.path / "train.yaml", "--gpu", gpu,
                          "--cache", self.path / "cache", "--llm", "config/llm.yaml", "--out", self.path / "trained")

    def complaint(self, **options):
        done = self.run(**options)
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        return line.removeprefix("train.py: ").replace(f"{self.path}/", "")


@pytest.fixture
def training(demo, tmp_path):
    return Training(demo, tmp_path)


def test_the_shipped_settings_are_known_to_llamafactory(training):
    done = training.run()
    assert done.returncode == 0, done.stderr
    receipt = json.loads((training.path / "trained/receipt.json").read_text(encoding="utf-8"))
    assert receipt["results"]["eval_loss"] > 0
    assert receipt["base_model"]["sha256"]["model.safetensors"]
    assert {path.name for path in (training.path / "trained/adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors"}
    assert not (training.path / "trained/.run").exists()


def test_what_is_said_of_a_run_holds_no_message(training):
    training.settings["max_steps"] = 1
    assert training.run().returncode == 0
    said = "".join((training.path / "trained" / name).read_text(encoding="utf-8")
                   for name in ("llamafactory.log", "trainer_log.jsonl", "receipt.json"))
    rows = json.loads((training.path / "generated/alpaca.json").read_text(encoding="utf-8"))
    assert [row["output"] for row in rows if len(row["output"]) > 5 and row["output"] in said] == []
    assert len(said) > 1000


def test_an_unknown_key_is_refused_by_llamafactory_itself(training):
    training.settings["lora_rnak"] = 8
    line = training.complaint()
    assert line == ("llamafactory-cli train failed: ValueError: Some keys are not used by the HfArgumentParser: "
                    "['lora_rnak']; all it said is in trained/.run/llamafactory.log")


def test_a_key_of_ours_is_refused(training):
    training.settings["output_dir"] = "elsewhere"
    assert training.complaint() == "train.yaml: output_dir is set by the pipeline; take it out"


def test_no_template(training):
    del training.settings["template"]
    assert training.complaint() == "train.yaml: template is missing"


def test_no_dataset(training):
    (training.path / "generated/alpaca.json").unlink()
    assert training.complaint() == "generated/alpaca.json: no such file; `make gen` makes it"


def test_an_empty_dataset(training):
    (training.path / "generated/alpaca.json").write_text("[]\n")
    assert training.complaint() == (
        "generated/alpaca.json: no rows to learn from; the receipt beside it says what became of the turns")


@pytest.mark.parametrize("gpu", ["99", "first"])
def test_no_such_card(training, gpu):
    line = training.complaint(gpu=gpu)
    assert line.startswith(f"GPU={gpu}, but ")
    assert "GPU=none to train on the processor" in line or "`nvidia-smi` lists them" in line
