"""The base model: a folder, or a model on a hub, which is downloaded into the cache.

huggingface_hub is imported in functions: `--help` would wait half a second for it.
"""

import re
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from huiyin.common.errors import UserError
from huiyin.common.lazy import requests
from huiyin.common.settings import ADDRESS
from huiyin.serving.templates.known import read_json
from huiyin.training.memory import format_size

# What is downloaded: at first what is small, then what the tokens are counted with, then all that is needed
DESCRIBED = ["config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"]
COUNTED = [*DESCRIBED, "tokenizer.json"]
WHOLE = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
NEEDED = ["config.json", "tokenizer_config.json", "tokenizer.json"]


def find_base(name: str, cache: Path, files: list[str]) -> Path:
    """Return the folder of the base model `name` (a folder, or owner/model on the hub).

    From the hub its `files` (DESCRIBED, COUNTED or WHOLE) are downloaded into `cache`. huggingface_hub obeys
    HF_ENDPOINT, HF_HUB_OFFLINE and the variables that name a proxy.
    """
    if (folder := Path(name).expanduser()).is_dir():
        return check_files(folder, WHOLE)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        if name.count("/") != 1:
            raise HFValidationError  # the hub has models without an owner, which are none to train
        if files == WHOLE:
            check_space(name, cache)
        folder = Path(snapshot_download(name, cache_dir=cache / "huggingface", allow_patterns=files))
    except HFValidationError:
        raise UserError(
            f"model_name_or_path {name}: no such folder, and no name on the hub (owner/model); fix train.yaml"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, requests.RequestException, HfHubHTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403, 404):
            raise UserError(f"the hub has no public model {name}; fix model_name_or_path in train.yaml") from None
        advice = wrong_environment() or (
            "go online, set HF_ENDPOINT to a mirror, or name a folder as model_name_or_path in train.yaml"
        )
        raise UserError(
            f"the base model {name} is not in {cache}/huggingface and the hub cannot be reached; {advice}"
        ) from None
    return check_files(folder, files)


def wrong_environment() -> str:
    """Return what in HF_ENDPOINT or in the variables that name a proxy cannot work, and what to do; "" for nothing."""
    from huggingface_hub import constants

    hub = constants.ENDPOINT
    if not re.fullmatch(ADDRESS, hub):
        return f"HF_ENDPOINT is {hub.rpartition('@')[2]}, which is no address; write it like https://hf-mirror.com"
    proxy = requests.utils.select_proxy(hub, requests.utils.get_environ_proxies(hub)) or ""
    shown = proxy.rpartition("@")[2]  # without user and password
    if proxy.lower().startswith("socks") and find_spec("socks") is None:
        return (
            f"the proxy {shown} speaks SOCKS, for which PySocks is missing; set HTTPS_PROXY to its address for HTTP, "
            "or run .venv/bin/pip install PySocks"
        )
    if proxy and not re.fullmatch(f"({ADDRESS}|socks.+)", proxy if "://" in proxy else f"http://{proxy}"):
        return f"the proxy {shown} is no address; write HTTPS_PROXY like http://127.0.0.1:7890"
    return ""


def check_files(folder: Path, files: list[str]) -> Path:
    for name in NEEDED:
        if (name in files or files == WHOLE) and not (folder / name).is_file():
            raise UserError(f"{folder}: no {name} in it; model_name_or_path must be a whole Hugging Face model")
    return folder


def ends_replies(folder: Path, stop: Sequence[str]) -> bool:
    """Is the base model in `folder` one that ends what it writes with a token in `stop`? Those that were trained to
    chat name it as an end; Base models name another one, and the row of this one in their head may be untrained. True
    as long as the files that tell it are not there."""
    config, generation, settings, tokenizer = (
        read_json(folder / f"{name}.json") for name in ("config", "generation_config", "tokenizer_config", "tokenizer")
    )
    tokens = {int(number): token["content"] for number, token in settings.get("added_tokens_decoder", {}).items()}
    tokens |= {token["id"]: token["content"] for token in tokenizer.get("added_tokens", [])}
    named = settings.get("eos_token")
    ends = {named["content"] if isinstance(named, dict) else named}
    for end in (config.get("eos_token_id"), generation.get("eos_token_id")):
        ends |= {tokens[number] for number in (end if isinstance(end, list) else [end]) if number in tokens}
    return bool(ends & set(stop)) or not (tokens or tokenizer)


def check_space(name: str, cache: Path) -> None:
    """Print the size of the download; `UserError` if the disk has no room for it. An offline hub is ignored."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        files = HfApi().model_info(name, files_metadata=True, timeout=10).siblings
    except (OfflineModeIsEnabled, requests.RequestException, HfHubHTTPError):
        return  # the model may be in the cache
    size = sum(file.size or 0 for file in files if file.rfilename.endswith((".safetensors", ".json")))
    cache.mkdir(parents=True, exist_ok=True)
    check_disk(cache, size, f"the base model {name}")


def check_disk(folder: Path, size: float, what: str) -> None:
    """Print that `what` needs `size` bytes on the disk of `folder`; `UserError` if less is free."""
    free = shutil.disk_usage(folder).free
    print(f"{what} needs {format_size(size)} of disk, {format_size(free)} are free", flush=True)
    if size > free:
        raise UserError(f"{what} needs {format_size(size)} of disk and {format_size(free)} are free; make room")
