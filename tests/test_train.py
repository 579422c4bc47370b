"""train: the errors it reports, resuming a killed run, retries on a card, and that our settings are LLaMA-Factory's."""

import copy
import json
import re
import shutil
import subprocess
import sys

import pytest

from helpers import CLEAN
from hub_server import Hub
from huiyin.common.progress import Progress
from huiyin.serving.templates.known import FORMATS
from huiyin.training import base
from huiyin.training.rows import read_dataset
from huiyin.training.template import Encoding
from huiyin.training.watch import BrokenLoss, Watch, garbled
from scripts import train
from training_folder import RESULTS, Training, assert_same_adapter, replies, train_on_card


@pytest.fixture
def training(demo, tmp_path):
    return Training(demo, tmp_path)


@pytest.fixture(scope="module")
def trained(demo, tmp_path_factory):
    """A finished training with the shipped settings, but one epoch."""
    training = Training(demo, tmp_path_factory.mktemp("trained"))
    training.settings["num_train_epochs"] = 1.0
    done = training.run()
    assert done.returncode == 0, done.stderr
    return training


def test_the_shipped_settings_are_known_to_llamafactory(trained):
    receipt = trained.receipt()
    results = receipt["results"]
    assert results["eval_loss"] < results["base_eval_loss"]
    assert "a curve only" in receipt["results_are"]
    assert results["eval_loss_gained"] == results["base_eval_loss"] - results["eval_loss"]
    [attempt] = receipt["attempts"]
    assert (attempt["precision"], attempt["micro_batch"], attempt["rows_cut"]) == ("fp32", 2, 0)
    rows = read_dataset(trained.path / "generated").measure(Encoding(FORMATS["qwen"], trained.tiny), 0).rows
    *_, last = (trained.path / "trained/trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    computed = json.loads(last)["total_tokens"] / sum(row.tokens() for row in rows)
    assert computed == pytest.approx(attempt["padding"], rel=0.01) and computed < attempt["padding_shuffled"]
    used = json.loads((trained.path / "trained/train.yaml").read_text(encoding="utf-8"))
    assert used["dataset_dir"] == str(trained.path / "trained/.run/dataset")  # deleted with .run
    assert receipt["ledger"]["dropped"] == {"too_long": 0}
    assert receipt["base_model"]["sha256"]["model.safetensors"]
    assert receipt["export"] == {"ollama": "none"} and "config/demo/export.yaml" not in receipt["settings"]
    assert {path.name for path in (trained.path / "trained/adapter").iterdir()} == set(train.ADAPTER_FILES)
    assert not (trained.path / "trained/.run").exists()


def test_logs_and_receipt_of_a_training_contain_no_message(trained):
    names = ("llamafactory.log", "trainer_log.jsonl", "receipt.json")
    text = "".join((trained.path / "trained" / name).read_text(encoding="utf-8") for name in names)
    rows = json.loads((trained.path / "generated/alpaca.json").read_text(encoding="utf-8"))
    assert [row["output"] for row in rows if len(row["output"]) > 5 and row["output"] in text] == []
    assert len(text) > 1000


# ---- From the last adapter


@pytest.fixture
def again(trained, tmp_path):
    """A copy of that training, which is to be continued."""
    shutil.copytree(trained.path, tmp_path, dirs_exist_ok=True)
    again = copy.copy(trained)
    again.path, again.settings = tmp_path, {**trained.settings, "continue_from": "previous"}
    return again


def test_a_training_starts_from_the_last_adapter_if_the_settings_say_so(again, trained, monkeypatch):
    monkeypatch.setattr(train, "ask", replies("好"))
    again.settings |= {"max_steps": 1, "learning_rate": 1.0e-9}
    done = again.run()
    before, receipt = trained.receipt(), again.receipt()
    assert f"preflight: start      the adapter of {before['made_at']}, training 1 of a chain\n" in done.stdout
    assert_same_adapter(again.path / "trained", trained.path / "trained", 1e-6)
    weights = before["outputs"]["adapter"]["adapter_model.safetensors"]
    chain = {"adapter": weights, "samples": before["ledger"]["written"], "learnt_until": before["learnt_until"]}
    assert receipt["continued_from"] == [{"made_at": before["made_at"], **chain}]
    assert receipt["results"]["base_eval_loss"] == pytest.approx(before["results"]["base_eval_loss"], rel=1e-3)
    assert receipt["results"]["eval_loss"] == pytest.approx(before["results"]["eval_loss"], rel=1e-3)
    assert not (again.path / "trained/.previous").exists()
    assert again.run().stdout == "train: nothing has changed\n"


def test_to_say_where_the_next_training_starts_is_no_reason_to_train(again):
    assert again.run().stdout == "train: nothing has changed\n"


@pytest.mark.parametrize(
    ("changes", "of_receipt", "line"),
    [
        (
            {"lora_rank": 4},
            {},
            "train.yaml: lora_rank is 4, and 16 in the training from which this one is to continue; set it back, or "
            "say continue_from: none",
        ),
        (
            {"lora_alpha": 8},
            {},
            "train.yaml: lora_alpha is 8, and not set in the training from which this one is to continue; set it back, "
            "or say continue_from: none",
        ),
        (
            {"template": "qwen3"},
            {},
            "train.yaml: template is qwen3, and qwen in the training from which this one is to continue; set it back, "
            "or say continue_from: none",
        ),
        (
            {"model_name_or_path": "Qwen/Qwen3-8B"},
            {},
            "train.yaml: model_name_or_path is Qwen/Qwen3-8B, and TINY in the training from which this one is to "
            "continue; set it back, or say continue_from: none",
        ),
        (
            {"seed": 1},
            {"base_model": {"name": "TINY", "sha256": {"config.json": "another"}}},
            "TINY: config.json changed or gone since the training from which this one is to continue; bring the base "
            "model back, or say continue_from: none in train.yaml",
        ),
        (
            {"seed": 1},
            {"learnt_until": "2050-01-01T00:00:00Z"},
            "the replies from THEN on are held out, and the adapter from which this training is to "
            "continue has learnt those until 2050-01-01T00:00:00Z; lower eval_share in gen.yaml, or say continue_from: "
            "none in train.yaml",
        ),
        (
            {"seed": 1},
            {"learnt_until": None},
            "an earlier version of Huiyin trained the adapter from which this training is to continue, and noted not "
            "until when it has learnt; say continue_from: none in train.yaml this time",
        ),
    ],
)
def test_an_adapter_of_something_else_is_not_continued(again, changes, of_receipt, line):
    again.settings |= changes
    path, name = again.path / "trained/receipt.json", again.settings["model_name_or_path"]
    path.write_text(json.dumps(again.receipt() | of_receipt).replace("TINY", name))
    before = path.read_bytes()
    held_out_from = json.loads((again.path / "generated/receipt.json").read_text(encoding="utf-8"))["held_out_from"]
    assert again.error().replace(str(again.tiny), "TINY").replace(held_out_from, "THEN") == line
    assert path.read_bytes() == before


# ---- One line each


def test_an_unknown_key_is_refused_by_llamafactory_itself(training):
    training.settings["lora_rnak"] = 8
    assert training.error() == (
        "llamafactory-cli train failed: ValueError: Some keys are not used by the HfArgumentParser: "
        "['lora_rnak']; its output is in trained/.run/llamafactory.log"
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"output_dir": "elsewhere"}, "train.yaml: output_dir is set by the pipeline; remove it"),
        ({"create_new_adapter": True}, "train.yaml: create_new_adapter is set by the pipeline; remove it"),
        ({"bf16": True}, "train.yaml: bf16 is chosen in preflight.yaml; remove it"),
        ({"template": None}, "train.yaml: template is missing"),
        (
            {"model_name_or_path": "./nowhere"},
            "model_name_or_path ./nowhere: no such folder, and no name on the hub (owner/model); fix train.yaml",
        ),
        *(
            (
                {"model_name_or_path": name},
                f"model_name_or_path {name}: no such folder, and no name on the hub (owner/model); fix train.yaml",
            )
            for name in (
                "~/nowhere",
                "Qwen2.5/",
                "Qwen/Qwen 7B",
                "Qwen/Qwen2..5",
                "Qwen/Qwen2.5@main",
                "D:/Qwen",
                "2024",
            )
        ),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_starts(training, changes, line):
    training.settings |= changes
    assert training.error() == line
    assert not (training.path / "trained").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such file; delete generated/receipt.json, then `make gen` makes it"),
        ("[]\n", "no rows to learn from; the receipt beside it tells why turns were dropped"),
    ],
)
def test_a_missing_or_empty_dataset_is_refused(training, content, problem):
    dataset = training.path / "generated/alpaca.json"
    dataset.write_text(content) if content else dataset.unlink()
    assert training.error() == f"generated/alpaca.json: {problem}"


@pytest.mark.parametrize("gpu", ["99", "first"])
def test_a_card_that_does_not_exist_is_refused(training, gpu):
    line = training.error(gpu=gpu)
    assert line.startswith(f"GPU={gpu}, but ")
    assert line.endswith("say GPU=none to train on the processor")


def test_a_dry_run_tells_whether_it_fits_and_stops(training):
    done = training.run("--dry-run")
    assert done.returncode == 0, done.stderr
    *lines, warning = done.stdout.splitlines()
    names = ["found", "rows", "chosen", "padding", "cutoff", "predicted", "rate"]
    assert [line.split()[1] for line in lines] == names
    assert re.fullmatch(
        r"preflight: chosen     fp32, micro-batch 2 x \d = \d+ rows, about 1\d replies per step, .*", lines[2]
    )
    assert warning.startswith("preflight: warning    only ")
    assert " or lower gradient_accumulation_steps or set learning_rate to 1.0e-03" in warning
    assert not (training.path / "trained").exists()


def test_rows_in_which_no_reply_fits_are_one_line(training):
    training.settings["cutoff_len"] = 1
    line = "no reply fits into 1 tokens with its prompt and the system text; raise cutoff_len"
    assert training.error(training.run("--dry-run")) == line


def test_an_unreachable_hub_is_one_line(training):
    training.settings["model_name_or_path"] = "Qwen/Qwen2.5-1.5B-Instruct"
    assert training.error(training.run_alone(env={"HF_ENDPOINT": "http://127.0.0.1:9"})) == (
        "the base model Qwen/Qwen2.5-1.5B-Instruct is not in cache/huggingface and the hub cannot be reached; "
        "go online, set HF_ENDPOINT to a mirror, or name a folder as model_name_or_path in train.yaml"
    )


def test_a_full_disk_is_refused_before_llamafactory_starts(training, monkeypatch):
    monkeypatch.setattr(base.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100 << 30, 100 << 30, 1000))
    line = r"training \(checkpoints and prepared rows\) needs \d+ MiB of disk and 0 MiB are free; make room"
    assert re.fullmatch(line, training.error())
    assert [path.name for path in (training.path / "trained").glob("*")] == []


def test_a_diverging_loss_ends_the_training(training):
    training.settings |= {"weight_decay": 1.0e30, "max_grad_norm": 1.0e30, "logging_steps": 1, "warmup_ratio": 0.0}
    line = training.error()
    assert line.startswith("the loss is nan at step ")
    assert "in fp32; lower learning_rate in train.yaml" in line
    assert not (training.path / "trained/receipt.json").exists()


# ---- Watching the loss and the replies


def watched(tmp_path, losses, total=100):
    """Let Watch read a log with a loss every ten steps; return (the bar, its warnings)."""
    warnings, bar = [], Progress("train", None, "steps")
    entries = [
        {"current_steps": 10 * number, "total_steps": total, "loss": loss} for number, loss in enumerate(losses, 1)
    ]
    log = tmp_path / "trainer_log.jsonl"
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"current_steps": 9')
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
def test_a_broken_loss_stops_the_run(tmp_path, losses, problem):
    with pytest.raises(BrokenLoss, match=problem):
        watched(tmp_path, losses)


def test_a_loss_of_zero_now_and_then_is_tolerated(tmp_path):
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
def test_garbled_replies_are_recognized(reply, broken):
    assert garbled(reply) is broken


# ---- Failures of a card, on a simulated one


def test_garbled_replies_restart_the_training_in_the_other_precision(training, trained, monkeypatch):
    def run_program(command, values, folder, variables, watch):
        for name in RESULTS:
            source = "trained/adapter" if name in train.ADAPTER_FILES else "trained"
            shutil.copy2(trained.path / source / name, folder)
        (folder / "all_results.json").write_text("{}")

    monkeypatch.setattr(train, "run_program", run_program)
    attempts, output = train_on_card(training, monkeypatch, reply="哈" * 40)
    problem = "5 of 5 held-out replies are garbled"
    assert [(attempt["precision"], attempt["ended"]) for attempt in attempts] == [("bf16", problem), ("fp16", problem)]
    assert output.splitlines()[-3:-1] == [
        f"train: {problem}; starting again in fp16",
        f"train: {problem}; {train.ADVICE}",
    ]


# ---- The base model from a hub


def test_a_base_model_is_downloaded_from_the_hub_once(training):
    training.settings["model_name_or_path"] = "someone/tiny"
    arguments = f"'someone/tiny', Path('{training.path}/cache'), WHOLE"
    code = f"from pathlib import Path; from huiyin.training.base import WHOLE, find_base; print(find_base({arguments}))"
    with Hub("someone/tiny", training.tiny) as hub:
        environment = {**CLEAN, "HF_ENDPOINT": hub.url}

        def download():
            done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8")
            return done.stdout.splitlines()

        done = training.run_alone("--dry-run", env=environment)
        assert done.returncode == 0, done.stderr
        assert sorted(hub.fetched) == sorted({*base.COUNTED} - {"chat_template.jinja"})
        size, folder = download()
        assert size.startswith("the base model someone/tiny needs ")
        assert "model.safetensors" in hub.fetched
        assert len(hub.fetched) == len(set(hub.fetched))
    assert download() == [folder]  # the hub is gone


def test_a_model_that_the_hub_does_not_have_is_one_line(training):
    with Hub("someone/tiny", training.tiny) as hub:
        training.settings["model_name_or_path"] = "someone/else"
        assert training.error(training.run_alone(env={"HF_ENDPOINT": hub.url})) == (
            "the hub has no public model someone/else; fix model_name_or_path in train.yaml"
        )
