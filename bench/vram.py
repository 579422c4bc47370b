"""Compare the memory formula of huiyin/training/ with a simulation of the real code on tensors without data.

    PYTHONPATH=. python bench/vram.py [MODEL ...]     (a minute for each model; needs the train environment, no card)

MODEL is a name in config/models.yaml; without any, those in `MODELS`. The simulation runs transformers' code with LoRA
(rank 16, every linear layer) and AdamW, two steps at real sizes but for fewer layers, as fake tensors, and adds up the
storages that are alive at each moment. Weights are in 16 bits, computed under autocast, or in 32. Liger's kernels need
a card: in their place stand functions that keep the same tensors (rms_norm.py, swiglu.py and
fused_linear_cross_entropy.py in liger_kernel/ops/). Exits with status 1 if a prediction is off by more than `WITHIN`.
"""

import itertools
import sys
import weakref
from dataclasses import asdict, replace
from pathlib import Path

import peft
import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import Function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from huiyin.training.memory import peak_bytes
from huiyin.training.models import Model, read_models

RANK, WITHIN = 16, 0.05
LAYERS = 4  # of each model: as many as show what one more adds
MODELS = [
    *("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B-Instruct-2507"),
    *("meta-llama/Llama-3.2-1B-Instruct", "google/gemma-3-270m-it", "openbmb/MiniCPM5-1B"),
]
SETTINGS = [  # rows, tokens of each, checkpointing, Liger, precision
    *itertools.product([1], [1024], [True, False], [False, True], ["bf16"]),
    (2, 1024, True, False, "bf16"),
    (1, 1024, True, False, "fp32"),
]
KINDS = {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3", "LlamaForCausalLM": "llama"}
KINDS |= {"Gemma3ForCausalLM": "gemma3_text"}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations allocate, until they are freed."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = set(), 0, 0

    def follow(self, tensor):
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key, size):
        self.alive.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.follow(leaf)
        return result


class Norm(Function):
    @staticmethod
    def forward(context, values):
        context.save_for_backward(values, torch.empty(values.shape[:-1]))
        return torch.empty_like(values)

    @staticmethod
    def backward(context, gradient):
        return gradient  # is overwritten


class Gated(Function):
    @staticmethod
    def forward(context, gate, up):
        context.save_for_backward(gate, up)
        return torch.empty_like(gate)

    @staticmethod
    def backward(context, gradient):
        return context.saved_tensors  # are overwritten


class Loss(Function):
    @staticmethod
    def forward(context, hidden, weight):
        tokens, (vocabulary, width) = hidden[0].numel() // hidden.shape[-1] * len(hidden), weight.shape
        pieces = -(-vocabulary // width)
        size = min(tokens, 1 << (-(-tokens // pieces) - 1).bit_length())
        context.save_for_backward(torch.empty_like(hidden))
        torch.empty(size, vocabulary, dtype=hidden.dtype)  # the logits of a piece, and their gradient
        return hidden.sum()

    @staticmethod
    def backward(context, gradient):
        return context.saved_tensors[0], None


def use_liger(model):
    """Put the stand-ins into the place of the norms and of the gated feed-forwards."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = Norm.apply
        if type(module).__name__.endswith("MLP"):
            module.forward = lambda values, mlp=module: mlp.down_proj(
                Gated.apply(mlp.gate_proj(values), mlp.up_proj(values))
            )


def loss_of(model, tokens, liger):
    if not liger:
        return model(input_ids=tokens, labels=tokens).loss
    decoder = model.base_model.model
    return Loss.apply(decoder.model(input_ids=tokens).last_hidden_state, decoder.lm_head.weight)


def build(model: Model, precision: str):
    """Return the model, as fake tensors, with a LoRA."""
    sizes = {name: value for name, value in asdict(model.sizes).items() if value is not None}
    config = transformers.AutoConfig.for_model(
        KINDS[model.architecture], **sizes, use_cache=False, dtype="float32" if precision == "fp32" else "bfloat16"
    )
    decoder = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    assert sum(weight.numel() for weight in decoder.parameters()) == model.shape.parameters
    decoder = peft.get_peft_model(decoder, peft.LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    decoder.train()
    return decoder


def simulate(model: Model, rows: int, length: int, checkpointing: bool, liger: bool, precision: str) -> int:
    """Return the peak bytes of the second step."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        decoder = build(model, precision)
        if liger:
            use_liger(decoder)
        if checkpointing:
            decoder.enable_input_require_grads()
            decoder.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        trained = [weight for weight in decoder.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, foreach=False)
        tokens = torch.zeros(rows, length, dtype=torch.long)
        count = LiveBytes()
        for weight in decoder.parameters():
            count.follow(weight)
        with count:
            for _ in range(2):
                count.peak = count.now
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision != "fp32"):
                    loss = loss_of(decoder, tokens, liger)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return count.peak


def main() -> None:
    # fake tensors cannot be moved to a device, and need not be
    BaseTunerLayer._move_adapter_to_device_of_base_layer = lambda *args, **kwargs: None
    torch.nn.Module.to = lambda self, *args, **kwargs: self
    table, worst = read_models(Path(__file__).parent.parent / "config/models.yaml"), 0.0
    print("| model | rows x tokens | checkpointing | Liger | precision | simulated, MiB | formula | error |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name, (rows, length, checkpointing, liger, precision) in itertools.product(sys.argv[1:] or MODELS, SETTINGS):
        model = replace(table[name], sizes=replace(table[name].sizes, num_hidden_layers=LAYERS))
        simulated = simulate(model, rows, length, checkpointing, liger, precision)
        shape = model.shape
        lora = shape.lora_parameters(RANK, ["all"])
        formula = peak_bytes(shape, rows * length, lora, precision, checkpointing, liger)
        worst = max(worst, abs(formula / simulated - 1))
        used, liger_used = ("yes" if choice else "no" for choice in (checkpointing, liger))
        print(
            f"| {name} | {rows} x {length} | {used} | {liger_used} | {precision} | {simulated / 2**20:,.0f} "
            f"| {formula / 2**20:,.0f} | {formula / simulated - 1:+.1%} |",
            flush=True,
        )
    print(f"worst: {worst:.1%}")
    if worst > WITHIN:
        sys.exit(1)


if __name__ == "__main__":
    main()
