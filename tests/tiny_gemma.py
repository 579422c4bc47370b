"""A tiny Gemma 3 with random weights, and with a small vocabulary that is read as Gemma's is."""

import json

import numpy as np
from safetensors.numpy import save_file

from huiyin.serving.gguf import PRE_TOKENIZERS, SENTENCEPIECE, SPACE
from scripts.demo.tiny import CONTEXT, END, END_OF_TEXT, FEED_FORWARD, HEADS, HIDDEN, KV_HEADS, SPECIAL

UNKNOWN, PICTURE = "<unk>", "<picture>"
RUNS = ["\n", "\n\n", SPACE * 2, SPACE * 3]  # tokens of ordinary text that are found before it is split
LETTERS = [SPACE, *"abcdefghijklmnopqrstuvwxyz0123456789,.?今晚点吃饭在吗"]
# In the order in which they are made: "being" is "b", "e" and "ing", not "b", "ei", "n" and "g".
PIECES = "th the in ing ▁the ▁m es ess ag age mess ▁mess message ▁message ei".split()
LAYERS, SIZE = 7, 32  # SIZE: of a head


def tokenizer_json():
    """Return (the content of tokenizer.json, the number of the model's tokens). As with Gemma 3, there is one more."""
    tokens = [*SPECIAL, UNKNOWN, *RUNS, *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, *PIECES]
    numbers = {token: number for number, token in enumerate(tokens)}
    splits = [(token[:cut], token[cut:]) for token in [*reversed(RUNS), *PIECES] for cut in range(1, len(token))]
    merges = [[left, right] for left, right in splits if left in numbers and right in numbers]
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    added = [
        {"id": number, "content": token, "special": token not in RUNS, **flags}
        for token, number in [
            *((token, numbers[token]) for token in (*SPECIAL, UNKNOWN, *RUNS)),
            (PICTURE, len(tokens)),
        ]
    ]
    model = {"type": "BPE", "unk_token": UNKNOWN, "fuse_unk": True, "byte_fallback": True}
    decoders = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}]
    content = {
        **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": added},
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        **{"pre_tokenizer": PRE_TOKENIZERS[SENTENCEPIECE][0], "post_processor": None},
        "decoder": {"type": "Sequence", "decoders": [*decoders, {"type": "Fuse"}]},
        "model": {**model, "vocab": numbers, "merges": merges},
    }
    return content, len(tokens)


def write_gemma(folder):
    """Write the model, whose sixth layer sees the whole text, the others 16 tokens of it; return the folder. Like that
    of the real ones, its config.json leaves out that the embedding is the output, too."""
    random = np.random.default_rng(7)
    tokenizer, size = tokenizer_json()
    config = {
        **{"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "vocab_size": size},
        **{"hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD, "num_hidden_layers": LAYERS, "head_dim": SIZE},
        **{"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "query_pre_attn_scalar": SIZE},
        **{"max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6, "sliding_window": 16},
        **{"rope_theta": 1e6, "rope_local_base_freq": 5e3},
    }
    norms = ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"]
    shapes = {
        **{"self_attn.q_proj": (HEADS * SIZE, HIDDEN), "self_attn.k_proj": (KV_HEADS * SIZE, HIDDEN)},
        **{"self_attn.v_proj": (KV_HEADS * SIZE, HIDDEN), "self_attn.o_proj": (HIDDEN, HEADS * SIZE)},
        **{"mlp.gate_proj": (FEED_FORWARD, HIDDEN), "mlp.up_proj": (FEED_FORWARD, HIDDEN)},
        **{"mlp.down_proj": (HIDDEN, FEED_FORWARD), "self_attn.q_norm": SIZE, "self_attn.k_norm": SIZE},
        **dict.fromkeys(norms, HIDDEN),
    }
    all_shapes = {f"layers.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in shapes.items()}
    all_shapes |= {"embed_tokens": (size, HIDDEN), "norm": HIDDEN}
    weights = {
        f"model.{name}.weight": random.normal(0, 0.2, shape).astype(np.float32) for name, shape in all_shapes.items()
    }
    names = {"eos_token": END, "pad_token": END_OF_TEXT, "unk_token": UNKNOWN}
    settings = {"tokenizer_class": "GemmaTokenizer", **names}
    folder.mkdir()
    for name, content in {"config": config, "tokenizer": tokenizer, "tokenizer_config": settings}.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
