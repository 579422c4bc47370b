"""The text that QQ's old clients export ("消息记录"): one chat, or all in sections. It has no ids and no quotes."""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from huiyin.sources.record import Record, iso, labelled

if TYPE_CHECKING:
    from huiyin.sources.detect import Head
    from huiyin.sources.export import Source

NATIVE_IDS, AS_IT_IS = False, False
LINE = "=" * 64  # begins a section; fewer are somebody's words
CHAT = "消息对象:"
BEGINNINGS = ("消息记录（", "消息分组:", CHAT)
# date, clock, half of the day, then a name with a number or a mail address, or (of a friend) a name alone
HEADER = re.compile(
    r"(\d{4}[-/]\d{1,2}[-/]\d{1,2}) (\d{1,2}:\d\d:\d\d)( [AP]M)? (?:(.*)(?:\((\d+)\)|<([^<>\s]+@[^<>\s]+)>)|(.+))",
    re.ASCII,
)
TITLE = re.compile(r"【[^】]*】(?=.)")
KINDS = {"图片": "image", "表情": "face", "语音": "voice", "视频": "video", "文件": "file", "闪照": "image"}
LABEL = re.compile(rf"\[({'|'.join(KINDS)})\]")
SYSTEM = ("10000", "1000000")


def recognizes(head: "Head") -> bool:
    return not head.is_json and any(line.startswith(BEGINNINGS) for line in head.text.splitlines()[:8])


def records(source: "Source") -> Iterator[Record]:
    source.notes.append("this format has no quotes; where another export of the same chat has them, prefer that one")
    for head in source.found.heads:
        for room, header, text in messages(source.lines(head)):
            yield to_record(source, room, header, text)


def messages(lines: Iterable[str]) -> Iterator[tuple[str, re.Match[str], str]]:
    """Yield (chat, header, text) of each message. A header has an empty line before it, which is no part of a text, and
    in a group the id of its sender: only there are names alone no headers."""
    room, previous, with_ids = "", "", None
    header: re.Match[str] | None = None
    body: list[str] = []
    for line in lines:
        line = line.rstrip("\r\n")
        found = HEADER.fullmatch(line) if line[:1].isdigit() and not previous.strip("=") else None
        if previous == LINE and line.startswith(BEGINNINGS):
            if header:
                yield room, header, "\n".join(body[:-1]).rstrip("\n")
            header, with_ids = None, None
            room = line.removeprefix(CHAT).strip() if line.startswith(CHAT) else room
        elif found and (with_ids is None or bool(found[7]) != with_ids):
            if header:
                yield room, header, "\n".join(body[:-1])
            with_ids = not found[7] if with_ids is None else with_ids
            header, body = found, []
        else:
            body.append(line)
        previous = line
    if header:
        yield room, header, "\n".join(body).rstrip("\n")


def to_record(source: "Source", room: str, header: re.Match[str], text: str) -> Record:
    date, clock, half, name, number, mail, alone = header.groups()
    name = alone or (TITLE.sub("", name, count=1) if "【" in name else name).strip()
    time = source.local(iso(date, of_day(clock, half) if half else clock))
    if number in SYSTEM:
        return Record("", room, time, None, number, name, [("tip", None)], (), None, "system")
    parts, reason = labelled(text, KINDS, LABEL), "not_a_group" if alone else None
    return Record("", room, time, None, number or mail or alone, name, parts, (), None, reason)


def of_day(clock: str, half: str) -> str:
    """Return a clock of half a day, as QQ writes it in the form of Windows' region, as one of the whole day."""
    hour, _, rest = clock.partition(":")
    return f"{int(hour) % 12 + 12 * (half == ' PM')}:{rest}"
