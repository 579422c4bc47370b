"""What of the training is left after the merge, and after the quantization to 8 bits: losses on the held-out rows.

    python bench/merge.py BASE data/CONFIG/TARGET        (needs the train environment)

BASE is the base model in the type it was published in; the folder of the target has an adapter trained on it, its
dataset and the exported model. One row of the table is a merge in the type of BASE, as LLaMA-Factory makes it.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from gguf.quants import GGMLQuantizationType, dequantize, quantize
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from huiyin.serving.merge import merge_weights
from huiyin.serving.process import ask
from huiyin.training.llamafactory import environment

Q8_0 = GGMLQuantizationType.Q8_0


def merge_in_its_type(base: Path, adapter: Path, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)


def quantize_model(merged: Path, folder: Path) -> None:
    """Write the model in `merged` as it is after q8_0, which keeps vectors as they are."""
    shutil.copytree(merged, folder)
    for path in folder.glob("*.safetensors"):
        weights = {name: weight.astype(np.float32) for name, weight in load_file(path).items()}
        for name, weight in weights.items():
            if weight.ndim == 2:
                weights[name] = dequantize(quantize(weight, Q8_0), Q8_0).reshape(weight.shape).astype(np.float32)
        save_file(weights, path, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    adapter, exported = args.target / "trained/adapter", args.target / "exported/merged"
    rows = json.loads((args.target / "generated/alpaca_eval.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        merge_in_its_type(args.base, adapter, work / "own")
        for kind in ("float16", "float32"):
            (work / kind).mkdir()
            merge_weights(args.base, adapter, work / kind, kind)
            quantize_model(work / kind, work / f"{kind}-q8_0")
        models = {
            "base model": (args.base, None),
            "with the adapter": (args.base, adapter),
            "merged in the type of the base": (work / "own", None),
            **{f"merged in 32 bits, as {kind}": (work / kind, None) for kind in ("float32", "float16")},
            **{f"the same as {kind}, then q8_0": (work / f"{kind}-q8_0", None) for kind in ("float32", "float16")},
        }
        variables = environment("none", work, work)
        answers = ask(list(models.values()), [], work, variables, rows, tokenizer=exported)
    print(f"| {len(rows)} held-out rows | words | end |\n|---|---|---|")
    for name, answer in zip(models, answers, strict=True):
        print(f"| {name} | {answer['loss']['words']:.5f} | {answer['loss']['end']:.5f} |")


if __name__ == "__main__":
    main()
