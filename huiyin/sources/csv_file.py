"""The five-column CSV: group id, time, nickname, user id, fragments as a Python list. No header, UTF-8."""

import ast
import csv
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import polars as pl

from huiyin.common.errors import UserError
from huiyin.common.tables import MESSAGES, schema
from huiyin.common.workers import cores
from huiyin.sources.frames import CHUNK, list_column

CSV_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
PLAIN_LITERAL = re.compile(r"\['[^'\\\r\n\0]*'\]")  # a list of one text, just as it reads
PLAIN_TEXT = r"^(?:[^'\\\p{C}\p{Z}]| )*$"  # what repr leaves as it is
MOST_LINES = 1000  # of one record of a CSV; more is a quote that nobody closed


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
                raise UserError(f"{path} line {source.number}: {error}; a line must be: {form}") from None
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
    types = schema(MESSAGES)
    columns = ["message_id", "group_id", "time", "nickname", "user_id"]
    *values, fragments = zip(*rows, strict=True) if rows else ([] for _ in range(6))
    kinds = {name: types[name] for name in columns} | {"time": pl.Int64}
    frame = pl.DataFrame([pl.Series(name, value, kinds[name]) for name, value in zip(columns, values, strict=True)])
    return frame.with_columns(list_column("fragments", fragments)).with_columns(
        pl.lit("text").repeat_by(pl.col("fragments").list.len()).alias("kinds"),
        pl.lit([], types["mentions"]).alias("mentions"),
        pl.lit(None, pl.Int64).alias("seq"),
        pl.lit(None, pl.Int64).alias("reply_to"),
        pl.lit(False).alias("reply_dangling"),
    )
