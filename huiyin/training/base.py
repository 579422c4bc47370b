"""Where the base model is: a folder, or on a hub, from which it is fetched into the cache."""

import shutil
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from requests import RequestException
from tokenizers import Tokenizer

from huiyin.common.errors import UserError
from huiyin.training.memory import as_text

PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
SMALL = ["config.json", "tokenizer.json"]


def find_base(name, cache, whole):
    """Return the folder of the base model `name` (a folder, or owner/model on the hub).

    From the hub come config.json and tokenizer.json only, or with `whole` all that is needed, into `cache`. The
    library that fetches honours HF_ENDPOINT, proxies and HF_HUB_OFFLINE.
    """
    if Path(name).is_dir():
        return check(Path(name))
    if name.count("/") != 1 or name.startswith(("/", ".")):
        raise UserError(
            f"model_name_or_path {name}: no such folder, and no name on the hub (owner/model); mend train.yaml"
        )
    try:
        if whole:
            check_space(name, cache)
        folder = snapshot_download(name, cache_dir=cache / "huggingface", allow_patterns=PATTERNS if whole else SMALL)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, RequestException, HfHubHTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403, 404):
            raise UserError(f"the hub has no open model {name}; mend model_name_or_path in train.yaml") from None
        raise UserError(
            f"the base model {name} is not in {cache}/huggingface and the hub cannot be reached; go online, "
            "set HF_ENDPOINT to a mirror, or name a folder as model_name_or_path in train.yaml"
        ) from None
    return check(Path(folder))


def check(folder):
    for name in SMALL:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name} in it; model_name_or_path must be a whole Hugging Face model")
    return folder


def check_space(name, cache):
    """Say how much is to be fetched, and refuse where the disk has no room for it; nothing where the hub is offline."""
    try:
        files = HfApi().model_info(name, files_metadata=True, timeout=10).siblings
    except (OfflineModeIsEnabled, RequestException, HfHubHTTPError):
        return  # what is in the cache may do
    size = sum(file.size or 0 for file in files if file.rfilename.endswith((".safetensors", ".json")))
    cache.mkdir(parents=True, exist_ok=True)
    check_disk(cache, size, f"the base model {name}")


def check_disk(folder, size, what):
    """Say that `what` needs `size` bytes on the disk of `folder`; raise `UserError` unless there is that much room."""
    free = shutil.disk_usage(folder).free
    print(f"{what} needs {as_text(size)} of disk, {as_text(free)} are free", flush=True)
    if size > free:
        raise UserError(f"{what} needs {as_text(size)} of disk and {as_text(free)} are free; make room")


def token_lengths(rows, folder):
    """Return the length in tokens of each Alpaca row in ChatML, as the `qwen` template of LLaMA-Factory writes it."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def count(texts):
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]

    lengths = []
    for row in rows:
        exchanges = [*row["history"], [row["instruction"], row["output"]]]
        words = sum(count([text for exchange in exchanges for text in exchange]))
        system = 5 + sum(count([row["system"]])) if row["system"] else 0  # <|im_start|>system\n ... <|im_end|>\n
        lengths.append(system + words + 10 * len(exchanges))
    return lengths
