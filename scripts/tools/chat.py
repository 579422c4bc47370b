"""Talk to the member in the terminal: the Ollama model, or the merged model itself where there is no Ollama.

    python scripts/tools/chat.py data/default/10001/exported --config config/chat.yaml --llm config/llm.yaml

/reset forgets the conversation; Ctrl-D or Ctrl-C ends it. Nothing of it is kept.
"""

import argparse
import contextlib
import readline  # noqa: F401  input() edits lines and remembers them with it
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from huiyin.common.errors import UserError, run
from huiyin.common.settings import AtLeast0, read_settings
from huiyin.common.stage import need, read_receipt
from huiyin.common.tables import COMMA
from huiyin.llm.client import llm_arguments, open_ollama, read_llm_settings


@dataclass
class Settings:
    exchanges: AtLeast0 = 3
    split: bool = True

    PRESETS: ClassVar = {"default": {}}


def open_model(folder, llm, ollama_url):
    """Return the function that answers messages piece by piece: that of the Ollama model if export made one."""
    receipt = read_receipt(need(folder / "receipt.json", "`make export` makes it").parent)
    if "ollama" not in receipt:
        print("loading the merged model ...", flush=True)
        from huiyin.serving.local import Merged

        return Merged(folder / "merged", receipt["parameters"]).talk
    ollama = open_ollama(llm, ollama_url, receipt["ollama"]["name"], receipt["parameters"]["num_ctx"])
    if ollama.identity() != receipt["ollama"]["digest"]:
        raise UserError(f"the Ollama model {ollama.model} is not the one that export made; make export again")
    return ollama.talk


def as_messages(pieces):
    """Yield the text of `pieces` with a line end in place of each comma that may have been the end of a message.

    One at an end or beside another is dropped: nobody sends an empty message.
    """
    started = ended = False
    for character in (character for piece in pieces for character in piece):
        if character == COMMA or character == "\n":
            ended = started
            continue
        yield f"\n{character}" if ended else character
        started, ended = True, False


def show(pieces, split):
    """Print the reply while it comes; return it whole, as the model said it."""
    said = []

    def heard():
        for piece in pieces:
            said.append(piece)
            yield piece

    for text in as_messages(heard()) if split else heard():
        print(text, end="", flush=True)
    print()
    return "".join(said).strip()


def talk(answer, settings):
    """Ask for lines and answer them until there are no more."""
    history = []
    while True:
        said = input("> ").strip()
        if said == "/reset":
            history = []
            print("(forgotten)")
        elif said:
            messages = [*history, {"role": "user", "content": said}]
            reply = show(answer(messages), settings.split)
            exchange = [messages[-1], {"role": "assistant", "content": reply}]
            history = [*history, *exchange][-2 * settings.exchanges :] if settings.exchanges else []


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exported", type=Path)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="chat.yaml")
    llm_arguments(parser, answers=False)
    args = parser.parse_args(argv)
    settings = read_settings(args.config, Settings)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        answer = open_model(args.exported, read_llm_settings(args), args.ollama_url)
        print("/reset forgets the conversation, Ctrl-D ends it", flush=True)
        talk(answer, settings)
    print()


if __name__ == "__main__":
    run(main)
