"""Read the messages of a chat history: sender, time, group, text, and the message that each replies to.

    python scripts/parse.py data/demo/decrypted/nt_msg.db --config config/parse.yaml --out data/demo/parsed

The source is a decrypted nt_msg.db, its group_msg_table as DB Browser for SQLite exports it to JSON, or a CSV of five
columns: group id, time, nickname, user id, fragments.
"""

from __future__ import annotations

import huiyin.common.starting  # noqa: F401

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, Literal

from huiyin.common.characters import skip_bom
from huiyin.common.digests import sha256
from huiyin.common.errors import UserError, run
from huiyin.common.lazy import polars as pl
from huiyin.common.progress import Progress
from huiyin.common.settings import read_settings
from huiyin.common.stage import Stage, arguments, need, noted_argument, unchanged
from huiyin.common.tables import MESSAGES, MESSAGES_ORDER, schema

RESULTS = 2  # to be raised when the same input gives another result
EPOCH = date(1970, 1, 1)
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

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"default": {}, "seed": {"faces": "none"}}


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, "source")
    noted_argument(parser)
    args = parser.parse_args(argv)
    settings = read_settings(args.config, Settings)
    filtered = filter_reason(settings)
    if not need(args.source, "give a decrypted nt_msg.db, its export to JSON, or a CSV").stat().st_size:
        raise UserError(f"{args.source}: is empty; export or copy it again")
    from huiyin.sources.csv_file import write_csv  # loads polars, after the checks of the arguments

    with Stage("parse", args.out, RESULTS, packages=["polars", "protobuf", "ijson"]) as stage:
        stage.use(args.config, settings)
        stage.after(args.noted)
        stage.stop_if_done(args.source)
        with unchanged(args.source):
            rows, report, bad_lines = read_source(stage, args.source, settings)
        check_groups(settings.groups, rows, args.config)
        stage.receipt |= report

        duplicate = pl.when(pl.col("copy_of").is_not_null()).then(pl.lit("duplicate"))
        rows = rows.with_columns(dropped=pl.coalesce(pl.col("dropped").cast(pl.String), filtered, duplicate))
        stage.ledger.dropped.update(dict(rows["dropped"].drop_nulls().value_counts().iter_rows()))
        if bad_lines:
            stage.ledger.dropped["bad_line"] = bad_lines
        stage.ledger.read = rows.height + bad_lines

        messages = to_messages(rows)
        del rows  # writing the result takes memory too
        stage.ledger.written = messages.height
        if messages.is_empty():
            raise UserError(f"{args.source}: no message left ({stage.ledger}); see {args.config}")
        stage.receipt["share_with_text"] = round(messages["fragments"].list.len().gt(0).sum() / messages.height, 4)
        metadata = {"faces": settings.faces, "placeholders": ",".join(settings.placeholders)}
        messages.write_parquet(stage.output("messages.parquet"), metadata=metadata)
        write_csv(messages, stage.output("messages.csv"))


def read_source(stage: Stage, path: Path, settings: Settings) -> tuple[pl.DataFrame, dict[str, Any], int]:
    """Return (rows, what the receipt says of them, number of bad lines) of the history at `path`.

    rows: a frame with the columns of messages.parquet, `time` in seconds, and also `dropped` (the reason, null if there
    is none) and `copy_of` (the id of the message that this one repeats, or null). Only the reader in use is imported.
    """
    bad_lines, name_faces = 0, settings.faces == "names"
    if path.suffix == ".db":
        from concurrent.futures import ThreadPoolExecutor

        from huiyin.sources.database import read_history

        with ThreadPoolExecutor(1) as hashing:
            digest = hashing.submit(sha256, path)
            rows, report = read_history(path, settings.placeholders, name_faces)
            stage.input(path, digest.result())
        return rows, report, bad_lines
    if path.suffix not in (".json", ".jsonl", ".csv"):
        raise UserError(f"{path}: not a kind of history known here; it must be *.db (QQNT), *.json or *.csv")
    with Hashed(path) as file:
        if path.suffix == ".csv":
            from huiyin.sources.csv_file import read_csv

            rows, report, bad_lines = read_csv(path, file, settings.skip_bad_lines)
        else:
            from huiyin.sources.browser_json import read_export

            rows, report = read_export(path, file, settings.placeholders, name_faces)
    stage.input(path, file.digest.hexdigest())
    return rows, report, bad_lines


class Hashed:
    """A file opened for reading bytes from start to end, but for a byte order mark, which computes its sha256 and shows
    the progress."""

    def __init__(self, path: Path):
        self.path, self.digest = path, hashlib.sha256()

    def __enter__(self) -> Hashed:
        self.file = open(self.path, "rb")
        self.progress = Progress("parse", self.path.stat().st_size, "B", bytes=True)
        self.passed(skip_bom(self.file))
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        self.progress.__exit__(*error)

    def read(self, size: int = -1) -> bytes:
        return self.passed(self.file.read(size))

    def __iter__(self) -> Iterator[bytes]:
        return map(self.passed, self.file)

    def passed(self, content: bytes) -> bytes:
        self.digest.update(content)
        self.progress.add(len(content))
        return content


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
    existing = rows["group_id"].unique().sort()
    for group in groups:
        if group not in existing:
            some = ", ".join(existing.head(10)) + (", ..." if len(existing) > 10 else "")
            raise UserError(f"{path}: groups: no group {group!r} in the history; there are: {some}")


def to_messages(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of messages.parquet: those without a reason to be dropped, sorted, times as datetimes."""
    kept = rows.select(*MESSAGES_ORDER, "dropped").with_row_index("row").filter(pl.col("dropped").is_null())
    order = kept.drop("dropped").sort(MESSAGES_ORDER, nulls_last=False)["row"]
    time = (pl.col("time") * 1000).cast(schema(MESSAGES)["time"])
    return rows.select(MESSAGES.keys())[order].with_columns(time)


if __name__ == "__main__":
    run(main)
