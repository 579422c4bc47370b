"""train is interrupted, or fails as a card does, and continues from its checkpoints."""

import ctypes
import itertools
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import ANY

import psutil
import pytest

from cards import simulate_nvml
from forked import start_forking
from helpers import ROOT
from huiyin.common.errors import UserError
from huiyin.training import llamafactory, work
from huiyin.training.launch import divide, give_memory_back, load_in
from huiyin.training.llamafactory import environment, run_program
from huiyin.training.memory import GIB
from huiyin.training.plan import Plan
from huiyin.training.unfinished import Run, fix_checkpoints
from huiyin.training.watch import BrokenLoss
from scripts import train
from training_folder import RESULTS, Training, assert_same_adapter, replies, train_on_card


@pytest.fixture
def training(demo, tmp_path):
    return Training(demo, tmp_path)


def test_a_run_killed_at_any_step_ends_with_the_same_adapter(training, monkeypatch):
    monkeypatch.setattr(train, "ask", replies("好"))
    training.without_evaluation()
    training.run_shortly(max_steps=18)
    assert training.run().returncode == 0
    trained = training.path / "trained"
    undisturbed = trained.rename(training.path / "undisturbed")
    log = trained / ".run/trainer_log.jsonl"
    for step in (2, 9, 17):
        running = start_forking("train", *training.arguments())
        while running.is_alive() and (not log.exists() or f'"current_steps": {step},' not in log.read_text()):
            time.sleep(0.01)  # until that step, however long it takes
        running.kill()  # its child, LLaMA-Factory, is killed with it
        running.join()
        assert running.exitcode == -signal.SIGKILL
        assert not (trained / "receipt.json").exists()
    done = training.run()
    assert done.returncode == 0, done.stderr
    assert_same_adapter(trained, undisturbed, 1e-6)


@pytest.mark.parametrize("content", [None, '{"global_st'])
def test_a_checkpoint_that_was_not_written_to_its_end_is_deleted(tmp_path, content):
    for step in (4, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-4/trainer_state.json").write_text('{"global_step": 4, "train_batch_size": 8}')
    if content:
        (tmp_path / "checkpoint-8/trainer_state.json").write_text(content)
    assert fix_checkpoints(tmp_path, 2) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]
    assert json.loads((tmp_path / "checkpoint-4/trainer_state.json").read_text())["train_batch_size"] == 2


def test_two_processes_train_together(training, monkeypatch):
    monkeypatch.setattr(train, "ask", replies("好"))
    training.without_evaluation()
    base = shutil.copytree(training.tiny, training.path / "base")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}), encoding="utf-8")
    training.settings |= {"max_steps": 2, "ddp_backend": "gloo", "model_name_or_path": str(base)}
    done = training.run(env={"NPROC_PER_NODE": "2", "MASTER_ADDR": "127.0.0.1"})
    assert done.returncode == 0, done.stderr
    used = json.loads((training.path / "trained/train.yaml").read_text(encoding="utf-8"))
    [attempt] = training.receipt()["attempts"]
    assert used["per_device_train_batch_size"] == attempt["micro_batch"] == 2
    assert 2 * used["gradient_accumulation_steps"] == attempt["accumulation"]
    assert attempt["replies"] == pytest.approx(16, abs=6)
    log = (training.path / "trained/llamafactory.log").read_text(encoding="utf-8")
    rows = 2 * attempt["accumulation"]
    assert f"Total train batch size (w. parallel, distributed & accumulation) = {rows}\n" in log
    assert "under default dtype torch.float32.\n" in log  # fp32, whatever the type of the file


@pytest.mark.parametrize("processes", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 4])
def test_each_step_has_the_rows_that_it_has_with_one_process(processes, size):
    accumulation, rows_of_step = 2, size * 2 * processes
    for count in range(1, 3 * rows_of_step):
        order = list(range(count))[::-1]
        batches = [order[start : start + size] for start in range(0, count, size)]
        shares = [divide(batches, accumulation, processes, process) for process in range(processes)]
        assert len(set(map(len, shares))) == 1  # they wait for each other
        steps = range(0, len(shares[0]), accumulation)
        assert len(steps) == -(-count // rows_of_step)
        for number, first in enumerate(steps):
            own = [batch for share in shares for batch in share[first : first + accumulation]]
            assert all(0 < len(batch) <= size for batch in own)
            rows = order[number * rows_of_step : (number + 1) * rows_of_step]
            together = Counter(row for batch in own for row in batch)
            assert together.keys() == set(rows)
            if size > 1:
                assert len(set(together.values())) == 1  # so that the mean over the words is the same


def test_rows_of_like_length_stay_together_in_each_process():
    groups = [[3 * group, 3 * group + 1, 3 * group + 2] for group in range(24)]
    shares = [divide(groups, 2, 4, process) for process in range(4)]
    assert sorted(batch for share in shares for batch in share) == groups


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
def test_a_base_model_is_loaded_in_the_type_in_which_it_is_computed(monkeypatch, precision):
    loader = SimpleNamespace(load_config=lambda name: SimpleNamespace(name=name, dtype="that of the file"))
    monkeypatch.setitem(sys.modules, "llamafactory.model", SimpleNamespace(loader=loader))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(**{precision: precision}))
    load_in(precision)
    assert loader.load_config("a model") == SimpleNamespace(name="a model", dtype=precision)


def test_memory_is_given_back_after_each_micro_batch_on_the_processor(monkeypatch):
    calls = []
    trainer = SimpleNamespace(Trainer=SimpleNamespace(training_step=lambda rows: calls.append(rows) or "a loss"))
    monkeypatch.setitem(sys.modules, "transformers", trainer)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=calls.append))
    give_memory_back()
    assert trainer.Trainer.training_step("rows") == "a loss"
    assert calls == ["rows", 0]


LAUNCHER = """
import os, subprocess, sys
{first}
torchrun = "import subprocess, sys; subprocess.Popen([sys.executable, *sys.argv[1:]], start_new_session=True).wait()"
os.environ["TORCHELASTIC_RUN_ID"] = "none"
launch = lambda: subprocess.run([sys.executable, "-c", torchrun, __file__, sys.argv[-1]])
"""
WORKER = """
import os, threading
def run_exp():
    with open(os.environ["ALIVE"], "wb", buffering=0) as alive:
        alive.write(b"1")
        threading.Event().wait()
"""


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Call run_program with a LLaMA-Factory that starts a worker as torchrun does, which waits for ever; return what
    $ALIVE gets."""

    def call(watch=lambda: None, first=""):
        launcher = LAUNCHER.format(first=first)
        code = {"__init__": "", "launcher": launcher, "train/__init__": "", "train/tuner": WORKER}
        code |= {"model/__init__": "", "model/loader": "load_config = None"}
        for folder in ("train", "model"):
            (tmp_path / f"llamafactory/{folder}").mkdir(parents=True)
        for name, text in code.items():
            (tmp_path / f"llamafactory/{name}.py").write_text(text)
        variables = environment("none", tmp_path, tmp_path) | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
        run_program("train", {"bf16": True}, tmp_path / "run", {**variables, "ALIVE": str(tmp_path / "alive")}, watch)

    os.mkfifo(tmp_path / "alive")
    monkeypatch.setattr(llamafactory, "POLL_SECONDS", 0.01)
    return call


def test_no_worker_outlives_the_training(tmp_path, launch):
    started, ended = threading.Event(), threading.Event()

    def listen():
        with open(tmp_path / "alive", "rb") as alive:
            alive.read(1)
            started.set()
            alive.read()
        ended.set()

    def watch():
        if started.is_set():
            raise BrokenLoss

    threading.Thread(target=listen, daemon=True).start()
    with pytest.raises(BrokenLoss):
        launch(watch)
    assert ended.wait(60)


@pytest.mark.parametrize(
    "first",
    ["os.kill(os.getpid(), 9)", "sys.exit('traceback : Signal 9 (SIGKILL) received by PID 12\\nCalledProcessError')"],
)
def test_a_training_that_is_killed_is_one_clear_line(tmp_path, launch, first):
    with pytest.raises(UserError) as error:
        launch(first=first)
    assert str(error.value) == (
        "llamafactory-cli train was killed (signal 9), probably out of memory; close other programs and start again; "
        f"its output is in {tmp_path}/run/llamafactory.log"
    )


@pytest.fixture(scope="module")
def restarted(demo, tmp_path_factory):
    """A finished training whose loss was NaN in bf16: (folder, attempts, output)."""
    training = Training(demo, tmp_path_factory.mktemp("restarted"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        return training.path / "trained", *train_on_card(training, monkeypatch, CARD_BREAKS="bf16")


def test_a_broken_loss_restarts_the_training_in_the_other_precision(restarted):
    _, attempts, output = restarted
    assert [(attempt["precision"], attempt["ended"]) for attempt in attempts] == [
        ("bf16", "the loss is nan at step 1"),
        ("fp16", "well"),
    ]
    assert "train: the loss is nan at step 1; starting again in fp16\n" in output


def test_out_of_memory_resumes_with_half_the_micro_batch_and_gives_the_same_adapter(training, restarted, monkeypatch):
    attempts, output = train_on_card(training, monkeypatch, CARD_ROWS="2", CARD_STEP="5")
    assert [
        (attempt["micro_batch"], attempt["accumulation"], attempt["precision"], attempt["ended"])
        for attempt in attempts
    ] == [(4, 1, "bf16", "out of memory"), (2, 2, "bf16", "well")]
    assert "train: out of memory; resuming with a micro-batch of 2\n" in output
    log = (training.path / "trained/llamafactory.log").read_text(encoding="utf-8")
    assert "Continuing training from global step 4\n" in log
    assert "Total train batch size (w. parallel, distributed & accumulation) = 4\n" in log
    assert_same_adapter(training.path / "trained", restarted[0], 1e-4)  # its fp16 is simulated, too


def test_out_of_memory_with_a_single_row_ends_the_training(training, monkeypatch):
    def run_program(command, values, folder, variables, watch):
        raise llamafactory.OutOfMemory(f"llamafactory-cli {command} ran out of the card's memory")

    monkeypatch.setattr(train, "run_program", run_program)
    training.settings["per_device_train_batch_size"] = 1
    assert training.error() == (
        "llamafactory-cli train ran out of the card's memory; even a micro-batch of one row needs too much: close what "
        "uses the card, or take a shorter cutoff_len or a smaller model"
    )


class Program:
    """In place of LLaMA-Factory: ends as `ends` says, one call after the other, after a checkpoint at step 4 of 6."""

    def __init__(self, *ends):
        self.ends, self.states = list(ends), []

    def __call__(self, command, values, folder, variables, watch=None):
        if folder.name == "base":  # its loss
            folder.mkdir()
            (folder / "all_results.json").write_text('{"eval_loss": 2.0}')
            return
        state = folder / "checkpoint-4/trainer_state.json"
        self.states.append(json.loads(state.read_text()) if state.exists() else None)
        state.parent.mkdir(parents=True, exist_ok=True)
        state.write_text('{"global_step": 4, "max_steps": 6}')
        if end := self.ends.pop(0):
            raise end
        (folder / "all_results.json").write_text('{"eval_loss": 1.0}')
        for name in RESULTS:
            (folder / name).touch()


class Chain:
    """In place of LLaMA-Factory: the weights are a 1 for each training that they come of."""

    def __init__(self, training, monkeypatch):
        self.training, self.monkeypatch, self.calls = training, monkeypatch, 0
        monkeypatch.setattr(train, "ask", replies("好"))
        monkeypatch.setattr(train, "run_program", self.run_program)
        training.run_shortly(max_steps=6)
        training.without_evaluation()

    def run_program(self, command, values, folder, variables, watch):
        start = values.get("adapter_name_or_path")
        before = (Path(start) / "adapter_model.safetensors").read_text() if start else ""
        for name in RESULTS:
            (folder / name).write_text(name)
        (folder / "adapter_model.safetensors").write_text(f"{before}1")
        (folder / "all_results.json").write_text("{}")

    def train(self, **settings):
        """Return the weights, and of how many trainings before they are by the receipt."""
        self.training.settings |= settings
        done = self.training.run()
        assert done.returncode == 0, done.stderr
        weights = self.training.path / "trained/adapter/adapter_model.safetensors"
        return weights.read_text(), len(self.training.receipt().get("continued_from", []))

    def train_killed(self, owner, name, number, **settings):
        """Kill a training at the call of that `number` of `owner`.`name`; return whether there was such a call."""
        calls, real = itertools.count(1), getattr(owner, name)

        def kill(*arguments, **options):
            if next(calls) == number:
                sys.exit(9)
            return real(*arguments, **options)

        self.training.settings |= settings
        with self.monkeypatch.context() as patch:
            patch.setattr(owner, name, kill)
            return self.training.run().returncode == 9


@pytest.mark.parametrize(("owner", "name"), [(Path, "replace"), (shutil, "rmtree")])
def test_wherever_a_training_is_killed_it_starts_from_the_same_adapter_again(training, monkeypatch, owner, name):
    chain = Chain(training, monkeypatch)
    assert chain.train() == ("1", 0)
    first = shutil.copytree(training.path / "trained", training.path / "first")
    for number in itertools.count(1):
        shutil.rmtree(training.path / "trained")
        shutil.copytree(first, training.path / "trained")
        killed = chain.train_killed(owner, name, number, continue_from="previous", seed=2)
        assert chain.train() == ("11", 1)
        if not killed:
            break
    assert number > 3
    assert chain.train(seed=3) == ("111", 2)
    assert chain.train(continue_from="none") == ("1", 0)


@pytest.fixture
def interrupted(training, monkeypatch):
    """A function that trains with a Program on a card, or the processor, with so much memory; returns the output."""
    monkeypatch.setattr(train, "ask", replies("好"))
    monkeypatch.setattr(work, "torch_cuda", lambda: "13.0")
    training.run_shortly(max_steps=6)

    def interrupted(program, gpu, gib):
        simulate_nvml(monkeypatch, ("NVIDIA GeForce RTX 3060", 12, gib, (8, 6), 3584, 2100))
        memory = SimpleNamespace(total=16 * GIB, available=int(gib * GIB))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        monkeypatch.setattr(train, "run_program", program)
        return training.run(gpu=gpu).stdout

    return interrupted


@pytest.mark.parametrize("gpu", ["0", "none"])
def test_with_less_memory_free_a_run_goes_on_from_its_checkpoints(training, interrupted, gpu):
    interrupted(Program(UserError("killed")), gpu, 11)
    again = Program(llamafactory.OutOfMemory("too much"), None)
    output = interrupted(again, gpu, 0)
    assert "preflight: resumed    a run of which 4 of 6 steps are done, as it was\n" in output
    assert [state["train_batch_size"] for state in again.states] == [4, 2]
    attempts = training.receipt()["attempts"]
    assert [(attempt["micro_batch"], attempt["ended"]) for attempt in attempts] == [(4, "out of memory"), (2, "well")]


def test_what_is_lost_when_the_settings_change_is_said(training, interrupted):
    interrupted(Program(UserError("killed")), "0", 11)
    training.settings["learning_rate"] = 1.0e-4
    again = Program(UserError("killed"))
    line = "train: the settings or the data have changed, so 4 of 6 steps of an earlier run are lost\n"
    assert line in interrupted(again, "0", 11)
    assert again.states == [None]


@pytest.mark.parametrize("content", [None, "", "[]", '{"asked": "this", "attempts": [{"precision": "bf16"}]}'])
def test_without_a_whole_plan_there_is_none(tmp_path, content):
    plan = Plan("bf16", 4, 1, False, False, False, 512, 0, 0, 4.0, 100, 4, 1.0, 1.2, 1e9, float("nan"))
    (tmp_path / "done").touch()
    before = Run(tmp_path, "this")
    before.add(plan)
    before.keep()
    assert asdict(Run(tmp_path, "this").plan) == {**asdict(plan), "hours": ANY}
    assert Run(tmp_path, "another").attempts == []
    before.file.unlink() if content is None else before.file.write_text(content)
    assert Run(tmp_path, "this").attempts == []
