"""CSV of PyWxDump and WeClone (nine columns), and WeFlow's "WeClone CSV" (eight, without `room_name`), for WeChat."""

import csv
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from operator import itemgetter
from typing import TYPE_CHECKING

from huiyin.common.errors import UserError
from huiyin.sources.record import BAD_LINE, Mentions, Parts, Quote, Record, iso, to_dict, to_text, with_mentions

if TYPE_CHECKING:
    from huiyin.sources.detect import Head
    from huiyin.sources.export import Source

NATIVE_IDS, AS_IT_IS = False, False
NEEDED = {"type_name", "talker", "msg", "CreateTime"}
COLUMNS = ["room_name", "talker", "type_name", "msg", "CreateTime", "is_forward", "MsgSvrID"]
ROOM, TALKER = COLUMNS.index("room_name"), COLUMNS.index("talker")
GROUP = "@chatroom"
REPLY, TEXTS = "引用回复", ("文本", "粘贴的文本", "text")
KINDS = {
    **{
        "图片": "image",
        "语音": "voice",
        "视频": "video",
        "文件": "file",
        "动画表情": "market_face",
        "位置": "unknown:location",
    },
    **{
        "用户上传的GIF表情": "market_face",
        "位置共享": "unknown:location",
        "合并转发的聊天记录": "forward",
        "转账": "wallet",
    },
    **{
        "红包": "wallet",
        "语音通话": "call",
        "群公告": "ark",
        "推荐公众号": "ark",
        "image": "image",
        "sticker": "market_face",
    },
    **{"video": "video", "voice": "voice", "file": "file", "location": "unknown:location"},
    **dict.fromkeys(
        [f"(分享){what}" for what in ("音乐", "卡片式链接", "笔记", "小程序", "收藏夹", "视频号名片", "视频号视频")],
        "ark",
    ),
}
SYSTEM = ("系统通知", "消息撤回", "拍一拍", "邀请加群", "添加好友")
NOBODY = ("系统", "未知", "")
QUOTED = re.compile(r"\[引用\]\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\)[^:]*:(.*)", re.DOTALL)
SUFFIX = re.compile(r"(.*)\[引用 ([^：]*)：(.*)\]", re.DOTALL)  # WeFlow's
TIME = re.compile(r"(\d{4}[-/]\d{1,2}[-/]\d{1,2})[ T](\d{1,2}:\d\d)(:\d\d)?", re.ASCII)
LOST_ID = re.compile(r"[\d.,]+E[+-]?\d+", re.IGNORECASE)  # a spreadsheet has rounded it


def recognizes(head: "Head") -> bool:
    if head.is_json:  # users.json beside the pages: {wxid: {"wxid": ..., "nickname": ...}}
        return any(key.endswith(".wxid") and key.removesuffix(".wxid") == head.keys[key] for key in head.keys)
    return set(columns_of(head.text)) >= NEEDED


def columns_of(text: str) -> list[str]:
    first = text.partition("\n")[0]
    return [name.strip('"\ufeff\r ') for name in first.split(separator(first))]


def separator(line: str) -> str:
    return max(",;\t", key=line.count)


def records(source: "Source") -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)
    people: dict[str, str] = {}
    for head in (head for head in source.found.heads if head.is_json):
        for users in source.items(head, ""):
            people |= {wxid: to_text(to_dict(user).get("nickname")) for wxid, user in to_dict(users).items()}
    source.members |= {(name, wxid) for wxid, name in people.items() if name}
    talkers: dict[str, set[str]] = defaultdict(set)
    for head in (head for head in source.found.heads if not head.is_json):
        page = Page(source, people, "room_name" in columns_of(head.text))
        for row in rows_of(source, head):
            if row:
                yield page.to_record(row)
                talkers[row[ROOM]].add(row[TALKER])
            else:
                yield BAD_LINE
    source.private = {room for room, of in talkers.items() if not room.endswith(GROUP) and len(of - set(NOBODY)) <= 2}


def rows_of(source: "Source", head: "Head") -> Iterator[Sequence[str]]:
    """Yield the values of COLUMNS of each row, "" for a column that the page lacks; () for a row that has other
    columns, or `UserError`."""
    names = columns_of(head.text)
    places = {name: place for place, name in enumerate(names)}
    in_order = itemgetter(*(places.get(name, -1) for name in COLUMNS))
    reader = csv.reader(source.lines(head), delimiter=separator(head.text.partition("\n")[0]))
    next(reader)
    while True:
        try:
            for row in reader:
                if len(row) == len(names):
                    row.append("")
                    yield in_order(row)
                elif row:
                    problem = f"{len(row)} columns instead of {len(names)}"
                    break
            else:
                return
        except csv.Error as error:
            problem = str(error)
        if not source.skip_bad_lines:
            raise UserError(f"{head.path} line {reader.line_num}: {problem}; export again, or set skip_bad_lines: true")
        yield ()


class Page:
    """The rows of a file, and what of earlier ones a quote without an id needs."""

    def __init__(self, source: "Source", people: dict[str, str], with_rooms: bool) -> None:
        self.source, self.people, self.with_rooms = source, people, with_rooms
        self.words: set[str] = set()
        self.talkers: set[str] = set()

    def to_record(self, row: Sequence[str]) -> Record:
        room, talker, kind, text, time, forwarded, key = row
        system = kind in SYSTEM
        parts, mentions, quote = self.parts_of(kind, text, talker)
        if system or forwarded.lower() in ("1", "true"):
            parts = [("tip" if system else "forward", None)]
        return Record(
            "" if key == "0" or (not key.isdigit() and LOST_ID.fullmatch(key)) else key,
            room,
            self.to_time(time, room),
            None,
            "" if talker in NOBODY else talker,
            self.people.get(talker) or talker,
            parts,
            mentions,
            quote,
            "system" if system else None,
        )

    def parts_of(self, kind: str, text: str, talker: str) -> tuple[Parts, Mentions, Quote | None]:
        quote = None
        if kind == REPLY:
            text, head, quoted = text.rpartition("\n\n[引用](") if "\n\n[引用](" in text else (text, "", "")
            found = QUOTED.fullmatch(head.strip() + quoted)
            quote = Quote(time=self.source.local(found[1]), words=found[2]) if found else Quote()
        elif not self.with_rooms and (found := SUFFIX.fullmatch(text)):
            if found[2] in self.talkers and (found[3] in self.words or found[3].startswith("[")):
                text, quote = found[1], Quote(words=found[3])
        elif kind not in TEXTS:
            return [(KINDS.get(kind, f"unknown:{kind}"), None)], (), None
        if not self.with_rooms:
            self.words.add(text)
            self.talkers.add(talker)
        parts, mentions = with_mentions(text)
        return [("reply", None), *parts] if quote else parts, mentions, quote

    def to_time(self, text: str, room: str) -> int | None:
        text = text.strip()
        found = TIME.fullmatch(text)
        if not found:
            try:  # with a zone
                time = datetime.fromisoformat(text)
                return int(time.timestamp()) if time.tzinfo else None
            except (ValueError, OverflowError):
                return None
        date, clock, seconds = found.groups()
        if seconds is None:
            self.source.minutes[room] += 1
        return self.source.local(iso(date, clock + (seconds or ":00")))
