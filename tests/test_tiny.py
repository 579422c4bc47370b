"""The tiny random model: the same in both formats, and the same from the same seed."""

import json

import numpy as np
from gguf import GGUFReader
from safetensors.numpy import load_file

from helpers import run_script
from scripts.demo.tiny import write_hugging_face


def test_both_formats_contain_the_same_model(tmp_path):
    done = run_script("demo/tiny", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "tiny-qwen2"
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert receipt["ledger"] == {"read": 2, "written": 2, "dropped": {}}
    assert receipt["outputs"].keys() == {"tiny.gguf", "tiny-qwen2"}
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
    }
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 2_000_000

    model, weights = GGUFReader(tmp_path / "tiny.gguf"), load_file(folder / "model.safetensors")
    expected = sorted(weight.tobytes() for weight in weights.values())
    assert expected == sorted(np.ascontiguousarray(tensor.data).tobytes() for tensor in model.tensors)
    config, tokenizer = (json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("config", "tokenizer"))
    tokens = model.get_field("tokenizer.ggml.tokens").contents()
    assert config["vocab_size"] == len(tokens)
    assert config["rope_theta"] == model.get_field("qwen2.rope.freq_base").contents()
    assert config["eos_token_id"] == model.get_field("tokenizer.ggml.eos_token_id").contents()
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    assert all(tokens[token_id] == token for token, token_id in {**tokenizer["model"]["vocab"], **added}.items())


def test_the_seed_determines_the_weights(tmp_path):
    made = (write_hugging_face(tmp_path / name, seed) for name, seed in [("a", 0), ("b", 0), ("c", 1)])
    first, again, other = ((folder / "model.safetensors").read_bytes() for folder in made)
    assert first == again != other
