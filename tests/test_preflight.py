"""preflight: every decision on every kind of card, with a simulated NVML."""

import dataclasses
import itertools
import json
import math
import re
import sys
from functools import partial

import huggingface_hub.constants
import psutil
import pynvml
import pytest
import requests

from cards import BUSY, H100, P100, RTX_2060, RTX_3060, RTX_4090, T4, simulate_nvml
from helpers import ROOT
from huiyin.common.errors import UserError
from huiyin.training.base import DESCRIBED, ends_replies, find_base
from huiyin.training.card import check_card, find_card, torch_cuda
from huiyin.training.memory import GIB, find_ram, peak_bytes, ram_bytes, read_shape
from huiyin.training.models import largest_that_fit, read_models
from huiyin.training.plan import FOUR_BIT, LIGER, Settings, Work, installed, plan_for_card, plan_for_processor
from huiyin.training.processor import Processor, choose, find_processor
from huiyin.training.rows import Measured
from huiyin.training.work import trained_parameters
from scripts import train

SIZES = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]


def config(*sizes, vocabulary, tied):
    """config.json of a Qwen2.5-Instruct."""
    dtype = {"architectures": ["Qwen2ForCausalLM"], "torch_dtype": "bfloat16"}
    return {**dict(zip(SIZES, sizes, strict=True)), **dtype, "vocab_size": vocabulary, "tie_word_embeddings": tied}


QWEN = config(1536, 8960, 28, 12, 2, vocabulary=151936, tied=True)  # with 1.5B parameters
SEVEN = config(3584, 18944, 28, 28, 4, vocabulary=152064, tied=False)
ALL, NONE = {LIGER: True, FOUR_BIT: True}, {LIGER: False, FOUR_BIT: False}
NO_LIGER, NO_FOUR_BIT = {LIGER: False, FOUR_BIT: True}, {LIGER: True, FOUR_BIT: False}
MODELS = read_models(ROOT / "config/models.yaml")


@pytest.fixture
def nvml(monkeypatch):
    return partial(simulate_nvml, monkeypatch)


def refusal(call, *arguments, **options):
    """The line with which a call ends."""
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    return str(error.value)


def work(tmp_path, config=QWEN, lengths=(1100, 900, 300, 200), replies=(1,), cutoff_len=1024, batch=16, **options):
    """Rows of these lengths in tokens, and each of so many replies, one after the other."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = read_shape(tmp_path / "config.json")
    rows = []
    for length, count in zip(lengths, itertools.cycle(replies)):
        each = [length // count] * count
        rows.append(Measured("", [("", "")] * count, each, each, 0))
    return Work(shape, rows, shape.lora_parameters(8, ["all"]), batch, cutoff_len, 3.0, **options)


def plan(nvml, tmp_path, card, helpers=ALL, settings=None, **options):
    nvml(card)
    return plan_for_card(find_card("0"), work(tmp_path, **options), settings or Settings(), helpers)


def test_the_parameters_of_a_model_are_counted_exactly(tmp_path):
    shape = work(tmp_path).shape
    assert (shape.parameters, shape.lora_parameters(8, ["all"])) == (1_543_714_304, 9_232_384)
    assert shape.lora_parameters(8, ["q_proj", "v_proj"]) == 28 * 8 * (1536 + 1536 + 1536 + 256)
    assert work(tmp_path, SEVEN).shape.parameters == 7_615_616_512


def test_the_formula_agrees_with_the_simulation(tmp_path):
    """Peaks in MiB of simulated runs with 1.5B, bench/vram.py."""
    job = work(tmp_path)
    simulated = {True: {512: 3986, 1024: 4922, 2048: 6794}, False: {512: 5542, 1024: 8045, 2048: 13022}}
    for checkpointing, peaks in simulated.items():
        for tokens, peak in peaks.items():
            predicted = peak_bytes(job.shape, tokens, job.lora, checkpointing=checkpointing)
            assert predicted / 2**20 == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize(
    ("name", "checkpointing", "liger", "precision", "simulated"),
    [
        ("Qwen/Qwen3-0.6B", True, False, "bf16", 2227),
        ("Qwen/Qwen3-0.6B", True, True, "bf16", 528),
        ("Qwen/Qwen3-0.6B", False, False, "bf16", 2522),
        ("Qwen/Qwen3-0.6B", False, True, "bf16", 705),
        ("Qwen/Qwen3-0.6B", True, False, "fp32", 2653),
        ("google/gemma-3-270m-it", True, True, "bf16", 433),
        ("google/gemma-3-270m-it", False, False, "bf16", 3633),
        ("google/gemma-3-270m-it", False, True, "bf16", 534),
        ("Qwen/Qwen2.5-1.5B-Instruct", True, True, "bf16", 999),
        ("openbmb/MiniCPM5-1B", True, True, "bf16", 1123),
    ],
)
def test_the_formula_agrees_with_the_simulation_of_other_models(name, checkpointing, liger, precision, simulated):
    """Peaks in MiB of one row of 1,024 tokens, with four layers, bench/vram.py."""
    shape = dataclasses.replace(MODELS[name].shape, layers=4)
    lora = shape.lora_parameters(16, ["all"])
    peak = peak_bytes(shape, 1024, lora, precision, checkpointing, liger)
    assert peak / 2**20 == pytest.approx(simulated, rel=0.02)


@pytest.mark.parametrize(
    ("name", "layers", "tokens", "checkpointing", "seen"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 30, 1024, True, 2029),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 30, 256, False, 1875),
        ("HuggingFaceTB/SmolLM2-360M-Instruct", 32, 384, True, 2758),
        ("Qwen/Qwen3-0.6B", 6, 512, True, 2578),
        ("google/gemma-3-270m-it", 6, 512, True, 3005),
    ],
)
def test_a_training_on_the_processor_takes_what_is_predicted(name, layers, tokens, checkpointing, seen):
    """MiB that trainings took, bench/ram.py."""
    shape = dataclasses.replace(MODELS[name].shape, layers=layers)
    predicted = ram_bytes(shape, tokens, shape.lora_parameters(16, ["all"]), "fp32", checkpointing)
    assert predicted / 2**20 == pytest.approx(seen, rel=0.1)


@pytest.mark.parametrize(
    ("card", "helpers", "expected"),
    [
        # precision, micro-batch, accumulation, checkpointing, liger, four_bit, cutoff_len, rows cut
        (RTX_3060, ALL, ("bf16", 8, 2, True, True, False, 1024, 1)),
        (RTX_3060, NONE, ("bf16", 2, 8, True, False, False, 1024, 1)),
        (RTX_2060, ALL, ("fp16", 4, 4, True, True, False, 1024, 1)),
        (RTX_2060, NO_LIGER, ("fp16", 1, 16, True, False, False, 768, 2)),
        (RTX_2060, NONE, ("fp16", 1, 16, True, False, False, 768, 2)),
        (RTX_4090, NONE, ("bf16", 8, 2, True, False, False, 1024, 1)),
        (T4, NONE, ("fp16", 4, 4, True, False, False, 1024, 1)),
        (H100, ALL, ("bf16", 8, 2, False, True, False, 1024, 1)),
    ],
)
def test_the_plan_for_each_kind_of_card(nvml, tmp_path, card, helpers, expected):
    chosen = plan(nvml, tmp_path, card, helpers)
    assert dataclasses.astuple(chosen)[:8] == expected
    assert chosen.peak <= (card[2] - 0.6) * 0.9 * GIB
    assert 0 < chosen.hours < 1


def test_rows_stay_long_until_four_bits_do_not_help(nvml, tmp_path):
    """What a model of 7B gets on cards with less and less memory."""
    seen = []
    for tenths in range(300, 60, -1):
        try:
            card = ("a card", 40, tenths / 10, (8, 6), 3584, 2100)
            chosen = plan(nvml, tmp_path, card, config=SEVEN, lengths=(1000, 200))
        except UserError:
            continue
        seen.append((chosen.four_bit, chosen.cutoff_len))
    assert seen == sorted(seen, key=lambda each: (each[1] < 512, each[0], -each[1]))
    assert {(False, 1024), (True, 1024), (True, 256)} <= set(seen)
    assert not any(cutoff_len < 512 for four_bit, cutoff_len in seen if not four_bit)


@pytest.mark.parametrize(
    ("replies", "options", "fixed", "expected"),
    [
        # micro-batch, accumulation of all processes, replies per step
        ([1], {"batch": 6}, None, (2, 3, 6)),
        ([1], {"batch": 5}, None, (1, 5, 5)),  # rows of one reply are counted exactly
        ([1], {"batch": 16}, 3, (3, 5, 15)),
        ([3, 2, 3, 3], {}, None, (2, 3, 16.5)),
        ([3, 3, 3, 4], {}, None, (4, 1, 13)),
        ([2, 1, 2, 1], {}, None, (4, 3, 18)),
        ([5], {}, None, (1, 3, 15)),
        ([20], {}, None, (1, 1, 20)),
        ([5], {}, 8, (3, 1, 15)),  # not more rows than a step needs
        ([3], {"only_last": True}, None, (8, 2, 16)),
        ([1], {"packed": True, "cutoff_len": 160}, None, (4, 1, 16)),  # 4 rows to a row
        ([1], {"batch": 6, "processes": 2}, None, (1, 6, 6)),
        ([1], {"batch": 5, "processes": 2}, None, (2, 2, 4)),
        ([3], {"processes": 3}, None, (2, 3, 18)),
        ([8], {"processes": 4}, None, (1, 4, 32)),
    ],
)
def test_a_step_counts_replies(nvml, tmp_path, replies, options, fixed, expected):
    chosen = plan(
        nvml, tmp_path, H100, lengths=[40] * 8, replies=replies, settings=Settings(micro_batch=fixed), **options
    )
    assert (chosen.micro_batch, chosen.accumulation, chosen.replies) == expected
    assert chosen.steps == math.ceil((2 if options.get("packed") else 8) / chosen.rows)


def test_rows_that_are_split_or_left_out_count_as_they_are_learnt(nvml, tmp_path):
    """Of 1,200 and 200 tokens with two replies each, in 1,024: three rows; a reply of 1,100 tokens is not learnt."""
    chosen = plan(nvml, tmp_path, H100, lengths=(1200, 200, 1100), replies=(2, 2, 1), batch=4)
    assert (chosen.rows, chosen.replies, chosen.steps) == (3, 4, 1)


def test_rows_of_like_length_together_are_computed_with_less_padding(nvml, tmp_path):
    """Of rows of 80 and 240 tokens, half each: shuffled, most micro-batches of eight would have one of 240."""
    chosen, single = (
        plan(nvml, tmp_path, H100, lengths=(80, 240) * 64, settings=Settings(micro_batch=size)) for size in (None, 1)
    )
    assert chosen.together == 8 and (chosen.padding, chosen.padding_shuffled) == (1, 1.5)
    assert single.padding == single.padding_shuffled == 1
    assert chosen.hours == single.hours


def test_a_smaller_micro_batch_keeps_the_rows_per_step(nvml, tmp_path):
    chosen = plan(nvml, tmp_path, H100, settings=Settings(micro_batch=6), batch=12)
    tried = [chosen, chosen.smaller(), chosen.smaller().smaller()]
    assert [(each.micro_batch, each.accumulation) for each in tried] == [(6, 2), (3, 4), (1, 12)]


@pytest.mark.parametrize(
    ("replies", "given", "advice"),
    [
        ([1], {}, "raise num_train_epochs to 100 or lower gradient_accumulation_steps"),
        ([1], {"gradient_accumulation_steps": 1}, "raise num_train_epochs to 100 or lower per_device_train_batch_size"),
        ([20], {}, "raise num_train_epochs to 25"),
        ([1], {"max_steps": 9}, "raise max_steps"),
        ([1], {"num_train_epochs": 100.0}, None),
    ],
)
def test_few_steps_are_warned_of_with_what_helps(nvml, tmp_path, replies, given, advice):
    """Four rows, in one step of 16 replies, or in four."""
    chosen = plan(nvml, tmp_path, H100, replies=replies, lengths=[200] * 4)
    given = {"num_train_epochs": 3.0, "gradient_accumulation_steps": 8, "learning_rate": 1e-2, **given}
    warning = train.few_steps(given, chosen, 10**9)
    assert warning == "" if advice is None else warning.endswith(f": in train.yaml {advice}")


@pytest.mark.parametrize(
    ("four_bit", "parameters", "rate", "advice"),
    [
        (False, 2e9, None, " or set learning_rate to 4.5e-04, which so few call for"),
        (False, 2e9, 4.5e-4, ""),
        (True, 2e9, None, ""),
        (True, 1e8, None, " or set learning_rate to 1.0e-03, which so few call for"),
    ],
)
def test_few_steps_call_for_a_higher_rate(nvml, tmp_path, four_bit, parameters, rate, advice):
    chosen = plan(nvml, tmp_path, H100, settings=Settings(four_bit=four_bit), replies=[20], lengths=[200] * 4)
    given = {"num_train_epochs": 3.0, "gradient_accumulation_steps": 8, "learning_rate": rate}
    warning = train.few_steps(given, chosen, parameters)
    assert warning.endswith(f": in train.yaml raise num_train_epochs to 25{advice}")


@pytest.mark.parametrize(("given", "four_bit", "rate"), [(None, False, 3e-4), (None, True, 2e-4), (1e-3, True, 1e-3)])
def test_the_rate_is_that_of_the_settings_or_suits_the_precision(nvml, tmp_path, given, four_bit, rate):
    chosen = plan(nvml, tmp_path, H100, settings=Settings(four_bit=four_bit))
    assert train.learning_rate({"learning_rate": given}, chosen) == rate


def test_short_rows_allow_a_larger_micro_batch(nvml, tmp_path):
    chosen = plan(nvml, tmp_path, RTX_3060, lengths=(250, 100))
    assert (chosen.micro_batch, chosen.accumulation, chosen.rows_cut) == (8, 2, 0)


def test_rows_are_not_made_shorter_than_any_reply(nvml, tmp_path):
    """Rows of 768 tokens would fit this card, but then there would be nothing to learn."""
    chosen = plan(nvml, tmp_path, RTX_2060, NO_LIGER, lengths=(800, 900))
    assert (chosen.cutoff_len, chosen.four_bit, chosen.too_long) == (1024, True, 0)


def test_a_large_model_needs_four_bits(nvml, tmp_path):
    chosen = plan(nvml, tmp_path, RTX_3060, config=SEVEN)
    assert (chosen.four_bit, chosen.liger, chosen.cutoff_len) == (True, True, 1024)
    assert chosen.values()["quantization_bit"] == 4
    assert refusal(plan, nvml, tmp_path, RTX_3060, NONE, config=SEVEN) == (
        "NVIDIA GeForce RTX 3060 has 11.3 GiB free of 12.0, too little for this model even with every concession "
        "(liger_kernel and bitsandbytes would help, but cannot be used here); "
        "close what uses the card, or take a smaller model in train.yaml"
    )


def test_only_the_free_memory_of_a_card_counts(nvml, tmp_path):
    line = refusal(plan, nvml, tmp_path, BUSY)
    assert line.startswith("NVIDIA GeForce RTX 3060 has 1.0 GiB free of 12.0, too little for this model")


def test_each_choice_can_be_fixed(nvml, tmp_path):
    fixed = Settings("fp16", micro_batch=1, gradient_checkpointing=True, liger=True, four_bit=True, cutoff_len=256)
    chosen = plan(nvml, tmp_path, H100, settings=fixed)
    assert chosen.values() == {
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": 16,
        "cutoff_len": 256,
        "disable_gradient_checkpointing": False,
        "bf16": False,
        "fp16": True,
        "enable_liger_kernel": True,
        "quantization_bit": 4,
    }
    assert chosen.rows_cut == 3


def test_the_second_of_two_cards_can_be_chosen(nvml):
    nvml(RTX_3060, T4)
    assert (find_card("1").name, find_card("1").capability) == ("Tesla T4", (7, 5))


@pytest.mark.parametrize("gpu", ["2", "first", "-1"])
def test_a_wrong_index_is_answered_with_the_list_of_cards(nvml, gpu):
    nvml(RTX_3060, T4)
    assert refusal(find_card, gpu) == (
        f"GPU={gpu}, but the cards here are: 0 (NVIDIA GeForce RTX 3060), 1 (Tesla T4); "
        "say GPU=none to train on the processor"
    )


def test_without_a_driver_the_processor_is_suggested(nvml):
    nvml(error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    assert refusal(find_card, "0") == (
        "GPU=0, but no NVIDIA driver answers (NVML Shared Library Not Found); say GPU=none to train on the processor"
    )


OLD_DRIVER = {"driver": "550.54.14", "cuda": 12040}


@pytest.mark.parametrize(
    ("card", "driver", "built_with", "line"),
    [
        (
            RTX_3060,
            OLD_DRIVER,
            "13.0",
            "driver 550.54.14 supports CUDA 12.4, this torch needs 13.0: update the driver to >= 580, or install a "
            "torch built for CUDA 12",
        ),
        (
            P100,
            {},
            "13.0",
            "Tesla P100-PCIE-16GB (compute capability 6.0) is too old for torch with CUDA 13.0, which supports 7.5 and "
            "newer; install an older torch, or say GPU=none",
        ),
        (
            RTX_3060,
            {},
            None,
            "GPU=0 is a NVIDIA GeForce RTX 3060, but the torch installed here is a CPU build; install one with CUDA "
            "into .venv, or say GPU=none",
        ),
    ],
    ids=["old driver", "old card", "CPU build"],
)
def test_a_torch_that_cannot_use_the_card_is_refused(nvml, card, driver, built_with, line):
    nvml(card, **driver)
    assert refusal(check_card, find_card("0"), built_with) == line


@pytest.mark.parametrize(("card", "driver", "built_with"), [(RTX_3060, OLD_DRIVER, "12.8"), (T4, {}, "13.0")])
def test_an_old_driver_is_enough_for_an_old_torch_and_the_oldest_card_for_a_new_one(nvml, card, driver, built_with):
    nvml(card, **driver)
    check_card(find_card("0"), built_with)


def test_the_build_of_torch_is_known_without_importing_it():
    before = "torch" in sys.modules
    assert torch_cuda() is None or float(torch_cuda()) >= 12
    assert ("torch" in sys.modules) == before
    assert set(installed()) == {LIGER, FOUR_BIT}


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({**QWEN, "architectures": ["GPT2LMHeadModel"]}, "unsupported architecture GPT2LMHeadModel; take a model"),
        ({"architectures": ["Qwen3_5ForConditionalGeneration"]}, "Generation: it needs transformers 5.2 or newer, "),
        ({"architectures": ["Gemma4ForCausalLM"]}, "Gemma4ForCausalLM: it needs transformers 5, and"),
        ({}, "not the config.json of a language model"),
    ],
)
def test_an_unsupported_model_is_refused(tmp_path, config, problem):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert problem in refusal(read_shape, tmp_path / "config.json")


@pytest.mark.parametrize(("precision", "gib"), [("fp32", 10.4), ("bf16", 7.3)])  # the weights are bf16 in their file
def test_the_processor_trains_if_the_memory_suffices(tmp_path, precision, gib):
    processor = Processor(precision, 4, 1e11)
    chosen = plan_for_processor(16 * GIB, processor, work(tmp_path), 2, Settings())
    assert (chosen.precision, chosen.micro_batch, chosen.accumulation, chosen.threads) == (precision, 2, 8, 4)
    assert chosen.values()["bf16"] is (precision == "bf16") and chosen.values()["fp16"] is False
    line = f"training takes about {gib} GiB of memory and 4.0 are free"
    assert line in refusal(plan_for_processor, 4 * GIB, processor, work(tmp_path), 2, Settings())


@pytest.mark.parametrize(
    ("bf16", "gains", "fixed", "expected"),  # bf16: how much faster; gains: of each doubling of the threads
    [
        (2.0, [1.9, 1.7, 1.4], (None, None), ("bf16", 6, 200 * 1.9 * 1.7 * 1.4)),
        (0.02, [1.9, 1.1, 1.9], (None, None), ("fp32", 2, 190)),
        (1.3, [0.2, 0.2, 0.2], (None, None), ("fp32", 1, 100)),  # the cores are busy
        (2.0, [1.9, 1.7, 1.4], ("fp32", None), ("fp32", 6, 100 * 1.9 * 1.7 * 1.4)),
        (2.0, [1.9, 1.7, 1.4], (None, 4), ("bf16", 4, 200 * 1.9 * 1.7)),
    ],
)
def test_the_processor_is_used_in_the_way_that_is_much_faster(bf16, gains, fixed, expected):
    """Six cores, 100 operations per second with one thread in fp32."""

    def measure(precision, threads):
        return 100 * (bf16 if precision == "bf16" else 1) * math.prod(gains[: [1, 2, 4, 6].index(threads)])

    chosen = choose(measure, 6, *fixed)
    assert dataclasses.astuple(chosen) == pytest.approx(expected)


def test_what_is_fixed_is_not_measured_and_the_rest_is(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    measured = find_processor("fp32", None)
    assert (measured.precision, measured.threads) == ("fp32", 1) and measured.flops > 0
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert find_processor("bf16", 3) == Processor("bf16", 3)


def test_fp32_needs_twice_the_memory_for_the_weights_and_more_for_the_rest(nvml, tmp_path):
    fixed = {"micro_batch": 1, "gradient_checkpointing": True}
    half, full = (plan(nvml, tmp_path, RTX_4090, NONE, Settings(name, **fixed)) for name in ("bf16", "fp32"))
    assert full.precision == "fp32" and full.values()["bf16"] is full.values()["fp16"] is False
    shape = work(tmp_path).shape
    assert full.peak - half.peak == 2 * shape.parameters + 2 * 1024 * shape.hidden * shape.layers


def test_a_precision_that_the_processor_does_not_have_is_one_line():
    assert refusal(find_processor, "fp16", None) == (
        "preflight.yaml: precision fp16 is for a card; the processor (GPU=none) takes bf16 or fp32"
    )


def test_the_memory_of_a_container_counts(tmp_path):
    machine = psutil.virtual_memory()
    own, group = tmp_path / "own", tmp_path / "groups/a/b"
    group.mkdir(parents=True)
    own.write_text("12:cpu:/x\n0::/a/b\n")
    assert find_ram(tmp_path / "groups", own).total == machine.total
    limits = {
        "memory.max": 3 << 20,
        "memory.current": 2 << 20,
        "memory.swap.max": 9 << 10,
        "memory.swap.current": 4 << 10,
    }
    for name, number in {**limits, "memory.stat": f"anon 7\nactive_file {1 << 19}\ninactive_file {1 << 18}"}.items():
        (group.parent / name).write_text(f"{number}\n")  # of the group above
    for name in ("memory.max", "memory.swap.max"):
        (group / name).write_text("max\n")
    ram = find_ram(tmp_path / "groups", own)
    assert (ram.total, ram.free) == (3 << 20, (1 << 20) + (3 << 18))
    assert ram.swap == min(5 << 10, psutil.swap_memory().free)
    (group / "memory.max").write_text("0")
    (group / "memory.stat").write_text("active_file 0\ninactive_file 0")
    assert find_ram(tmp_path / "groups", own)[:2] == (0, 0)


def test_the_table_shows_the_card_and_the_plan(nvml, tmp_path, capsys):
    nvml(RTX_3060)
    job, card = work(tmp_path), find_card("0")
    train.show({"device": card.name}, job, plan_for_card(card, job, Settings(), NONE), {})
    output = capsys.readouterr().out
    assert "found      device NVIDIA GeForce RTX 3060\n" in output
    assert "chosen     bf16, micro-batch 2 x 8 = 16 rows, about 16 replies per step, checkpointing used\n" in output
    assert re.search(r"padding    1\.\d\d tokens computed for each of the rows; shuffled it would be 1\.\d\d\n", output)
    assert "cutoff     1,024 tokens, 1 longer rows are split, 1 replies that do not fit are left out\n" in output
    assert "predicted  peak 6.7 GiB, roughly 0.0 hours\n" in output


# ---- A hub that cannot be reached

UNREACHABLE = {  # {what the variables say: what to do}
    ("HF_ENDPOINT", "hf-mirror.com"): "HF_ENDPOINT is hf-mirror.com, which is no address",
    ("HF_ENDPOINT", "https//hf-mirror.com"): "HF_ENDPOINT is https//hf-mirror.com, which is no address",
    ("HTTPS_PROXY", "socks5://me:secret@127.0.0.1:7891"): "the proxy 127.0.0.1:7891 speaks SOCKS, for which PySocks is",
    ("ALL_PROXY", "socks5h://127.0.0.1:7891"): "the proxy socks5h://127.0.0.1:7891 speaks SOCKS, for which PySocks is",
    ("HTTPS_PROXY", "ftp://127.0.0.1:21"): "the proxy ftp://127.0.0.1:21 is no address",
    ("HTTPS_PROXY", "127.0.0.1:7890"): "go online, set HF_ENDPOINT to a mirror",
    ("HTTPS_PROXY", "http://me:secret@127.0.0.1:7890"): "go online, set HF_ENDPOINT to a mirror",
}


@pytest.mark.parametrize("variable", UNREACHABLE)
def test_a_variable_that_keeps_the_hub_out_of_reach_is_named(monkeypatch, tmp_path, variable):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv(*variable)
    endpoint = variable[1] if variable[0] == "HF_ENDPOINT" else "https://huggingface.co"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)  # which it has read already
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    line = refusal(find_base, "someone/model", tmp_path, DESCRIBED)
    start = f"the base model someone/model is not in {tmp_path}/huggingface and the hub cannot be reached; "
    assert line.startswith(start + UNREACHABLE[variable])
    assert "secret" not in line


def unreachable(*_, **__):
    raise requests.ConnectionError


# ---- Base models, which were not trained to chat

MARKS = [{"id": 7, "content": "<|endoftext|>"}, {"id": 9, "content": "<|im_end|>"}]
CHATS = {
    "config": {"config.json": {"eos_token_id": 9}},
    "list": {"config.json": {"eos_token_id": [7, 9]}},
    "generation": {"config.json": {"eos_token_id": 7}, "generation_config.json": {"eos_token_id": [7, 9]}},
    "tokenizer": {"config.json": {}, "tokenizer_config.json": {"eos_token": "<|im_end|>"}},
    "object": {"config.json": {}, "tokenizer_config.json": {"eos_token": {"content": "<|im_end|>"}}},
}
BASES = {
    "other": {"config.json": {"eos_token_id": 7}, "tokenizer_config.json": {"eos_token": "<|endoftext|>"}},
    "none": {"config.json": {"eos_token_id": None}, "tokenizer_config.json": {"eos_token": None}},
}


@pytest.mark.parametrize("name", {**CHATS, **BASES})
def test_a_base_model_is_told_by_the_token_that_ends_its_texts(tmp_path, name):
    for file, content in {**CHATS, **BASES}[name].items():
        (tmp_path / file).write_text(json.dumps(content))
    assert ends_replies(tmp_path, ["<|im_end|>"])  # nothing tells the contrary, as long as tokenizer.json is not there
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": MARKS}))
    assert ends_replies(tmp_path, ["<|im_end|>"]) is (name in CHATS)
    given = {"model_name_or_path": "some/model", "template": "qwen"}
    for accepted in ({**given, "additional_target": "embed_tokens, lm_head"}, given):
        train.check_ends(accepted, Settings(accept_base=accepted is given), tmp_path, ["<|im_end|>"])
    if name in BASES:
        assert refusal(train.check_ends, given, Settings(), tmp_path, ["<|im_end|>"]) == (
            "some/model is a Base model: it ends nothing with <|im_end|>, as template qwen does, so its replies may "
            "never end; take the model that was trained to chat (-Instruct, -it), or set accept_base: true in "
            "preflight.yaml and see in `make voice` whether they do"
        )


def test_embeddings_that_are_trained_as_a_whole_count(tmp_path):
    shape, given = work(tmp_path).shape, {"lora_rank": 8, "lora_target": "all"}
    assert trained_parameters(given, shape) == 9_232_384
    whole = trained_parameters({**given, "additional_target": "embed_tokens,lm_head"}, shape)
    assert whole == 9_232_384 + 2 * 151_936 * 1536


# ---- The table of base models


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_the_table_has_the_parameters_and_the_memory_that_its_sizes_make(name):
    model, shape = MODELS[name], MODELS[name].shape
    lora = shape.lora_parameters(16, ["all"])
    settings = [("plain", {}), ("liger", {"liger": True}), ("four_bit", {"liger": True, "four_bit": True})]
    memory = {kind: round(peak_bytes(shape, 1024, lora, **options) / GIB, 1) for kind, options in settings}
    assert (shape.parameters, memory) == (model.parameters, dataclasses.asdict(model.memory))


@pytest.mark.parametrize(
    ("free", "helpers", "largest"),
    [
        (11.3, ALL, "Qwen/Qwen3-4B-Instruct-2507 (Apache-2.0), in 4 bits Qwen/Qwen3-8B (Apache-2.0)"),
        (11.3, NO_FOUR_BIT, "Qwen/Qwen3-4B-Instruct-2507 (Apache-2.0)"),
        (23, ALL, "Qwen/Qwen3-8B (Apache-2.0)"),
        (1, ALL, ""),
    ],
)
def test_the_largest_models_that_fit_are_named(nvml, tmp_path, free, helpers, largest):
    nvml(("a card", 24, free, (8, 6), 3584, 2100))
    found = largest_that_fit(MODELS, find_card("0"), work(tmp_path), Settings(), helpers, lambda shape: 30_000_000)
    assert found == largest


def test_what_a_licence_forbids_is_said(nvml, tmp_path):
    chosen, job = plan(nvml, tmp_path, H100), work(tmp_path)
    given = {"learning_rate": 1e-2, "num_train_epochs": 300.0}
    for name, notes in {
        "Qwen/Qwen2.5-3B-Instruct": {"licence": "Qwen Research: research only, no commercial use"},
        "Qwen/Qwen2.5-1.5B-Instruct": {},
        "a/folder": {},
    }.items():
        assert train.notes({**given, "model_name_or_path": name}, job, chosen, MODELS, "") == notes


def test_a_wrong_table_is_one_line(tmp_path):
    (tmp_path / "models.yaml").write_text("some/model:\n  licence: Apache-2.0\n")
    assert refusal(read_models, tmp_path / "models.yaml") == (
        f"{tmp_path}/models.yaml: Object missing required field `template` - at `$[...]`"
    )
    table = (ROOT / "config/models.yaml").read_text(encoding="utf-8").replace("Gemma3ForCausalLM", "GPT2LMHeadModel")
    (tmp_path / "models.yaml").write_text(table, encoding="utf-8")
    line = refusal(read_models, tmp_path / "models.yaml")
    assert "models.yaml: google/gemma-3-270m-it: unsupported architecture GPT2LMHeadModel; known are: Qwen2" in line
