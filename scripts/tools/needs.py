"""Print the environment that llm.yaml asks of Ollama's container; nothing where llm.yaml names another server.

python scripts/tools/needs.py --llm config/llm.yaml
"""

import argparse

from huiyin.common.errors import run
from huiyin.llm.client import llm_arguments, read_llm_settings


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    llm_arguments(parser, answers=False)
    settings = read_llm_settings(parser.parse_args(argv))
    if settings.backend == "ollama" and "auto" in (settings.url if isinstance(settings.url, list) else [settings.url]):
        print(f"OLLAMA_NUM_PARALLEL={settings.parallel}\nOLLAMA_CONTEXT_LENGTH={settings.num_ctx}")


if __name__ == "__main__":
    run(main)
