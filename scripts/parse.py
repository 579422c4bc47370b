"""Make messages of a chat history: who said what, when, in which group, in reply to what.

    python scripts/parse.py data/demo/decrypted/nt_msg.db --config config/parse.yaml --out data/demo/parsed

The source is a decrypted nt_msg.db, its group_msg_table as DB Browser for SQLite exports it to JSON, or a CSV of five
columns: group id, time, nickname, user id, fragments.
"""

import ast
import csv
import hashlib
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Literal

import polars as pl

from huiyin.common.errors import Mistake, run
from huiyin.common.progress import Progress
from huiyin.common.settings import read_settings
from huiyin.common.stage import Stage, arguments, need, sha256
from huiyin.sources.browser_json import json_chunks
from huiyin.sources.database import CHUNK, list_column, read_export, read_history
from huiyin.common.workers import cores

Placeholder = Literal[
    "image", "file", "voice", "video", "face", "wallet", "ark", "market_face", "markdown", "forward", "call"
]
MESSAGE = {  # the columns of messages.parquet; in the frames before it `time` is in seconds
    "message_id": pl.Int64,
    "group_id": pl.String,
    "time": pl.Datetime("ms", "UTC"),
    "seq": pl.Int64,
    "user_id": pl.String,
    "nickname": pl.String,
    "fragments": pl.List(pl.String),
    "kinds": pl.List(pl.String),
    "mentions": pl.List(pl.String),
    "reply_to": pl.Int64,
    "reply_dangling": pl.Boolean,
}
ORDER = ["group_id", "time", "seq", "message_id"]
CSV_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
PLAIN_LITERAL = re.compile(r"\['[^'\\\r\n\0]*'\]")  # a list of one text, just as it reads
PLAIN_TEXT = r"^(?:[^'\\\p{C}\p{Z}]| )*$"  # what repr leaves as it is
MOST_LINES = 1000  # of one record of a CSV; more is a quote that nobody closed


@dataclass
class Settings:
    placeholders: list[Placeholder] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    since: str | None = None
    until: str | None = None
    leave_out: list[str] = field(default_factory=list)
    skip_bad_lines: bool = False


def main():
    args = arguments(__doc__, "source").parse_args()
    settings = read_settings(args.config, Settings)
    wanted = not_wanted(settings, args.config)
    need(args.source, "give a decrypted nt_msg.db, its export to JSON, or a CSV")

    with Stage("parse", args.out, packages=["polars", "protobuf", "ijson"]) as stage:
        stage.use(args.config, settings)
        bad_lines = 0
        if args.source.suffix == ".db":
            with ThreadPoolExecutor(1) as beside:
                digest = beside.submit(sha256, args.source)
                rows, found = read_history(args.source, settings.placeholders)
                stage.input(args.source, digest.result())
        elif args.source.suffix in (".json", ".jsonl", ".csv"):
            with Hashed(args.source) as file:
                if args.source.suffix == ".csv":
                    rows, found, bad_lines = read_csv(args.source, file, settings.skip_bad_lines)
                else:
                    rows, found = read_export(json_chunks(args.source, file), settings.placeholders)
            stage.input(args.source, file.digest.hexdigest())
        else:
            raise Mistake(f"{args.source}: not a kind of history known here; it must be *.db (QQNT), *.json or *.csv")
        check_groups(settings.groups, rows, args.config)
        stage.receipt |= found

        rows = rows.with_columns(dropped=pl.coalesce(pl.col("dropped").cast(pl.String), wanted, duplicate()))
        stage.ledger.dropped.update(dict(rows["dropped"].drop_nulls().value_counts().iter_rows()))
        if bad_lines:
            stage.ledger.dropped["bad_line"] = bad_lines
        stage.ledger.read = rows.height + bad_lines

        messages = to_messages(rows)
        del rows  # before the result is written, which takes memory too
        stage.ledger.written = messages.height
        if messages.is_empty():
            raise Mistake(f"{args.source}: no message left ({stage.ledger}); see {args.config}")
        stage.receipt["share_with_text"] = round((messages["fragments"].list.len() > 0).mean(), 4)
        messages.write_parquet(
            stage.output("messages.parquet"), metadata={"placeholders": ",".join(settings.placeholders)}
        )
        write_csv(messages, stage.output("messages.csv"))


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
    kept = rows.select(*ORDER, "dropped").with_row_index("row").filter(pl.col("dropped").is_null())
    order = kept.drop("dropped").sort(ORDER, nulls_last=False)["row"]
    time = (pl.col("time") * 1000).cast(MESSAGE["time"])
    return rows.select(MESSAGE.keys())[order].with_columns(time)


# ---- the five-column CSV


def write_csv(messages, path):
    with open(path, "wb") as file, ThreadPoolExecutor(cores()) as pool:
        if messages["group_id"].head(1).str.starts_with("\ufeff").any():
            file.write("\ufeff".encode())  # the first of a file is taken away in reading
        for lines in pool.map(csv_lines, messages.iter_slices(CHUNK)):
            file.write(lines)


def csv_lines(messages):
    """Return the lines of some messages, in bytes."""
    time = pl.col("time").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    columns = messages.select("group_id", time, "nickname", "user_id", literals(messages["fragments"]))
    return columns.write_csv(include_header=False).encode()


def literals(fragments):
    """Return the `repr` of each list. Most texts are plain, and need nothing but quotes around them."""
    plain = fragments.list.join("").str.contains(PLAIN_TEXT)
    written = (
        pl.when(fragments.list.len() == 0)
        .then(pl.lit("[]"))
        .when(plain)
        .then(pl.concat_str(pl.lit("['"), fragments.list.join("', '"), pl.lit("']")))
    )
    frame = pl.select(written.alias("fragments"))
    odd = frame["fragments"].is_null().arg_true()
    texts = pl.Series([repr(texts) for texts in fragments[odd].to_list()], dtype=pl.String)
    return frame["fragments"].scatter(odd, texts)


def read_csv(path, lines, skip_bad_lines):
    """Return the rows of the CSV at `path` as a frame, like `read_history`, what was found, and how many lines did not
    fit."""
    bad = []
    rows = pl.concat(list(csv_chunks(path, lines, bad if skip_bad_lines else None)))
    no_time = pl.when(pl.col("time") <= 0).then(pl.lit("no_time"))
    texts = int(rows["fragments"].list.len().sum())
    found = {"elements_by_kind": {"text": texts}}
    return rows.with_columns(dropped=no_time, copy_of=pl.lit(None, pl.Int64)), found, len(bad)


def csv_chunks(path, lines, bad):
    """Yield frames of the records of a CSV, given the bytes of its `lines`. A record that does not fit is named by its
    line and refused or, where `bad` is a list, noted there."""
    csv.field_size_limit(sys.maxsize)
    source, rows = Lines(path, lines), []
    reader, number = csv.reader(source, strict=True), 0
    while True:
        source.begin()
        try:
            record = next(reader)
            if not record:
                continue  # an empty line, as editors leave one at the end
            rows.append((number, *csv_row(record)))
        except StopIteration:
            break
        except (csv.Error, ValueError) as error:
            if bad is None:
                form = "group id,2022-08-14T10:12:18Z,nickname,user id,\"['text', ...]\""
                raise Mistake(f"{path} line {source.number}: {error}; a line must be: {form}") from None
            bad.append(source.number)
            source.back_to_second()
            reader = csv.reader(source, strict=True)
        number += 1
        if len(rows) == CHUNK:
            yield csv_frame(rows)
            rows = []
    yield csv_frame(rows)


class Lines:
    """The lines of a UTF-8 file without its BOM. A line ends with a line feed, whatever else is in it. Those of the
    present record are kept, so that one can go on with the second after a quote that nobody closed."""

    def __init__(self, path, lines):
        self.path, self.lines, self.number = path, iter(lines), 0
        self.record, self.waiting = [], []

    def begin(self):
        self.record = []

    def back_to_second(self):
        self.waiting = self.record[1:] + self.waiting
        self.number -= len(self.record) - 1

    def __iter__(self):
        return self

    def __next__(self):
        if len(self.record) == MOST_LINES:
            raise csv.Error(f"more than {MOST_LINES} lines; is a quote missing?")
        line = self.waiting.pop(0) if self.waiting else next(self.lines)
        self.number += 1
        self.record.append(line)
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise ValueError("not UTF-8; save the file as UTF-8 text") from None
        return text.removeprefix("\ufeff") if self.number == 1 else text


def csv_row(record):
    """Return the five values of a line as a row has them; a ValueError says what does not fit."""
    if len(record) != 5:
        raise ValueError(f"{len(record)} columns instead of 5")
    group_id, time, nickname, user_id, fragments = record
    if not group_id:
        raise ValueError("the group id is empty")
    if not CSV_TIME.fullmatch(time):
        raise ValueError("the second column is no time")
    seconds = int(datetime.fromisoformat(time[:-1] + "+00:00").timestamp())
    return group_id, seconds, nickname or user_id or "unknown", user_id, read_fragments(fragments)


def read_fragments(literal):
    if PLAIN_LITERAL.fullmatch(literal):
        return [literal[2:-2]]
    try:
        fragments = ast.literal_eval(literal)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        fragments = None
    if not isinstance(fragments, list) or not all(isinstance(fragment, str) for fragment in fragments):
        raise ValueError("the fifth column is no list of texts")
    if "\\" in literal:  # an escape may stand for half a character; the other half may follow
        return [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in fragments]
    return fragments


def csv_frame(rows):
    """Return a frame of the lines `rows`: number and the five values."""
    columns = ["message_id", "group_id", "time", "nickname", "user_id"]
    *values, fragments = zip(*rows, strict=True) if rows else ([] for _ in range(6))
    kinds = {name: MESSAGE[name] for name in columns} | {"time": pl.Int64}
    frame = pl.DataFrame([pl.Series(name, value, kinds[name]) for name, value in zip(columns, values, strict=True)])
    return frame.with_columns(list_column("fragments", fragments)).with_columns(
        pl.lit("text").repeat_by(pl.col("fragments").list.len()).alias("kinds"),
        pl.lit([], MESSAGE["mentions"]).alias("mentions"),
        pl.lit(None, pl.Int64).alias("seq"),
        pl.lit(None, pl.Int64).alias("reply_to"),
        pl.lit(False).alias("reply_dangling"),
    )


if __name__ == "__main__":
    run(main)
