"""Read the messages of a chat history: sender, time, group, text, and the message that each replies to.

    python scripts/parse.py data/demo/decrypted/nt_msg.db --config config/parse.yaml --out data/demo/parsed

The source is a decrypted nt_msg.db, or the export of a chat by another program, a file or a folder; docs/sources.md
says of which. What it is, its content tells. For `make plan` a sample is read, of an encrypted database, too.
"""

from __future__ import annotations

import huiyin.common.starting  # noqa: F401

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from huiyin.common.digests import sha256
from huiyin.common.errors import UserError, run
from huiyin.common.lazy import polars as pl
from huiyin.common.settings import Text, read_settings
from huiyin.common.stage import Stage, arguments, need, noted_argument, unchanged
from huiyin.common.tables import DECRYPTED, MESSAGES, MESSAGES_ORDER, SAME_PERSON, schema

if TYPE_CHECKING:
    from huiyin.sources.detect import Found

RESULTS = 2  # to be raised when the same input gives another result
EPOCH = date(1970, 1, 1)
MORE_OF_EXPORTS = 10  # times as many rows are the sample of an export: it can be read from its beginning only
GIVE = "give a decrypted nt_msg.db, or the export of a chat by another program"
NAMELESS = ("database", "db_browser", "csv")  # formats that tell the group in each row
SOURCE_ID = "source_id"  # a column that only the exports of other programs have
Format = Literal[
    "auto",
    "qce",
    "chatlab",
    "weflow",
    "telegram",
    "old_qq",
    "wechat_csv",
    "weq",
    "discord",
    "csv",
    "own_csv",
    "db_browser",
]
Placeholder = Literal[
    "image", "file", "voice", "video", "face", "wallet", "ark", "market_face", "markdown", "forward", "call"
]


@dataclass
class Settings:
    faces: Literal["names", "none"] = "names"
    placeholders: list[Placeholder] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    since: date | None = None
    until: date | None = None
    leave_out: list[str] = field(default_factory=list)
    skip_bad_lines: bool = False
    zone: str = ""
    group: str = ""
    format: Format = "auto"
    same_person: dict[str, list[Text]] = field(default_factory=dict)

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"default": {}, "seed": {"faces": "none"}}


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "source")
    noted_argument(parser)
    parser.add_argument("--sample", type=int, metavar="ROWS", help="read about so many rows of the whole")
    parser.add_argument("--key", type=Path, metavar="FILE", help="file with the key of a database to sample")
    args = parser.parse_args(argv)
    settings = read_settings(args.config, Settings)
    check_zone(settings.zone, args.config)
    others = ids_of_same(settings.same_person, args.config)
    filtered = filter_reason(settings)
    if not args.source.is_dir() and not need(args.source, GIVE).stat().st_size:
        raise UserError(f"{args.source}: is empty; export or copy it again")
    from huiyin.sources.csv_file import write_csv  # loads polars, after the checks of the arguments
    from huiyin.sources.detect import detect

    with Stage("parse", args.out, RESULTS, packages=["polars", "protobuf", "ijson"]) as stage, ExitStack() as files:
        stage.use(args.config, settings)
        stage.after(args.noted)
        found = detect(args.source, settings.format)
        if found.format not in NAMELESS:  # the group may be told by the name of the file
            stage.depends_on([args.source.name, *(path.name for path in found.files)])
        stage.stop_if_done(*found.files)
        for path in found.files:
            files.enter_context(unchanged(path))
        if args.sample:
            rows, report = read_sample(stage, found, settings, args)
        else:
            rows, report = read_source(stage, found, settings, args.config)
        files.close()
        if others:
            user_id = pl.col("user_id").replace(others)
            rows = rows.with_columns(user_id, pl.col("mentions").list.eval(pl.element().replace(others)))
        check_groups(settings.groups, rows, args.config)
        stage.receipt |= report

        duplicate = pl.when(pl.col("copy_of").is_not_null()).then(pl.lit("duplicate"))
        rows = rows.with_columns(dropped=pl.coalesce(pl.col("dropped").cast(pl.String), filtered, duplicate))
        stage.ledger.dropped.update(dict(rows["dropped"].drop_nulls().value_counts().iter_rows()))
        stage.ledger.read = rows.height

        messages = to_messages(rows)
        del rows  # writing the result takes memory too
        stage.ledger.written = messages.height
        if messages.is_empty():
            raise UserError(f"{args.source}: no message left ({stage.ledger}); see {args.config}")
        stage.receipt["share_with_text"] = round(messages["fragments"].list.len().gt(0).sum() / messages.height, 4)
        metadata = {"faces": settings.faces, "placeholders": ",".join(settings.placeholders)}
        if others:
            metadata[SAME_PERSON] = json.dumps(others, ensure_ascii=False)
        messages.write_parquet(stage.output("messages.parquet"), metadata=metadata)
        write_csv(messages, stage.output("messages.csv"))


def ids_of_same(same_person: dict[str, list[str]], config: Path) -> dict[str, str]:
    """Return {another id: the id that it is read as}, each as it was written and as `user_id` has it."""
    from huiyin.sources.record import to_user_id

    written = [(other, of) for of, others in same_person.items() for other in others]
    for other, _ in written:
        if other in same_person or [each for each, _ in written].count(other) > 1:
            raise UserError(f"{config}: same_person: {other} is listed twice; each other id stands under one id, once")
    return {form: to_user_id(of) for other, of in written for form in (other, to_user_id(other))}


def check_zone(zone: str, config: Path) -> None:
    from zoneinfo import ZoneInfo

    try:
        ZoneInfo(zone or "UTC")
    except (KeyError, ValueError, OSError):
        raise UserError(f"{config}: zone: no such zone {zone!r}; write a name such as Asia/Shanghai") from None


def read_source(stage: Stage, found: Found, settings: Settings, config: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return the rows of a history, and what the receipt says of them.

    rows: a frame with the columns of messages.parquet, `time` in seconds, and also `dropped` (the reason, null if there
    is none) and `copy_of` (the id of the message that this one repeats, or null). Only the reader in use is imported.
    """
    name_faces = settings.faces == "names"
    if found.format == "database":
        from concurrent.futures import ThreadPoolExecutor

        from huiyin.sources.database import read_history

        with ThreadPoolExecutor(1) as hashing:
            digest = hashing.submit(sha256, found.path)
            rows, report = read_history(found.path, settings.placeholders, name_faces)
            stage.input(found.path, digest.result())
        return rows, report
    from huiyin.sources.export import Source, read_export

    source = Source(found, settings.zone, settings.group, settings.skip_bad_lines, config)
    rows, report = read_export(source, name_faces, settings.placeholders)
    for path in found.files:
        stage.input(path, source.digests.get(path))
    for note in source.notes:
        print(f"parse: {note}", flush=True)
    return rows, report


def read_sample(
    stage: Stage, found: Found, settings: Settings, args: argparse.Namespace
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return what `read_source` does, of about `args.sample` rows; the receipt says which share of all they are, and
    the bytes that they take in a decrypted database."""
    name_faces, size, started = settings.faces == "names", 0, time.monotonic()
    seconds = 0.0  # in which the sample is taken
    if found.format == "database":
        from huiyin.qqnt.sample import take_sample
        from huiyin.sources.database import read_history

        file = stage.out / ".sample.part"  # removed with the parts of the outputs
        share = take_sample(found.path, args.key, DECRYPTED, args.sample, file)
        size, seconds = file.stat().st_size, time.monotonic() - started
        rows, report = read_history(file, settings.placeholders, name_faces)
    else:
        from huiyin.sources.export import Source, read_export

        most = MORE_OF_EXPORTS * args.sample
        source = Source(found, settings.zone, settings.group, settings.skip_bad_lines, args.config, most=most)
        rows, report = read_export(source, name_faces, settings.placeholders)
        share = source.share
    return rows, report | {"sample": {"share": share, "bytes": size, "seconds": seconds}}


def filter_reason(settings: Settings) -> pl.Expr:
    """Return an expression: `filtered` for a row that the settings exclude, else null."""
    day, out = pl.col("time") // 86_400, pl.lit(False)
    if settings.groups:
        out |= ~pl.col("group_id").is_in(settings.groups)
    if settings.since:
        out |= day < (settings.since - EPOCH).days
    if settings.until:
        out |= day > (settings.until - EPOCH).days
    if settings.leave_out:
        out |= pl.col("user_id").is_in(settings.leave_out)
    return pl.when(out).then(pl.lit("filtered"))


def check_groups(groups: list[str], rows: pl.DataFrame, path: Path) -> None:
    existing = rows.filter(pl.col("dropped").is_null())["group_id"].unique().sort()
    for group in groups:
        if group not in existing:
            some = ", ".join(existing.head(10)) + (", ..." if len(existing) > 10 else "")
            raise UserError(f"{path}: groups: no group {group!r} in the history; there are: {some}")


def to_messages(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of messages.parquet: those without a reason to be dropped, sorted, times as datetimes."""
    kept = rows.select(*MESSAGES_ORDER, "dropped").with_row_index("row").filter(pl.col("dropped").is_null())
    order = kept.drop("dropped").sort(MESSAGES_ORDER, nulls_last=False)["row"]
    time = (pl.col("time") * 1000).cast(schema(MESSAGES)["time"])
    also = [SOURCE_ID] if SOURCE_ID in rows.columns else []
    return rows.select(*MESSAGES, *also)[order].with_columns(time)


if __name__ == "__main__":
    run(main)
