"""JSON of DiscordChatExporter: a file a channel or thread, or several parts of one."""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from huiyin.common.tables import EVERYBODY
from huiyin.sources.record import Mentions, Parts, Quote, Record, first_text, to_dict, to_list, to_text

if TYPE_CHECKING:
    from huiyin.sources.detect import Head
    from huiyin.sources.export import Source

NATIVE_IDS, AS_IT_IS = False, False
PRIVATE = "DirectTextChat"
SPOKEN = ("Default", "Reply", "20", "23")  # the last two: what a bot says to a command
KINDS = {
    **dict.fromkeys(["png", "jpg", "jpeg", "gif", "webp", "bmp", "heic", "avif"], "image"),
    **dict.fromkeys(["ogg", "mp3", "m4a", "wav", "opus", "flac"], "voice"),
    **dict.fromkeys(["mp4", "mov", "webm", "mkv", "avi"], "video"),
}
RAW = r"<@!?(\d+)>"
ALL = ("@everyone", "@here")
FRACTION = re.compile(r"\.\d+")


def recognizes(head: "Head") -> bool:
    return head.has("guild", "channel", "messages")


def records(source: "Source") -> Iterator[Record]:
    for head in source.found.heads:
        room, private = to_text(head.get("channel.id")), head.get("channel.type") == PRIVATE
        for message in source.items(head, "messages.item"):
            yield to_record(to_dict(message), room, private)


def to_record(message: dict[str, Any], room: str, private: bool) -> Record:
    author, reference = to_dict(message.get("author")), to_dict(message.get("reference"))
    kind = to_text(message.get("type"))
    system = kind not in SPOKEN
    parts, mentions = parts_of(message, reference)
    quote = None
    if kind == "Reply":
        here = reference.get("channelId") in (None, room)
        quote = Quote(to_text(reference.get("messageId")) if here else "")
        parts = [("reply", None), *parts]
    return Record(
        to_text(message.get("id")),
        room,
        to_time(to_text(message.get("timestamp"))),
        None,
        to_text(author.get("id")),
        first_text(author, "nickname", "name"),
        [("tip", None)] if system else parts,
        mentions,
        quote,
        "system" if system else "not_a_group" if private else None,
    )


def to_time(text: str) -> int | None:
    try:
        time = datetime.fromisoformat(FRACTION.sub("", text) if "." in text else text)
        return int(time.timestamp()) if time.tzinfo else None
    except (ValueError, OverflowError):
        return None


def parts_of(message: dict[str, Any], reference: dict[str, Any]) -> tuple[Parts, Mentions]:
    if reference.get("type") == "Forward":
        return [("forward", None)], ()
    parts: Parts = []
    for file in to_list(message.get("attachments")):
        name = to_text(to_dict(file).get("fileName"))
        parts.append((KINDS.get(name.rpartition(".")[2].lower(), "file"), None))
    parts += [("market_face", None)] * len(to_list(message.get("stickers")))
    words, mentions = typed(to_text(message.get("content")), to_list(message.get("mentions")))
    parts += words
    if not parts and to_list(message.get("embeds")):
        parts.append(("ark", None))
    return parts, mentions


def typed(text: str, mentioned: list[Any]) -> tuple[Parts, Mentions]:
    """Return parts and mentions of a text. `mentioned`: people whose name may stand in it, and the author of a quoted
    message."""
    if "@" not in text:
        return ([("text", text)] if text else []), ()
    ids: dict[str, str] = {}
    for user in map(to_dict, mentioned):
        ids |= {f"@{name}": to_text(user.get("id")) for key in ("name", "nickname") if (name := to_text(user.get(key)))}
    ids |= dict.fromkeys(ALL, EVERYBODY)
    names = "|".join(map(re.escape, sorted(ids, key=len, reverse=True)))
    parts: Parts = []
    mentions, start = [], 0
    for found in re.finditer(f"{RAW}|{names}", text):
        parts += [("text", text[start : found.start()]), ("at", found[0])]
        mentions.append(found[1] or ids[found[0]])
        start = found.end()
    parts.append(("text", text[start:]))
    return [part for part in parts if part[1]], mentions
