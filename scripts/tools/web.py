"""Talk to the member in the browser, or with a client of OpenAI's protocol: the GGUF file of `export` in llama-server.

    python scripts/tools/web.py data/default/10001/exported --generated data/default/10001/generated \\
        --name huiyin-10001 --config config/chat.yaml --key data/default/10001/web.key --port 8080

Ctrl-C ends it. Nothing of what is said is stored.
"""

import huiyin.common.starting  # noqa: F401

import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from huiyin.common.errors import run
from huiyin.common.settings import read_settings
from huiyin.common.stage import arguments, need_receipt
from huiyin.serving.chat import Settings
from huiyin.training.rows import read_gen_settings

ADDRESSES = """\
in the browser      http://127.0.0.1:{port}/#key={key}
for other programs  http://127.0.0.1:{port}/v1 with that key; the model is {name}
Ctrl-C ends it"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "exported", out=False)
    parser.add_argument("--generated", type=Path, required=True, metavar="FOLDER", help="the dataset")
    parser.add_argument("--name", required=True, help="of the model, for clients")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="where the key is, or will be")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen; in a container: 0.0.0.0")
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args(argv)
    settings = read_settings(args.config, Settings)
    receipt = need_receipt(args.exported, "`make export` makes it", "parameters")
    separator = read_gen_settings(args.generated)["message_separator"] if settings.split else None
    page = {"name": args.name, "exchanges": settings.exchanges, "separator": separator}
    from huiyin.serving.web import need_gguf, own_key, serve  # here: llama.cpp would delay --help

    gguf, key = need_gguf(args.exported, receipt), own_key(args.key)
    with contextlib.suppress(KeyboardInterrupt):
        print("loading the model ...", flush=True)
        _server, port = serve(gguf, receipt["parameters"], page, key, (args.host, args.port))
        print(ADDRESSES.format(port=port, key=key, name=args.name), flush=True)
        while True:
            signal.pause()
    print(flush=True)
    os._exit(0)  # a reply that is being written has nobody left to read it


if __name__ == "__main__":
    run(main)
