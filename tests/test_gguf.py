"""The GGUF file: in llama-server it is the model that transformers computes, of each architecture, in each type."""

import json
import shutil
from unittest import mock

import numpy as np
import pytest
import requests
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from forked import Forked, run_forking
from huiyin.common.errors import UserError
from huiyin.llm.embedded import server_parameters, start_server
from huiyin.serving import process
from huiyin.serving.gguf import ADVICE, OTHER, PRE_TOKENIZERS, SENTENCEPIECE, compare_gguf, read_source, write_gguf
from huiyin.training.llamafactory import environment
from llm_folder import succeeded
from scripts.demo.tiny import CHAT_TEMPLATE, END_OF_TEXT, HEADS, HIDDEN, KV_HEADS, LAYERS, write_hugging_face
from tiny_gemma import write_gemma
from training_folder import Training

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32, "type": "llama3"}
MODELS = {
    "qwen2": {"architecture": "Qwen2ForCausalLM"},
    "qwen2 tied": {"architecture": "Qwen2ForCausalLM", "tied": True},
    "qwen3": {"architecture": "Qwen3ForCausalLM", "size": 32},
    "qwen3 tied": {"architecture": "Qwen3ForCausalLM", "size": 32, "tied": True},
    "llama": {"architecture": "LlamaForCausalLM", "attention_bias": True},
    "llama3": {"architecture": "LlamaForCausalLM", "rope_theta": 1e4, "rope_scaling": LLAMA3},
}
MOST = {"f32": 0.02, "f16": 0.02, "bf16": 0.1, "q8_0": 0.2}  # nats: these weights are random
TEXTS = [
    "in 1234512 the",
    "we'll of\nage 12\n\nand",
    "今天12点，  on\t\ner 's",
    "being\n\n\n  at   the message <0x0A>😀",
]
SAID = ["在吗？", "1 2 3, the message of " * 9, "今晚<早>点\n吃饭！👩 a's"]


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def change(path, **values):
    path.write_text(json.dumps({**read_json(path), **values}), encoding="utf-8")


def write_model(folder, architecture, tied=False, size=HIDDEN // HEADS, **values):
    """Write the demo's tiny model with other layers: heads of `size`, random weights. Return the folder."""
    random, path = np.random.default_rng(5), write_hugging_face(folder) / "model.safetensors"
    kind = architecture.removesuffix("ForCausalLM").lower()
    change(folder / "config.json", architectures=[architecture], model_type=kind, head_dim=size, **values)
    change(folder / "config.json", tie_word_embeddings=tied)
    weights = load_file(path)
    has_bias = kind == "qwen2" or values.get("attention_bias")
    for layer in (f"model.layers.{number}.self_attn" for number in range(LAYERS)):
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS), ("o", HEADS)):
            shape = (HIDDEN, heads * size) if name == "o" else (heads * size, HIDDEN)
            weights[f"{layer}.{name}_proj.weight"] = random.normal(0, 0.2, shape)
            weights.pop(f"{layer}.{name}_proj.bias", None)
            if has_bias and (name != "o" or kind == "llama"):
                weights[f"{layer}.{name}_proj.bias"] = random.normal(0, 0.2, shape[0])
        if kind == "qwen3":
            weights |= {f"{layer}.{name}_norm.weight": random.normal(1, 0.3, size) for name in "qk"}
    if tied:
        del weights["lm_head.weight"]
        weights["model.embed_tokens.weight"] *= 0.2
    save_file({name: weight.astype(np.float32) for name, weight in weights.items()}, path, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{name: (folder, what transformers computes of the tokens after SAID)}"""
    work = tmp_path_factory.mktemp("models")
    folders = {name: write_model(work / name, **values) for name, values in MODELS.items()}
    folders["gemma3"] = write_gemma(work / "gemma3")
    for folder in folders.values():  # as Llama 3 and Gemma have a first token
        template = "{{ bos_token }}" + CHAT_TEMPLATE
        first = {"add_bos_token": True, "bos_token": END_OF_TEXT, "chat_template": template}
        change(folder / "tokenizer_config.json", **first)
    rows = [{"system": "", "history": [], "instruction": text} for text in SAID]
    asked = [(folder, None) for folder in folders.values()]
    variables = environment("none", work, work)
    with mock.patch.object(process, "Popen", Forked):  # those that are asked at once have one vocabulary
        answers = [
            answer
            for some in (asked[:-1], asked[-1:])
            for answer in process.ask(some, [], some[0][0], variables, prompts=rows)
        ]
    return {
        name: (folder, answer["next_tokens"]) for (name, folder), answer in zip(folders.items(), answers, strict=True)
    }


@pytest.mark.parametrize("name", [*MODELS, "gemma3"])
def test_llama_server_computes_what_transformers_computes(models, tmp_path, name):
    folder, expected = models[name]
    for kind, most in MOST.items():
        write_gguf(folder, tmp_path / kind, kind, "丁")
        assert compare_gguf(tmp_path / kind, kind, expected, 1) < most, kind
    assert GGUFReader(tmp_path / "f16").get_field("general.name").contents() == "丁"
    sizes = [(tmp_path / kind).stat().st_size for kind in ("q8_0", "f16", "f32")]
    assert sizes == sorted(sizes) and (tmp_path / "bf16").stat().st_size == sizes[1]


def test_another_model_is_noticed(models, tmp_path):
    (folder, expected), (_, others) = models["llama"], models["llama3"]
    write_gguf(folder, tmp_path / "model.gguf", "f16", "丁")
    with pytest.raises(
        UserError, match=rf"^{OTHER} log probabilities are .* nats apart, more than 0\.05; export again"
    ):
        compare_gguf(tmp_path / "model.gguf", "f16", others, 1)
    with pytest.raises(UserError, match=rf"^{OTHER} it reads a prompt as {expected[0]['tokens']} tokens instead of 3;"):
        compare_gguf(tmp_path / "model.gguf", "f16", [{**expected[0], "tokens": 3}], 1)


def test_a_tensor_is_written_some_rows_at_a_time(models, tmp_path, monkeypatch):
    folder, _ = models["llama"]
    for kind in ("f16", "q8_0"):
        write_gguf(folder, tmp_path / "whole", kind, "丁")
        with monkeypatch.context() as patched:
            patched.setattr("huiyin.serving.gguf.BLOCK", 7 * HIDDEN)
            write_gguf(folder, tmp_path / "rows", kind, "丁")
        assert (tmp_path / "whole").read_bytes() == (tmp_path / "rows").read_bytes()


def test_a_weight_too_large_for_16_bits_is_one_line(tmp_path):
    folder = write_model(tmp_path / "model", "LlamaForCausalLM")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][3, 5] = 1e5
    save_file(weights, folder / "model.safetensors")
    write_gguf(folder, tmp_path / "model.gguf", "bf16", "丁")
    with pytest.raises(UserError) as error:
        write_gguf(folder, tmp_path / "model.gguf", "f16", "丁")
    assert str(error.value) == "output.weight: a weight is too large for f16; say quantize: bf16 in export.yaml"


def with_digits(folder, name):
    """Give the tokenizer in `folder` tokens for several digits, and let it split a text in the way `name`."""
    path = folder / "tokenizer.json"
    tokenizer = read_json(path)
    first = max(token["id"] for token in tokenizer["added_tokens"]) + 1
    tokenizer["model"]["vocab"] |= {
        token: first + number for number, token in enumerate(("12", "123", "1234", "'l", "\u010aa"))
    }
    tokenizer["model"]["merges"] += [["1", "2"], ["12", "3"], ["123", "4"], ["'", "l"], ["\u010a", "a"]]
    steps = [{**step, "trim_offsets": False} for step in PRE_TOKENIZERS[name]]
    change(path, pre_tokenizer={"type": "Sequence", "pretokenizers": steps})


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_texts_are_split_as_the_tokenizer_splits_them(gguf, tmp_path, name):
    """Into the same tokens, which are then the same text again."""
    if name == SENTENCEPIECE:
        folder = write_gemma(tmp_path / "model")
    else:
        folder = shutil.copytree(gguf.parent / "tiny-qwen2", tmp_path / "model")
        with_digits(folder, name)
    write_gguf(folder, path := tmp_path / "model.gguf", "f16", "丁")
    tokenizer, parameters = Tokenizer.from_file(str(folder / "tokenizer.json")), server_parameters(str(path), 64, 1)
    parameters.port = 0
    server, session = start_server(parameters), requests.Session()
    session.trust_env = False
    server.handle_completions({"prompt": "a", "n_predict": 1})  # if it is to end while it starts, it never does

    def post(path, **asked):
        return session.post(f"{server.listening_address}/{path}", json=asked).json()

    for text in TEXTS:
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        assert post("tokenize", content=text) == {"tokens": tokens}
        assert post("detokenize", tokens=tokens) == {"content": text}


YARN = {"rope_type": "yarn", "factor": 4.0}
REFUSED = [
    ("config", {"architectures": ["Phi3ForCausalLM"]}, "Phi3ForCausalLM"),
    ("config", {"architectures": None}, "a model of unknown kind"),
    ("config", {"hidden_act": "gelu"}, "the activation gelu"),
    ("config", {"use_sliding_window": True}, "a sliding window"),
    ("config", {"rope_theta": None}, "a model without rope_theta"),
    ("config", {"rope_parameters": {"rope_theta": 1e4, **YARN}}, "rope_scaling of the type yarn"),
    ("tokenizer", {"pre_tokenizer": None}, "this tokenizer"),
    ("tokenizer", {"model": {"type": "Unigram"}}, "this tokenizer"),
]


ORDER = "this order of layers with a sliding window"
REFUSED_OF_GEMMA = [
    ({"layer_types": ["sliding_attention"] * 6 + ["full_attention"]}, ORDER),
    ({"sliding_window_pattern": 5}, ORDER),
    ({"query_pre_attn_scalar": 168}, "this scale of attention"),
    ({"use_bidirectional_attention": True}, "attention to what follows"),
    ({"final_logit_softcapping": 30.0}, "a limit of logits"),
    ({"hidden_activation": "gelu"}, "the activation gelu"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "rope_scaling of the type linear"),
]


def is_refused(folder, file, values, what):
    path = folder / f"{file}.json"
    change(path, **values)
    with pytest.raises(UserError) as error:
        read_source(folder)
    return str(error.value) == f"{path}: {what} cannot be written as GGUF; {ADVICE}"


@pytest.mark.parametrize(("file", "values", "what"), REFUSED)
def test_what_cannot_be_written_is_one_line(gguf, tmp_path, file, values, what):
    for name in ("config", "tokenizer"):
        shutil.copy(gguf.parent / f"tiny-qwen2/{name}.json", tmp_path)
    assert is_refused(tmp_path, file, values, what)


@pytest.mark.parametrize(("values", "what"), REFUSED_OF_GEMMA)
def test_a_gemma_that_llama_cpp_would_compute_otherwise_is_one_line(tmp_path, values, what):
    assert is_refused(write_gemma(tmp_path / "model"), "config", values, what)


@pytest.mark.parametrize("name", ["qwen3", "qwen3 tied"])
def test_a_qwen3_is_trained_and_reaches_ollama_as_gguf(demo, tmp_path, ollama, name):
    training, exported = Training(demo, tmp_path), tmp_path / "exported"
    training.settings["model_name_or_path"] = str(write_model(tmp_path / "base", **MODELS[name]))
    training.without_evaluation()
    training.run_shortly(max_steps=2)
    dataset = tmp_path / "generated/alpaca.json"
    dataset.write_text(json.dumps(read_json(dataset)[:12]))
    succeeded(training.run())
    (tmp_path / "export.yaml").write_text(f"ollama: {ollama.url}\nquantize: q4_K_M\n")
    given = [tmp_path / "trained", "--generated", tmp_path / "generated", "--name", "huiyin-10002"]
    own = ["--config", tmp_path / "export.yaml", "--cache", tmp_path / "cache", "--out", exported]
    assert "create: success" in succeeded(run_forking("export", *given, *own)).stdout.splitlines()

    receipt, made = read_json(exported / "receipt.json"), ollama.created["huiyin-10002:latest"]
    assert (
        made["files"] == {"model.gguf": f"sha256:{receipt['outputs']['model.gguf']}"} and made["quantize"] == "q4_K_M"
    )
    assert (exported / "Modelfile").read_text(encoding="utf-8").startswith("FROM ./model.gguf\n")
    kind = {"float16": "f16", "float32": "f32"}[receipt["merged_as"]]
    assert receipt["gguf"].pop("difference") < 0.005
    assert receipt["gguf"] == {"type": kind, "for_ollama": True, "prompts": 5}
    assert (exported / "model.gguf").stat().st_mode & 0o777 == 0o600
    file = GGUFReader(exported / "model.gguf")
    assert file.get_field("tokenizer.chat_template").contents() == (exported / "merged/chat_template.jinja").read_text(
        "utf-8"
    )
    assert ("output.weight" in {tensor.name for tensor in file.tensors}) == (name == "qwen3")
