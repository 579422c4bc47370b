"""Recompute every hash in the receipts, from the exported model back to the chat history.

    python scripts/tools/verify.py data/default/decrypted data/default/parsed ... data/default/10001/exported \\
        --export config/export.yaml

Prints where the chain breaks: a file that differs from its receipt, or an input that the stage before did not make.
The exit status is 1 then. The folders are given in the order of the stages; those of missing stages are ignored.
"""

import huiyin.common.starting  # noqa: F401

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huiyin.common.digests import sha256
from huiyin.common.errors import UserError, run
from huiyin.common.settings import meaning, read_settings
from huiyin.common.stage import arguments, read_receipt
from huiyin.serving.finished import Settings, find_ollama, model_arguments

Receipts = dict[str, dict[str, Any]]  # {folder: receipt}, in the order of the stages


def files_in(folder: str | Path, outputs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (path, digest) of each file in the `outputs` of a receipt, in which a folder is {name: digest}."""
    for name, digest in outputs.items():
        if isinstance(digest, dict):
            yield from files_in(Path(folder) / name, digest)
        else:
            yield str(Path(folder) / name), digest


def claims(folder: str, receipt: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (role, path, digest) of every file that the receipt in `folder` names; of settings, what they mean."""
    yield from (("output", *item) for item in files_in(folder, receipt["outputs"]))
    yield from (("input", *item) for item in receipt["inputs"].items())
    yield from (("settings", path, used.get("meaning", "")) for path, used in receipt["settings"].items())
    base = receipt.get("base_model", {})
    if "folder" in base:
        yield from (("base model", *item) for item in files_in(base["folder"], base["sha256"]))


def breaks(receipts: Receipts) -> Iterator[str]:
    """Yield a line for each file that differs from the receipts, and for each input that an earlier stage remade."""
    made: dict[str, tuple[str, str]] = {}
    computed: dict[str, str | None] = {}
    reported = set()
    for folder, receipt in receipts.items():
        stage = receipt["stage"]
        made |= {path: (digest, stage) for path, digest in files_in(folder, receipt["outputs"])}
        for role, path, digest in claims(folder, receipt):
            if role == "input" and path in made and made[path][0] != digest:
                yield f"{stage}: input {path} is not what {made[path][1]} made; make {stage} again"
                continue
            if path not in computed:
                look = meaning if role == "settings" else sha256
                computed[path] = look(Path(path)) if Path(path).is_file() else None
            if computed[path] != digest and path not in reported:
                reported.add(path)
                yield f"{stage}: {role} {path} {'is gone' if computed[path] is None else 'has changed'}"


def unexplained(receipts: Receipts, folders: Sequence[str]) -> Iterator[str]:
    """Yield a line for each input in one of `folders` that the receipt there does not name, or if there is none."""
    for receipt in receipts.values():
        for path in receipt["inputs"]:
            folder = next((folder for folder in folders if Path(folder) in Path(path).parents), None)
            if folder is None or path == f"{folder}/receipt.json":
                continue
            if path not in dict(files_in(folder, receipts.get(folder, {}).get("outputs", {}))):
                yield f"{receipt['stage']}: input {path} is in no receipt of {folder}"


def check_ollama_model(receipts: Receipts, settings: Settings, ollama_url: str) -> bool:
    """Print whether the Ollama model is the one that export created, if it did; return False if it is not."""
    made = next((receipt["ollama"] for receipt in receipts.values() if "ollama" in receipt), None)
    if made is None:
        return True
    ollama = find_ollama(settings, ollama_url, made["name"])
    present = ollama.digest() if ollama else made["digest"]
    state = {made["digest"]: "is the one that export created", None: "is gone"}.get(present, "is another one")
    print(f"verify: the Ollama model {made['name']} {state if ollama else 'is not checked'}", flush=True)
    return present == made["digest"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, config=False, out=False)
    parser.add_argument("folders", nargs="+")
    model_arguments(parser)
    args = parser.parse_args(argv)
    receipts = {folder: receipt for folder in args.folders if (receipt := read_receipt(folder))}
    if not receipts:
        raise UserError("no stage is done yet: there is no receipt to verify")
    broken = [*breaks(receipts), *unexplained(receipts, args.folders)]
    for problem in broken:
        print(f"verify: {problem}", flush=True)
    if not check_ollama_model(receipts, read_settings(args.export, Settings), args.ollama_url) or broken:
        raise UserError(
            "the chain is broken, see above; the results after the break do not belong to the present files"
        )
    files = {path for folder, receipt in receipts.items() for _, path, _ in claims(folder, receipt)}
    stages = [receipt["stage"] for receipt in receipts.values()]
    sources = ", ".join(sorted(next(iter(receipts.values()))["inputs"]))
    print(f"verify: {' <- '.join(reversed(stages))} <- {sources}: {len(files):,} files are as in their receipts")


if __name__ == "__main__":
    run(main)
