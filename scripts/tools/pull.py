"""Fetch the language model into Ollama unless it is there: `ollama pull` for the Ollama in the container.

python scripts/tools/pull.py --llm config/llm.yaml --ollama-url http://ollama:11434
"""

import huiyin.common.starting  # noqa: F401

import shutil

from huiyin.common.errors import UserError, run
from huiyin.common.progress import Progress
from huiyin.common.stage import arguments
from huiyin.llm.client import llm_arguments, read_llm_settings
from huiyin.llm.ollama import Ollama

GB = 10**9


def fetch(ollama: Ollama, progress: Progress, advice: str) -> None:
    """Let `ollama` fetch its model; `UserError` with `advice` as soon as it turns out larger than the disk."""
    free = shutil.disk_usage("/").free  # of a container: the disk on which Docker keeps all its files, models too
    sizes: dict[str, int] = {}
    fetched: dict[str, int] = {}
    for digest, so_far, size in ollama.pull():
        if digest not in sizes:
            sizes[digest], fetched[digest] = size, 0
            total = sum(sizes.values())
            if len(sizes) == 1:  # the weights come first, the other files are small
                room = f"{size / GB:.1f} GB to fetch, {free / GB:.1f} GB of disk free"
                print(f"{ollama.model} is not here yet: {room}", flush=True)
            if total > free:
                raise UserError(
                    f"{ollama.model} takes {total / GB:.1f} GB and {free / GB:.1f} are free on Docker's disk; "
                    f"make room (docker system df), or {advice}"
                )
            progress.set_total(total)
        progress.add(max(0, so_far - fetched[digest]))
        fetched[digest] = max(so_far, fetched[digest])


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, config=False, out=False)
    llm_arguments(parser, answers=False)
    args = parser.parse_args(argv)
    settings = read_llm_settings(args)
    ollama = Ollama(args.ollama_url, settings.model)
    if ollama.digest() is None:
        with Progress(f"fetch {settings.model}", None, "B", bytes=True) as progress:
            fetch(ollama, progress, f"name a smaller model in {args.llm}")


if __name__ == "__main__":
    run(main)
