"""Telegram Desktop's "Machine-readable JSON": one chat, or all of them, of which only groups are read."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from huiyin.sources.record import Mentions, Parts, Quote, Record, to_dict, to_list, to_seconds, to_text

if TYPE_CHECKING:
    from huiyin.sources.detect import Head
    from huiyin.sources.export import Source

NATIVE_IDS, AS_IT_IS = False, False
GROUPS = ("private_group", "private_supergroup", "public_supergroup")
OTHERS = (
    "personal_chat",
    "bot_chat",
    "saved_messages",
    "replies",
    "verification_codes",
    "private_channel",
    "public_channel",
)
CHATS, MESSAGES = ("chats", "left_chats"), "messages.item"
KEYS = ("name", "type", "id", MESSAGES)
MEDIA = {
    **{"sticker": "market_face", "video_message": "video", "voice_message": "voice", "animation": "image"},
    **{"video_file": "video", "audio_file": "file"},
}
OF_KEY = {  # {key of a message: the kind of what it holds}
    **{
        "photo": "image",
        "poll": "unknown:poll",
        "location_information": "unknown:location",
        "contact_information": "ark",
    },
    **{"game_title": "ark", "invoice_information": "ark", "todo_list": "unknown:todo_list"},
    "paid_stars_amount": "unknown:paid_media",
}
SHOWN = frozenset(OF_KEY)


def recognizes(head: "Head") -> bool:
    single = head.has("messages") and head.keys.get("type") in GROUPS + OTHERS
    return single or head.has("chats.list") or head.has("left_chats.list")


def records(source: "Source") -> Iterator[Record]:
    for head in source.found.heads:
        if head.has("messages"):
            chat = Chat(source, to_text(head.get("id")), to_text(head.get("type")))
            for message in source.items(head, "messages.item"):
                yield chat.to_record(to_dict(message))
        else:
            yield from of_all(source, head)


def of_all(source: "Source", head: "Head") -> Iterator[Record]:
    """Yield the records of an export of all chats; what a chat is comes before its messages."""
    chat, about = None, dict[str, str]()
    for prefix, value in source.values(head, [f"{chats}.list.item.{key}" for chats in CHATS for key in KEYS]):
        key = prefix.rpartition("list.item.")[2]
        if key == MESSAGES:
            chat = chat or Chat(source, about.get("id", ""), about.get("type", ""))
            yield chat.to_record(to_dict(value))
        else:
            about = {key: to_text(value)} if chat or key in about else {**about, key: to_text(value)}
            chat = None


class Chat:
    """One chat, and what of its messages later ones need."""

    def __init__(self, source: "Source", number: str, kind: str) -> None:
        self.source, self.room, self.is_group = source, number, kind in GROUPS
        self.itself = {f"channel{number}", f"chat{number}"}
        self.topics: set[str] = set()  # messages that open a topic: each of the topic "replies" to it

    def to_record(self, message: dict[str, Any]) -> Record:
        kind, key = message.get("type"), to_text(message.get("id"))
        if kind == "service" and message.get("action") == "topic_created":
            self.topics.add(key)
        time = to_seconds(message.get("date_unixtime"))
        if time is None and (date := to_text(message.get("date"))):
            time = self.source.local(date)
        sender = to_text(message.get("from_id")) or to_text(message.get("actor_id"))
        parts: Parts = [("tip", None)]
        mentions: Mentions = ()
        if kind == "message":
            parts, mentions = parts_of(message)
        target, quote = to_text(message.get("reply_to_message_id")), None
        if target and target not in self.topics and kind == "message":
            quote = Quote("" if message.get("reply_to_peer_id") else target)
            parts = [("reply", None), *parts]
        return Record(
            key,
            self.room,
            time,
            None,
            "" if sender in self.itself else f"user{sender}" if sender.isdigit() else sender,
            to_text(message.get("from")) or to_text(message.get("actor")),
            parts if kind != "unsupported" else [],
            mentions,
            quote,
            "system" if kind == "service" else None if self.is_group else "not_a_group",
        )


def parts_of(message: dict[str, Any]) -> tuple[Parts, Mentions]:
    if "forwarded_from" in message:
        return [("forward", None)], ()
    if message.get("via_bot"):
        return [("ark", None)], ()
    parts: Parts = []
    if not SHOWN.isdisjoint(message):
        parts += [(kind, None) for key, kind in OF_KEY.items() if key in message]
    if "file" in message or "media_type" in message:
        parts.append((MEDIA.get(to_text(message.get("media_type")), "file"), None))
    text = message.get("text")
    if isinstance(text, str):
        if text:
            parts.append(("text", text))
        return parts, ()
    words, mentions = typed(to_list(text))
    return parts + words, mentions


def typed(pieces: list[Any]) -> tuple[Parts, Mentions]:
    """Return parts and mentions of a text: what is no mention is one fragment with its neighbours."""
    parts: Parts = []
    mentions = []
    for piece in pieces:
        piece = piece if isinstance(piece, dict) else {"text": piece}
        kind, text = to_text(piece.get("type")), to_text(piece.get("text"))
        if kind in ("mention", "mention_name"):
            parts.append(("at", text))
            if user := to_text(piece.get("user_id")):
                mentions.append(f"user{user}")
        elif parts and parts[-1][0] == "text":
            parts[-1] = ("text", (parts[-1][1] or "") + text)
        else:
            parts.append(("text", text))
    return [part for part in parts if part[1]], mentions
