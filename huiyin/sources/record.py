"""What every reader of an export yields: records, the same for all formats; and the small rules that formats share."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from huiyin.common.tables import EVERYBODY

Parts = list[tuple[str, str | None]]
Mentions = Sequence[str]  # (), for nearly all messages, takes no time to make

HIDDEN = "\0"  # begins an id that only other rows explain: `Source.people` has it, or it stands for nobody
BY_NAME = "\0@"  # begins a mention of which only the name is known
PLAIN_ID = re.compile(r"[A-Za-z0-9_.-]*[A-Za-z0-9_-][A-Za-z0-9_.-]*", re.ASCII)  # what can be a TARGET of the Makefile
MARKS = (
    "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"  # of direction; nobody sees them
)
DIGITS = 10  # of a digest that stands for a person
MILLISECONDS = 100_000_000_000  # a time above is in milliseconds: as seconds it would be of the year 5138
WECHAT_MENTION = re.compile("@([^@\u2005]{1,64})\u2005")
NAMES_OF_EVERYBODY = ("所有人", "全体成员")


class Quote(NamedTuple):
    """What a message tells of the one that it quotes; each may be missing. `time` in seconds."""

    key: str = ""
    seq: int | None = None
    time: int | None = None
    sender: str = ""
    words: str = ""


class Record(msgspec.Struct, frozen=True, gc=False):
    """A message, as its export has it. (A named tuple takes three times as long to make.)

    key: the platform's own id, unique in the room. room: the id of the group; "" for `Source.room`. time: seconds, UTC.
    sender: the platform's id of the person, "" where nobody in particular speaks; or HIDDEN and an id. parts: (kind,
    fragment or None) for each element. mentions: ids as `sender`, EVERYBODY, or BY_NAME and a name. dropped: the
    reason, where the record alone tells it.
    """

    key: str
    room: str
    time: int | None
    seq: int | None
    sender: str
    name: str
    parts: Parts
    mentions: Mentions
    quote: Quote | None
    dropped: str | None


BAD_LINE = Record("", "", None, None, "", "", [], (), None, "bad_line")


def to_user_id(written: str) -> str:
    """Return the `user_id` for a platform's id: itself if it can be a TARGET, else "n-" and a digest, the same in every
    export."""
    if not written or PLAIN_ID.fullmatch(written):
        return written
    cleaned = unicodedata.normalize("NFC", written).strip().translate(dict.fromkeys(map(ord, MARKS))).strip()
    if PLAIN_ID.fullmatch(cleaned):
        return cleaned
    return "n-" + hashlib.sha256(cleaned.encode("utf-8", "replace")).hexdigest()[:DIGITS]


def to_text(value: Any) -> str:
    """Return an id or a name as text; "" for what is none."""
    if isinstance(value, str):
        return value
    return str(value) if type(value) is int else ""


def first_text(values: Mapping[str, Any], *names: str) -> str:
    """Return the first text among the values of `names` that is not empty."""
    for name in names:
        value = values.get(name)
        if text := value if isinstance(value, str) else to_text(value):
            return text
    return ""


def to_number(value: Any) -> int | None:
    """Return a number that was written as a number or as text; None for what is none, or does not fit 64 bits."""
    if type(value) is not int:  # nearly all are such
        if isinstance(value, str):
            value = int(value) if len(value) < 21 and value.removeprefix("-").isdecimal() and value.isascii() else None
        elif isinstance(value, float | Decimal) and -(1 << 53) < value < 1 << 53:
            value = int(value)
        else:
            return None
    return value if value is not None and -(1 << 63) <= value < 1 << 63 else None


def to_seconds(value: Any) -> int | None:
    """Return a time in seconds that was written in seconds or milliseconds."""
    number = to_number(value)
    return number // 1000 if number is not None and number > MILLISECONDS else number


def to_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def to_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def iso(date: str, clock: str) -> str:
    """Return a time in ISO's form; date: such as 2024/5/31, clock: such as 9:05:00."""
    return f"{iso_date(date)}T{clock:0>8}"


@lru_cache(100_000)  # most days have many messages
def iso_date(date: str) -> str:
    year, month, day = re.split("[-/]", date)
    return f"{year}-{month:0>2}-{day:0>2}"


def with_mentions(text: str) -> tuple[Parts, Mentions]:
    """Return parts and mentions of a text of WeChat, where a mention is `@name` and U+2005."""
    if "\u2005" not in text:
        return ([("text", text)] if text else []), ()
    parts: Parts = []
    mentions, start = [], 0
    for found in WECHAT_MENTION.finditer(text):
        parts += [("text", text[start : found.start()]), ("at", found[0])]
        mentions.append(EVERYBODY if found[1] in NAMES_OF_EVERYBODY else BY_NAME + found[1])
        start = found.end()
    parts.append(("text", text[start:]))
    return [part for part in parts if part[1]], mentions


def cut_at(text: str, labels: Iterable[tuple[str, str]]) -> Parts:
    """Return parts of a text in which each of `labels`, (what is written, kind), stands once for an element."""
    parts: Parts = [("text", text)]
    for label, kind in sorted(labels, key=lambda label: -len(label[0])):
        for index, (of, words) in enumerate(parts):
            if of == "text" and words and label and label in words:
                before, _, after = words.partition(label)
                parts[index : index + 1] = [("text", before), (kind, label if kind == "at" else None), ("text", after)]
                break
    return [part for part in parts if part[0] != "text" or part[1]]


def labelled(text: str, kinds: Mapping[str, str], words: re.Pattern[str]) -> Parts:
    """Return parts of a text in which a program has written labels for what text cannot show. words: finds a label,
    with its word as the first group, a key of `kinds`."""
    if "[" not in text:  # with which all labels begin
        return [("text", text)] if text else []
    parts: Parts = []
    start = 0
    for found in words.finditer(text):
        parts += [("text", text[start : found.start()]), (kinds[found[1]], None)]
        start = found.end()
    parts.append(("text", text[start:]))
    return [part for part in parts if part[0] != "text" or part[1]]
