"""preflight: every decision on every kind of card, with a simulated NVML (a real one cannot be had in a test)."""

import json
import sys

import pynvml
import pytest

from huiyin.common.errors import UserError
from huiyin.training.card import check_card, find_card, torch_cuda
from huiyin.training.memory import GIB, peak_bytes, read_shape
from huiyin.training.plan import FOUR_BIT, LIGER, Settings, Work, installed, plan_for_card, plan_for_processor
from scripts import train

QWEN = {  # Qwen2.5-1.5B-Instruct's config.json, as far as it matters
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
    "torch_dtype": "bfloat16",
}
SEVEN = {
    **QWEN,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
}
ALL, NONE = {LIGER: True, FOUR_BIT: True}, {LIGER: False, FOUR_BIT: False}

# name, total GiB, free GiB, capability, cores, MHz
RTX_3060 = ("NVIDIA GeForce RTX 3060", 12, 11.3, (8, 6), 3584, 2100)
RTX_2060 = ("NVIDIA GeForce RTX 2060", 6, 5.5, (7, 5), 1920, 2100)
RTX_4090 = ("NVIDIA GeForce RTX 4090", 24, 23, (8, 9), 16384, 2520)
T4 = ("Tesla T4", 15, 14.6, (7, 5), 2560, 1590)
P100 = ("Tesla P100-PCIE-16GB", 16, 15.8, (6, 0), 3584, 1328)
H100 = ("NVIDIA H100 80GB HBM3", 80, 79, (9, 0), 16896, 1980)
BUSY = ("NVIDIA GeForce RTX 3060", 12, 1.0, (8, 6), 3584, 2100)


class Nvml:
    """NVML as its documentation describes it: errors before nvmlInit, without a driver, for an index out of range."""

    def __init__(self, monkeypatch, *cards, driver="580.95.05", cuda=13000, error=None):
        self.cards, self.driver, self.cuda, self.error, self.started = cards, driver, cuda, error, False
        for name in dir(self):
            if name.startswith("nvml"):
                monkeypatch.setattr(pynvml, name, getattr(self, name))

    def nvmlInit(self):
        if self.error:
            raise pynvml.NVMLError(self.error)
        self.started = True

    def nvmlShutdown(self):
        self.started = False

    def need_start(self):
        if not self.started:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)

    def nvmlDeviceGetCount(self):
        self.need_start()
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        self.need_start()
        if not 0 <= index < len(self.cards):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self.cards[index]

    def nvmlDeviceGetName(self, card):
        return card[0]

    def nvmlDeviceGetMemoryInfo(self, card):
        total, free = (int(size * GIB) for size in card[1:3])
        return type("Memory", (), {"total": total, "free": free, "used": total - free})

    def nvmlDeviceGetCudaComputeCapability(self, card):
        return card[3]

    def nvmlDeviceGetNumGpuCores(self, card):
        return card[4]

    def nvmlDeviceGetMaxClockInfo(self, card, kind):
        return card[5]

    def nvmlSystemGetDriverVersion(self):
        self.need_start()
        return self.driver

    def nvmlSystemGetCudaDriverVersion_v2(self):
        self.need_start()
        return self.cuda


@pytest.fixture
def nvml(monkeypatch):
    return lambda *cards, **more: Nvml(monkeypatch, *cards, **more)


def work(tmp_path, config=QWEN, lengths=(1500, 900, 300, 200), cutoff_len=1024, batch=16):
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = read_shape(tmp_path / "config.json")
    return Work(shape, list(lengths), shape.lora_parameters(8, ["all"]), batch, cutoff_len, 3.0)


def plan(nvml, tmp_path, card, helpers=ALL, settings=None, **more):
    nvml(card)
    return plan_for_card(find_card("0"), work(tmp_path, **more), settings or Settings(), helpers)


def test_parameters_are_counted_as_the_models_have_them(tmp_path):
    shape = work(tmp_path).shape
    assert (shape.parameters, shape.lora_parameters(8, ["all"])) == (1_543_714_304, 9_232_384)
    assert shape.lora_parameters(8, ["q_proj", "v_proj"]) == 28 * 8 * (1536 + 1536 + 1536 + 256)
    assert work(tmp_path, SEVEN).shape.parameters == 7_615_616_512


def test_the_formula_gives_what_was_simulated(tmp_path):
    """Peaks in MiB of simulated runs with 1.5B, bench/vram.py."""
    job = work(tmp_path)
    for tokens, checkpointing, simulated in [
        (512, True, 3986),
        (1024, True, 4922),
        (2048, True, 6794),
        (512, False, 5542),
        (1024, False, 8045),
        (2048, False, 13022),
    ]:
        assert peak_bytes(job.shape, tokens, job.lora, checkpointing) / 2**20 == pytest.approx(simulated, rel=0.05)


@pytest.mark.parametrize(
    ("card", "helpers", "expected"),
    [
        # precision, rows at a time, accumulation, checkpointing, liger, four_bit, cutoff_len, rows cut
        (RTX_3060, ALL, ("bf16", 2, 8, True, False, False, 1024, 1)),
        (RTX_3060, NONE, ("bf16", 2, 8, True, False, False, 1024, 1)),
        (RTX_2060, ALL, ("fp16", 4, 4, True, True, False, 1024, 1)),
        (RTX_2060, NONE, ("fp16", 1, 16, True, False, False, 768, 2)),
        (RTX_4090, ALL, ("bf16", 8, 2, True, False, False, 1024, 1)),
        (T4, ALL, ("fp16", 4, 4, True, False, False, 1024, 1)),
        (H100, ALL, ("bf16", 8, 2, False, False, False, 1024, 1)),
    ],
)
def test_what_is_chosen_for_a_card(nvml, tmp_path, card, helpers, expected):
    found = plan(nvml, tmp_path, card, helpers)
    assert (
        found.precision,
        found.micro_batch,
        found.accumulation,
        found.checkpointing,
        found.liger,
        found.four_bit,
        found.cutoff_len,
        found.rows_cut,
    ) == expected
    assert found.peak <= (card[2] - 0.6) * 0.9 * GIB
    assert 0 < found.hours < 1


def test_short_rows_leave_room_for_more_at_a_time(nvml, tmp_path):
    found = plan(nvml, tmp_path, RTX_3060, lengths=(250, 100))
    assert (found.micro_batch, found.accumulation, found.rows_cut) == (8, 2, 0)


def test_a_large_model_takes_four_bits_and_nothing_smaller_will_do(nvml, tmp_path):
    found = plan(nvml, tmp_path, RTX_3060, config=SEVEN)
    assert (found.four_bit, found.liger, found.cutoff_len) == (True, False, 1024)
    assert found.values()["quantization_bit"] == 4
    with pytest.raises(UserError) as error:
        plan(nvml, tmp_path, RTX_3060, NONE, config=SEVEN)
    assert str(error.value) == (
        "NVIDIA GeForce RTX 3060 has 11.3 GiB free of 12.0, too little for this model even with every concession "
        "(liger_kernel and bitsandbytes would help, but cannot be imported); "
        "close what uses the card, or take a smaller model in train.yaml"
    )


def test_a_busy_card_is_judged_by_what_is_free(nvml, tmp_path):
    with pytest.raises(UserError) as error:
        plan(nvml, tmp_path, BUSY)
    assert str(error.value).startswith("NVIDIA GeForce RTX 3060 has 1.0 GiB free of 12.0, too little for this model")


def test_each_choice_can_be_fixed(nvml, tmp_path):
    fixed = Settings(
        precision="fp16", micro_batch=1, gradient_checkpointing=True, liger=True, four_bit=True, cutoff_len=256
    )
    found = plan(nvml, tmp_path, H100, settings=fixed)
    assert found.values() == {
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
    assert found.rows_cut == 3
    with pytest.raises(UserError, match="micro_batch 3 does not divide the 16 rows per step"):
        plan(nvml, tmp_path, H100, settings=Settings(micro_batch=3))


def test_the_second_of_two_cards(nvml):
    nvml(RTX_3060, T4)
    assert (find_card("1").name, find_card("1").capability) == ("Tesla T4", (7, 5))


@pytest.mark.parametrize("gpu", ["2", "first", "-1"])
def test_no_such_card(nvml, gpu):
    nvml(RTX_3060, T4)
    with pytest.raises(UserError) as error:
        find_card(gpu)
    assert str(error.value) == (
        f"GPU={gpu}, but the cards here are: 0 (NVIDIA GeForce RTX 3060), 1 (Tesla T4); "
        "say GPU=none to train on the processor"
    )


def test_no_driver(nvml):
    nvml(error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    with pytest.raises(UserError) as error:
        find_card("0")
    assert str(error.value) == (
        "GPU=0, but no NVIDIA driver answers (NVML Shared Library Not Found); say GPU=none to train on the processor"
    )


def test_a_driver_too_old_for_this_torch(nvml):
    nvml(RTX_3060, driver="550.54.14", cuda=12040)
    with pytest.raises(UserError) as error:
        check_card(find_card("0"), "13.0")
    assert str(error.value) == (
        "driver 550.54.14 supports CUDA 12.4, this torch needs 13.0: "
        "update the driver to >= 580, or install a torch built for CUDA 12"
    )
    check_card(find_card("0"), "12.8")


def test_a_card_torch_no_longer_serves(nvml):
    nvml(P100)
    with pytest.raises(UserError) as error:
        check_card(find_card("0"), "13.0")
    assert str(error.value) == (
        "Tesla P100-PCIE-16GB (compute capability 6.0) is too old for torch with CUDA 13.0, "
        "which supports 7.5 and newer; install an older torch, or say GPU=none"
    )


def test_a_torch_without_cuda(nvml):
    nvml(RTX_3060)
    with pytest.raises(UserError, match="the torch installed here is a CPU build"):
        check_card(find_card("0"), None)


def test_the_build_of_torch_is_known_without_loading_it():
    before = "torch" in sys.modules
    assert torch_cuda() is None or float(torch_cuda()) >= 12
    assert ("torch" in sys.modules) == before
    assert set(installed()) == {LIGER, FOUR_BIT}


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({**QWEN, "architectures": ["GPT2LMHeadModel"]}, "unsupported architecture GPT2LMHeadModel; take a model"),
        ({}, "not the config.json of a language model"),
    ],
)
def test_models_that_are_not_known(tmp_path, config, problem):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=problem):
        read_shape(tmp_path / "config.json")


def test_the_processor_takes_full_precision_and_needs_the_memory(tmp_path):
    found = plan_for_processor(16 * GIB, 8, work(tmp_path), 2, Settings())
    assert (found.precision, found.micro_batch, found.accumulation) == ("fp32", 2, 8)
    assert found.values()["bf16"] is False and found.values()["fp16"] is False
    with pytest.raises(UserError, match=r"training takes about 6\.7 GiB of memory and 4\.0 are free"):
        plan_for_processor(4 * GIB, 8, work(tmp_path), 2, Settings())


def test_the_table_says_what_was_found_and_chosen(nvml, tmp_path, capsys):
    nvml(RTX_3060)
    job = work(tmp_path)
    card = find_card("0")
    train.show({"device": card.name}, job, plan_for_card(card, job, Settings(), ALL))
    said = capsys.readouterr().out
    assert "found      device NVIDIA GeForce RTX 3060\n" in said
    assert "chosen     bf16, 2 rows at a time x 8 = 16 a step, checkpointing used\n" in said
    assert "cutoff     1,024 tokens, 1 rows are cut\n" in said
    assert "predicted  peak 6.7 GiB, roughly 0.0 hours\n" in said
