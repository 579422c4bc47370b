"""The CSV with five columns: group id, time, nickname, user id, fragments as a Python list. No header, UTF-8."""

import ast
import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from huiyin.common.characters import BOM, WHITE_SPACE
from huiyin.common.errors import UserError
from huiyin.common.workers import cores
from huiyin.sources.frames import CHUNK
from huiyin.sources.record import BAD_LINE, Parts, Record

if TYPE_CHECKING:
    from huiyin.sources.detect import Head
    from huiyin.sources.export import Source

NATIVE_IDS, AS_IT_IS = False, True

CSV_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
FIRST_LINE = re.compile(r'\s*[^,\n]*,"?\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"?,[^\n]*')
PLAIN_STRING = r"'[^'\\\r\n\0]*'"
PLAIN_LITERAL = re.compile(rf"\[{PLAIN_STRING}(?:, {PLAIN_STRING})*\]")  # a list of texts without escapes
PLAIN_TEXT = r"^(?:[^'\\\p{C}\p{Z}]| )*$"  # texts that repr does not change
TEXT_LITERAL = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
ADJACENT = re.compile(r"""['"]\s*['"]""")  # perhaps the end of one text and the start of the next, without a comma
AROUND_ID = WHITE_SPACE + BOM + "\u200b\u200c\u200d\u200e\u200f\u2060"
AS_TEXT = "let the spreadsheet import all columns as text"
NO_IDS = {  # {what is no id any more: its form}
    f"is in scientific notation, its last digits are lost; {AS_TEXT}": r"[+-]?\d+(?:[.,]\d+)?E[+-]\d+|\d+[.,]\d+E\d+",
    f"is a number with a point; {AS_TEXT}": r"\d+[.,]0*",
    f"is in quotes or a formula; {AS_TEXT}": r"""[='"].*|.*['"]""",
    "stands for a missing value; leave it empty": r"nan|none|null|<na>|#n/a",
    "has digits other than 0 to 9": r"(?=.*[^\x00-\x7f])\d+",
}
MOST_LINES = 1000  # of one record; with more, a closing quote is missing


def write_csv(messages: pl.DataFrame, path: Path) -> None:
    with open(path, "wb") as file, ThreadPoolExecutor(cores()) as pool:
        for lines in pool.map(csv_lines, messages.iter_slices(CHUNK)):
            file.write(lines)


def csv_lines(messages: pl.DataFrame) -> bytes:
    time = pl.col("time").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    columns = messages.select("group_id", time, "nickname", "user_id", literals(messages["fragments"]))
    return columns.write_csv(include_header=False).encode()


def literals(fragments: pl.Series) -> pl.Series:
    """Return the `repr` of each list. Most texts are plain and only need quotes, which polars adds faster."""
    plain = fragments.list.join("").str.contains(PLAIN_TEXT)
    quoted = pl.concat_str(pl.lit("['"), fragments.list.join("', '"), pl.lit("']"))
    written = pl.select(
        fragments=pl.when(fragments.list.len() == 0).then(pl.lit("[]")).when(plain).then(quoted)
    ).to_series()
    others = written.is_null().arg_true()
    return written.scatter(others, pl.Series([repr(texts) for texts in fragments[others].to_list()], dtype=pl.String))


def recognizes(head: "Head") -> bool:
    return strict(head)


def strict(head: "Head") -> bool:
    """Does the first line look like one of ours? The others must be, then."""
    found = None if head.is_json else FIRST_LINE.match(head.text)
    return found is not None and not found[0].rstrip().endswith(",")


def records(source: "Source") -> Iterator[Record]:
    for head in source.found.heads:
        if head.encoding != "utf-8":
            source.notes.append(f"{head.path.name} is read as {head.encoding}")
        lines = source.byte_lines(head)
        yield from csv_records(head.path, lines, source.skip_bad_lines, head.encoding or "utf-8")


def csv_records(path: Path, lines: Iterable[bytes], skip_bad_lines: bool, encoding: str = "utf-8") -> Iterator[Record]:
    """Yield the records of a CSV; for a bad line one that is dropped, or `UserError`. If a closing quote is missing,
    reading continues with the second line of the record."""
    csv.field_size_limit(sys.maxsize)
    lines = iter(lines)
    again: Iterator[bytes] = iter(())  # lines of a bad record
    before = 0  # lines, when the reader began
    while True:
        record: list[bytes] = []
        reader = csv.reader(decoded(chain(again, lines), record, encoding), strict=True)
        try:
            for row in reader:
                if row:  # an empty line, as editors leave one at the end, is none
                    yield csv_record(row)
                record.clear()
            return
        except UnicodeDecodeError:  # no bad line, but a file of which only the Latin letters would be left
            problem = f"not {encoding.upper()}; save the file as UTF-8 text"
            raise UserError(f"{path} line {before + reader.line_num + 1}: {problem}") from None
        except (csv.Error, ValueError) as error:
            if not skip_bad_lines:
                form = "group id,2022-08-14T10:12:18Z,nickname,user id,\"['text', ...]\""
                raise UserError(f"{path} line {before + reader.line_num}: {error}; a line must be: {form}") from None
            yield BAD_LINE
            before += reader.line_num - len(record) + 1
            again = iter([*record[1:], *again])


def decoded(lines: Iterable[bytes], record: list[bytes], encoding: str) -> Iterator[str]:
    """Yield the lines of a text; only a line feed ends a line. They are added to `record`, which is emptied when a
    record ends."""
    for line in lines:
        record.append(line)
        yield line.decode(encoding)
        if len(record) == MOST_LINES:
            raise csv.Error(f"more than {MOST_LINES} lines; is a quote missing?")


def csv_record(record: list[str]) -> Record:
    """Return the record with the five values of a line; `ValueError` for one that is invalid."""
    if len(record) != 5:
        raise ValueError(f"{len(record)} columns instead of 5")
    group_id, time, nickname, user_id, fragments = record
    group_id, user_id = to_id("group id", group_id), to_id("user id", user_id)
    if not group_id:
        raise ValueError("the group id is empty")
    if not CSV_TIME.fullmatch(time):
        raise ValueError("the second column is no time")
    seconds = int(datetime.fromisoformat(time).timestamp())
    parts: Parts = [("text", text) for text in read_fragments(fragments)]
    return Record("", group_id, seconds, None, user_id, nickname or user_id or "unknown", parts, (), None, None)


@lru_cache(100_000)  # a few people write everything
def to_id(name: str, written: str) -> str:
    """Return an id without the blanks around it; `ValueError` for one that a spreadsheet or pandas has changed."""
    text = written.strip(AROUND_ID)
    for problem, form in NO_IDS.items():
        if re.fullmatch(form, text, re.IGNORECASE):
            raise ValueError(f"the {name} {problem}")
    return text


def read_fragments(literal: str) -> list[str]:
    """Return the texts of a list as Python writes it, or numpy, without commas, or JSON, where `\\/` is a slash."""
    if PLAIN_LITERAL.fullmatch(literal):
        return literal[2:-2].split("', '")
    fragments = None
    if "\\/" in literal:
        with suppress(ValueError, RecursionError):
            fragments = json.loads(literal)
    if fragments is None:
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            fragments = ast.literal_eval(literal)
            if ADJACENT.search(literal):
                fragments = without_joining(literal, fragments)
    if not isinstance(fragments, list) or not all(isinstance(fragment, str) for fragment in fragments):
        raise ValueError("the fifth column is no list of texts")
    if "\\" in literal:  # an escape can be one half of a surrogate pair
        return [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in fragments]
    return fragments


def without_joining(literal: str, fragments: list[str]) -> list[str] | None:
    """Return the texts of a list that Python has read as `fragments`, joining those without a comma between them; None
    if only some of the commas are missing."""
    texts = TEXT_LITERAL.findall(literal)
    if len(texts) == len(fragments):
        return fragments
    return None if "," in TEXT_LITERAL.sub("", literal) else [ast.literal_eval(text) for text in texts]
