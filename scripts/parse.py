"""Make messages of a chat history: who said what, when, in which group, in reply to what.

    python scripts/parse.py data/demo/decrypted/nt_msg.db --config config/parse.yaml --out data/demo/parsed

The source is a decrypted nt_msg.db, its group_msg_table as DB Browser for SQLite exports it to JSON, or a CSV of five
columns: group id, time, nickname, user id, fragments.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

from huiyin.common.errors import UserError, run
from huiyin.common.lazy import polars as pl
from huiyin.common.progress import Progress
from huiyin.common.settings import read_settings
from huiyin.common.stage import Stage, arguments, need, sha256
from huiyin.common.tables import MESSAGES, MESSAGES_ORDER, schema

Placeholder = Literal[
    "image", "file", "voice", "video", "face", "wallet", "ark", "market_face", "markdown", "forward", "call"
]


@dataclass
class Settings:
    placeholders: list[Placeholder] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    since: str | None = None
    until: str | None = None
    leave_out: list[str] = field(default_factory=list)
    skip_bad_lines: bool = False


def main(argv=None):
    args = arguments(__doc__, "source").parse_args(argv)
    settings = read_settings(args.config, Settings)
    wanted = not_wanted(settings, args.config)
    need(args.source, "give a decrypted nt_msg.db, its export to JSON, or a CSV")
    from huiyin.sources.csv_file import write_csv  # polars' users load when the arguments are right

    with Stage("parse", args.out, packages=["polars", "protobuf", "ijson"]) as stage:
        stage.use(args.config, settings)
        rows, report, bad_lines = read_source(stage, args.source, settings)
        check_groups(settings.groups, rows, args.config)
        stage.receipt |= report

        rows = rows.with_columns(dropped=pl.coalesce(pl.col("dropped").cast(pl.String), wanted, duplicate()))
        stage.ledger.dropped.update(dict(rows["dropped"].drop_nulls().value_counts().iter_rows()))
        if bad_lines:
            stage.ledger.dropped["bad_line"] = bad_lines
        stage.ledger.read = rows.height + bad_lines

        messages = to_messages(rows)
        del rows  # before the result is written, which takes memory too
        stage.ledger.written = messages.height
        if messages.is_empty():
            raise UserError(f"{args.source}: no message left ({stage.ledger}); see {args.config}")
        stage.receipt["share_with_text"] = round((messages["fragments"].list.len() > 0).mean(), 4)
        messages.write_parquet(
            stage.output("messages.parquet"), metadata={"placeholders": ",".join(settings.placeholders)}
        )
        write_csv(messages, stage.output("messages.csv"))


def read_source(stage, path, settings):
    """Return (rows, what the receipt says of them, number of lines that did not fit) of the history at `path`.

    rows: a frame with the columns of messages.parquet, `time` in seconds, and besides `dropped` (the reason, null if
    there is none) and `copy_of` (the message it repeats). Each reader is imported by those who need it.
    """
    bad_lines = 0
    if path.suffix == ".db":
        from huiyin.sources.database import read_history

        with ThreadPoolExecutor(1) as hashing:
            digest = hashing.submit(sha256, path)
            rows, report = read_history(path, settings.placeholders)
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

            rows, report = read_export(path, file, settings.placeholders)
    stage.input(path, file.digest.hexdigest())
    return rows, report, bad_lines


class Hashed:
    """A file opened for reading bytes from start to end; takes its sha256 and shows the progress on the way."""

    def __init__(self, path):
        self.path, self.digest = path, hashlib.sha256()

    def __enter__(self):
        self.file = open(self.path, "rb")
        self.progress = Progress("parse", self.path.stat().st_size, "B", bytes=True)
        return self

    def __exit__(self, *error):
        self.file.close()
        self.progress.__exit__(*error)

    def read(self, size=-1):
        return self.passed(self.file.read(size))

    def __iter__(self):
        return map(self.passed, self.file)

    def passed(self, content):
        self.digest.update(content)
        self.progress.add(len(content))
        return content


def not_wanted(settings, path):
    """Return an expression: `filtered` for a row the settings leave out, else null."""
    times = {}
    for name in ("since", "until"):
        try:
            day = getattr(settings, name)
            times[name] = day and date.fromisoformat(day).toordinal() - date(1970, 1, 1).toordinal()
        except ValueError:
            raise UserError(f"{path}: {name}: must be a day such as 2022-08-14, not {day!r}") from None
    day, out = pl.col("time") // 86_400, pl.lit(False)
    if settings.groups:
        out |= ~pl.col("group_id").is_in(settings.groups)
    if times["since"] is not None:
        out |= day < times["since"]
    if times["until"] is not None:
        out |= day > times["until"]
    if settings.leave_out:
        out |= pl.col("user_id").is_in(settings.leave_out)
    return pl.when(out).then(pl.lit("filtered"))


def duplicate():
    return pl.when(pl.col("copy_of").is_not_null()).then(pl.lit("duplicate"))


def check_groups(wanted, rows, path):
    there = rows["group_id"].unique().sort()
    for group in wanted:
        if group not in there:
            some = ", ".join(there.head(10)) + (", ..." if len(there) > 10 else "")
            raise UserError(f"{path}: groups: no group {group!r} in the history; there are: {some}")


def to_messages(rows):
    kept = rows.select(*MESSAGES_ORDER, "dropped").with_row_index("row").filter(pl.col("dropped").is_null())
    order = kept.drop("dropped").sort(MESSAGES_ORDER, nulls_last=False)["row"]
    time = (pl.col("time") * 1000).cast(schema(MESSAGES)["time"])
    return rows.select(MESSAGES.keys())[order].with_columns(time)


if __name__ == "__main__":
    run(main)
