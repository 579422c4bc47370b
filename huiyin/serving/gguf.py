"""Write a model that transformers keeps in a folder as one GGUF file, for llama.cpp and what is built on it.

The package `gguf` knows the format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), and llama.cpp's names
of fields and tensors. What is left is where the two programs compute the same in different ways:

- For Llama, llama.cpp rotates neighbours in a query or key, (x[2i], x[2i+1]), transformers (x[i], x[i + size/2]); the
  rows of the two matrices are put in that order. Qwen is computed as in transformers.
- The factors that stretch the positions of Llama 3.1 and later are a tensor.
- The norms of Gemma multiply by 1 + weight in transformers, by the weight in llama.cpp.
- How a text is split before its tokens are looked up is a pattern in tokenizer.json, and a name in a GGUF file.
- Gemma's vocabulary has merges in their order in tokenizer.json. In a GGUF file it is one of SentencePiece: each token
  has a score, and of all neighbours those are merged whose union has the highest.
"""

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    SpecialVocab,
    TokenType,
    get_tensor_name_map,
)
from gguf.quants import quantize

from huiyin.common.errors import UserError
from huiyin.common.progress import Progress
from huiyin.llm.embedded import Embedded
from huiyin.serving.merge import BLOCK, LARGEST, Tensor, read_weights
from huiyin.serving.ollama_limits import architecture_of, needs_gguf, rope_of

ARCHITECTURES = {
    "Qwen2ForCausalLM": MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": MODEL_ARCH.QWEN3,
    "LlamaForCausalLM": MODEL_ARCH.LLAMA,
    "Gemma3ForCausalLM": MODEL_ARCH.GEMMA3,
}
# What a config.json of Gemma 3 means if it does not say it (transformers, configuration_gemma3.py).
GEMMA = {
    **{"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096},
    **{"rope_local_base_freq": 1e4, "tie_word_embeddings": True},
}
PERIOD = 6  # in llama.cpp every sixth layer of Gemma 3 sees the whole text, the others a window
TYPES = {  # of matrices; vectors are always in 32 bits, and so are rows that q8_0 cannot divide into blocks in 16
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
# How Qwen2 and Qwen3, Llama 3, SmolLM2, and Gemma split a text, by the names in src/llama-vocab.cpp. It has one for
# MiniCPM5, too (minicpm5); there was no tokenizer.json of that to compare with.
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
SENTENCEPIECE = "default"  # such a vocabulary needs no other way
SPACE, BYTE = "▁", re.compile("<0x[0-9A-F]{2}>")  # what stands there for a blank, and for a byte
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    "qwen2": [{**SPLIT, "pattern": {"Regex": PATTERN.replace("NUMBER", r"\p{N}")}}, BYTES],
    "llama-bpe": [{**SPLIT, "pattern": {"Regex": PATTERN.replace("NUMBER", r"\p{N}{1,3}")}}, BYTES],
    "smollm": [{"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}],
    SENTENCEPIECE: [{**SPLIT, "behavior": "MergedWithPrevious", "pattern": {"String": " "}}],
}
# Nats by which the log probabilities of the likeliest tokens may differ from those of the model in 32 bits. The largest
# seen, of 20 prompts and ten tokens: 0.003, 0.005, 0.037 and 0.25 with SmolLM2 135M, in q8_0 0.68 with the demo's tiny
# model (bench/README.md). llama.cpp rounds what it multiplies to the type of the weights, too.
TOLERANCES = {"f32": 0.05, "f16": 0.05, "bf16": 0.2, "q8_0": 1.0}
RANKED = 10  # times as many tokens as are compared are asked for, so that each of those is among them
ADVICE = "take a Qwen2.5, Qwen3, Llama 3, SmolLM2 or Gemma 3 model as model_name_or_path in train.yaml"
OTHER = "the GGUF file in llama-server is not the merged model:"
AGAIN = "export again, or take another base model"

Values = Mapping[str, Any]


class Source(NamedTuple):
    """A model that can be written: its folder, config.json and tokenizer.json, and llama.cpp's names for what it is."""

    folder: Path
    config: Values
    tokenizer: Values
    architecture: MODEL_ARCH
    pre_tokenizer: str


@dataclass(frozen=True)
class Part:
    """A tensor of the file, in place of an array for GGUFWriter: that asks for its size and lets it be written."""

    name: str
    tensor: Tensor
    kind: GGMLQuantizationType
    order: np.ndarray | None = None  # of the rows, if it is another than in `tensor`

    @property
    def nbytes(self) -> int:
        block, size = GGML_QUANT_SIZES[self.kind]
        return self.tensor.data.size // block * size

    def tofile(self, file: Any) -> None:
        """Write the tensor into an open file, some rows at a time."""
        data = self.tensor.data
        tensor = self.tensor if self.order is None else self.tensor._replace(data=data[self.order])
        step = max(1, BLOCK // data.shape[1])
        for first in range(0, len(data), step):
            rows = tensor.rows(first, first + step)
            if self.kind is GGMLQuantizationType.F16 and np.abs(rows).max(initial=0) > LARGEST["float16"]:
                raise UserError(f"{self.name}: a weight is too large for f16; say quantize: bf16 in export.yaml")
            quantize(rows, self.kind).tofile(file)


def is_written(base: Path, wanted: bool) -> bool:
    """Return whether `export` writes a file of the model in `base`: if `wanted`, or where Ollama needs it. Raise
    `UserError` if it should and cannot."""
    written = wanted or needs_gguf(base / "config.json")
    if written:
        read_source(base)
    return written


def read_source(folder: Path) -> Source:
    """Return the model in `folder`, of which only config.json and tokenizer.json are read; raise `UserError` if it is
    none that can be written."""
    config, tokenizer = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("config", "tokenizer")
    )
    architecture = architecture_of(config)
    is_gemma = ARCHITECTURES.get(architecture) is MODEL_ARCH.GEMMA3
    if is_gemma:
        config = {**GEMMA, **config}
    field, computed = ("hidden_activation", "gelu_pytorch_tanh") if is_gemma else ("hidden_act", "silu")
    activation = config.get(field, computed)
    theta, scaling = rope_of(config)
    kind = scaling.get("rope_type", "llama3")
    unknown = {
        architecture: architecture not in ARCHITECTURES,
        f"the activation {activation}": activation != computed,
        "a sliding window": config.get("use_sliding_window", False),
        "a model without rope_theta": theta is None,
        f"rope_scaling of the type {kind}": kind != "llama3",
        **(unlike_gemma(config) if is_gemma else {}),
    }
    for what, is_unknown in unknown.items():
        if is_unknown:
            raise UserError(f"{folder}/config.json: {what} cannot be written as GGUF; {ADVICE}")
    pre_tokenizer = pre_tokenizer_of(tokenizer)
    if tokenizer["model"]["type"] != "BPE" or not pre_tokenizer:
        raise UserError(f"{folder}/tokenizer.json: this tokenizer cannot be written as GGUF; {ADVICE}")
    return Source(folder, config, tokenizer, ARCHITECTURES[architecture], pre_tokenizer)


def unlike_gemma(config: Values) -> dict[str, bool]:
    """Return {what is fixed in llama.cpp for Gemma 3 (src/models/gemma3.cpp): whether this model has it otherwise}."""
    kinds = ["full" if number % PERIOD == 0 else "sliding" for number in range(1, config["num_hidden_layers"] + 1)]
    layers = [f"{kind}_attention" for kind in kinds]
    orders = config.get("layer_types") or layers, config.get("sliding_window_pattern", PERIOD)
    return {
        "this order of layers with a sliding window": orders != (layers, PERIOD),
        "this scale of attention": config["query_pre_attn_scalar"] != head_size(config),
        "attention to what follows": config.get("use_bidirectional_attention", False),
        "a limit of logits": any(config.get(f"{name}_logit_softcapping") for name in ("attn", "final")),
    }


def pre_tokenizer_of(tokenizer: Values) -> str | None:
    """Return the name of the way in which the tokenizer of a tokenizer.json splits a text; None if it has none."""
    whole = tokenizer.get("pre_tokenizer") or {}
    steps = [
        {key: value for key, value in step.items() if key != "trim_offsets"}
        for step in whole.get("pretokenizers", [whole])
    ]
    return next((name for name, known in PRE_TOKENIZERS.items() if steps == known), None)


def write_gguf(folder: Path, path: Path, kind: str, name: str) -> None:
    """Write the model in `folder` as the file `path`, with matrices of the type `kind`, one of TYPES; `name` is what
    programs show. Raise `UserError` if it cannot be written."""
    source = read_source(folder)
    tensors = {name: tensor for file in read_weights(folder).values() for name, tensor in file.items()}
    if source.config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    parts = [*parts_of(source, tensors, kind), *rope_factors(source.config)]
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[source.architecture])
    writer.add_name(name)
    writer.add_file_type(TYPES[kind][1])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    add_shape(writer, source.config)
    add_tokenizer(writer, source, tensors["model.embed_tokens.weight"].shape[0])
    for part in parts:
        writer.add_tensor_info(part.name, part.tensor.shape, np.dtype(np.float32), part.nbytes, part.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with Progress("gguf", len(parts), "tensors") as progress:
        for part in parts:
            writer.write_tensor_data(cast(Any, part))
            progress.add()
    writer.close()


def add_shape(writer: GGUFWriter, config: Values) -> None:
    """Add the fields that say how the model computes."""
    heads = config["num_attention_heads"]
    size = head_size(config)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(rope_of(config)[0] or 0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if "rope_local_base_freq" in config:  # Gemma's, of the layers that see a window
        writer.add_rope_freq_base_swa(config["rope_local_base_freq"])
        writer.add_sliding_window(config["sliding_window"])


def head_size(config: Values) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def add_tokenizer(writer: GGUFWriter, source: Source, size: int) -> None:
    """Add the vocabulary of `size` tokens, with names for those that the tokenizer does not have, and the chat
    template. Whether a first token is put before a prompt is said as in tokenizer_config.json."""
    tokens, types = tokens_of(source, size)
    settings = json.loads((source.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    is_bpe = source.pre_tokenizer != SENTENCEPIECE
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)  # it warns of guesses, which are replaced here
    special = SpecialVocab(source.folder, is_bpe, n_vocab=size, special_token_types=("bos", "eos", "pad"))
    special.add_special_token = {"bos": settings.get("add_bos_token") or False}
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("gpt2" if is_bpe else "llama")
    writer.add_tokenizer_pre(source.pre_tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if not is_bpe:
        writer.add_token_scores(scores_of(tokens, source.tokenizer["model"]["merges"]))
        writer.add_add_space_prefix(False)
    special.add_to_gguf(writer)


def tokens_of(source: Source, size: int) -> tuple[list[str], list[TokenType]]:
    """Return the `size` tokens of the model, and of what kind each is. The tokenizer of Gemma 3 has one more, for
    pictures, that its models for text do not know."""
    is_bpe = source.pre_tokenizer != SENTENCEPIECE
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [TokenType.UNUSED] * size
    for token, number in source.tokenizer["model"]["vocab"].items():
        if number < size:
            is_byte = not is_bpe and BYTE.fullmatch(token)
            tokens[number], types[number] = token, TokenType.BYTE if is_byte else TokenType.NORMAL
    for added in source.tokenizer["added_tokens"]:
        if (number := added["id"]) < size:
            types[number] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
            # llama.cpp writes these as they are
            tokens[number] = added["content"] if is_bpe else added["content"].replace(SPACE, " ")
    return tokens, types


def scores_of(tokens: Sequence[str], merges: Sequence[Sequence[str]]) -> list[float]:
    """Return for each token the score that lets SentencePiece make these merges in their order. With Gemma 3's own
    scores the order is the same."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def parts_of(source: Source, tensors: Mapping[str, Tensor], kind: str) -> Iterator[Part]:
    """Yield each of `tensors`, which have transformers' names, as it is in the file."""
    names = get_tensor_name_map(source.architecture, source.config["num_hidden_layers"])
    matrices, half = TYPES[kind][0], head_size(source.config) // 2
    for name, tensor in tensors.items():
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise UserError(f"{source.folder}: {name} cannot be written as GGUF; {ADVICE}")
        stored = GGMLQuantizationType.F32 if len(tensor.shape) == 1 else matrices
        if tensor.shape[-1] % GGML_QUANT_SIZES[stored][0]:
            stored = GGMLQuantizationType.F16
        order = None
        if source.architecture is MODEL_ARCH.LLAMA and gguf_name.split(".")[-2] in ("attn_q", "attn_k"):
            order = np.arange(len(tensor.data)).reshape(-1, 2, half).swapaxes(1, 2).ravel()
        if source.architecture is MODEL_ARCH.GEMMA3 and name.endswith("norm.weight"):
            tensor = Tensor(tensor.shape, "F32", tensor.rows() + 1)
        yield Part(gguf_name, tensor, stored, order)


def rope_factors(config: Values) -> Iterator[Part]:
    """Yield the factors by which the angles of Llama 3 are divided, shape (size of a head / 2,), if it has any.

    With the wavelength w = 2 pi theta^(2i/size) and the context length c of the training before: 1 where w is below
    c / high_freq_factor, `factor` where it is above c / low_freq_factor, and a smooth way between them (transformers,
    modeling_rope_utils.py, `_compute_llama3_parameters`).
    """
    theta, scaling = rope_of(config)
    if not scaling:
        return
    size = head_size(config)
    wavelength = 2 * math.pi * float(theta or 0) ** (np.arange(0, size, 2) / size)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((scaling["original_max_position_embeddings"] / wavelength - low) / (high - low), 0, 1)
    factors = (1 / ((1 - smooth) / scaling["factor"] + smooth)).astype(np.float32)
    yield Part("rope_freqs.weight", Tensor([size // 2], "F32", factors[:, None]), GGMLQuantizationType.F32)


def choose_type(quantize: str, merged_as: str) -> str:
    """Return the type of the file, one of TYPES: the one wanted, `quantize`, or if only Ollama can make that, the one
    of the merged weights."""
    return quantize if quantize in TYPES else {"float16": "f16", "float32": "f32"}[merged_as]


def compare_gguf(path: Path, kind: str, expected: Sequence[Values], threads: int) -> float:
    """Return how far (nats) the log probabilities in llama-server, of the file `path`, are from those `expected` for
    the next tokens (of ask.py) at most; raise `UserError` if that is too far. threads: 0 for one per core."""
    context = max(prompt["tokens"] for prompt in expected) + 8
    server, differences = Embedded(str(path), context, 1, threads), []
    with Progress("gguf: compared", len(expected), "prompts") as progress:
        for prompt in expected:
            tokens, found = server.likeliest(prompt["prompt"], RANKED * len(prompt["likeliest"]))
            if tokens != prompt["tokens"]:
                raise UserError(f"{OTHER} it reads a prompt as {tokens} tokens instead of {prompt['tokens']}; {AGAIN}")
            differences += [abs(found.get(token, -math.inf) - known) for token, known in prompt["likeliest"]]
            progress.add()
    largest, most = max(differences), TOLERANCES[kind]
    print(f"export: log probabilities in llama-server ({kind}): {largest:.4f} nats apart at most", flush=True)
    if not all(difference <= most for difference in differences):  # NaN is not
        raise UserError(f"{OTHER} log probabilities are {largest:.4f} nats apart, more than {most}; {AGAIN}")
    return largest
