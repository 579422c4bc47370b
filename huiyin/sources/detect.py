"""Which format a history has, told by its first bytes and the keys of its JSON, never by its name."""

import os
import re
import reprlib
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import ijson

from huiyin.common.characters import skip_bom
from huiyin.common.errors import UserError
from huiyin.sources import (
    browser_json,
    chatlab,
    csv_file,
    discord,
    old_qq,
    own_csv,
    qce,
    telegram,
    wechat_csv,
    weflow,
    weq,
)
from huiyin.sources.files import AGAIN, encoding_of, json_line, json_values, readable, told

DATABASE = "database"
READERS: dict[str, Any] = {
    "qce": qce,
    "chatlab": chatlab,
    "weflow": weflow,
    "telegram": telegram,
    "old_qq": old_qq,
    "wechat_csv": wechat_csv,
    "weq": weq,
    "discord": discord,
    "csv": csv_file,
    "own_csv": own_csv,
    "db_browser": browser_json,
}
SQLITE = b"SQLite "  # then "format 3", or QQ's own "header 3"
START = 1 << 16  # bytes that are looked at
LONGEST_LINE = 1 << 22  # of JSONL
MOST_KEYS = 12
DEEP = 3  # names in a path of keys that rules look at
BINARY = {  # {first bytes: what it is}
    b"PK\x03\x04": "a zip or a spreadsheet; unpack it, or export as JSON",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet; save it as CSV",
    b"\x1f\x8b": "packed with gzip; unpack it",
}
WORDS = {  # {in the beginning of a text: what it is}
    r"\s*<(!doctype|html|\?xml)": "HTML; export as JSON",
    r"\[QQChatExporter ": "a text of QQ Chat Exporter, without ids and quotes; export as JSON there",
    r"From: <Save by Tencent MsgMgr>": "an .mht of QQ, or a text of TIM; export as .txt there",
    r"(CREATE|INSERT) ": "SQL; export as JSON",
}
# an object, a list, or the `null` that DB Browser writes for an empty table; other texts begin with a bracket, too
JSON = re.compile(rb"\s*(\{\s*[\"}]|\{\s*$|\[\s*([\]{\[\"]|null|true|false|-?\d+\s*[,\]]|$)|null\s*$|\")")
MEDIA = re.compile(
    r"(media|resources|images|videos|voices|emojis|files|avatars|photos|stickers|css|js|video_files|voice_messages|"
    r"round_video_messages|animations|.*_files)"
)


class Found(NamedTuple):
    """A history: the name of its format, and its files in natural order."""

    format: str
    path: Path
    heads: list["Head"]

    @property
    def reader(self) -> Any:
        return READERS[self.format]

    @property
    def files(self) -> list[Path]:
        return [head.path for head in self.heads]


class Head:
    """The beginning of a file: its bytes, its text, its first line, and the keys and first values of its JSON, which
    are looked for as far as they are asked for."""

    def __init__(self, path: Path):
        self.path = path
        with open(path, "rb") as file:
            skip_bom(file)
            self.start = file.read(START)
            self.whole = not file.read(1)
        self.keys: dict[str, Any] = {}  # {ijson's prefix: first value, or the event that begins it}
        self.ended: set[str] = set()
        self.events = self.walk()

    @cached_property
    def is_json(self) -> bool:
        return JSON.match(self.start) is not None

    @cached_property
    def encoding(self) -> str | None:
        return encoding_of(self.start, self.whole)

    @cached_property
    def text(self) -> str:
        return self.start.decode(self.encoding, "ignore") if self.encoding else ""

    @cached_property
    def line(self) -> dict[str, Any]:
        """The object in the first line of JSONL, {} if this is none."""
        with open(self.path, "rb") as file:
            skip_bom(file)
            for line in iter(lambda: file.readline(LONGEST_LINE), b""):
                if (stripped := line.strip()) and not stripped.startswith(b"#"):
                    try:
                        value = json_line(stripped) if line.endswith(b"\n") or len(line) < LONGEST_LINE else None
                    except ValueError:
                        value = None
                    return value if isinstance(value, dict) else {}
        return {}

    def walk(self) -> Iterator[str]:
        """Yield each new prefix in the JSON, one after the other; an error of the parser is a `UserError`."""
        with open(self.path, "rb") as file:
            skip_bom(file)
            events = ijson.parse(readable(self.path, file), multiple_values=True)
            for prefix, event, value in told(self.path, events, AGAIN):
                if event in ("end_map", "end_array"):
                    self.ended.add(prefix)
                    if not prefix:
                        return
                elif event != "map_key" and prefix not in self.keys and prefix.count(".") < DEEP:
                    self.keys[prefix] = event if event.startswith("start") else value
                    yield prefix

    def get(self, prefix: str) -> Any:
        """Return the first value at `prefix`, None if there is none; the file is read as far as that takes."""
        parent = prefix.rpartition(".")[0]
        while prefix not in self.keys and parent not in self.ended and next(self.events, None) is not None:
            pass
        return self.keys.get(prefix)

    def values(self, prefixes: Collection[str], before: str) -> Iterator[tuple[str, Any]]:
        """Yield what `json_values` does, of the beginning of the file."""
        with open(self.path, "rb") as file:
            skip_bom(file)
            yield from json_values(self.path, file, prefixes, before)

    def has(self, *prefixes: str) -> bool:
        return all(prefix in self.keys for prefix in prefixes)


def detect(path: Path, chosen: str = "auto") -> Found:
    """Return what the history at `path`, a file or a folder, is; `UserError` if it is none known, or several."""
    if path.is_dir():
        return in_folder(path, chosen)
    head = Head(path)
    if head.start.startswith(SQLITE) or path.suffix == ".db":
        return Found(DATABASE, path, [head])
    name, problem = format_of(head, chosen)
    if not name:
        raise UserError(f"{path}: {problem}")
    folder = READERS[name].folder_of(path) if hasattr(READERS[name], "folder_of") else None
    return in_folder(folder, name) if folder else Found(name, path, [head])


def in_folder(path: Path, chosen: str) -> Found:
    found: dict[str, list[Head]] = {}
    problems = []
    for file in files_in(path):
        head = Head(file)
        name, problem = format_of(head) if head.start else (None, "empty")
        if name and name not in ("csv", "own_csv"):  # a table of any kind may lie beside an export
            found.setdefault(name, []).append(head)
        elif problem:
            problems.append(f"{file.name} is {problem}")
    if not found:
        seen = f" ({problems[0]})" if problems else ""
        raise UserError(f"{path}: no export of a chat in this folder{seen}; name the file itself")
    found = {chosen: found[chosen]} if chosen in found else found
    if len(found) > 1:
        raise UserError(f"{path}: exports of several programs in this folder ({', '.join(found)}); name one file")
    name, heads = found.popitem()
    return Found(name, path, heads)


def files_in(path: Path) -> list[Path]:
    """Return the files below a folder in natural order (_5000_ before _10000_), but for those in folders of media."""
    files: list[Path] = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not MEDIA.fullmatch(name) and not name.startswith(".")]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted((file for file in files if file.is_file()), key=natural)


def natural(path: Path) -> list[Any]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", str(path))]


def format_of(head: Head, chosen: str = "auto") -> tuple[str | None, str]:
    """Return the name of the format of a file, or None and what it is instead."""
    for beginning, what in BINARY.items():
        if head.start.startswith(beginning):
            return None, what
    if not head.is_json and (head.encoding is None or b"\0" in head.start):
        return None, "neither UTF-8 nor GB18030 text; export it again, or save it as UTF-8"
    if chosen != "auto":
        while not READERS[chosen].recognizes(head) and head.is_json and next(head.events, None) is not None:
            pass  # a reader asks for keys that were seen
        return chosen, ""
    if not head.is_json and not head.start.lstrip().startswith(b"#"):
        for pattern, what in WORDS.items():
            if re.match(pattern, head.text, re.IGNORECASE):
                return None, what
    names = matching(head)
    while not names and head.is_json and next(head.events, None) is not None:
        names = matching(head)
    names = names or matching(head)  # that the JSON has ended may tell, too
    if len(names) > 1:
        return None, f"looks like {' and '.join(names)}; say which in parse.yaml: format: {names[0]}"
    if names:
        return names[0], ""
    return None, unknown(head)


def matching(head: Head) -> list[str]:
    return [name for name, reader in READERS.items() if reader.recognizes(head)]


def unknown(head: Head) -> str:
    """Return what is there instead of a known format, without the words of a chat."""
    if not head.is_json:
        return "no known form of a history in text; see docs/sources.md"
    if head.has("export_version") or head.has("item.napcat_message_id") or head.has("messages.item.napcat_message_id"):
        return "an export of QCE 3 or older; export again with QCE 6"
    keys = [name for key in head.keys if (name := key.removeprefix("item.")) and "." not in name and name != "item"]
    shown = f"the keys {', '.join(map(reprlib.repr, keys[:MOST_KEYS]))}" if keys else "no keys"
    return f"no export of a chat that is known here but JSON with {shown}; see docs/sources.md"
