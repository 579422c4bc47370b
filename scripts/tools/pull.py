"""Fetch the language model into Ollama unless it is there: what `ollama pull` does, for the Ollama in the container.

python scripts/tools/pull.py --llm config/llm.yaml --ollama-url http://ollama:11434
"""

import argparse
import shutil

from huiyin.common.errors import UserError, run
from huiyin.common.progress import Progress
from huiyin.llm.client import llm_arguments, open_ollama, read_llm_settings

GB = 10**9


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    llm_arguments(parser, answers=False)
    args = parser.parse_args(argv)
    settings = read_llm_settings(args)
    ollama = open_ollama(settings, args.ollama_url, settings.model, settings.num_ctx)
    if ollama.is_there():
        return
    free = shutil.disk_usage("/").free  # of a container: the disk on which Docker keeps all its files, models too
    sizes, done = {}, {}
    with Progress(f"fetch {settings.model}", None, "B", bytes=True) as progress:
        for part, there, size in ollama.pull():
            if part not in sizes:
                sizes[part], done[part] = size, 0
                if len(sizes) == 1:  # the weights come first, all else is small
                    print(
                        f"{settings.model} is not here yet: {size / GB:.1f} GB to fetch, "
                        f"{free / GB:.1f} GB of disk free",
                        flush=True,
                    )
                if sum(sizes.values()) > free:
                    raise UserError(
                        f"{settings.model} takes {sum(sizes.values()) / GB:.1f} GB and {free / GB:.1f} are "
                        "free on Docker's disk; make room (docker system df), or name a smaller model in "
                        f"{args.llm}"
                    )
                progress.set_total(sum(sizes.values()))
            progress.add(max(0, there - done[part]))
            done[part] = max(there, done[part])


if __name__ == "__main__":
    run(main)
