"""Print the settings that connect the exported model to a chat platform (LangBot) or to any OpenAI-style client.

    python scripts/tools/deploy.py data/default/10001/exported --generated data/default/10001/generated --name huiyin-10001 \\
        --llm config/llm.yaml
"""

import argparse
from pathlib import Path
from urllib.parse import urlsplit

from huiyin.common.errors import run
from huiyin.common.stage import need, read_receipt
from huiyin.llm.client import addresses, llm_arguments, read_llm_settings

SETTINGS = """\
The model {name} at {url}
It has its prompt, its parameters and its system text inside. A system text that a program sends takes that one's place;
should a program insist, give it the same, word for word:

{system}

LangBot (PyPI: langbot; gone through with 4.10.11, and with 4.11.2 as far as the model's test)
  Models, add a provider
    Provider        Ollama (ollama-chat)
    Base URL        {url}
    API key         none
  there, add a chat model
    Model name      {name}
    Abilities       none, neither vision nor function calling
    Extra arguments none: the model's own parameters hold
  Pipelines, yours, AI
    Runner          Local Agent (in 4.11 a plugin of that name, which has to be installed first)
    Model           {name}
    Max round       {exchanges}
    Prompt          role system, the text above in place of "You are a helpful assistant. ..."
    Knowledge bases none
  LangBot adds today's date to that prompt, in English, before every question. {fixed}

Any client of OpenAI's protocol
  Base URL          {url}/v1
  API key           any word
  Model             {name}
  System message    none
  Temperature       {temperature}, and top_p {top_p}: Ollama takes 1.0 there where a client is silent
"""
FIXED = {
    False: "Set fixed_system: true in export.yaml and\n  export again, so that the model does not hear it.",
    True: "The model does not hear it:\n  fixed_system is true in export.yaml.",
}
INSIDE = """\
This Ollama is inside the containers' own network, and no port of it is published: let the platform join that network
(docker run --network huiyin_private ...), and the address below is right for it.
"""
TRAINED_EXCHANGES = 3  # history_turns in gen.yaml


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exported", type=Path)
    parser.add_argument("--generated", type=Path, required=True, metavar="FOLDER", help="the dataset")
    parser.add_argument("--name", required=True, help="name of the Ollama model")
    llm_arguments(parser, answers=False)
    args = parser.parse_args(argv)
    receipt = read_receipt(need(args.exported / "receipt.json", "`make export` makes it").parent)
    system = need(args.generated / "system.txt", "`make gen` makes it").read_text(encoding="utf-8")
    llm = read_llm_settings(args)
    url = (addresses(llm, args.ollama_url)[0] if llm.backend == "ollama" else args.ollama_url).rstrip("/")
    if "ollama" not in receipt:
        print(
            f"There is no Ollama model yet; this makes it:\n  ollama create {args.name} --quantize "
            f"{receipt['quantize']} -f {args.exported}/Modelfile\n"
        )
    if urlsplit(url).hostname == "ollama":  # as the containers call it
        print(INSIDE)
    print(
        SETTINGS.format(
            name=args.name,
            url=url,
            system=system,
            exchanges=TRAINED_EXCHANGES,
            fixed=FIXED[receipt["fixed_system"]],
            **receipt["parameters"],
        ),
        end="",
    )


if __name__ == "__main__":
    run(main)
