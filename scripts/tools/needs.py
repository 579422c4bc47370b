"""Print the environment of Ollama's container; nothing for a command that does not need it.

    python scripts/tools/needs.py --llm config/llm.yaml [--export config/export.yaml]

A command needs it for the finished model, if it says --export, else for the language model. The environment is always
that of llm.yaml: with another one the container would be made anew, and what is asked at the time would fail.
"""

import huiyin.common.starting  # noqa: F401

from pathlib import Path

from huiyin.common.errors import run
from huiyin.common.settings import read_settings
from huiyin.common.stage import arguments
from huiyin.llm.client import addresses, llm_arguments, read_llm_settings
from huiyin.serving.finished import Settings


def main(argv=None):
    parser = arguments(__doc__, config=False, out=False)
    llm_arguments(parser, answers=False)
    parser.add_argument("--export", type=Path, metavar="FILE", help="export.yaml")
    args = parser.parse_args(argv)
    llm = read_llm_settings(args)
    if args.export:
        needed = read_settings(args.export, Settings).ollama == "auto"
    else:
        needed = llm.backend == "ollama" and "auto" in addresses(llm, "auto")
    if needed:
        print(f"OLLAMA_NUM_PARALLEL={llm.parallel}\nOLLAMA_CONTEXT_LENGTH={llm.num_ctx}")


if __name__ == "__main__":
    run(main)
