"""The memory that LoRA training needs, estimated from the sizes in config.json of the base model; the memory there is.

The terms were fitted to simulations of the real code with fake tensors and to trainings on the processor (bench/vram.py
and bench/ram.py compare). For small models the logits of a large vocabulary need more than the parameters.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from huiyin.common.errors import UserError

GIB = 1 << 30
PROGRAM_BYTES = 1.5 * GIB  # torch itself
TRAINER_BYTES = 0.67 * GIB  # LLaMA-Factory and what it loads

LORA_BYTES = 16  # per trained parameter: 4 for its value, 4 gradient, 8 Adam
LOGITS_BYTES = 12  # per token and vocabulary entry: fp32 log-softmax, its gradient, the incoming gradient
FOUR_BIT_BYTES = 0.52  # per weight in 4 bits, with its scales

# On the processor glibc holds what is free between small gradients: with checkpointing, at the end of a backward pass,
# this share of what all blocks would keep without (bench/ram.py). Larger tensors go back at once (mallopt(3)).
HELD, MAPPED_BYTES = 0.6, 32 << 20

Precision = Literal["bf16", "fp16", "fp32"]


class Values(NamedTuple):
    """Bytes that a block of the decoder keeps for the backward pass, for each token."""

    weight: int  # a weight, and a value of the hidden state between two blocks
    hidden: float  # per value of the hidden state: the inputs of the adapters, in the type of the computation
    feed_forward: float  # per value of the feed-forward: gate, its activation, up, and the input of the last adapter
    attention: float  # per value of all heads: query, key, value, output, and the input of the last adapter
    norm: float  # per value that is normalized: its copy in 32 bits
    passing: float  # per value of the feed-forward, while the block is computed


HALF = Values(weight=2, hidden=10.4, feed_forward=8.2, attention=10.2, norm=4, passing=8)
HALF_WITH_LIGER = HALF._replace(feed_forward=6.2, norm=2)  # its kernels compute again what others keep
FULL = Values(weight=4, hidden=8, feed_forward=16, attention=16, norm=4, passing=16)


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


class Architecture(NamedTuple):
    """What distinguishes decoders built like Llama: per block four projections of the attention, three of a gated
    feed-forward, norms."""

    biases: bool = False  # of queries, keys and values
    head_norms: bool = False  # of queries and keys
    norms: int = 2  # of the hidden state, per block
    head_width: int | None = None  # where config.json leaves it out; None: the hidden size divided by the heads
    tied: bool = False  # the same


ARCHITECTURES = {
    "Qwen2ForCausalLM": Architecture(biases=True),
    "Qwen3ForCausalLM": Architecture(head_norms=True, head_width=128),
    "LlamaForCausalLM": Architecture(),
    "Gemma3ForCausalLM": Architecture(head_norms=True, norms=4, head_width=256, tied=True),
}
# {how the names of others begin: why they are refused}
NOT_YET = {
    "Qwen3_5": "it needs transformers 5.2 or newer, and 4.57 is pinned here; Ollama serves it one question at a time",
    "Gemma4": "it needs transformers 5, and 4.57 is pinned here; Ollama ignores our TEMPLATE for it",
    "Gemma3ForConditionalGeneration": "it reads pictures, too; of Gemma 3 take 270m or 1b",
}


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder, from its config.json."""

    architecture: Architecture
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    tied: bool

    @property
    def queries(self) -> int:
        """The values of all queries of a token."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_width

    def projections(self) -> dict[str, tuple[int, int]]:
        """Return {name: (inputs, outputs)} of the linear layers of one block."""
        return {
            **{"q_proj": (self.hidden, self.queries), "k_proj": (self.hidden, self.keys)},
            **{"v_proj": (self.hidden, self.keys), "o_proj": (self.queries, self.hidden)},
            **{"gate_proj": (self.hidden, self.feed_forward), "up_proj": (self.hidden, self.feed_forward)},
            "down_proj": (self.feed_forward, self.hidden),
        }

    @property
    def embeddings(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        block = sum(inputs * outputs for inputs, outputs in self.projections().values())
        block += self.architecture.norms * self.hidden
        if self.architecture.head_norms:
            block += 2 * self.head_width
        if self.architecture.biases:
            block += self.queries + 2 * self.keys
        return self.layers * block + self.embeddings + self.hidden

    def lora_parameters(self, rank: int, targets: Iterable[str]) -> int:
        """Return the number of parameters of adapters of `rank` on the layers in `targets` ("all": every one)."""
        names = self.projections() if "all" in targets else targets
        return self.layers * sum(rank * sum(self.projections()[name]) for name in names if name in self.projections())

    def kept(self, values: Values) -> float:
        """Return the bytes that one block keeps for each token until the backward pass."""
        normalized = self.architecture.norms * self.hidden
        if self.architecture.head_norms:
            normalized += self.queries + self.keys
        return (
            values.hidden * self.hidden
            + values.feed_forward * self.feed_forward
            + values.attention * self.queries
            + values.norm * normalized
        )


def read_shape(path: Path) -> Shape:
    """Return the `Shape` in the config.json at `path`; `UserError` unless it is one of `ARCHITECTURES`."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        name = config["architectures"][0]
    except (ValueError, KeyError, IndexError, TypeError):
        raise UserError(f"{path}: not the config.json of a language model") from None
    if name not in ARCHITECTURES:
        why = next((f": {reason}" for start, reason in NOT_YET.items() if name.startswith(start)), "")
        raise UserError(
            f"{path}: unsupported architecture {name}{why}; take a model of one of these: {', '.join(ARCHITECTURES)} "
            "(config/models.yaml lists some)"
        )
    return shape_of(ARCHITECTURES[name], config)


def shape_of(architecture: Architecture, config: Mapping[str, Any]) -> Shape:
    """Return the `Shape` of a model of `architecture` with the sizes in `config`, named as in config.json."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return Shape(
        architecture,
        hidden=hidden,
        feed_forward=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
        head_width=config.get("head_dim") or architecture.head_width or hidden // heads,
        vocabulary=config["vocab_size"],
        tied=config.get("tie_word_embeddings", architecture.tied),
    )


def peak_bytes(
    shape: Shape,
    tokens: int,
    lora: int,
    precision: Precision = "bf16",
    checkpointing: bool = True,
    liger: bool = False,
    four_bit: bool = False,
) -> float:
    """Return the peak of the bytes of live tensors in a step of `tokens` = rows x padded length, with `lora` trained
    parameters, without the CUDA context and the slack of the allocator. The weights are loaded in `precision`."""
    values = FULL if precision == "fp32" else HALF_WITH_LIGER if liger else HALF
    weights: float = values.weight * shape.parameters
    if four_bit:
        weights = FOUR_BIT_BYTES * (shape.parameters - shape.embeddings) + values.weight * shape.embeddings
    # Liger computes the loss in chunks about as large as the hidden states
    logits = LOGITS_BYTES * (shape.hidden if liger else shape.vocabulary)
    block, passing = shape.kept(values), values.passing * shape.feed_forward
    if checkpointing:  # the logits are freed before the last block is computed again
        activations = values.weight * shape.hidden * shape.layers + max(logits, block + passing)
    else:
        activations = block * shape.layers + max(logits, passing)
    return weights + LORA_BYTES * lora + tokens * activations


def ram_bytes(shape: Shape, tokens: int, lora: int, precision: Precision, checkpointing: bool) -> float:
    """Return the most bytes that a training on the processor takes; arguments as of `peak_bytes`."""
    values = FULL if precision == "fp32" else HALF
    mapped = tokens * shape.feed_forward * values.weight > MAPPED_BYTES
    in_heap = replace(shape, feed_forward=0) if mapped else shape
    held = peak_bytes(shape, 0, lora, precision) + HELD * tokens * shape.layers * in_heap.kept(values)
    return TRAINER_BYTES + max(held, peak_bytes(shape, tokens, lora, precision, checkpointing))


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
