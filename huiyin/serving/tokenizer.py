"""The tokenizer of the finished model: that of its base, with the chat format of the training."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huiyin.serving.templates.chat_format import ChatFormat

UNCHANGED = ["vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model"]


def save_tokenizer(base: Path, chat_format: ChatFormat, system: str, fixed: bool, folder: Path) -> None:
    """Save the tokenizer of `base` into `folder` with the chat format and the system prompt of the training, for
    transformers, vLLM, llama-server and Ollama's converter. fixed: no other system prompt counts.

    What ends a reply ends a text; if the format has a first token, whoever reads texts writes it by itself.
    """
    for name in UNCHANGED:
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)
    tokenizer = read(base / "tokenizer.json")
    ends = set_special(tokenizer["added_tokens"], chat_format.stop)
    write(folder / "tokenizer.json", tokenizer)
    settings = read(base / "tokenizer_config.json")
    set_special(settings.get("added_tokens_decoder", {}).values(), chat_format.stop)
    settings.pop("chat_template", None)  # chat_template.jinja is read
    names = {"eos_token": chat_format.stop[0], **({"bos_token": chat_format.first} if chat_format.first else {})}
    write(folder / "tokenizer_config.json", {**settings, **names, "add_bos_token": bool(chat_format.first)})
    if (base / "special_tokens_map.json").exists():
        write(folder / "special_tokens_map.json", {**read(base / "special_tokens_map.json"), **names})
    if (base / "generation_config.json").exists():
        generation = read(base / "generation_config.json")
        own = generation.get("eos_token_id") or []
        generation["eos_token_id"] = sorted({*ends, *(own if isinstance(own, list) else [own])})
        write(folder / "generation_config.json", generation)
    template = chat_format.jinja_template(system, fixed)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def set_special(tokens: Iterable[dict[str, Any]], names: list[str]) -> list[int]:
    """Mark those of `tokens` that have one of the `names` as special; return their numbers, where they tell them."""
    found = [token for token in tokens if token["content"] in names]
    for token in found:
        token["special"] = True
    return [token["id"] for token in found if "id" in token]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
