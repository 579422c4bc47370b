"""Merge a LoRA adapter into its base model in 32 bits, some rows at a time, whatever the type of the base's weights.

Merged in 16 bits, an update smaller than half a step of its weight is lost: in bf16 that was a tenth of what SmolLM2
had learnt of the words and a fifth of what it had learnt of the end of a reply (bench/README.md).

The formulas are those of peft (tuners/lora/layer.py, `get_delta_weight`, and variants.py), for a weight W of shape
(outputs, inputs), A (r, inputs) and B (outputs, r):

    LoRA  W' = W + s B A    s = lora_alpha / r, or with rslora lora_alpha / sqrt(r)
    DoRA  m W' / |W'|       for each row, with the learnt length m of the row

The files are safetensors (https://github.com/huggingface/safetensors#format): 8 bytes with the length of the header,
the header {name: {dtype, shape, data_offsets}} in JSON, the tensors one after the other.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from huiyin.common.errors import UserError
from huiyin.common.progress import Progress

STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # numpy has no bf16: the upper half of a float32
WRITTEN = {"float16": "F16", "float32": "F32"}
LARGEST = {"float16": 65504.0, "float32": math.inf}
BLOCK = 1 << 22  # weights held at a time: 16 MiB in 32 bits
PREFIX = "base_model.model."  # of the names in an adapter
PARTS = ["", "A", "B", "magnitude_vector"]  # "": a tensor of the base that was trained as a whole (modules_to_save)
TIED = ("lm_head.weight", "embed_tokens.weight")

Update = dict[str, "Tensor"]  # {part: tensor}


class Tensor(NamedTuple):
    """A tensor in a file; `data` has shape (rows, numbers per row), bf16 as unsigned integers."""

    shape: list[int]
    dtype: str
    data: np.ndarray

    def rows(self, first: int = 0, end: int | None = None) -> np.ndarray:
        """Return some rows as float32."""
        part = self.data[first:end]
        return (part.astype(np.uint32) << 16).view(np.float32) if self.dtype == "BF16" else part.astype(np.float32)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file, of which nothing is in memory yet."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    data, tensors = np.memmap(path, np.uint8, "r", 8 + length), {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, dtype, (first, end) = entry["shape"], entry["dtype"], entry["data_offsets"]
        if dtype not in STORED:
            raise UserError(f"{path}: {name} has the type {dtype}; take a base model that is not quantized")
        tensors[name] = Tensor(shape, dtype, data[first:end].view(STORED[dtype]).reshape((*shape, 1)[0], -1))
    return tensors


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files with the weights of a Hugging Face model; raise `UserError` if there are none."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        names = ["model.safetensors"]
    else:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name} in it; the base model must be in the format safetensors")
    return names


def read_weights(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Return {file: {name: tensor}} of the model in `folder`."""
    return {name: read_tensors(folder / name) for name in weight_files(folder)}


def size_of(folder: Path) -> tuple[int, int]:
    """Return the number of weights of the model in `folder`, and the bytes that they take there."""
    tensors = [tensor.data for file in read_weights(folder).values() for tensor in file.values()]
    return sum(tensor.size for tensor in tensors), sum(tensor.nbytes for tensor in tensors)


def read_adapter(adapter: Path, base: Mapping[str, Tensor], tied: bool) -> dict[str, Update]:
    """Return {name in the base: its update}. Raise `UserError` if a tensor of the adapter has no place in the base, or
    if it changes one of the two that are one in the base (`tied`)."""
    updates: dict[str, Update] = defaultdict(dict)
    for key, tensor in read_tensors(adapter / "adapter_model.safetensors").items():
        layer, _, part = key.removeprefix(PREFIX).removesuffix(".weight").partition(".lora_")
        name = f"{layer}.weight" if part else key.removeprefix(PREFIX)
        if part not in PARTS or name not in base or (tied and name.endswith(TIED)):
            raise no_place(key)
        updates[name][part] = tensor
    for name, update in updates.items():
        shape = update[""].shape if "" in update else [update["B"].shape[0], update["A"].shape[1]]
        if shape != base[name].shape:
            raise no_place(name)
    return updates


def no_place(name: str) -> UserError:
    return UserError(
        f"the adapter's {name} has no place in the base model; take lora_target: all and no additional_target, "
        "resize_vocab or new tokens in train.yaml, and train again"
    )


def merged_blocks(weight: Tensor, update: Update, scale: float) -> Iterator[np.ndarray]:
    """Yield the merged weight, some rows at a time, as float32 of shape (rows, numbers per row)."""
    weight = update.get("", weight)
    step = max(1, BLOCK // max(1, weight.data.shape[1]))
    for first in range(0, len(weight.data), step):
        block = weight.rows(first, first + step)
        if "A" in update:
            block += update["B"].rows(first, first + step) @ update["A"].rows() * np.float32(scale)
        if "magnitude_vector" in update:
            lengths = np.linalg.norm(block, axis=1, keepdims=True)
            block *= update["magnitude_vector"].rows(first, first + step) / lengths
        yield block


def write_header(file: Any, tensors: Mapping[str, Tensor], kind: str) -> int:
    """Write the header for `tensors`, all in the type `kind`; return the size of what must follow, in bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for name, tensor in tensors.items():
        first, end = end, end + tensor.data.size * np.dtype(kind).itemsize
        header[name] = {"dtype": WRITTEN[kind], "shape": tensor.shape, "data_offsets": [first, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    return end


def merge_weights(base: Path, adapter: Path, merged: Path, kind: str) -> bool:
    """Write the weights of `base` with `adapter` merged into the folder `merged`, in files of the same names, as `kind`
    (float16 or float32). Return False, without finishing, if a weight is too large for it."""
    files = read_weights(base)
    base_config, lora = (
        json.loads(path.read_text(encoding="utf-8")) for path in (base / "config.json", adapter / "adapter_config.json")
    )
    tensors = {name: tensor for file in files.values() for name, tensor in file.items()}
    tied = base_config.get("tie_word_embeddings", False) or "lm_head.weight" not in tensors
    updates = read_adapter(adapter, tensors, tied)
    scale = lora["lora_alpha"] / (math.sqrt(lora["r"]) if lora.get("use_rslora") else lora["r"])
    size = 0
    with Progress("merge", len(tensors), "tensors") as progress:
        for file_name, file_tensors in files.items():
            with open(merged / file_name, "wb") as file:
                size += write_header(file, file_tensors, kind)
                for name, tensor in file_tensors.items():
                    for block in merged_blocks(tensor, updates.get(name, {}), scale):
                        if np.abs(block).max(initial=0) > LARGEST[kind]:
                            return False
                        file.write(block.astype(kind).tobytes())
                    progress.add()
    if len(files) > 1:
        places = {name: file for file, names in files.items() for name in names}
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (merged / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name in ("dtype", "auto_map"):  # transformers 5 reads torch_dtype, too; a program of the base is not copied
        base_config.pop(name, None)
    values = {**base_config, "torch_dtype": kind}
    (merged / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return True
