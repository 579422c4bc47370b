"""Print the settings that connect the exported model to a chat platform (LangBot) or to any OpenAI-style client.

    python scripts/tools/deploy.py data/default/10001/exported --generated data/default/10001/generated \\
        --name huiyin-10001 --export config/export.yaml
"""

import huiyin.common.starting  # noqa: F401

import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from huiyin.common.errors import run
from huiyin.common.settings import read_settings, without_credentials
from huiyin.common.stage import arguments, need_receipt
from huiyin.serving.finished import Settings, model_arguments
from huiyin.serving.ollama_limits import create_command
from huiyin.training.rows import read_gen_settings, read_system

SETTINGS = """\
The model {name} at {url}
It contains its chat template, its parameters and its system prompt. A system prompt that a client sends replaces that
one; if a client requires one, enter the same, word for word:

{system}

Between the messages of a reply it writes {separator}. docs/serving.md says how a platform can send them one by one.

LangBot (PyPI: langbot; tested with 4.10.11, and with 4.11.2 up to the model's test)
  Models, add a provider
    Provider        Ollama (ollama-chat)
    Base URL        {url}
    API key         none
  In that provider, add a chat model
    Model name      {name}
    Abilities       none, neither vision nor function calling
    Extra arguments none: the model's own parameters apply
  Your pipeline, AI
    Runner          Local Agent (in 4.11 a plugin of that name, to be installed first)
    Model           {name}
    Max round       {exchanges}
    Prompt          role system, the text above instead of "You are a helpful assistant. ..."
    Knowledge bases none
    Plugins         one of your own that sends the messages of a reply one by one; without it they are one message
  LangBot adds today's date to that prompt, in English, before every question. {fixed}

Any client of OpenAI's protocol
  Base URL          {url}/v1
  API key           any word
  Model             {name}
  System prompt     none
  Temperature       {temperature}, and top_p {top_p}: Ollama uses 1.0 for clients that send none
"""
FIXED = {
    False: "Set fixed_system: true in export.yaml and\n  export again, so that the model ignores it.",
    True: "The model ignores it:\n  fixed_system is true in export.yaml.",
}
IN_CONTAINERS = """\
This Ollama is in the containers' own network, and none of its ports is published: connect the platform to that network
(docker run --network huiyin_private ...); then the address below is correct.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "exported", config=False, out=False)
    parser.add_argument("--generated", type=Path, required=True, metavar="FOLDER", help="the dataset")
    parser.add_argument("--name", required=True, help="name of the Ollama model")
    model_arguments(parser)
    args = parser.parse_args(argv)
    receipt = need_receipt(args.exported, "`make export` makes it", "parameters", "quantize", "fixed_system")
    system, used = read_system(args.generated), read_gen_settings(args.generated)
    ollama = read_settings(args.export, Settings).ollama
    url = without_credentials(args.ollama_url if ollama in ("auto", "none") else ollama).rstrip("/")
    if "ollama" not in receipt:
        print(
            f"There is no Ollama model yet; this creates it:\n  {create_command(args.name, receipt, args.exported)}\n"
        )
    if urlsplit(url).hostname == "ollama":  # its name in the containers' network
        print(IN_CONTAINERS)
    values = {"name": args.name, "url": url, "system": system, "exchanges": used["history_turns"]}
    values |= {"separator": json.dumps(used["message_separator"], ensure_ascii=False), **receipt["parameters"]}
    print(SETTINGS.format(fixed=FIXED[receipt["fixed_system"]], **values), end="")


if __name__ == "__main__":
    run(main)
