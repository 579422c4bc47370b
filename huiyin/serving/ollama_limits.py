"""Which models Ollama can serve, and what it needs for that."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huiyin.common.errors import UserError

# Of the architectures that the chat formats are for, Ollama 0.33 imports those in IMPORTED (and more:
# convert/convert.go), but plain Qwen3 only as a GGUF file.
IMPORTED = ["Qwen2ForCausalLM", "LlamaForCausalLM", "Gemma3ForCausalLM"]
AS_GGUF = ["Qwen3ForCausalLM"]
ALTERNATIVE = "or say ollama: none in export.yaml and serve the merged model in a way of your own"

# Copies of weights of 32 bits in Ollama's store: uploaded, converted to 16 bits, the layer, and the result in 4 bits
OLLAMA_COPIES = 2.2

BLOCKS = {"q4_K_M": 256, "q8_0": 32}  # {quantization: weights per block; the length of a row must be a multiple}


def room_for_export(size: float, gguf: bool, same_disk: bool) -> float:
    """Return the bytes that export may take on the disk of its results for a model of `size` bytes in 32 bits: merged,
    as a GGUF file if there is to be one, and in Ollama's store, if that is on the same disk."""
    return (1 + gguf + (OLLAMA_COPIES if same_disk else 0)) * size


def on_disk_of(out: Path, store: Path | None) -> bool:
    """Is Ollama's `store`, if there is one here, on the disk of the folder `out`?"""
    return store is not None and store.stat().st_dev == out.stat().st_dev


def architecture_of(config: Mapping[str, Any]) -> str:
    """Return what a config.json says the model is."""
    return (config.get("architectures") or ["a model of unknown kind"])[0]


def check_servable(config: Path) -> None:
    """Raise `UserError` if Ollama cannot serve the model; `config`: its config.json."""
    architecture = architecture_of(json.loads(config.read_text(encoding="utf-8")))
    if architecture not in (*IMPORTED, *AS_GGUF):
        raise UserError(
            f"{config}: Ollama cannot import {architecture}; take a Qwen2.5, Qwen3, Llama 3 or Gemma 3 model as "
            f"model_name_or_path in train.yaml, {ALTERNATIVE}"
        )


def needs_gguf(config: Path) -> bool:
    """Return whether Ollama imports the model of this config.json as a GGUF file only."""
    return architecture_of(json.loads(config.read_text(encoding="utf-8"))) in AS_GGUF


def quantized_at_create(receipt: Mapping[str, Any]) -> str:
    """Return the type to which Ollama quantizes the model of this receipt of `export` as it creates it; "" if its GGUF
    file has that type already."""
    gguf = receipt.get("gguf", {})
    return "" if gguf.get("for_ollama") and gguf["type"] == receipt["quantize"] else receipt["quantize"]


def create_command(name: str, receipt: Mapping[str, Any], exported: Path) -> str:
    """Return the command with which the user creates the model from the folder of `export`."""
    quantize = quantized_at_create(receipt)
    return f"ollama create {name} " + f"--quantize {quantize} " * bool(quantize) + f"-f {exported}/Modelfile"


def rope_of(config: Mapping[str, Any]) -> tuple[float | None, dict[str, Any]]:
    """Return (rope_theta, rope_scaling with its type as rope_type, {} for none) of a config.json; transformers 5 writes
    both into rope_parameters."""
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {name: value for name, value in rope.items() if name != "rope_theta"}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    return config.get("rope_theta", rope.get("rope_theta")), {} if kind == "default" else {**scaling, "rope_type": kind}


def flatten_rope(config: Path, needed: bool) -> None:
    """Write rope_theta and rope_scaling at the top level of config.json, where Ollama reads them. Without rope_theta
    Ollama would serve nonsense: `UserError`, if Ollama is `needed`."""
    values = json.loads(config.read_text(encoding="utf-8"))
    theta, scaling = rope_of(values)
    if theta is not None:
        values["rope_theta"] = theta
    elif needed:
        raise UserError(f"{config}: no rope_theta; this base model cannot be served by Ollama")
    if scaling:
        values["rope_scaling"] = {**scaling, "type": scaling["rope_type"]}  # Ollama's converters read either
    config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def choose_quantize(setting: str, merged: Path) -> str:
    """Return the quantization for the weights in `merged`: the setting, or if auto, by the length of their rows."""
    from safetensors import safe_open  # here: `--help` need not wait for it

    if setting != "auto":
        return setting
    shapes: list[list[int]] = []
    for path in merged.glob("*.safetensors"):
        with safe_open(path, "np") as weights:
            shapes += [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    rows = [shape[-1] for shape in shapes if len(shape) > 1]
    return next((kind for kind, block in BLOCKS.items() if not any(row % block for row in rows)), "f16")
