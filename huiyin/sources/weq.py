"""JSON and JSONL of WeQ, which reads QQNT's database; they have neither the group nor names."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from huiyin.common.tables import EVERYBODY
from huiyin.qqnt.body import AROUND_A_NAME
from huiyin.sources.record import (
    BAD_LINE,
    HIDDEN,
    Parts,
    Quote,
    Record,
    to_dict,
    to_list,
    to_number,
    to_seconds,
    to_text,
)

if TYPE_CHECKING:
    from huiyin.sources.detect import Head
    from huiyin.sources.export import Source

NATIVE_IDS, AS_IT_IS = True, False
KINDS = {
    **{"pic": "image", "video": "video", "ptt": "voice", "file": "file", "onlineFile": "file", "mface": "market_face"},
    **{"face": "face", "ark": "ark", "qqDynamic": "ark", "multiMsg": "forward", "call": "call", "wallet": "wallet"},
    **{"markdown": "markdown", "reply": "reply", "text": "text", "at": "at"},
}
NOBODY = ("", "0")
ALL = "@全体成员"


def recognizes(head: "Head") -> bool:
    return head.has("item.msgId", "item.senderUin") or {"msgId", "senderUin", "elements"} <= head.line.keys()


def records(source: "Source") -> Iterator[Record]:
    for head in source.found.heads:
        room = source.group or head.path.stem
        for message in source.items(head, "item") if head.keys else source.objects(head):
            yield to_record(source, to_dict(message), room) if message else BAD_LINE


def to_record(source: "Source", message: dict[str, Any], room: str) -> Record:
    parts: Parts = []
    mentions, quotes, tips = [], [], []
    for of in map(to_dict, to_list(message.get("elements"))):
        kind, data = to_text(of.get("type")), to_dict(of.get("data"))
        tips.append(kind.startswith("grayTip"))
        if part := to_part(kind, data):
            parts.append(part)
        if kind == "at":
            mentions.append(to_mention(data))
        elif kind == "reply":
            quotes.append(Quote(to_text(data.get("origMsgId"))))
    sender, uid = to_text(message.get("senderUin")), to_text(message.get("senderUid"))
    if sender not in NOBODY and uid:
        source.people[HIDDEN + uid] = sender
    return Record(
        to_text(message.get("msgId")),
        room,
        to_seconds(message.get("sendTime")),
        to_number(message.get("msgSeq")) or None,
        sender if sender not in NOBODY else HIDDEN + uid,
        "",
        parts,
        mentions,
        quotes[0] if quotes else None,
        "system" if tips and all(tips) else None,
    )


def to_mention(data: dict[str, Any]) -> str:
    uid = to_text(data.get("atUid"))
    if uid == "all" or to_text(data.get("textContent")) == ALL:
        return EVERYBODY
    return uid if uid.isdigit() and uid not in NOBODY else HIDDEN + uid


def to_part(kind: str, data: dict[str, Any]) -> tuple[str, str | None] | None:
    text = to_text(data.get("textContent"))
    if kind in ("text", "at"):
        return (kind, text) if text else None
    if kind == "face":
        name = to_text(data.get("faceText")).strip(AROUND_A_NAME)
        return kind, f"[{name}]" if name else None
    return "tip" if kind.startswith("grayTip") else KINDS.get(kind, f"unknown:{kind}"), None
