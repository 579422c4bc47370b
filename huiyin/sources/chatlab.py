"""The exchange format of ChatLab, JSON or JSONL, which programs for WeChat, QQ, Feishu and others write.

A message has one text and one kind. Specification 0.0.2.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from huiyin.sources.record import (
    BAD_LINE,
    HIDDEN,
    Mentions,
    Parts,
    Quote,
    Record,
    first_text,
    labelled,
    to_dict,
    to_number,
    to_seconds,
    to_text,
    with_mentions,
)

if TYPE_CHECKING:
    from huiyin.sources.detect import Head
    from huiyin.sources.export import Source

NATIVE_IDS, AS_IT_IS = False, False
TEXTS, REPLY = (0, 25), 25
KINDS = {
    **{1: "image", 2: "voice", 3: "video", 4: "file", 5: "market_face", 7: "ark", 8: "unknown:location"},
    **{20: "wallet", 21: "wallet", 23: "call", 24: "ark", 26: "forward", 27: "ark"},
}
SYSTEM = (22, 80, 81)  # a poke, a notice, something recalled
LABELS = {  # what WeQ writes for elements into a text
    **{"图片": "image", "表情": "market_face", "视频": "video", "语音": "voice", "文件": "file", "卡片消息": "ark"},
    **{"合并转发": "forward", "通话": "call", "红包/转账": "wallet", "动态": "ark"},
}
LABEL = re.compile(rf"\[({'|'.join(LABELS)})(?:: [^\]\n]*)?\]")


def recognizes(head: "Head") -> bool:
    return head.has("chatlab") or head.line.get("_type") == "header"


def records(source: "Source") -> Iterator[Record]:
    for head in source.found.heads:
        if head.line.get("_type") == "header":
            yield from of_lines(source, head)
        else:
            private, room = head.get("meta.type") == "private", group_of({}, head)
            by_weq = "WeQ" in to_text(head.get("chatlab.generator"))
            for _, member in head.values(("members.item",), before="messages"):
                learn(source, to_dict(member))
            for message in source.items(head, "messages.item"):
                yield to_record(to_dict(message), room, private, by_weq)


def group_of(meta: dict[str, Any], head: "Head") -> str:
    values = [meta.get(name) if meta else head.get(f"meta.{name}") for name in ("groupId", "name")]
    return next(filter(None, map(to_text, values)), "")


def of_lines(source: "Source", head: "Head") -> Iterator[Record]:
    meta = to_dict(head.line.get("meta"))
    private, room = meta.get("type") == "private", group_of(meta, head) if meta else ""
    by_weq = "WeQ" in to_text(to_dict(head.line.get("chatlab")).get("generator"))
    for line in source.objects(head):
        kind = line.get("_type")
        if kind == "member":
            learn(source, line)
        elif not line:
            yield BAD_LINE
        elif kind == "message":
            yield to_record(line, room, private, by_weq)


def learn(source: "Source", member: dict[str, Any]) -> None:
    of = to_text(member.get("platformId"))
    source.members |= {
        (name, of) for name in map(to_text, (member.get("groupNickname"), member.get("accountName"))) if name
    }


def to_record(message: dict[str, Any], room: str, private: bool, by_weq: bool) -> Record:
    kind, sender = to_number(message.get("type")), to_text(message.get("sender"))
    target = to_text(message.get("replyToMessageId"))
    system = kind in SYSTEM or sender in ("", room)
    parts, mentions = parts_of(kind, to_text(message.get("content")), by_weq)
    quote = None
    if not system and (target or kind == REPLY):
        quote, parts = Quote(target), [("reply", None), *parts]
    return Record(
        to_text(message.get("platformMessageId")),
        room,
        to_seconds(message.get("timestamp")),
        None,
        HIDDEN + sender if sender.startswith("u_") and by_weq else sender,
        first_text(message, "groupNickname", "accountName"),
        [("tip", None)] if system else parts,
        mentions,
        quote,
        "system" if system else "not_a_group" if private else None,
    )


def parts_of(kind: int | None, text: str, by_weq: bool) -> tuple[Parts, Mentions]:
    if kind not in TEXTS:
        return [(KINDS.get(kind or -1, f"unknown:{kind}"), None)], ()
    return (labelled(text, LABELS, LABEL), ()) if by_weq else with_mentions(text)
