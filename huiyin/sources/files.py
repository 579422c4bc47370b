"""Files of an export, read as streams: their bytes with digest and progress, JSON, lines of JSON, lines of text."""

import hashlib
import json
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from decimal import Decimal
from itertools import repeat
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

import ijson
import msgspec

from huiyin.common.characters import skip_bom
from huiyin.common.errors import UserError
from huiyin.common.progress import Progress

JSON_TYPES = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    Decimal: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
NO_MARKS = bytes(set(range(256)) - set(b'[]{}"'))
ROUNDS = 8  # in which pairs of brackets are taken out: messages are seldom deeper
DEEPEST = 1000  # lists in lists: ijson takes seconds for 20,000, and crashes at 100,000
# An escape of JSON, of which Telegram writes \x0B, and programs in JavaScript half a character, as no parser takes them
ESCAPE = re.compile(
    rb"\\(?:x([0-9A-Fa-f]{2})|u[dD][89abAB][0-9a-fA-F]{2}(\\u[dD][c-fC-F][0-9a-fA-F]{2})?|(u[dD][c-fC-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
ODD = re.compile(rb"\\(?:x|u[dD])")  # what may be one of those: bytes.find would take eight times as long
IN_STRINGS = re.compile(rb"\\[\\\"]")
LONGEST_ESCAPE = 12
DOCUMENT = b'"document_id": '
UNQUOTED = re.compile(rb"(?<=" + DOCUMENT + rb")(?!(?:null|true|false)\b)[^\s\d\"{[-][^\r\n]*")
LONGEST_NAME = 4096  # bytes in which a line ends, where such a name can be
LINES = 1 << 16  # bytes of lines that are read at a time
BLOCK = 1 << 16  # bytes of JSON that are read at a time: few objects, which stay in the processor's cache
NEXT_OBJECT = re.compile(rb'\s*,\s*\{\s*"(?:[^"\\]|\\.)*"')  # what is between two objects, and the key of the second
DECODER = msgspec.json.Decoder(float_hook=Decimal)  # numbers are as ijson has them
LOST = rb"\ufffd"
AGAIN = "export it again"


class Hashed:
    """A file opened for reading bytes from start to end, but for a byte order mark, which computes its sha256 and shows
    the progress."""

    def __init__(self, path: Path):
        self.path, self.digest = path, hashlib.sha256()

    def __enter__(self) -> Self:
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
        while lines := self.file.readlines(LINES):
            self.passed(b"".join(lines))
            yield from lines

    def passed(self, content: bytes) -> bytes:
        self.digest.update(content)
        self.progress.add(len(content))
        return content


class Quoted:
    """The bytes of a file of JSON with quotes around the names of files that Telegram Desktop 4.1.1 wrote without any,
    `"document_id": stickers/a (2).webp`, each up to the end of its line."""

    def __init__(self, file: Any) -> None:
        self.file, self.held = file, b""

    def read(self, size: int = -1) -> bytes:
        while True:
            block = self.file.read(size)
            content = self.held + block
            end = content.rfind(b"\n") + 1
            if not block or size < 0 or len(content) - end > LONGEST_NAME:
                end = len(content)
            content, self.held = content[:end], content[end:]
            if content or not block:
                return UNQUOTED.sub(in_quotes, content) if DOCUMENT in content else content


def in_quotes(name: re.Match[bytes]) -> bytes:
    return b'"' + name[0].replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


class Repaired:
    """The bytes of a file of JSON with escapes that are none made such: `\\x0B` becomes `\\u000B`, half a character
    U+FFFD. Only blocks that have one are looked at closely: else it would take longer than to parse them."""

    def __init__(self, file: Any) -> None:
        self.file, self.held = file, b""

    def read(self, size: int = -1) -> bytes:
        if size == 0:
            return b""
        while True:
            block = self.file.read(size)
            content, self.held = self.held + block, b""
            content = self.repair(content, ended=not block or size < 0)
            if content or not block:
                return content

    def repair(self, content: bytes, ended: bool) -> bytes:
        if not ODD.search(content) and (ended or b"\\" not in content[-LONGEST_ESCAPE:]):
            return content
        limit = len(content) if ended else len(content) - LONGEST_ESCAPE
        torn: list[int] = []

        def whole(escape: re.Match[bytes]) -> bytes:
            if escape.start() > limit:
                torn.append(escape.start())
                return escape[0]
            if escape[1]:
                return b"\\u00" + escape[1]
            half = escape[3] or (escape[0][1:2] == b"u" and len(escape[0]) == 6 and not escape[2])
            return LOST if half else escape[0]

        repaired = ESCAPE.sub(whole, content)
        if ended:
            return repaired
        start = torn[0] if torn else len(content) - content.endswith(b"\\")
        self.held = content[start:]
        return repaired[: len(repaired) - len(self.held)]


class Shallow:
    """The bytes of a file of JSON with at most DEEPEST lists and objects in one another; `UserError` for more."""

    def __init__(self, path: Path, file: Any, advice: str = AGAIN) -> None:
        self.path, self.file, self.advice = path, file, advice
        self.depth, self.in_string = 0, False

    def read(self, size: int = -1) -> bytes:
        whole = self.file.read(size)
        while whole.endswith(b"\\") and (more := self.file.read(1)):  # so that no escape is torn
            whole += more
        self.check(whole)
        return whole

    def check(self, content: bytes) -> None:
        brackets, self.in_string = brackets_of(content, self.in_string)
        left = brackets
        for _ in range(ROUNDS):
            left = left.replace(b"{}", b"").replace(b"[]", b"")
        if self.depth + len(left) + ROUNDS <= DEEPEST:  # what was taken out lies no deeper than that
            self.depth += opened(left)
            return
        for opens in (bracket in b"[{" for bracket in brackets):
            self.depth += 1 if opens else -1
            if self.depth > DEEPEST:
                raise UserError(f"{self.path}: more than {DEEPEST:,} lists in one another; {self.advice}")


def brackets_of(content: bytes, in_string: bool = False) -> tuple[bytes, bool]:
    """Return the brackets outside of strings in a part of JSON, and whether it ends in a string; in_string: begins."""
    content = IN_STRINGS.sub(b"", content) if b"\\" in content else content
    marks = content.translate(None, NO_MARKS).replace(b'""', b"")
    outside = (b'"' * in_string + marks).split(b'"')  # what is no string, and strings, in turn
    return b"".join(outside[::2]), len(outside) % 2 == 0


def opened(brackets: bytes) -> int:
    """Return how many more lists and objects begin than end."""
    return 2 * (brackets.count(b"[") + brackets.count(b"{")) - len(brackets)


def readable(path: Path, file: Any, advice: str = AGAIN) -> Shallow:
    """Return the JSON in the open `file` at `path` as a parser takes it."""
    return Shallow(path, Repaired(Quoted(file)), advice)


class Runs:
    """The bytes of a file of JSON, in which ijson finds the first object of a list. Those after it, nearly the whole
    file, are decoded by msgspec, in half the time, and ijson does not get them. It gets the bytes up to a `}` at a
    time: so where it has found an object, what is left begins behind that."""

    def __init__(self, file: Any) -> None:
        self.file, self.left, self.start = file, b"", 0
        self.refused = False  # msgspec has refused what is left: ijson gets it whole

    def read(self, size: int = -1) -> bytes:
        if size == 0:
            return b""
        if self.start == len(self.left):
            self.left, self.start, self.refused = self.file.read(BLOCK), 0, False
        start, end = self.start, 0 if self.refused else self.left.find(b"}", self.start) + 1
        self.start = end or len(self.left)
        return self.left[start : self.start]

    def objects(self) -> Iterator[dict[str, Any]]:
        """Yield the objects that follow behind one of a list, as far as they are whole and msgspec takes them."""
        while not self.refused:
            if len(self.left) - self.start < BLOCK:
                self.left, self.start = self.left[self.start :] + self.file.read(BLOCK), 0
            run = self.run()
            if not run:
                return
            yield from run

    def run(self) -> list[dict[str, Any]]:
        for end in self.ends():
            with suppress(msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError):
                run = DECODER.decode(b"[0" + self.left[self.start : end] + b"]")
                self.start, self.refused = end, False
                return run[1:]
            self.refused = True
        return []

    def ends(self) -> Iterator[int]:
        """Yield where the next objects may end: before the last place that looks like the beginning of the first; if
        that is within an object, before the last that is not."""
        beginning = NEXT_OBJECT.match(self.left, self.start)
        end = self.left.rfind(beginning[0], self.start + 1) if beginning else -1
        if beginning is None or end < 0:
            return
        yield end
        depth = opened(brackets_of(self.left[self.start : end])[0])
        while depth and (earlier := self.left.rfind(beginning[0], self.start + 1, end)) >= 0:
            depth -= opened(brackets_of(self.left[earlier:end])[0])
            end = earlier
        yield end


def json_items(path: Path, file: Any, prefix: str, advice: str = AGAIN, what: str = "message") -> Iterator[Any]:
    """Yield the values at `prefix` (ijson's) of the JSON in the open `file` at `path`; `UserError` where it breaks."""
    return map(itemgetter(1), json_values(path, file, (prefix,), "", advice, what))


def json_values(
    path: Path, file: Any, prefixes: Collection[str], before: str = "", advice: str = AGAIN, what: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield (prefix, value) for each value at one of `prefixes`, in the order of the file, up to what is at `before`;
    `UserError` where the JSON breaks."""
    return told(path, values_at(path, file, prefixes, before, advice), advice, what)


def values_at(path: Path, file: Any, prefixes: Collection[str], before: str, advice: str) -> Iterator[tuple[str, Any]]:
    runs = Runs(Repaired(Quoted(file)))
    builder, at = None, ""
    for prefix, event, value in ijson.parse(Shallow(path, runs, advice)):
        if builder is not None:
            builder.event(event, value)
            if prefix == at and event in ("end_map", "end_array"):
                yield at, builder.value
                builder = None
                if event == "end_map":
                    yield from zip(repeat(at), runs.objects())
        elif before and prefix == before:
            return
        elif prefix in prefixes and event in ("start_map", "start_array"):
            builder, at = ijson.ObjectBuilder(), prefix
            builder.event(event, value)
        elif prefix in prefixes and event not in ("map_key", "end_map", "end_array"):
            yield prefix, value


def told(path: Path, values: Iterator[Any], advice: str, what: str = "") -> Iterator[Any]:
    """Yield `values` of a parser, whose errors become one line."""
    sys.set_int_max_str_digits(0)  # ijson crashes on a longer number
    number = 0
    try:
        for value in values:
            number += 1
            yield value
    except (ijson.JSONError, ValueError, ArithmeticError) as error:
        where = f", after {what} {number}" if what else ""
        raise UserError(f"{path}: not whole JSON ({reason(error)}{where}); {advice}") from None


def reason(error: Exception) -> str:
    """Return what is wrong with the JSON. The parser's further lines quote the file."""
    if isinstance(error, ijson.JSONError):
        return re.split(r"\n|\\n", str(error).removeprefix("b'"))[0].rstrip(".")
    return "a text that is not UTF-8" if isinstance(error, UnicodeDecodeError) else "a number that is too large"


def json_line(line: bytes) -> Any:
    """Return the value in a line of JSON, half a character as U+FFFD; `ValueError` for one that is none."""
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return json.loads(Repaired(None).repair(line, ended=True).decode())  # bytes with half characters would pass
    except RecursionError:
        raise ValueError("lists in lists in lists") from None


def json_lines(path: Path, lines: Iterator[bytes], skip_bad: bool) -> Iterator[dict[str, Any]]:
    """Yield the object of each line of the JSONL at `path`; empty lines and comments, `# ...`, are none. For a line
    that is no object yield {}, or `UserError`."""
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if not stripped or stripped.startswith(b"#"):
            continue
        try:
            value = json_line(stripped)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            if not skip_bad:
                raise UserError(f"{path} line {number}: not a whole JSON object; {AGAIN}, or set skip_bad_lines: true")
            value = {}
        yield value


def encoding_of(start: bytes, whole: bool) -> str | None:
    """Return the encoding of a text with the bytes `start`: UTF-8, else GB18030, in which Chinese programs save; None
    for neither. A character that the end has cut is none of the text's, unless it is `whole`."""
    for encoding in ("utf-8", "gb18030"):
        for cut in range(1 if whole else 4):
            try:
                start[: len(start) - cut].decode(encoding)
                return encoding
            except UnicodeDecodeError:
                continue
    return None
