"""Make messages of a chat history: who said what, when, in which group, in reply to what.

    python scripts/parse.py data/demo/decrypted/nt_msg.db --config config/parse.yaml --out data/demo/parsed

The source is a decrypted nt_msg.db, or a CSV of five columns: group id, time, nickname, user id, fragments.
"""

import ast
import csv
import hashlib
import re
import sys
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Literal

import polars as pl

from common.errors import Mistake, run
from common.progress import Progress
from common.settings import read_settings
from common.stage import Stage, arguments, need
from qq.body import BodyReader
from qq.history import CHUNK, column, read_history

Placeholder = Literal[
    "image", "file", "voice", "video", "face", "wallet", "ark", "market_face", "markdown", "forward", "call"
]
MESSAGE = {  # the columns of messages.parquet; in the frames before it `time` is in seconds
    "message_id": pl.Int64, "group_id": pl.String, "time": pl.Datetime("ms", "UTC"), "seq": pl.Int64,
    "user_id": pl.String, "nickname": pl.String, "fragments": pl.List(pl.String), "kinds": pl.List(pl.String),
    "mentions": pl.List(pl.String), "reply_to": pl.Int64, "reply_dangling": pl.Boolean,
}  # fmt: skip
ORDER = ["group_id", "time", "seq", "message_id"]
CSV_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


@dataclass
class Settings:
    placeholders: list[Placeholder] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    since: str | None = None
    until: str | None = None
    leave_out: list[str] = field(default_factory=list)


def main():
    args = arguments(__doc__, "source").parse_args()
    settings = read_settings(args.config, Settings)
    wanted = not_wanted(settings, args.config)
    need(args.source, "give a decrypted nt_msg.db or a CSV")

    with Stage("parse", args.out, packages=["polars", "protobuf"]) as stage:
        stage.use(args.config, settings)
        if args.source.suffix == ".db":
            reader = BodyReader(settings.placeholders)
            rows = read_history(stage.input(args.source), reader)
            stage.receipt["rows_by_outer_type"] = tally(rows["outer"])
            stage.receipt |= {"undecodable_bodies": reader.undecodable, "invalid_utf8_texts": reader.invalid_texts}
        elif args.source.suffix == ".csv":
            rows = read_csv(args.source, stage)
        else:
            raise Mistake(f"{args.source}: not a kind of history known here; it must be *.db (QQNT) or *.csv")
        check_groups(settings.groups, rows, args.config)

        rows = rows.with_columns(dropped=pl.coalesce("dropped", wanted, duplicate()))
        for reason, count in tally(rows["dropped"].drop_nulls()).items():
            stage.ledger.dropped[reason] = count
        stage.receipt["elements_by_kind"] = tally(rows["kinds"].explode().drop_nulls())
        stage.ledger.read = rows.height

        messages = to_messages(rows)
        stage.ledger.written = messages.height
        if messages.is_empty():
            raise Mistake(f"{args.source}: no message left ({stage.ledger}); see {args.config}")
        stage.receipt["share_with_text"] = round((messages["fragments"].list.len() > 0).mean(), 4)
        messages.write_parquet(
            stage.output("messages.parquet"), metadata={"placeholders": ",".join(settings.placeholders)}
        )
        write_csv(messages, stage.output("messages.csv"))


def not_wanted(settings, path):
    """Return an expression: `filtered` for a row the settings leave out, else null."""
    times = {}
    for name in ("since", "until"):
        try:
            day = getattr(settings, name)
            times[name] = day and date.fromisoformat(day).toordinal() - date(1970, 1, 1).toordinal()
        except ValueError:
            raise Mistake(f"{path}: {name}: must be a day such as 2022-08-14, not {day!r}") from None
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
            raise Mistake(f"{path}: groups: no group {group!r} in the history; there are: {some}")


def to_messages(rows):
    time = (pl.col("time") * 1000).cast(MESSAGE["time"])
    kept = rows.filter(pl.col("dropped").is_null()).with_columns(time).select(MESSAGE.keys())
    return kept.sort(ORDER, nulls_last=False)


def tally(values):
    """Return {value: how often}, the most frequent first."""
    counts = values.value_counts(name="times").sort(["times", values.name], descending=[True, False])
    return {str(value): times for value, times in counts.iter_rows()}


# ---- the five-column CSV


def write_csv(messages, path):
    with open(path, "wb") as file:
        for part in messages.iter_slices(CHUNK):
            part.select(
                "group_id", pl.col("time").dt.strftime("%Y-%m-%dT%H:%M:%SZ"), "nickname", "user_id",
                pl.Series("fragments", map(repr, part["fragments"].to_list()), pl.String),
            ).write_csv(file, include_header=False)  # fmt: skip


def read_csv(path, stage):
    """Return the rows of the CSV at `path` as a frame, like `read_history`."""
    digest, progress = hashlib.sha256(), Progress("parse", path.stat().st_size, "B", bytes=True)
    with progress:
        frames = list(csv_chunks(path, read_lines(path, digest, progress)))
    stage.input(path, digest.hexdigest())
    rows = pl.concat(frames)
    no_time = pl.when(pl.col("time") <= 0).then(pl.lit("no_time"))
    return rows.with_columns(dropped=no_time, copy_of=pl.lit(None, pl.Int64))


def read_lines(path, digest, progress):
    """Yield the lines of a UTF-8 file without its BOM. A line ends with a line feed, whatever else is in it."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            digest.update(line)
            progress.add(len(line))
            try:
                text = line.decode()
            except UnicodeDecodeError:
                raise Mistake(f"{path} line {number}: not UTF-8; save the file as UTF-8 text") from None
            yield text.removeprefix("\ufeff") if number == 1 else text


def csv_chunks(path, lines):
    csv.field_size_limit(sys.maxsize)
    records, rows, first = csv.reader(lines, strict=True), [], 0
    try:
        for record in records:
            rows.append(csv_row(record))
            if len(rows) == CHUNK:
                yield csv_frame(rows, first)
                rows, first = [], first + CHUNK
    except (csv.Error, ValueError) as error:
        form = "group id,2022-08-14T10:12:18Z,nickname,user id,\"['text', ...]\""
        raise Mistake(f"{path} line {records.line_num}: {error}; a line must be: {form}") from None
    yield csv_frame(rows, first)


def csv_row(record):
    """Return the five values of a line as a row has them; a ValueError says what does not fit."""
    if len(record) != 5:
        raise ValueError(f"{len(record)} columns instead of 5")
    group_id, time, nickname, user_id, fragments = record
    if not group_id:
        raise ValueError("the group id is empty")
    if not CSV_TIME.fullmatch(time):
        raise ValueError(f"{time[:40]!r} is not a time")
    seconds = int(datetime.fromisoformat(time[:-1] + "+00:00").timestamp())
    return group_id, seconds, nickname or user_id or "unknown", user_id, read_fragments(fragments)


def read_fragments(literal):
    try:
        fragments = ast.literal_eval(literal)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        fragments = None
    if not isinstance(fragments, list) or not all(isinstance(fragment, str) for fragment in fragments):
        raise ValueError(f"{literal[:40]!r} is not a list of texts")
    if "\\" in literal:  # an escape may stand for half a character; the other half may follow
        return [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in fragments]
    return fragments


def csv_frame(rows, first):
    """Return a frame of the lines `rows`, the first of which is the `first` of all."""
    columns = ["group_id", "time", "nickname", "user_id", "fragments"]
    kinds = {name: MESSAGE[name] for name in columns} | {"time": pl.Int64}
    values = zip(*rows, strict=True) if rows else ([] for _ in columns)
    frame = pl.DataFrame([column(name, kinds[name], value) for name, value in zip(columns, values, strict=True)])
    return frame.with_columns(
        pl.int_range(first, first + pl.len(), dtype=pl.Int64).alias("message_id"),
        pl.lit("text").repeat_by(pl.col("fragments").list.len()).alias("kinds"),
        pl.lit([], MESSAGE["mentions"]).alias("mentions"),
        pl.lit(None, pl.Int64).alias("seq"), pl.lit(None, pl.Int64).alias("reply_to"),
        pl.lit(False).alias("reply_dangling"),
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
