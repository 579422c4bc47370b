"""A folder in which train works on the demo's dataset, and a simulated card: what the tests of training share."""

import json
import shutil
import subprocess
import sys

import numpy
import yaml
from safetensors.numpy import load_file

from cards import RTX_3060, simulate_nvml
from forked import run_forking
from helpers import CLEAN, ROOT
from huiyin.training import llamafactory, work
from scripts import train

RESULTS = [*train.ADAPTER_FILES, *train.OTHER_FILES]
SHORT_RUN = {
    "save_steps": 4,
    "logging_steps": 1,
    "learning_rate": 5.0e-3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
}


def replies(text):
    """Return a stand-in for `ask`, which takes ten seconds to load torch: a model that always replies `text`."""
    return lambda models, rows, *_: [{"replies": [text for _ in rows]}]


class Training:
    """A folder with the demo's dataset, and the default training settings for its tiny model."""

    def __init__(self, demo, path):
        self.path, self.tiny = path, demo[0] / "data/tiny/tiny-qwen2"
        shutil.copytree(demo[0] / "data/demo/10002/generated", path / "generated")
        self.settings = yaml.safe_load((ROOT / "config/train.yaml").read_text(encoding="utf-8"))
        self.settings["model_name_or_path"] = str(self.tiny)

    def run_shortly(self, **settings):
        """Train as SHORT_RUN and `settings` say, on rows of one reply each: four a step."""
        rows = json.loads((self.path / "generated/alpaca.json").read_text(encoding="utf-8"))
        (self.path / "generated/alpaca.json").write_text(json.dumps([{**row, "history": []} for row in rows]))
        self.settings |= {**SHORT_RUN, **settings}

    def without_evaluation(self):
        (self.path / "generated/alpaca_eval.json").write_text("[]\n")

    def arguments(self, gpu="none"):
        (self.path / "train.yaml").write_text(yaml.safe_dump(self.settings))
        options = {
            "--preflight": "config/demo/preflight.yaml" if gpu == "none" else "config/preflight.yaml",
            "--llm": "config/demo/llm.yaml",
            "--export": "config/demo/export.yaml",
            "--models": "config/models.yaml",
            "--gpu": gpu,
            "--config": self.path / "train.yaml",
            "--cache": self.path / "cache",
            "--out": self.path / "trained",
        }
        return [self.path / "generated", *(word for option in options.items() for word in option)]

    def run(self, *options, gpu="none", env=None):
        return run_forking("train", *self.arguments(gpu), *options, env=env)

    def run_alone(self, *options, env):
        """Run in a process of its own, because huggingface_hub reads HF_ENDPOINT when it is imported."""
        program = [sys.executable, "scripts/train.py", *map(str, self.arguments()), *options]
        return subprocess.run(program, cwd=ROOT, env={**CLEAN, **env}, capture_output=True, encoding="utf-8")

    def error(self, done=None, gpu="none"):
        """Return the last line on stderr of a run that fails."""
        done = done or self.run(gpu=gpu)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1].removeprefix("train.py: ").replace(f"{self.path}/", "")

    def receipt(self):
        return json.loads((self.path / "trained/receipt.json").read_text(encoding="utf-8"))


def train_on_card(training, monkeypatch, reply="好", **environment):
    """Train on a simulated RTX 3060 that fails as `environment` says; return (attempts of the receipt, output)."""
    simulate_nvml(monkeypatch, RTX_3060)
    monkeypatch.setattr(train, "ask", replies(reply))
    monkeypatch.setattr(work, "torch_cuda", lambda: "13.0")
    monkeypatch.setattr(llamafactory, "PROGRAM", [sys.executable, ROOT / "tests/simulated_card.py"])
    training.without_evaluation()
    training.run_shortly(max_steps=6, save_steps=2)
    done = training.run(gpu="0", env=environment)
    assert done.returncode == 0, done.stderr
    return training.receipt()["attempts"], done.stdout


def assert_same_adapter(folder, expected, tolerance):
    """The last bits may differ between two processes; a step lost or repeated changes a hundred times as much."""
    weights, others = (load_file(path / "adapter/adapter_model.safetensors") for path in (folder, expected))
    assert weights.keys() == others.keys()
    for name in weights:
        numpy.testing.assert_allclose(weights[name], others[name], rtol=0, atol=tolerance)
