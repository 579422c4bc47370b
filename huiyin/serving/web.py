"""The finished model in the browser, and for clients of OpenAI's protocol: llama-server on one port of this machine.

Without the key it answers nobody: only the page, in which there is nothing of a chat, and whether the server is up.
"""

import json
import re
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import xllamacpp

from huiyin.common.control import CONTROL
from huiyin.common.errors import UserError
from huiyin.llm.embedded import server_parameters, start_server

PAGE = Path(__file__).with_name("page")
KEY = re.compile(r"[\w-]{32,}", re.ASCII)


def own_key(path: Path) -> str:
    """Return the key in the file at `path`, which is made if it is not there."""
    if not path.exists():
        part = path.with_name(f".{path.name}.part")
        part.touch(mode=0o600)
        part.write_text(secrets.token_urlsafe() + "\n")
        part.replace(path)
    key = path.read_text(encoding="utf-8", errors="replace").strip()
    if not KEY.fullmatch(key):  # an empty one would let everybody in
        raise UserError(f"{path}: not a key that `make web` made; remove the file, and it makes another one")
    return key


def check_port(host: str, port: int) -> None:
    """Raise `UserError` unless a server can listen there."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that has just ended is no hindrance
        try:
            trial.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "there is no such port"
            raise UserError(f"port {port}: {reason.lower()}; take another one: make web PORT=8081") from None


def serve(
    gguf: Path, parameters: Mapping[str, Any], page: Mapping[str, Any], key: str, address: tuple[str, int]
) -> tuple[xllamacpp.Server, int]:
    """Return (the server, which works until nobody refers to it, its port).

    gguf: the model; parameters: those of the receipt of `export`, for clients that send none; page: what the page is
    told, at least the "name" of the model; address: (host, port), 0 for any free port.
    """
    check_port(*address)
    params = server_parameters(str(gguf), parameters["num_ctx"], parallel=1)
    params.hostnames, params.port = [address[0]], address[1]
    params.api_keys, params.cors_origins = [key], ""  # and no page of another address can read an answer
    params.model_alias = {page["name"]}
    params.public_path = str(PAGE)
    params.ui_config_json = json.dumps({**page, "control": CONTROL.pattern})
    params.cache_ram_mib = 0  # it would keep 8 GB of earlier prompts
    params.force_pure_content_parser = True  # a reply is what the model wrote, <think> and broken characters included
    set_sampling(params, parameters)
    server = start_server(params)
    # It may not end before it has been asked once; this reads the system prompt, too.
    server.handle_chat_completions({"messages": [{"role": "user", "content": "?"}], "max_tokens": 1})
    return server, urlsplit(server.listening_address).port or 0


def set_sampling(params: xllamacpp.CommonParams, parameters: Mapping[str, Any]) -> None:
    """Set how replies are drawn for clients that do not say it: as in the Modelfile, and what that leaves to Ollama as
    there."""
    sampling = params.sampling
    sampling.temp, sampling.top_p, sampling.top_k = (parameters[name] for name in ("temperature", "top_p", "top_k"))
    sampling.penalty_repeat, sampling.min_p = parameters["repeat_penalty"], 0.0
    params.n_predict, params.antiprompt = parameters["num_predict"], parameters["stop"]


def need_gguf(exported: Path, receipt: Mapping[str, Any]) -> Path:
    """Return the GGUF file of the folder of `export`; `UserError` if it wrote none."""
    path = exported / "model.gguf"
    if "gguf" not in receipt or not path.is_file():
        used = next(iter(receipt.get("settings", {})), "export.yaml")
        raise UserError(f"{path}: no such file; say gguf: true in {used}, and export again")
    return path
