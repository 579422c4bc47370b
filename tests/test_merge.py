"""The merge: it is peft's in 32 bits, whatever the type and the files of the base model."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from huiyin.common.errors import UserError
from huiyin.serving.merge import merge_weights, read_weights

# torch's of its own parts, and peft's about models with tied embeddings
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "UserWarning")]

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_base(folder, tied, dtype="bfloat16", shard="1GB"):
    """Write a Qwen2 of two layers with random weights and biases."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, tie_word_embeddings=tied))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    return folder


def adapt(base, adapter, **options):
    """Write a random adapter for the model in `base`; return {name: weight} of peft's own merge in float32."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": LAYERS, **options}))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(adapter)
    return {name: tensor.numpy() for name, tensor in model.merge_and_unload().state_dict().items()}


def load(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


CASES = [  # (tied?, type of the base, largest file, what the adapter has)
    (True, "bfloat16", "1GB", {}),
    (False, "bfloat16", "16KB", {"use_rslora": True}),
    (False, "float16", "1GB", {"use_dora": True}),
    (False, "float32", "1GB", {"modules_to_save": ["embed_tokens", "lm_head"], "target_modules": ["v_proj"]}),
]


@pytest.mark.parametrize(("tied", "dtype", "shard", "options"), CASES)
def test_the_merge_is_that_of_peft_in_32_bits(tmp_path, tied, dtype, shard, options, monkeypatch):
    monkeypatch.setattr("huiyin.serving.merge.BLOCK", 100)  # a few rows at a time
    base = make_base(tmp_path / "base", tied, dtype, shard)
    expected = adapt(base, tmp_path / "adapter", **options)
    for kind, precision in (("float32", 1e-6), ("float16", 1e-3)):
        merged = tmp_path / kind
        merged.mkdir()
        assert merge_weights(base, tmp_path / "adapter", merged, kind)
        found = load(merged)
        assert set(found) == set(load_names(base)) and len(found) >= len(expected) - tied
        for name, tensor in found.items():
            assert tensor.dtype == kind and tensor.shape == expected[name].shape
            np.testing.assert_allclose(tensor, expected[name], rtol=precision, atol=1e-6)
        assert json.loads((merged / "config.json").read_text())["torch_dtype"] == kind
    assert loaded_as_float32(tmp_path / "float32", expected)


def load_names(base):
    return [name for file in read_weights(base).values() for name in file]


def loaded_as_float32(folder, expected):
    """Does transformers find every weight where it looks for it, shards included?"""
    from transformers import AutoModelForCausalLM

    state = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
    return all(np.allclose(state[name].numpy(), tensor, atol=1e-6) for name, tensor in expected.items())


def test_saving_memory_changes_no_bit(tmp_path):
    """Weights kept in 16 bits and widened when they are used give the logits of weights loaded in 32 bits."""
    import torch

    from huiyin.serving.ask import load as load_model

    base = make_base(tmp_path / "base", False)
    adapt(base, tmp_path / "adapter")
    tokens = torch.tensor([[5, 90, 1, 33]])
    with torch.inference_mode():
        whole, lean = (load_model(base, tmp_path / "adapter", lean)(tokens).logits for lean in (False, True))
    assert whole.dtype == torch.float32 and torch.equal(whole, lean)
    kept = load_model(base, None, True).lm_head.weight
    assert kept.dtype == torch.bfloat16


def test_the_losses_of_words_and_end_mark_are_apart(demo):
    import torch
    from transformers import AutoTokenizer

    from huiyin.serving.ask import load as load_model
    from huiyin.serving.ask import losses

    folder = demo[0] / "data/demo/10002/exported/merged"
    model, tokenizer = load_model(folder, None, False), AutoTokenizer.from_pretrained(folder)
    row = {"system": "你是小明", "history": [], "instruction": "吃了吗", "output": "还没呢"}
    with torch.inference_mode():
        found = losses(model, tokenizer, row)
        words, end = found["words"], found["end"]
        text = "<|im_start|>system\n你是小明<|im_end|>\n<|im_start|>user\n吃了吗<|im_end|>\n<|im_start|>assistant\n"
        before = tokenizer.encode(text)
        reply = tokenizer.encode("还没呢")
        chances = model(torch.tensor([before + reply])).logits[0, len(before) - 1 :].log_softmax(-1)
    expected = [-chances[place, token].item() for place, token in enumerate([*reply, tokenizer.eos_token_id])]
    assert [*words, end] == pytest.approx(expected, rel=1e-5) and len(words) == len(reply)


def test_a_weight_beyond_float16_is_noticed(tmp_path):
    base = make_base(tmp_path / "base", True)
    adapt(base, tmp_path / "adapter")
    weights = load_float32(base)
    weights["model.norm.weight"][3] = -70_000
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    merged = tmp_path / "merged"
    merged.mkdir()
    assert not merge_weights(base, tmp_path / "adapter", merged, "float16")
    assert merge_weights(base, tmp_path / "adapter", merged, "float32")
    assert load(merged)["model.norm.weight"][3] == -70_000


def load_float32(base):
    """Return the tensors of one file, reshaped."""
    [file] = read_weights(base).values()
    return {name: tensor.rows().reshape(tensor.shape) for name, tensor in file.items()}


ADVICE = (
    "has no place in the base model; take lora_target: all and no additional_target, resize_vocab or new tokens in "
    "train.yaml, and train again"
)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"modules_to_save": ["embed_tokens"]}, "base_model.model.model.embed_tokens.weight"),  # tied to lm_head
        ({"target_modules": ["q_proj", "embed_tokens"]}, "base_model.model.model.embed_tokens.base_layer.weight"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_one_line(tmp_path, options, name):
    base = make_base(tmp_path / "base", True)
    adapt(base, tmp_path / "adapter", **options)
    with pytest.raises(UserError) as error:
        merge_weights(base, tmp_path / "adapter", tmp_path, "float16")
    assert str(error.value) == f"the adapter's {name} {ADVICE}"


def test_an_adapter_of_another_base_is_one_line(tmp_path):
    base = make_base(tmp_path / "base", True)
    adapt(base, tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter/adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    weights[name] = weights[name][:5]
    save_file(weights, tmp_path / "adapter/adapter_model.safetensors")
    with pytest.raises(UserError) as error:
        merge_weights(base, tmp_path / "adapter", tmp_path, "float16")
    assert str(error.value) == f"the adapter's model.layers.1.mlp.up_proj.weight {ADVICE}"


def test_a_base_that_is_quantized_or_has_no_safetensors_is_one_line(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    with pytest.raises(UserError) as error:
        read_weights(base)
    assert str(error.value) == (f"{base}: no model.safetensors in it; the base model must be in the format safetensors")
    save_file({"a.qweight": np.zeros((2, 3), np.int32)}, base / "model.safetensors")
    with pytest.raises(UserError) as error:
        read_weights(base)
    assert str(error.value) == (
        f"{base}/model.safetensors: a.qweight has the type I32; take a base model that is not quantized"
    )
