"""train: what it refuses, and that the settings we ship are settings LLaMA-Factory knows."""

import json
import re
import shutil
import subprocess
import sys
import time

import numpy
import pytest
import yaml
from safetensors.numpy import load_file

from helpers import CLEAN, ROOT, run_script
from hub_server import Hub
from huiyin.training import base, llamafactory
from huiyin.training.watch import BrokenLoss, Watch, garbled
from scripts import train
from test_preflight import RTX_3060, Nvml


class Training:
    """A folder with the demo's dataset and training settings of its own."""

    def __init__(self, demo, path):
        self.path, self.tiny = path, demo[0] / "data/tiny/tiny-qwen2"
        shutil.copytree(demo[0] / "data/demo/10002/generated", path / "generated")
        self.settings = yaml.safe_load((ROOT / "config/train.yaml").read_text(encoding="utf-8"))
        self.settings["model_name_or_path"] = str(self.tiny)

    def run(self, *more, gpu="none", env=None):
        return run_script("train", *self.arguments(gpu), *more, env=env)

    def arguments(self, gpu="none"):
        (self.path / "train.yaml").write_text(yaml.safe_dump(self.settings))
        return [
            "--preflight",
            "config/preflight.yaml",
            "--llm",
            "config/demo/llm.yaml",
            "--gpu",
            gpu,
            "--config",
            self.path / "train.yaml",
            "--cache",
            self.path / "cache",
            "--out",
            self.path / "trained",
            self.path / "generated",
        ]

    def complaint(self, **options):
        done = self.run(**options)
        assert done.returncode == 1
        line = done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        return line.removeprefix("train.py: ").replace(f"{self.path}/", "")


@pytest.fixture
def training(demo, tmp_path):
    return Training(demo, tmp_path)


def test_the_shipped_settings_are_known_to_llamafactory(training):
    done = training.run()
    assert done.returncode == 0, done.stderr
    receipt = json.loads((training.path / "trained/receipt.json").read_text(encoding="utf-8"))
    results = receipt["results"]
    assert results["eval_loss"] < results["base_eval_loss"]
    assert results["eval_loss_gained"] == results["base_eval_loss"] - results["eval_loss"]
    assert [(attempt["precision"], attempt["micro_batch"], attempt["rows_cut"]) for attempt in receipt["attempts"]] == [
        ("fp32", 2, 0)
    ]
    assert receipt["base_model"]["sha256"]["model.safetensors"]
    assert {path.name for path in (training.path / "trained/adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert not (training.path / "trained/.run").exists()


def test_what_is_said_of_a_run_holds_no_message(training):
    training.settings["max_steps"] = 1
    assert training.run().returncode == 0
    said = "".join(
        (training.path / "trained" / name).read_text(encoding="utf-8")
        for name in ("llamafactory.log", "trainer_log.jsonl", "receipt.json")
    )
    rows = json.loads((training.path / "generated/alpaca.json").read_text(encoding="utf-8"))
    assert [row["output"] for row in rows if len(row["output"]) > 5 and row["output"] in said] == []
    assert len(said) > 1000


def test_an_unknown_key_is_refused_by_llamafactory_itself(training):
    training.settings["lora_rnak"] = 8
    line = training.complaint()
    assert line == (
        "llamafactory-cli train failed: ValueError: Some keys are not used by the HfArgumentParser: "
        "['lora_rnak']; all it said is in trained/.run/llamafactory.log"
    )


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
        "generated/alpaca.json: no rows to learn from; the receipt beside it says what became of the turns"
    )


@pytest.mark.parametrize("gpu", ["99", "first"])
def test_no_such_card(training, gpu):
    line = training.complaint(gpu=gpu)
    assert line.startswith(f"GPU={gpu}, but ")
    assert line.endswith("say GPU=none to train on the processor")


def test_a_dry_run_says_whether_it_fits_and_stops(training):
    done = training.run("--dry-run")
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["found", "rows", "chosen", "cutoff", "predicted"]
    assert not (training.path / "trained").exists()


def test_no_folder_of_a_base_model(training):
    training.settings["model_name_or_path"] = "./nowhere"
    assert training.complaint() == (
        "model_name_or_path ./nowhere: no such folder, and no name on the hub (owner/model); mend train.yaml"
    )


def test_the_hub_cannot_be_reached(training):
    training.settings["model_name_or_path"] = "Qwen/Qwen2.5-1.5B-Instruct"
    assert training.complaint(env={"HF_ENDPOINT": "http://127.0.0.1:9"}) == (
        "the base model Qwen/Qwen2.5-1.5B-Instruct is not in cache/huggingface and the hub cannot be reached; "
        "go online, set HF_ENDPOINT to a mirror, or name a folder as model_name_or_path in train.yaml"
    )


def test_a_learning_rate_that_explodes_is_stopped(training):
    training.settings |= {"learning_rate": 1.0e25, "max_grad_norm": 1.0e30, "logging_steps": 1, "warmup_ratio": 0.0}
    line = training.complaint()
    assert line.startswith("the loss is nan at step ")
    assert "in fp32; lower learning_rate in train.yaml" in line
    assert not (training.path / "trained/receipt.json").exists()


def assert_same_adapter(trained, expected, tolerance):
    """The last bits may differ between two processes; a step lost or done twice is a hundred times as much."""
    weights, others = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (trained, expected))
    assert weights.keys() == others.keys()
    for name in weights:
        numpy.testing.assert_allclose(weights[name], others[name], rtol=0, atol=tolerance)


class Bar:
    """The part of Progress that Watch uses."""

    done = 0
    note = ""

    def set_total(self, total):
        self.total = total

    def add(self, count):
        self.done += count


def watched(tmp_path, losses, total=100):
    """Let Watch read one loss every ten steps; return (the bar, its warnings)."""
    warnings, bar = [], Bar()
    log = tmp_path / "trainer_log.jsonl"
    log.write_text(
        "".join(
            json.dumps({"current_steps": 10 * (place + 1), "total_steps": total, "loss": loss}) + "\n"
            for place, loss in enumerate(losses)
        )
        + '{"current_steps": 9'
    )
    Watch(log, bar, warnings.append)()
    return bar, warnings


def test_a_loss_that_does_not_fall_is_warned_of_once(tmp_path):
    bar, warnings = watched(tmp_path, [3.0, 3.1, 3.2, 3.0, 3.1, 3.2, 3.3, 3.2])
    assert warnings == [
        "the loss has not fallen in 50 steps (3.000 to 3.100); a smaller or larger learning_rate in train.yaml may help"
    ]
    assert (bar.done, bar.total, bar.note) == (80, 100, "loss 3.200")
    assert watched(tmp_path, [3.0, 3.1, 3.2, 3.0, 2.5, 3.2])[1] == []
    assert watched(tmp_path, [3.0] * 9, total=2000)[1] == []  # not before 5 % of the steps


@pytest.mark.parametrize(
    ("losses", "problem"),
    [
        ([3.0, float("nan")], "the loss is nan at step 20"),
        ([float("inf")], "the loss is inf at step 10"),
        ([3.0, 0.0, 0.0], "the loss is 0.0 at step 30"),
    ],
)
def test_a_broken_loss_is_seen(tmp_path, losses, problem):
    with pytest.raises(BrokenLoss, match=problem):
        watched(tmp_path, losses)


def test_a_loss_of_zero_once_is_chance(tmp_path):
    assert watched(tmp_path, [3.0, 0.0, 2.0, 0.0])[0].done == 40


@pytest.mark.parametrize(
    ("reply", "broken"),
    [
        ("好的，马上", False),
        ("line\nline", False),
        ("哈哈哈哈哈", False),
        ("\ufffd好", True),
        ("\x14", True),
        ("哈" * 40, True),
        ("the " * 20, True),
        ("", False),
    ],
)
def test_garbled_replies_are_told(reply, broken):
    assert garbled(reply) is broken


def test_killed_at_any_step_it_ends_with_the_same_adapter(training):
    (training.path / "generated/alpaca_eval.json").write_text("[]\n")
    training.settings |= {
        "max_steps": 18,
        "save_steps": 4,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 5.0e-3,
    }
    assert training.run().returncode == 0
    trained = training.path / "trained"
    undisturbed = trained.rename(training.path / "undisturbed")
    log = trained / ".run/trainer_log.jsonl"
    for step in (2, 9, 17):
        program = [sys.executable, "scripts/train.py", *map(str, training.arguments())]
        running = subprocess.Popen(
            program, cwd=ROOT, env=CLEAN, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        while running.poll() is None and (not log.exists() or f'"current_steps": {step},' not in log.read_text()):
            time.sleep(0.01)  # waits for the step, however long that takes
        running.kill()  # LLaMA-Factory, its child, ends with it
        running.communicate()
        assert not (trained / "receipt.json").exists()
    done = training.run()
    assert done.returncode == 0, done.stderr
    assert_same_adapter(trained, undisturbed, 1e-6)


def test_two_processes_train_together(training):
    training.settings |= {"max_steps": 2, "ddp_backend": "gloo"}
    done = training.run(env={"NPROC_PER_NODE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    used = json.loads((training.path / "trained/train.yaml").read_text(encoding="utf-8"))
    assert (used["per_device_train_batch_size"], used["gradient_accumulation_steps"]) == (2, 4)
    log = (training.path / "trained/llamafactory.log").read_text(encoding="utf-8")
    assert "Total train batch size (w. parallel, distributed & accumulation) = 16\n" in log


@pytest.mark.parametrize("left", ["nothing", "half a state"])
def test_a_checkpoint_that_was_being_written_is_not_gone_on_from(tmp_path, left):
    for step in (4, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text('{"global_step": 4, "train_batch_size": 8}')
    if left == "nothing":
        (tmp_path / "checkpoint-8/trainer_state.json").unlink()
    else:
        (tmp_path / "checkpoint-8/trainer_state.json").write_text('{"global_st')
    assert train.mend_checkpoints(tmp_path, 2) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]
    assert json.loads((tmp_path / "checkpoint-4/trainer_state.json").read_text())["train_batch_size"] == 2


# ---- What a card does wrong, on a simulated one


@pytest.fixture
def on_card(training, monkeypatch, capsys):
    """Train in this process on a simulated RTX 3060; returns (exit status, the receipt, what was said)."""

    def run(**environment):
        Nvml(monkeypatch, RTX_3060)
        monkeypatch.setattr(train, "torch_cuda", lambda: "13.0")
        monkeypatch.setattr(llamafactory, "PROGRAM", [sys.executable, ROOT / "tests/simulated_card.py"])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, training.arguments("0"))])
        monkeypatch.chdir(ROOT)
        train.main()
        receipt = json.loads((training.path / "trained/receipt.json").read_text(encoding="utf-8"))
        return receipt["attempts"], capsys.readouterr().out

    (training.path / "generated/alpaca_eval.json").write_text("[]\n")
    training.settings |= {
        "max_steps": 6,
        "save_steps": 2,
        "logging_steps": 1,
        "learning_rate": 5.0e-3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
    }
    return run


def test_out_of_memory_goes_on_from_the_checkpoint_with_half_the_rows_at_a_time(training, on_card, monkeypatch):
    monkeypatch.setattr(train, "garbled", lambda reply: False)  # random weights reply as they like
    attempts, _ = on_card()
    assert [attempt["ended"] for attempt in attempts] == ["well"]
    trained = training.path / "trained"
    undisturbed = trained.rename(training.path / "undisturbed")
    attempts, said = on_card(CARD_ROWS="2", CARD_STEP="5")
    assert [
        (attempt["micro_batch"], attempt["accumulation"], attempt["precision"], attempt["ended"])
        for attempt in attempts
    ] == [(4, 1, "bf16", "out of memory"), (2, 2, "bf16", "well")]
    assert "train: out of memory, going on with 2 rows at a time\n" in said
    log = (trained / "llamafactory.log").read_text(encoding="utf-8")
    assert "Continuing training from global step 4\n" in log
    assert "Total train batch size (w. parallel, distributed & accumulation) = 4\n" in log
    assert_same_adapter(trained, undisturbed, 1e-4)


def test_out_of_memory_with_a_single_row_is_the_end(training, on_card):
    training.settings["per_device_train_batch_size"] = 1
    with pytest.raises(train.UserError) as error:
        on_card(CARD_ROWS="0")
    assert str(error.value).startswith("llamafactory-cli train ran out of the card's memory; ")
    assert str(error.value).endswith(
        "even with one row at a time: close what uses the card, or take a shorter cutoff_len or a smaller model"
    )


def test_a_broken_loss_is_tried_once_more_in_the_other_precision(training, on_card, monkeypatch):
    monkeypatch.setattr(train, "garbled", lambda reply: False)
    attempts, said = on_card(CARD_BREAKS="bf16")
    assert [(attempt["precision"], attempt["ended"]) for attempt in attempts] == [
        ("bf16", "the loss is nan at step 1"),
        ("fp16", "well"),
    ]
    assert "train: the loss is nan at step 1; once more in fp16\n" in said


def test_garbled_replies_are_tried_once_more_in_the_other_precision(training, on_card, monkeypatch):
    monkeypatch.setattr(train, "garbled", lambda reply: True)
    attempts, said = on_card()
    problem = "5 of 5 held-out replies are garbled"
    assert [(attempt["precision"], attempt["ended"]) for attempt in attempts] == [("bf16", problem), ("fp16", problem)]
    assert said.splitlines()[-2] == f"train: {problem}; {train.ADVICE}"


# ---- The base model from a hub


def test_a_base_model_is_fetched_from_the_hub_once(training):
    training.settings["model_name_or_path"] = "someone/tiny"
    code = f"""if True:
        from pathlib import Path
        from huiyin.training.base import find_base
        print(find_base("someone/tiny", Path("{training.path}/cache"), whole=True))"""
    fetch = [sys.executable, "-c", code]
    with Hub("someone/tiny", training.tiny) as hub:
        environment = {**CLEAN, "HF_ENDPOINT": hub.url, "PYTHONPATH": str(ROOT)}
        done = training.run("--dry-run", env=environment)
        assert done.returncode == 0, done.stderr
        assert sorted(hub.fetched) == ["config.json", "tokenizer.json"]
        done = subprocess.run(fetch, env=environment, capture_output=True, encoding="utf-8")
        said, folder = done.stdout.splitlines()
        assert said.startswith("the base model someone/tiny needs ")
        assert "model.safetensors" in hub.fetched
        assert len(hub.fetched) == len(set(hub.fetched))
    done = subprocess.run(fetch, env=environment, capture_output=True, encoding="utf-8")  # nobody answers any more
    assert done.stdout.splitlines() == [folder]


def test_the_hub_has_no_such_model(training):
    with Hub("someone/tiny", training.tiny) as hub:
        training.settings["model_name_or_path"] = "someone/else"
        assert training.complaint(env={"HF_ENDPOINT": hub.url}) == (
            "the hub has no open model someone/else; mend model_name_or_path in train.yaml"
        )


def test_a_full_disk_is_refused_before_anything_starts(training, monkeypatch):
    monkeypatch.setattr(base.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100 << 30, 100 << 30, 1000))
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, training.arguments())])
    monkeypatch.chdir(ROOT)
    with pytest.raises(train.UserError) as error:
        train.main()
    line = r"training \(checkpoints and prepared rows\) needs \d+ MiB of disk and 0 MiB are free; make room"
    assert re.fullmatch(line, str(error.value))
    assert [path.name for path in (training.path / "trained").iterdir()] == []
