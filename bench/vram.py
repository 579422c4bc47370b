"""Compare the memory formula of huiyin/training/ with a simulation of the real code on tensors without data.

    python bench/vram.py            (about ten minutes on two cores; needs the train environment, no card)

The simulation runs transformers' Qwen2 with PEFT's LoRA (rank 8, every linear layer), bf16 weights under autocast and
AdamW, two steps at real sizes, as fake tensors, and adds up the storages that are alive at each moment.
"""

import itertools
import json
import tempfile
import weakref
from pathlib import Path

import peft
import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from huiyin.training.memory import Shape, peak_bytes, read_shape

RANK = 8
VOCABULARY = 151_936
SIZES = [
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("tie_word_embeddings", "vocab_size"),
]
MODELS = {  # SIZES of Qwen2.5
    "0.5B": (896, 4864, 24, 14, 2, True, VOCABULARY),
    "1.5B": (1536, 8960, 28, 12, 2, True, VOCABULARY),
    "3B": (2048, 11008, 36, 16, 2, True, VOCABULARY),
    "7B": (3584, 18944, 28, 28, 4, False, 152_064),
}
SETTINGS = [(1, 512), (1, 1024), (2, 1024), (1, 2048)]


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


def config_of(name: str) -> transformers.Qwen2Config:
    sizes = dict(zip(SIZES, MODELS[name], strict=True))
    options = {"use_cache": False, "attn_implementation": "sdpa", "dtype": "bfloat16"}
    return transformers.Qwen2Config(**sizes, **options, architectures=["Qwen2ForCausalLM"])


def simulate(name: str, rows: int, length: int, checkpointing: bool) -> tuple[int, int, int]:
    """Return (peak bytes of the second step, parameters, trained parameters)."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(torch.bfloat16)
        model = transformers.Qwen2ForCausalLM(config_of(name))
        torch.set_default_dtype(torch.float32)
        parameters = sum(weight.numel() for weight in model.parameters())
        model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
        model.train()
        if checkpointing:
            model.enable_input_require_grads()
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, foreach=False)
        tokens = torch.zeros(rows, length, dtype=torch.long)
        count = LiveBytes()
        for weight in model.parameters():
            count.follow(weight)
        with count:
            for _ in range(2):
                count.peak = count.now
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = model(input_ids=tokens, labels=tokens).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return count.peak, parameters, sum(weight.numel() for weight in trained)


def shape_of(name: str) -> Shape:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config_of(name).to_dict()), encoding="utf-8")
        return read_shape(path)


def main() -> None:
    # fake tensors cannot be moved to a device, and need not be
    BaseTunerLayer._move_adapter_to_device_of_base_layer = lambda *args, **kwargs: None
    torch.nn.Module.to = lambda self, *args, **kwargs: self
    print("model  rows x tokens  checkpointing  simulated MiB  formula MiB    error", flush=True)
    worst = 0.0
    for name, (rows, length), checkpointing in itertools.product(MODELS, SETTINGS, (True, False)):
        simulated, parameters, trained = simulate(name, rows, length, checkpointing)
        shape = shape_of(name)
        assert (shape.parameters, shape.lora_parameters(RANK, ["all"])) == (parameters, trained), name
        formula = peak_bytes(shape, rows * length, trained, checkpointing)
        off = formula / simulated - 1
        worst = max(worst, abs(off))
        print(
            f"{name:<5}{rows:>6} x {length:<7}{'true' if checkpointing else 'false':>11}"
            f"{simulated / 2**20:>17,.0f}{formula / 2**20:>13,.0f}{off:>+9.1%}",
            flush=True,
        )
    print(f"worst: {worst:.1%}")


if __name__ == "__main__":
    main()
