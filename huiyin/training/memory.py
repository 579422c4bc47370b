"""The memory that LoRA training needs, estimated from the sizes in config.json of the base model; the memory there is.

The terms were fitted to simulations of the real code with fake tensors (bench/vram.py compares the two). For small
models the logits of a large vocabulary need more than the parameters.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from huiyin.common.errors import UserError

GIB = 1 << 30
PROGRAM_BYTES = 1.5 * GIB  # torch itself
# Decoders built like Qwen2 and Llama: per layer four attention projections and three of a gated feed-forward.
ARCHITECTURES = ["Qwen2ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM"]

LORA_BYTES = 16  # per trained parameter: 4 for its value, 4 gradient, 8 Adam
LOGITS_BYTES = 12  # per token and vocabulary entry: fp32 log-softmax, its gradient, the incoming gradient
HIDDEN_BYTES = 2  # per hidden value, in bf16 or fp16
LAYER_BYTES = 11.5  # per token, layer and unit of width (hidden + feed-forward), without checkpointing
FOUR_BIT_BYTES = 0.52  # per weight in 4 bits, with its scales


def format_size(size: float) -> str:
    """Return `size` (bytes) in GiB or MiB."""
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / (1 << 20):.0f} MiB"


class Ram(NamedTuple):
    """Bytes of the machine, or, where that is less, of what a container or a service may use."""

    total: int
    free: int
    swap: int  # that is free


def find_ram(control_groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Ram:
    """Return the `Ram` for this process. psutil knows the machine alone; the limits are those of its control group and
    of the ones above it (Linux, Documentation/admin-guide/cgroup-v2.rst)."""
    import psutil

    machine = psutil.virtual_memory()
    total, free, swap = machine.total, machine.available, psutil.swap_memory().free
    names = [line.removeprefix("0::/") for line in own.read_text().splitlines() if line.startswith("0::/")]
    for name in names:
        group = control_groups / name
        while group.is_relative_to(control_groups):
            limit, stat = read_number(group / "memory.max"), group / "memory.stat"
            if limit is not None:
                numbers = dict(line.split() for line in stat.read_text().splitlines())
                cached = int(numbers["active_file"]) + int(numbers["inactive_file"])  # given back when it is wanted
                used = (read_number(group / "memory.current") or 0) - cached
                total, free = min(total, limit), min(free, limit - used)
            limit = read_number(group / "memory.swap.max")
            if limit is not None:
                swap = min(swap, limit - (read_number(group / "memory.swap.current") or 0))
            group = group.parent
    return Ram(total, max(0, free), max(0, swap))


def read_number(path: Path) -> int | None:
    """Return the number in a file of a control group; None for "max", or where there is no such file."""
    text = path.read_text().strip() if path.is_file() else "max"
    return None if text == "max" else int(text)


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder, from its config.json."""

    architecture: str
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    weight_bytes: int

    def projections(self) -> dict[str, tuple[int, int]]:
        """Return {name: (inputs, outputs)} of the linear layers of one block."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        return {
            **{"q_proj": (self.hidden, queries), "k_proj": (self.hidden, keys), "v_proj": (self.hidden, keys)},
            **{"o_proj": (queries, self.hidden), "gate_proj": (self.hidden, self.feed_forward)},
            **{"up_proj": (self.hidden, self.feed_forward), "down_proj": (self.feed_forward, self.hidden)},
        }

    @property
    def embeddings(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        block = sum(inputs * outputs for inputs, outputs in self.projections().values()) + 2 * self.hidden
        if self.architecture == "Qwen2ForCausalLM":  # it has biases on queries, keys and values
            block += (self.heads + 2 * self.kv_heads) * self.head_width
        return self.layers * block + self.embeddings + self.hidden

    def lora_parameters(self, rank: int, targets: Iterable[str]) -> int:
        """Return the number of parameters of adapters of `rank` on the layers in `targets` ("all": every one)."""
        names = self.projections() if "all" in targets else targets
        return self.layers * sum(rank * sum(self.projections()[name]) for name in names if name in self.projections())


def read_shape(path: Path) -> Shape:
    """Return the `Shape` in the config.json at `path`; `UserError` unless it is one of `ARCHITECTURES`."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        architecture = config["architectures"][0]
    except (ValueError, KeyError, IndexError, TypeError):
        raise UserError(f"{path}: not the config.json of a language model") from None
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"{path}: unsupported architecture {architecture}; take a model of one of these: {', '.join(ARCHITECTURES)}"
        )
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads, head_width = config.get("num_key_value_heads", heads), config.get("head_dim") or hidden // heads
    sizes = hidden, config["intermediate_size"], config["num_hidden_layers"], heads, kv_heads, head_width
    dtype = config.get("torch_dtype") or config.get("dtype") or "float32"
    tied, weight_bytes = config.get("tie_word_embeddings", False), 4 if dtype == "float32" else 2
    return Shape(architecture, *sizes, config["vocab_size"], tied, weight_bytes)


def peak_bytes(
    shape: Shape, tokens: int, lora: int, checkpointing: bool = True, liger: bool = False, four_bit: bool = False
) -> float:
    """Return the peak of the bytes of live tensors in a step of `tokens` = rows x padded length, with `lora` trained
    parameters, without the CUDA context and the slack of the allocator."""
    weights: float = shape.weight_bytes * shape.parameters
    if four_bit:
        weights = FOUR_BIT_BYTES * (shape.parameters - shape.embeddings) + 2 * shape.embeddings
    one_layer = LAYER_BYTES * tokens * (shape.hidden + shape.feed_forward)
    # Liger computes the loss in chunks about as large as the hidden states
    logits = LOGITS_BYTES * tokens * (shape.hidden if liger else shape.vocabulary)
    if checkpointing:  # the logits are freed before the first layer is recomputed
        activations = HIDDEN_BYTES * tokens * shape.hidden * shape.layers + max(logits, one_layer)
    else:
        activations = one_layer * shape.layers + logits
    return weights + LORA_BYTES * lora + activations


def check_memory(stage: str, parameters: int, stored: int, available: int) -> bool:
    """Print the RAM that comparing models of so many parameters in 32 bits needs. Return whether it is more than
    `available`, so that the weights must stay as they are stored, in `stored` bytes; `UserError` if these are too many.
    """
    whole, least = (size + PROGRAM_BYTES for size in (4 * parameters, stored))
    print(
        f"{stage}: comparing the models needs {format_size(whole)} of RAM, {format_size(available)} are free",
        flush=True,
    )
    if whole <= available:
        return False
    if least > available:
        raise UserError(
            f"comparing the models needs {format_size(least)} of RAM and {format_size(available)} are free; close "
            "programs, or in WSL, which gets half of the machine's, set memory= in .wslconfig"
        )
    print(
        f"{stage}: so their weights stay as they are stored, which needs {format_size(least)} and is slower", flush=True
    )
    return True


def available_ram() -> int:
    """Return the bytes of RAM and swap that are free."""
    ram = find_ram()
    return ram.free + ram.swap
