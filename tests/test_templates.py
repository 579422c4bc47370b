"""A template that the base model does not have is one line, before anything large is downloaded."""

import argparse
import json
from types import SimpleNamespace

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
import yaml

from chat_formats import write_base
from helpers import ROOT, run_script
from hub_server import Hub
from huiyin.common.errors import UserError
from huiyin.serving.templates.known import FORMATS, KNOWN, check_model, read_model
from huiyin.training.plan import Settings
from huiyin.training.template import trained_format
from scripts.train import fitting_base, full_settings

SWITCH = "{% if enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
BEGUN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
# {who: (its format, what its own chat template says of thinking)}
MODELS = {
    "Qwen2.5": ("qwen", ""),
    "Qwen3": ("qwen3", SWITCH),
    "Qwen3-Instruct": ("qwen3", ""),
    "Qwen3-Thinking": ("qwen3", BEGUN),
    "Llama-3": ("llama3", ""),
    "Gemma-3": ("gemma3", ""),
    "SmolLM2": ("smollm2", ""),
    "MiniCPM5": ("cpm4", SWITCH),
}
SOMETIMES = "the model can think, and with this template it would now and then"
NEVER = "the model never thinks, and would get an empty thought before each reply"
WRONG = [  # (model, template, the problem, what to do)
    ("Qwen3", "qwen3_nothink", SOMETIMES, "take template: qwen3"),
    ("Qwen3", "qwen", SOMETIMES, "take template: qwen3"),
    ("Qwen3-Instruct", "qwen3", NEVER, "take template: qwen3_nothink"),
    (
        "Qwen3-Thinking",
        "qwen3",
        "the model thinks before each reply, which a chat has no use for",
        "take another base model (docs/training.md)",
    ),
    ("Qwen2.5", "qwen3", "the model has no token <think>", "take template: qwen"),
    ("Qwen2.5", "gemma3", "the model has no token <bos>", "take template: qwen"),
    ("Gemma-3", "qwen", "the model has no token <|im_start|>", "take template: gemma3"),
    ("Llama-3", "cpm4", "the model has no token <s>", "take template: llama3"),
    ("SmolLM2", "llama3", "the model has no token <|begin_of_text|>", "take template: smollm2"),
    ("MiniCPM5", "smollm2", SOMETIMES, "take template: cpm4"),
]
SETTINGS = [  # (what is changed in train.yaml, the line)
    ({"template": "yi"}, f"template yi in train.yaml: it must be one of {KNOWN}; only for these is it "
     "tested that the finished model is prompted as it was trained"),
    ({"enable_thinking": True}, "enable_thinking is set by the pipeline; remove it"),
    ({"preserve_thinking": False}, "preserve_thinking is set by the pipeline; remove it"),
]  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """{who: the folder of such a model}"""
    folder = tmp_path_factory.mktemp("bases")
    found = {who: write_base(FORMATS[name], folder / who, own) for who, (name, own) in MODELS.items()}
    shape = dict.fromkeys(["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"], 8)
    for base in found.values():
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**config, **shape, "num_key_value_heads": 8, "vocab_size": 600}))
    return found


def refusal(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    return str(error.value)


@pytest.mark.parametrize(("who", "template", "problem", "advice"), WRONG)
def test_a_template_that_the_model_does_not_have_is_one_line(bases, who, template, problem, advice):
    line = f"template {template} in train.yaml does not fit some/{who}: {problem}; {advice}"
    assert refusal(check_model, FORMATS[template], bases[who], f"some/{who}") == line


@pytest.mark.parametrize(
    ("who", "template"),
    [
        *((who, name) for who, (name, _) in MODELS.items() if not who.startswith("Qwen3-")),
        ("Qwen3-Instruct", "qwen3_nothink"),
        ("SmolLM2", "qwen"),
    ],
)
def test_a_template_that_the_model_has_is_taken(bases, who, template):
    check_model(FORMATS[template], bases[who], who)


def test_a_model_that_writes_its_first_token_itself_needs_a_template_that_does(bases, tmp_path):
    for file in bases["MiniCPM5"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"add_bos_token": True, "chat_template": None}  # as a base model has it
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert "the texts of the model begin with <s>, those of this template with no such token; take template: cpm4" in (
        refusal(check_model, FORMATS["smollm2"], tmp_path, "base")
    )
    settings["bos_token"] = {"content": "<other>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert "the texts of the model begin with <other>, those of this template with <s>" in (
        refusal(check_model, FORMATS["cpm4"], tmp_path, "base")
    )


def test_a_chat_template_may_be_a_file_or_one_of_several(bases, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    several = [{"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": SWITCH}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    model = read_model(tmp_path)
    assert (model.thinking, model.tokens, model.architecture) == ("can", None, None)  # no tokenizer.json: not known yet
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert read_model(tmp_path).thinking == "never"
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": [1]}')
    assert "are not those of a language model" in refusal(read_model, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    assert "tokenizer_config.json: not the file of a language model" in refusal(read_model, tmp_path)


@pytest.mark.parametrize(("changes", "line"), SETTINGS)
def test_a_setting_that_would_change_the_prompt_is_one_line(bases, tmp_path, changes, line):
    settings = yaml.safe_load((ROOT / "config/train.yaml").read_text(encoding="utf-8"))
    settings |= {"model_name_or_path": str(bases["Qwen2.5"]), **changes}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    for name, content in (
        ("alpaca", [{"instruction": "早", "output": "早啊"}]),
        ("alpaca_eval", []),
        ("dataset_info", {}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "system.txt").write_text("你是阿穗。", encoding="utf-8")
    words = "--preflight config/demo/preflight.yaml --models config/models.yaml --llm config/demo/llm.yaml"
    words += " --export config/demo/export.yaml"
    folders = ["--config", tmp_path / "train.yaml", "--cache", tmp_path, "--out", tmp_path / "out"]
    done = run_script("train", tmp_path, *words.split(), *folders, "--gpu", "none", "--dry-run")
    assert done.returncode == 1
    assert done.stderr.removeprefix("train.py: ").removeprefix(f"{tmp_path}/train.yaml: ") == f"{line}\n"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("qwen", {"template": "qwen"}),
        ("qwen3", {"template": "qwen3", "enable_thinking": False, "preserve_thinking": True}),
        ("gemma3", {"template": "gemma"}),  # its own gemma3 wants pictures
    ],
)
def test_llamafactory_is_told_of_a_template_in_its_own_words(tmp_path, name, told):
    given, plan = {"template": name, "learning_rate": 1e-4}, SimpleNamespace(values=dict, accumulation=1)
    args, rows = argparse.Namespace(gpu="none", out=tmp_path), SimpleNamespace(held_out=[])
    values = full_settings(args, given, rows, "", plan, tmp_path)
    assert {key: value for key, value in values.items() if key == "template" or "thinking" in key} == told
    assert trained_format(values) is FORMATS[name]


def test_a_wrong_template_costs_no_download_of_more_than_10_megabytes(bases, tmp_path, monkeypatch):
    """From the hub come only the files that say so; tokenizer.json, of up to 33 MB, is asked for when it fits."""
    (tmp_path / "export.yaml").write_text("ollama: none\n")
    args, settings = argparse.Namespace(cache=tmp_path, export=tmp_path / "export.yaml"), Settings(accept_base=True)
    with Hub("some/Qwen3", bases["Qwen3"]) as hub:
        files = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", files)  # made as it loads
        given = {"model_name_or_path": "some/Qwen3", "template": "qwen3_nothink"}
        assert refusal(fitting_base, args, given, settings).endswith("take template: qwen3")
        small = ["config.json", "generation_config.json", "tokenizer_config.json"]
        assert sorted(hub.fetched) == small
        fitting_base(args, {**given, "template": "qwen3"}, settings)
        assert sorted(hub.fetched) == sorted([*small, "tokenizer.json"])
