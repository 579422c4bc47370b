"""CSV of PyWxDump and WeClone (nine columns), and WeFlow's "WeClone CSV" (eight, without `room_name`), for WeChat."""

import csv
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from huiyin.common.errors import UserError
from huiyin.sources.record import BAD_LINE, Parts, Quote, Record, to_dict, to_text, with_mentions

if TYPE_CHECKING:
    from huiyin.sources.detect import Head
    from huiyin.sources.export import Source

NATIVE_IDS, AS_IT_IS = False, False
NEEDED = {"type_name", "talker", "msg", "CreateTime"}
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
TIME = re.compile(r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})[ T](\d{1,2}):(\d\d)(?::(\d\d))?", re.ASCII)
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
        page = Page(source, people)
        for row in rows_of(source, head):
            yield page.to_record(row) if row else BAD_LINE
            if row:
                talkers[row.get("room_name", "")].add(row["talker"])
    source.private = {room for room, of in talkers.items() if not room.endswith(GROUP) and len(of - set(NOBODY)) <= 2}


def rows_of(source: "Source", head: "Head") -> Iterator[dict[str, str]]:
    """Yield the values of each row by name of column; {} for a row that has others, or `UserError`."""
    names = columns_of(head.text)
    reader = csv.reader(source.lines(head), delimiter=separator(head.text.partition("\n")[0]))
    next(reader)
    while True:
        try:
            row = next(reader, None)
            if row is None:
                return
            problem = f"{len(row)} columns instead of {len(names)}" if len(row) != len(names) else ""
        except csv.Error as error:
            row, problem = [""], str(error)
        if problem and row:
            if not source.skip_bad_lines:
                raise UserError(
                    f"{head.path} line {reader.line_num}: {problem}; export again, or set skip_bad_lines: true"
                )
            yield {}
        elif row:
            yield dict(zip(names, row, strict=True))


class Page:
    """The rows of a file, and what of earlier ones a quote without an id needs."""

    def __init__(self, source: "Source", people: dict[str, str]) -> None:
        self.source, self.people = source, people
        self.words: set[str] = set()
        self.talkers: set[str] = set()

    def to_record(self, row: dict[str, str]) -> Record:
        room, talker, kind = row.get("room_name", ""), row["talker"], row["type_name"]
        system, forwarded = kind in SYSTEM, row.get("is_forward", "").lower() in ("1", "true")
        key = row.get("MsgSvrID", "")
        parts, mentions, quote = self.parts_of(row, kind)
        return Record(
            "" if LOST_ID.fullmatch(key) or key == "0" else key,
            room,
            self.to_time(row["CreateTime"], room),
            None,
            "" if talker in NOBODY else talker,
            self.people.get(talker) or talker,
            [("tip", None)] if system else [("forward", None)] if forwarded else parts,
            mentions,
            quote,
            "system" if system else None,
        )

    def parts_of(self, row: dict[str, str], kind: str) -> tuple[Parts, list[str], Quote | None]:
        text, quote = row["msg"], None
        if kind == REPLY:
            text, head, quoted = text.rpartition("\n\n[引用](") if "\n\n[引用](" in text else (text, "", "")
            found = QUOTED.fullmatch(head.strip() + quoted)
            quote = Quote(time=self.source.local(found[1]), words=found[2]) if found else Quote()
        elif "room_name" not in row and (found := SUFFIX.fullmatch(text)):
            if found[2] in self.talkers and (found[3] in self.words or found[3].startswith("[")):
                text, quote = found[1], Quote(words=found[3])
        elif kind not in TEXTS:
            return [(KINDS.get(kind, f"unknown:{kind}"), None)], [], None
        if "room_name" not in row:
            self.words.add(text)
            self.talkers.add(row["talker"])
        parts, mentions = with_mentions(text)
        return [("reply", None), *parts] if quote else parts, mentions, quote

    def to_time(self, text: str, room: str) -> int | None:
        found = TIME.fullmatch(text.strip())
        if not found:
            try:  # with a zone
                time = datetime.fromisoformat(text.strip())
                return int(time.timestamp()) if time.tzinfo else None
            except (ValueError, OverflowError):
                return None
        year, month, day, hour, minute, second = found.groups()
        if second is None:
            self.source.minutes[room] += 1
        return self.source.local(f"{year}-{month:0>2}-{day:0>2}T{hour:0>2}:{minute}:{second or '00'}")
