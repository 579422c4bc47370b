"""config/export.yaml: the finished model, and the Ollama to which it goes and in which it is asked."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from huiyin.common.settings import ADDRESS, AtLeast0, AtLeast1, Share, Temperature, Text, without_credentials
from huiyin.llm.backend import NoServer
from huiyin.llm.client import ollama_url_argument
from huiyin.llm.ollama import Ollama

EXPECTED = "auto, none or an address such as http://127.0.0.1:11434"
Server = Annotated[str, Meta(pattern=rf"^(auto|none|{ADDRESS})\Z", description=EXPECTED)]


@dataclass
class Settings:
    ollama: Server = "auto"
    allow_remote: bool = False
    num_ctx: AtLeast0 | None = None
    fixed_system: bool = False
    quantize: Literal["auto", "q4_K_M", "q4_K_S", "q8_0", "f16", "bf16"] = "auto"
    gguf: bool = False
    temperature: Temperature = 0.8
    top_p: Share = 0.9
    top_k: AtLeast0 = 40
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    num_predict: AtLeast1 = 256
    question: Text = "在吗？"


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options with which a command reaches the finished model: `--export` and `--ollama-url`."""
    parser.add_argument("--export", type=Path, required=True, metavar="FILE", help="export.yaml")
    ollama_url_argument(parser)


def find_ollama(settings: Settings, ollama_url: str, name: str) -> Ollama | None:
    """Return the Ollama of the settings for the model `name`; `ollama_url` is that of `auto`. None if it is `none`, or
    if it is `auto` and none answers there, which is printed. An address that does not answer is NoServer."""
    if settings.ollama == "none":
        return None
    url = ollama_url if settings.ollama == "auto" else settings.ollama
    try:
        ollama = Ollama(url, name, allow_remote=settings.allow_remote, setting="ollama in export.yaml")
        ollama.digest()
    except NoServer:
        if settings.ollama != "auto":
            raise
        shown = without_credentials(url)
        print(f"no Ollama answers at {shown}, so none is used (ollama: auto in export.yaml)", flush=True)
        return None
    return ollama
