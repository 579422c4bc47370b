"""The formats that are supported, and whether a base model has one of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huiyin.common.errors import UserError
from huiyin.serving.templates import cpm4, gemma3, llama3, qwen, qwen3, qwen3_nothink, smollm2
from huiyin.serving.templates.chat_format import ChatFormat, Thinking

FORMATS = {module.FORMAT.name: module.FORMAT for module in (qwen, qwen3, qwen3_nothink, llama3, gemma3, smollm2, cpm4)}
KNOWN = ", ".join(f"{name} ({each.models})" for name, each in FORMATS.items())
THINKS = {
    "never": "the model never thinks, and would get an empty thought before each reply",
    "can": "the model can think, and with this template it would now and then",
    "always": "the model thinks before each reply, which a chat has no use for",
}


def find_format(name: str) -> ChatFormat:
    """Return the format `name`; `UserError` if there is none of that name."""
    if name not in FORMATS:
        raise UserError(
            f"template {name} in train.yaml: it must be one of {KNOWN}; only for these is it tested that the finished "
            "model is prompted as it was trained"
        )
    return FORMATS[name]


@dataclass(frozen=True)
class Model:
    """What the files of a base model tell of its conversations."""

    architecture: str | None
    tokens: set[str] | None  # added to the vocabulary of texts; None: tokenizer.json, which lists them, is not there
    first: str | None  # the token at the beginning of a text ...
    adds_first: bool  # ... which its tokenizer writes by itself
    thinking: Thinking | None  # None: no chat template says it


def read_model(folder: Path) -> Model:
    """Return what the files of the base model in `folder` tell; of those on a hub, tokenizer.json is large, so it is
    read only if the others do not list the tokens. `UserError` if they are not those of a model."""
    files = {name: read_json(folder / f"{name}.json") for name in ("config", "tokenizer_config", "tokenizer")}
    settings, first = files["tokenizer_config"], files["tokenizer_config"].get("bos_token")
    try:
        listed = [*settings.get("added_tokens_decoder", {}).values()] or files["tokenizer"].get("added_tokens", [])
        return Model(
            architecture=next(iter(files["config"].get("architectures") or []), None),
            tokens={token["content"] for token in listed} if listed or files["tokenizer"] else None,
            first=first["content"] if isinstance(first, dict) else first,
            adds_first=bool(settings.get("add_bos_token")),
            thinking=thinking_of(chat_template(folder, settings)),
        )
    except (AttributeError, LookupError, TypeError):
        raise UserError(f"{folder}: its *.json are not those of a language model; get the base model again") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in the file at `path`, {} if there is none; `UserError` if it is not one."""
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not the file of a language model; get the base model again")
    return content


def chat_template(folder: Path, settings: Mapping[str, Any]) -> str:
    """Return the chat template of the model in `folder`, "" if it has none; settings: its tokenizer_config.json."""
    file, given = folder / "chat_template.jinja", settings.get("chat_template") or ""
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    return given if isinstance(given, str) else "".join(each["template"] for each in given)


def thinking_of(template: str) -> Thinking | None:
    """Return whether a model with this chat template thinks. Those of models that can have a switch for it; those of
    models that always do open a thought where a reply begins."""
    if not template:
        return None
    if "enable_thinking" in template:
        return "can"
    return "always" if "<think>" in template.rpartition("add_generation_prompt")[2] else "never"


def problem_with(model: Model, chat_format: ChatFormat) -> str:
    """Return why `model` does not have this format, "" if it does."""
    missing = [token for token in chat_format.control if model.tokens is not None and token not in model.tokens]
    if missing:
        return f"the model has no token {missing[0]}"
    if model.first != chat_format.first if chat_format.first else model.adds_first:
        expected = chat_format.first or "no such token"
        return f"the texts of the model begin with {model.first or 'no token'}, those of this template with {expected}"
    if model.thinking and model.thinking not in chat_format.thinking:
        return THINKS[model.thinking]
    return ""


def check_model(chat_format: ChatFormat, folder: Path, name: str) -> None:
    """`UserError` unless the base model `name`, whose files are in `folder`, has this format. What files that are not
    there yet would say is not asked."""
    model = read_model(folder)
    if problem := problem_with(model, chat_format):
        of_its_kind = [each for each in FORMATS.values() if each.architecture == model.architecture]
        fitting = [each.name for each in of_its_kind if not problem_with(model, each)]
        advice = f"take template: {' or '.join(fitting)}" if fitting else "take another base model (docs/training.md)"
        raise UserError(f"template {chat_format.name} in train.yaml does not fit {name}: {problem}; {advice}")
