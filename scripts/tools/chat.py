"""Talk to the member in the terminal: the Ollama model, or the merged model itself where there is no Ollama.

    python scripts/tools/chat.py data/default/10001/exported --generated data/default/10001/generated \\
        --config config/chat.yaml --export config/export.yaml

/reset clears the conversation; Ctrl-D or Ctrl-C ends it. Nothing of it is stored.
"""

import huiyin.common.starting  # noqa: F401

import contextlib
import itertools
import readline  # noqa: F401  gives input() line editing and a history
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from huiyin.common.control import harmless
from huiyin.common.errors import UserError, run
from huiyin.common.settings import read_settings
from huiyin.common.stage import arguments, need_receipt
from huiyin.serving.chat import Settings
from huiyin.serving.finished import Settings as Export
from huiyin.serving.finished import find_ollama, model_arguments
from huiyin.training.rows import read_gen_settings

Messages = list[dict[str, str]]


def open_model(folder: Path, export: Export, ollama_url: str) -> Callable[[Messages], Iterator[str]]:
    """Return the function that replies to messages in pieces, of the Ollama model if `export` created one."""
    receipt = need_receipt(folder, "`make export` makes it", "parameters")
    made = receipt.get("ollama", {})
    ollama = find_ollama(export, ollama_url, made["name"]) if made else None
    if not ollama:
        print("loading the merged model ...", flush=True)
        from huiyin.serving.local import MergedModel

        return MergedModel(folder / "merged", receipt["parameters"]).talk
    if ollama.digest() != made["digest"]:
        raise UserError(f"the Ollama model {ollama.model} is not the one that export created; make export again")
    return ollama.talk


def as_messages(pieces: Iterable[str], separator: str) -> Iterator[str]:
    """Yield the text of `pieces` with a line break for each `separator` between its messages, but none at the start, at
    the end or for a second one in a row: nobody sends an empty message."""
    held, started, ended = "", False, False  # held: what may become a separator
    for character in itertools.chain.from_iterable(pieces):
        held += character
        while not separator.startswith(held):
            yield f"\n{held[0]}" if ended else held[0]
            held, started, ended = held[1:], True, False
        if held == separator:
            held, ended = "", started
    if held:
        yield f"\n{held}" if ended else held


def show(pieces: Iterable[str], separator: str | None) -> str:
    """Print the reply while it is generated, a line for each message, unless separator is None; return all of it, as
    the model wrote it."""
    reply = []

    def recorded() -> Iterator[str]:
        for piece in pieces:
            reply.append(piece)
            yield piece

    for text in as_messages(recorded(), separator) if separator else recorded():
        print(text, end="", flush=True)
    print()
    return "".join(reply).strip()


def talk(reply_to: Callable[[Messages], Iterator[str]], exchanges: int, separator: str | None) -> None:
    """Read lines and reply to them until the input ends (EOFError). No text that the model is given, its own earlier
    replies included, holds a control token: what is typed cannot end a turn.

    exchanges: how many earlier ones the model sees. separator: as for `show`.
    """
    history: Messages = []
    while True:
        line = input("> ").strip()
        if line == "/reset":
            history = []
            print("(cleared)")
        elif line:
            messages = [*history, {"role": "user", "content": harmless(line)}]
            reply = show(reply_to(messages), separator)
            exchange = [messages[-1], {"role": "assistant", "content": harmless(reply)}]
            history = [*history, *exchange][-2 * exchanges :] if exchanges else []


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "exported", out=False)
    parser.add_argument("--generated", type=Path, required=True, metavar="FOLDER", help="the dataset")
    model_arguments(parser)
    args = parser.parse_args(argv)
    settings = read_settings(args.config, Settings)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        reply_to = open_model(args.exported, read_settings(args.export, Export), args.ollama_url)
        separator = read_gen_settings(args.generated)["message_separator"] if settings.split else None
        print("/reset clears the conversation, Ctrl-D ends it", flush=True)
        talk(reply_to, settings.exchanges, separator)
    print()


if __name__ == "__main__":
    run(main)
