"""JSON of WeFlow, EchoTrace and CipherTalk, three programs for WeChat of one family."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from huiyin.common.tables import EVERYBODY
from huiyin.sources.record import (
    Mentions,
    Parts,
    Quote,
    Record,
    first_text,
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
TEXTS, QUOTES, SYSTEM = ("文本消息", "引用消息"), "引用消息", "系统消息"
KINDS = {
    **{"图片消息": "image", "语音消息": "voice", "视频消息": "video", "文件消息": "file", "动画表情": "market_face"},
    **{"聊天记录": "forward", "转账消息": "wallet", "红包消息": "wallet", "红包卡片": "wallet", "通话消息": "call"},
    **dict.fromkeys(["链接消息", "小程序消息", "名片消息", "音乐消息", "群公告", "卡片式链接", "图文消息"], "ark"),
    "位置消息": "unknown:location",
}
NUMBERS = {1: "文本消息", 3: "图片消息", 34: "语音消息", 43: "视频消息", 47: "动画表情", 10000: SYSTEM}  # of WeChat
AT = re.compile(r"<atuserlist>(?:<!\[CDATA\[)?([^<\]]*)")
AT_ALL = ("notify@all", "announcement@all")
NAMES = ("groupNickname", "senderDisplayName", "displayName")
NO_WORDS = "[引用消息]"


def recognizes(head: "Head") -> bool:
    if head.has("chatlab"):
        return False
    of_family = head.has("session", "messages.item.senderUsername") or head.has("session", "messages.item.senderID")
    return head.has("weflow") or head.keys.get("exportInfo.generator") == "CipherTalk" or of_family


def records(source: "Source") -> Iterator[Record]:
    for head in source.found.heads:
        room = to_text(head.get("session.wxid")) or to_text(head.get("session.accountId"))
        room = to_text(head.get("session.groupId")) or room
        private = head.get("session.type") == "私聊" or head.get("session.isGroup") is False
        listed = [to_dict(of) for _, of in head.values(("senders.item",), before="messages")]
        senders = {to_text(of.get("senderID")): of for of in listed}
        for message in source.items(head, "messages.item"):
            yield to_record(to_dict(message), room, private, senders)


def to_record(message: dict[str, Any], room: str, private: bool, senders: dict[str, dict[str, Any]]) -> Record:
    listed = senders.get(to_text(message.get("senderID")), {}) if senders else {}
    sender = to_text(message.get("senderUsername")) or to_text(listed.get("accountId"))
    kind = to_text(message.get("type")) or NUMBERS.get(to_number(message.get("localType")) or 0, "")
    system = kind == SYSTEM or sender in ("", room)
    content = message.get("content")
    words, quote = without_quote(message, content if isinstance(content, str) else "", kind)
    if system:
        parts: Parts = [("tip", None)]
        mentions: Mentions = ()
    elif kind in TEXTS:
        parts, mentions = with_mentions(words)
    else:
        parts, mentions = [(KINDS.get(kind, f"unknown:{to_text(message.get('localType')) or kind}"), None)], ()
    if source := to_text(message.get("source")):
        mentions = mentioned(source) or mentions
    return Record(
        to_text(message.get("platformMessageId")),
        room,
        to_seconds(message.get("createTime")),
        None,
        "" if sender == room else sender,
        first_text(message, *NAMES) or first_text(listed, *NAMES),
        [("reply", None), *parts] if quote else parts,
        mentions,
        quote,
        "system" if system else "not_a_group" if private else None,
    )


def without_quote(message: dict[str, Any], text: str, kind: str) -> tuple[str, Quote | None]:
    """Return the words without those that they quote, `[引用 who：what]` at the end, and the quote."""
    target, quoted = to_text(message.get("replyToMessageId")), to_text(message.get("quotedContent"))
    if not target and not quoted and kind != QUOTES:
        return text, None
    who = to_text(message.get("quotedSender"))
    words = text.removesuffix(f"[引用 {who}：{quoted}]" if who else f"[引用 {quoted}]") if quoted else text
    return "" if words == NO_WORDS else words, Quote(target, words=quoted)


def mentioned(source: str) -> list[str]:
    found = AT.search(source)
    ids = [each.strip() for each in found[1].split(",")] if found else []
    return [EVERYBODY if each in AT_ALL else each for each in ids if each]
