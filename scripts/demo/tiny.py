"""Write a tiny language model with random weights, whose output is gibberish, for the demo and the tests only.

One Qwen2 model in two formats: `tiny.gguf`, which llama-server and Ollama load in milliseconds, and `tiny-qwen2/`,
a Hugging Face folder that LLaMA-Factory trains and exports. Both hold the same vocabulary and the same weights.
It follows JSON schemas, ends its answers by itself and writes whole characters only. Nothing is downloaded.
"""

from __future__ import annotations

import huiyin.common.starting  # noqa: F401

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huiyin.common.errors import run
from huiyin.common.stage import Stage, arguments

if TYPE_CHECKING:  # numpy, gguf and safetensors are imported in functions: `--help` need not wait for them
    import numpy as np

LAYERS, HIDDEN, HEADS, KV_HEADS, FEED_FORWARD = 2, 64, 4, 2, 128
CONTEXT, ROPE_BASE, NORM_EPS = 32768, 1_000_000.0, 1e-6
END_OF_TEXT, START, END = SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NEWLINE, SPACE = "Ċ", "Ġ"  # in the byte alphabet

WORDS = [" the", " and", " of", "in", "er", "on", " to", "me", "ss", "age"]
# Each of these is one token: that makes prompts shorter, and answers look a little Chinese.
CHARACTERS = (
    "的一是了我不人在他有这个上们来到时大地为子中你说生国年着就那和要她出也得里后自以会家可下而过天去能对小多然于心学么之都好看起发当没成只"
    "如事把还用第样道想作种开吗吧呢啊哈嗯哦呀啦嘛诶今明昨晚早点钟吃饭买卖钱玩游戏打球车票电影脑手机网课老师同群谁什怎几哪问题回答消息条复"
    "前面给请从候选号直接最真假很太少再才又被让与但因所果话知觉得见听走跑睡忙快慢高低新旧热冷雨工作班周末月日分秒两三四五六七八九十，。？！：、"
)
# The pattern of Qwen2, which llama.cpp's pre-tokenizer "qwen2" and Ollama's converter know.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Biases in the output matrix (make_weights); 1 adds about 3 to the logit.
BIAS = {END: 1.3, '"': 3.2, NEWLINE: -3.0, SPACE: -3.0}
BAN = -24.0


def byte_alphabet() -> list[str]:
    """Return the 256 characters that stand for the byte values, in order, in the vocabularies of GPT-2 and Qwen."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def make_vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """Return (the tokens of text followed by the special ones, the merges that make the tokens from bytes)."""
    alphabet = byte_alphabet()
    tokens: dict[str, None] = dict.fromkeys(alphabet)
    merges = []
    for word in [*WORDS, *CHARACTERS]:
        left, *rest = (alphabet[byte] for byte in word.encode())
        for right in rest:
            if left + right not in tokens:
                tokens[left + right] = None
                merges.append((left, right))
            left += right
    return [*tokens, *SPECIAL], merges


def vocabulary_size(tokens: list[str]) -> int:
    """Return the number of tokens rounded up to a multiple of 32, the block size of quantization."""
    return -len(tokens) // 32 * -32


def is_harmless(token: str) -> bool:
    """Is `token` made of whole characters and no control character except "\\n", which texts need?"""
    try:
        text = bytes(map(byte_alphabet().index, token)).decode()
    except ValueError:  # bytes of an unfinished character, or a special token
        return False
    return text == "\n" or text.isprintable()


def make_weights(tokens: list[str], seed: int) -> dict[str, np.ndarray]:
    """Return {Hugging Face name: float32 array}; a matrix is (outputs, inputs), the vocabulary (size, HIDDEN).

    No layer writes to the first two dimensions of the hidden state, so their columns in the output matrix are biases.
    Dimension 0 is the same for every token: its bias makes the end of an answer or of a JSON string likelier, and
    white space and invalid text less likely. Dimension 1 marks the line break, which precedes every answer: there it
    prevents the end, so that no answer is empty.
    """
    import numpy as np

    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, scale: float | None = None) -> np.ndarray:
        scale = scale or 1.4 * columns**-0.5  # large enough for the answer to depend on the question
        return (random.standard_normal((rows, columns)) * scale).astype(np.float32)

    head = HIDDEN // HEADS
    size = vocabulary_size(tokens)
    embedding, output = matrix(size, HIDDEN, 1.0), matrix(size, HIDDEN, 0.25)
    embedding[:, 0], embedding[:, 1] = 4.0, 0.0
    embedding[tokens.index(NEWLINE), 1] = 4.0
    output[:, 0], output[:, 1] = BAN, 0.0
    output[: len(tokens), 0] = [0.0 if is_harmless(token) else BAN for token in tokens]
    for token, bias in BIAS.items():
        output[tokens.index(token), 0] = bias
    output[tokens.index(END), 1] = BAN
    weights = {"model.embed_tokens.weight": embedding, "lm_head.weight": output}
    weights["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    for layer in range(LAYERS):
        for name, rows, columns in [
            ("self_attn.q_proj", HEADS * head, HIDDEN),
            ("self_attn.k_proj", KV_HEADS * head, HIDDEN),
            ("self_attn.v_proj", KV_HEADS * head, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HEADS * head),
            ("mlp.gate_proj", FEED_FORWARD, HIDDEN),
            ("mlp.up_proj", FEED_FORWARD, HIDDEN),
            ("mlp.down_proj", HIDDEN, FEED_FORWARD),
        ]:
            weight = matrix(rows, columns)
            if name in ("self_attn.o_proj", "mlp.down_proj"):
                weight[:2] = 0.0
            weights[f"model.layers.{layer}.{name}.weight"] = weight
            if name[-6] in "qkv":
                weights[f"model.layers.{layer}.{name}.bias"] = matrix(1, rows)[0]
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = np.ones(HIDDEN, np.float32)
    return weights


def tokenizer_files(tokens: list[str], merges: list[tuple[str, str]]) -> dict[str, Any]:
    """Return {file name: content} of the tokenizer."""
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    vocabulary = {token: token_id for token, token_id in ids.items() if token not in SPECIAL}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    return {
        "tokenizer.json": {
            **{"version": "1.0", "truncation": None, "padding": None},
            "added_tokens": [{"id": ids[token], "content": token, **flags} for token in SPECIAL],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            **dict.fromkeys(["post_processor", "decoder"], byte_level),
            "model": {
                "type": "BPE",
                **dict.fromkeys(["dropout", "unk_token"]),
                **dict.fromkeys(["continuing_subword_prefix", "end_of_word_suffix"], ""),
                **dict.fromkeys(["fuse_unk", "byte_fallback", "ignore_merges"], False),
                **{"vocab": vocabulary, "merges": merges},
            },
        },
        "tokenizer_config.json": {
            **{"tokenizer_class": "Qwen2Tokenizer", "chat_template": CHAT_TEMPLATE, "model_max_length": CONTEXT},
            "added_tokens_decoder": {ids[token]: {"content": token, **flags} for token in SPECIAL},
            "additional_special_tokens": [START, END],
            **{"bos_token": None, "eos_token": END, "pad_token": END_OF_TEXT, "unk_token": None},
            **dict.fromkeys(["add_prefix_space", "add_bos_token", "split_special_tokens"], False),
            **{"clean_up_tokenization_spaces": False, "errors": "replace"},
        },
        "vocab.json": vocabulary,
    }


def write_hugging_face(folder: Path, seed: int = 0) -> Path:
    """Write the model of `seed` as a folder that transformers loads; return the folder."""
    from safetensors.numpy import save_file

    tokens, merges = make_vocabulary()
    end_of_text, end = tokens.index(END_OF_TEXT), tokens.index(END)
    ends = {"bos_token_id": end_of_text, "eos_token_id": end, "pad_token_id": end_of_text}
    config = {
        **{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "float32"},
        **{"vocab_size": vocabulary_size(tokens), "hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD},
        **{"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS},
        **{"hidden_act": "silu", "max_position_embeddings": CONTEXT, "rms_norm_eps": NORM_EPS},
        **{"rope_theta": ROPE_BASE, "tie_word_embeddings": False, "use_sliding_window": False},
        **ends,
    }
    files = {"config.json": config, "generation_config.json": ends, **tokenizer_files(tokens, merges)}
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    save_file(make_weights(tokens, seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, config=False)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default 0)")
    options = parser.parse_args(argv)
    with Stage("tiny", options.out, packages=["numpy", "gguf", "safetensors"]) as stage:
        from huiyin.serving.gguf import write_gguf

        stage.receipt["seed"] = options.seed
        folder = write_hugging_face(stage.output("tiny-qwen2"), options.seed)
        write_gguf(folder, stage.output("tiny.gguf"), "f32", "tiny random Qwen2")
        stage.ledger.read = stage.ledger.written = 2


if __name__ == "__main__":
    run(main)
