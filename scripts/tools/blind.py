"""Write a page for friends of the member: which of two replies is real?

    python scripts/tools/blind.py data/default/10001/voice --generated data/default/10001/generated \\
        --turns data/default/combined/turns.parquet --target 10001 --config config/blind.yaml --consent yes \\
        --codes data/default/10001/blind --out data/default/10001/report

Writes blind.html out of the replies that `make voice` measured. At its end it shows a code; the codes that friends send
back go into files in the folder of --codes, and `make report` counts them.
"""

import huiyin.common.starting  # noqa: F401

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from huiyin.common.errors import UserError, run
from huiyin.common.lazy import polars as pl
from huiyin.common.settings import read_settings
from huiyin.common.stage import arguments, need
from huiyin.common.tables import TURNS, read_records, scan_table

MADE_BY, COMBINE = "`make voice` makes it", "`make combine` makes it"
REPLY = {"prompt": str, "reply": str, "trained": str, "decided_by": str}  # of replies.jsonl


@dataclass
class Settings:
    blind_items: Annotated[int, Meta(ge=10, le=100)] = 30

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"default": {}}


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "voice")
    parser.add_argument("--generated", type=Path, required=True, metavar="FOLDER", help="the dataset")
    parser.add_argument("--turns", type=Path, required=True, metavar="FILE", help="turns.parquet of combine")
    parser.add_argument("--target", required=True, help="the member")
    parser.add_argument("--consent", choices=["yes", "no"], required=True, help="do the people on the page agree?")
    parser.add_argument("--codes", type=Path, required=True, metavar="FOLDER", help="for the codes that come back")
    args = parser.parse_args(argv)
    settings = read_settings(args.config, Settings)
    replies = read_records(need(args.voice / "replies.jsonl", MADE_BY), REPLY, MADE_BY)
    if args.consent != "yes":
        raise UserError("the page would hold real messages of other people; ask them, then: make blind CONSENT=yes")

    from huiyin.questions.dataset import redaction_for  # here: what takes time to load
    from huiyin.report.blind import choose, page
    from huiyin.report.page import write_page
    from huiyin.training.rows import read_gen_settings, read_rows
    from huiyin.voice.copies import copy_finder

    turns = scan_table(need(args.turns, COMBINE), TURNS, COMBINE).collect()
    name = turns.filter(pl.col("user_id") == args.target).sort("time")["nickname"].tail(1).to_list()
    training = [reply for row in read_rows(args.generated / "alpaca.json") for _, reply in row.exchanges()]
    hide = redaction_for(turns, hide_names=False)
    is_copied = copy_finder(training, [hide(line["trained"]) for line in replies])
    items = choose(replies, training, is_copied, hide, settings.blind_items)
    text = page(items, name[0] if name else args.target, read_gen_settings(args.generated)["message_separator"])
    write_page(args.out / "blind.html", text)
    args.codes.mkdir(parents=True, exist_ok=True, mode=0o700)
    print(
        f"blind: {args.out}/blind.html, {len(items)} items: send it to friends of the member. Codes that come back "
        f"go into text files in {args.codes}; make report counts them.",
        flush=True,
    )


if __name__ == "__main__":
    run(main)
