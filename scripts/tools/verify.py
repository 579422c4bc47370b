"""Compute every hash in the receipts anew, from the exported model back to the chat history.

    python scripts/tools/verify.py data/default/decrypted data/default/parsed ... data/default/10001/exported \\
        --llm config/llm.yaml

Says where the chain breaks: a file that is not what a receipt says, or an input that is not what the stage before made.
Exit status 1 then. Folders come in the order of the stages; those of stages not yet done are left out.
"""

import argparse
from pathlib import Path

from huiyin.common.errors import UserError, run
from huiyin.common.stage import read_receipt, sha256
from huiyin.llm.backend import Unavailable
from huiyin.llm.client import llm_arguments, open_ollama, read_llm_settings
from huiyin.llm.ollama import tagged


def flat(folder, outputs):
    """Yield (path, digest) of each file in `outputs` of a receipt, where a folder is {name: digest}."""
    for name, digest in outputs.items():
        if isinstance(digest, dict):
            yield from flat(Path(folder) / name, digest)
        else:
            yield str(Path(folder) / name), digest


def claims(folder, receipt):
    """Yield (what it is, path, digest) of all that the receipt in `folder` says of files."""
    yield from (("output", *item) for item in flat(folder, receipt["outputs"]))
    yield from (("input", *item) for item in receipt["inputs"].items())
    yield from (("settings", path, used["sha256"]) for path, used in receipt["settings"].items())
    base = receipt.get("base_model", {})
    if "folder" in base:
        yield from (("base model", *item) for item in flat(base["folder"], base["sha256"]))


def breaks(receipts):
    """Yield a line for each claim in `receipts` ({folder: receipt}) that does not hold, for each file the first."""
    made, computed, told = {}, {}, set()
    for folder, receipt in receipts.items():
        stage = receipt["stage"]
        made |= {path: (digest, stage) for path, digest in flat(folder, receipt["outputs"])}
        for what, path, digest in claims(folder, receipt):
            if what == "input" and path in made and made[path][0] != digest:
                yield f"{stage}: input {path} is not what {made[path][1]} made; make {stage} again"
                continue
            if path not in computed:
                computed[path] = sha256(path) if Path(path).is_file() else None
            if computed[path] != digest and path not in told:
                told.add(path)
                yield f"{stage}: {what} {path} {'is gone' if computed[path] is None else 'has changed'}"


def unexplained(receipts, done):
    """Yield a line for each input that lies in a folder of ours whose receipt is missing or does not name it."""
    for receipt in receipts.values():
        for path in receipt["inputs"]:
            folder = next((folder for folder in done if Path(folder) in Path(path).parents), None)
            if folder is None or path == f"{folder}/receipt.json":
                continue
            if path not in dict(flat(folder, receipts.get(folder, {}).get("outputs", {}))):
                yield f"{receipt['stage']}: input {path} is in no receipt of {folder}"


def served(receipts, llm, ollama_url):
    """Return (line to print, whether it holds) for the Ollama model, if there is one."""
    made = next((receipt["ollama"] for receipt in receipts.values() if "ollama" in receipt), None)
    if made is None:
        return None, True
    try:
        present = open_ollama(llm, ollama_url, made["name"], 1).models().get(tagged(made["name"]))
    except Unavailable:
        return f"the Ollama model {made['name']} could not be looked at: no Ollama answers", True
    state = {made["digest"]: "is the one that export made", None: "is gone"}.get(present, "is another one")
    return f"the Ollama model {made['name']} {state}", present == made["digest"]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    llm_arguments(parser, answers=False)
    args = parser.parse_args(argv)
    receipts = {folder: receipt for folder in args.folders if (receipt := read_receipt(folder))}
    if not receipts:
        raise UserError("no stage is done yet: there is no receipt to verify")
    broken = [*breaks(receipts), *unexplained(receipts, args.folders)]
    line, holds = served(receipts, read_llm_settings(args), args.ollama_url)
    for found in [*broken, *([line] if line else [])]:
        print(f"verify: {found}", flush=True)
    if broken or not holds:
        raise UserError(
            "the chain is broken, see above; what lies behind the break was not made from what is there now"
        )
    files = {path for folder, receipt in receipts.items() for _, path, _ in claims(folder, receipt)}
    stages = [receipt["stage"] for receipt in receipts.values()]
    sources = sorted(path for path in next(iter(receipts.values()))["inputs"])
    print(
        f"verify: {' <- '.join(reversed(stages))} <- {', '.join(sources)}: {len(files):,} files are what their "
        "receipts say"
    )


if __name__ == "__main__":
    run(main)
