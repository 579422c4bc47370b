"""A CSV that people have made themselves: with a header or in the order of ours, in their encoding, with the separator
and the dates of their spreadsheet. What is certain is read, and said; what is not is refused by its line."""

import csv
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from datetime import datetime, time
from functools import lru_cache
from itertools import chain, islice
from operator import itemgetter
from typing import TYPE_CHECKING

from huiyin.common.errors import UserError
from huiyin.sources.csv_file import read_fragments, strict, to_id
from huiyin.sources.record import BAD_LINE, Parts, Record, to_seconds

if TYPE_CHECKING:
    from huiyin.sources.detect import Head
    from huiyin.sources.export import Source

NATIVE_IDS, AS_IT_IS = False, False
ORDER = ["group", "time", "name", "id", "text"]  # without a header
TIME, TEXT = ORDER.index("time"), ORDER.index("text")
HEADERS = {
    "group": "group group_id groupid room room_id chat 群 群号 群名 群组 群聊",
    "time": "time date datetime timestamp createtime create_time sent_at 时间 日期 发送时间",
    "name": "nickname name nick sender_name username 昵称 发送者 发送人 发言人 姓名 名称 名字 群昵称 群名片",
    "id": "user_id userid uid user sender sender_id qq 用户 账号 帐号 号码 qq号 qq号码 用户id "
    "发送者id 发送者qq 发送人id 发送人qq",
    "text": "text texts message content msg fragments body 内容 消息 文本 消息内容 正文",
}
MEANING = {word: column for column, words in HEADERS.items() for word in words.split()}
SEPARATORS = ",;\t，；"
YEAR_DAY = ("%Y/%d", "%Y-%d", "%Y.%d")  # nobody writes so
SAMPLE = 1000  # rows by which dates and texts are judged
SECONDS = {"%H:%M:%S": "", "%H:%M": ":00"}  # {form of a clock: what it lacks}
YEAR_FIRST = re.compile(r"[12]\d{3}([-/.])\d\d?\1\d\d?( +|T)\d\d?:\d\d(:\d\d)?", re.ASCII)
CLOCK = re.compile("(?:[01]?[0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]")
DATE = re.compile(r"\d{1,4}[-/.年]\d{1,2}[-/.月]\d{1,4}")


def recognizes(head: "Head") -> bool:
    line = first_line(head)
    if head.is_json or strict(head) or line.startswith("#"):
        return False
    cells = cells_of(line)
    named = {MEANING.get(cell.strip().lower()) for cell in cells}
    in_order = len(cells) == len(ORDER) and DATE.match(cells[1].strip()) is not None
    return ({"time", "text"} <= named and bool({"name", "id"} & named)) or in_order


def first_line(head: "Head") -> str:
    return head.text.lstrip("\r\n").partition("\n")[0].rstrip("\r")


def separator(line: str) -> str:
    return max(SEPARATORS, key=line.count)


def cells_of(line: str) -> list[str]:
    """Return the cells of a line without the empty ones that a spreadsheet adds at its end."""
    try:
        cells = next(csv.reader([line], delimiter=separator(line)), [])
    except csv.Error:  # such as a line break of another system, or a cell of a megabyte: no line of a table
        return []
    while len(cells) > len(ORDER) and not cells[-1].strip():
        cells.pop()
    return cells


def records(source: "Source") -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)
    for head in source.found.heads:
        yield from Table(source, head).records()


class Table:
    """The rows of a file, and what was found out about them."""

    def __init__(self, source: "Source", head: "Head") -> None:
        self.source, self.head, self.line = source, head, 0
        first = cells_of(first_line(head))
        named = [MEANING.get(cell.strip().lower(), "") for cell in first]
        self.has_header = "time" in named
        self.columns = named if self.has_header else ORDER
        self.form, self.lists = "", False

    def records(self) -> Iterator[Record]:
        rows = self.rows()
        sample = list(islice(rows, SAMPLE))
        self.form = self.form_of([row[TIME] for _, row in sample if row])
        self.lists = all(is_list(row[TEXT]) for _, row in sample if row)
        self.tell()
        for number, row in chain(sample, rows):
            try:
                yield self.to_record(row) if row else BAD_LINE
            except ValueError as error:
                self.bad(number, str(error))
                yield BAD_LINE

    def tell(self) -> None:
        zone = f" in {self.source.zone}" if self.form and "%z" not in self.form else ""
        unused = [cell.strip() for cell in cells_of(first_line(self.head)) if cell.strip().lower() not in MEANING]
        left_out = f", without the columns {', '.join(unused)}" if self.has_header and unused else ""
        self.source.notes.append(
            f"{self.head.path.name} is read as {(self.head.encoding or '').upper()}, separated by "
            f"{separator(first_line(self.head))!r}, {'with' if self.has_header else 'without'} a header, dates as "
            f"{self.form or 'seconds since 1970'}{zone}, texts as {'lists' if self.lists else 'they stand'}"
            f"{left_out}"
        )

    def rows(self) -> Iterator[tuple[int, Sequence[str]]]:
        """Yield (line, values in the order of ORDER) of each row, "" for a column that the table lacks; () for a row
        that has other columns."""
        places = {column: place for place, column in enumerate(self.columns)}
        in_order = itemgetter(*(places.get(column, -1) for column in ORDER))
        lines = self.source.lines(self.head, note=False)
        reader = csv.reader(lines, delimiter=separator(first_line(self.head)), strict=True)
        is_header, number = self.has_header, 1
        while True:
            try:
                for cells in reader:
                    while len(cells) > len(self.columns) and not cells[-1].strip():
                        cells.pop()
                    if not "".join(cells).strip():
                        pass
                    elif is_header:
                        is_header = False
                    elif len(cells) != len(self.columns):
                        self.bad(number, f"{len(cells)} columns instead of {len(self.columns)}")
                        yield number, ()
                    else:
                        cells.append("")
                        yield number, in_order(cells)
                    number = reader.line_num + 1
                return
            except csv.Error as error:
                self.bad(number, str(error))
                yield number, ()
                number = reader.line_num + 1

    def bad(self, number: int, problem: str) -> None:
        if not self.source.skip_bad_lines:
            raise UserError(f"{self.head.path} line {number}: {problem}; mend the line, or set skip_bad_lines: true")

    def form_of(self, times: list[str]) -> str:
        """Return the form of the dates, as strptime has it; "" for seconds or milliseconds since 1970."""
        times = [plain(time) for time in times if time.strip()] or ["0" * 10]
        if all(time.isdigit() and len(time) in (10, 13) for time in times):
            return ""
        forms = [form for form in guesses(times[0]) if all(to_datetime(time, form) for time in times)]
        if len(forms) == 1:
            return forms[0]
        problem = "may have the day or the month first" if forms else "and the times after it have not one form"
        raise UserError(f"{self.head.path}: {times[0]} {problem}; write them all such as 2024-05-31 18:05:09")

    def to_record(self, row: Sequence[str]) -> Record:
        room, sent, name, sender, text = row
        room, name = to_id("group id", room), name.strip()
        sender = to_id("user id", sender) or name
        parts: Parts = [("text", part) for part in (read_fragments(text) if self.lists else [text]) if part]
        return Record("", room, self.to_time(sent.strip(), room), None, sender, name, parts, (), None, None)

    def to_time(self, text: str, room: str) -> int | None:
        if not text:
            return None
        if not self.form:
            return to_seconds(text)
        if (moment := to_datetime(text, self.form)) is None:
            raise ValueError(f"the time has not the form {self.form}")
        if "%S" not in self.form:
            self.source.minutes[room] += 1
        return int(moment.timestamp()) if moment.tzinfo else self.source.local(text, moment)


def guesses(time: str) -> list[str]:
    """Return the forms that a date may have; with the year first there is one."""
    if found := YEAR_FIRST.fullmatch(time):
        mark, between, seconds = found.groups()
        return [f"%Y{mark}%m{mark}%d{between}%H:%M{':%S' if seconds else ''}"]
    from pandas.tseries.api import guess_datetime_format  # takes as long to load as 100,000 rows to read

    with warnings.catch_warnings(action="ignore"):  # pandas warns of each date that cannot have the day first
        forms = [guess_datetime_format(time, dayfirst=first) for first in (False, True)]
    return [form for form in dict.fromkeys(forms) if form and not form.startswith(YEAR_DAY)]


def plain(text: str) -> str:
    """Return a date as people write it, such as 2024年5月3日 9:06, in signs that pandas knows."""
    return text.strip().replace("年", "-").replace("月", "-").replace("日", " ").replace("：", ":")


def to_datetime(text: str, form: str) -> datetime | None:
    """Return what strptime returns, None for a date of another form. It takes 5 µs: most dates are a day, which was
    seen before, and a clock."""
    text = plain(text)
    day_form, _, clock_form = form.rpartition(" ")
    if clock_form in SECONDS:
        written, _, clock = text.rpartition(" ")
        clock += SECONDS[clock_form]
        if CLOCK.fullmatch(clock) and (day := on_day(written, day_form)):
            return datetime.combine(day, time.fromisoformat(clock.zfill(8)))
    return in_form(text, form)


def in_form(text: str, form: str) -> datetime | None:
    try:
        return datetime.strptime(text, form)
    except ValueError:
        return None


on_day = lru_cache(100_000)(in_form)


def is_list(text: str) -> bool:
    try:
        return text.startswith("[") and read_fragments(text) is not None
    except ValueError:
        return False
