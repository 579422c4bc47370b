"""Print the settings that connect the exported model to a chat platform (LangBot) or to any OpenAI-style client.

    python scripts/deploy.py data/default/10001/exported --generated data/default/10001/generated --name huiyin-10001 \\
        --llm config/llm.yaml
"""

import argparse
from pathlib import Path

from common.errors import run
from common.stage import need, read_receipt
from llm.client import addresses, llm_arguments, read_llm_settings

SETTINGS = """\
The model {name} at {url}
It has its system text, its prompt and its parameters inside: give it none of your own.
Its system text, should a program insist on one, is word for word:

{system}

LangBot (https://docs.langbot.app; seen with 4.10 and 4.11)
  Models, add a provider
    Provider        Ollama (ollama-chat)
    Base URL        {url}      (LangBot in a container: http://host.docker.internal:11434)
    API key         none
  its models, add a chat model
    Model name      {name}
    Abilities       none: neither vision nor function calling
  Pipelines, your pipeline, AI
    Runner          Local Agent (4.11: a plugin of that name, to be installed first)
    Model           {name}
    Prompt          role system, the text above in place of "You are a helpful assistant."
    Max round       {exchanges}
    Knowledge bases, tools, and in 4.11 date grounding: none; they all write into the prompt

Any client of OpenAI's protocol
  Base URL          {url}/v1
  API key           anything, such as ollama
  Model             {name}
  Temperature       {temperature}, top_p {top_p}: say them, since here 1.0 is taken where a client is silent
  System message    none
  num_ctx           cannot be said here; the model's own {num_ctx} holds
"""
TRAINED_EXCHANGES = 3  # history_turns in gen.yaml


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exported", type=Path)
    parser.add_argument("--generated", type=Path, required=True, metavar="FOLDER", help="the dataset")
    parser.add_argument("--name", required=True, help="name of the Ollama model")
    llm_arguments(parser, answers=False)
    args = parser.parse_args()
    receipt = read_receipt(need(args.exported / "receipt.json", "`make export` makes it").parent)
    system = need(args.generated / "system.txt", "`make gen` makes it").read_text(encoding="utf-8")
    llm = read_llm_settings(args)
    url = (addresses(llm, args.ollama_url)[0] if llm.backend == "ollama" else args.ollama_url).rstrip("/")
    if "ollama" not in receipt:
        print(f"There is no Ollama model yet; this makes it:\n  ollama create {args.name} --quantize "
              f"{receipt['quantize']} -f {args.exported}/Modelfile\n")
    print(SETTINGS.format(name=args.name, url=url, system=system, exchanges=TRAINED_EXCHANGES, **receipt["parameters"]),
          end="")


if __name__ == "__main__":
    run(main)
