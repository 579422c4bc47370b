"""QQ Chat Exporter (QCE), versions 4 to 6: a JSON file, or a folder of JSONL with a manifest.

Three forms of a message exist, told apart by their keys: A has one element for each of QQ's, in order; B one text of
everything, then the elements by kind; C (4.9.7 to 5.0.10) is refused.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huiyin.common.errors import UserError
from huiyin.common.tables import EVERYBODY
from huiyin.qqnt.body import AROUND_A_NAME, names_of_faces
from huiyin.sources.record import (
    BAD_LINE,
    HIDDEN,
    Parts,
    Quote,
    Record,
    cut_at,
    first_text,
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
    **{"image": "image", "video": "video", "audio": "voice", "file": "file", "face": "face", "reply": "reply"},
    **{"market_face": "market_face", "json": "ark", "forward": "forward", "wallet": "wallet", "av_record": "call"},
    **{"markdown": "markdown", "system": "tip", "text": "text", "at": "at"},
}
NOTICES = {"system", "av_record"}
NOBODY = ("", "0", "unknown", "未知")
SHORTEST_ID = 12  # digits; a shorter one in a quote is a sequence number
NUMBER_IN_NAME = re.compile(r"^(?:group|friend)_(?:.*_)?(\d{5,12})_\d{8}_\d{6,9}|\((\d{5,12})\)", re.ASCII)
MANIFEST = "manifest.json"


def recognizes(head: "Head") -> bool:
    chat = head.has("chatInfo") or head.has("metadata.mergedAt")
    if head.has("metadata") and chat and (head.has("messages") or head.has("chunked.chunks")):
        return True
    line = head.line
    return isinstance(line.get("content"), dict) and isinstance(line.get("sender"), dict) and is_message(line)


def is_message(value: dict[str, Any]) -> bool:
    return "id" in value or "messageId" in value


def folder_of(path: Path) -> Path | None:
    """Return the folder of an export in chunks, given its manifest or a chunk."""
    if path.name == MANIFEST:
        return path.parent
    return path.parent.parent if (path.parent.parent / MANIFEST).is_file() and path.suffix == ".jsonl" else None


def records(source: "Source") -> Iterator[Record]:
    chunks = {head.path.resolve(): head for head in source.found.heads if not head.has("metadata")}
    for head in source.found.heads:
        if head.has("chunked"):
            paths = chunk_paths(source, head)
            missing = next((path for path in paths if path.resolve() not in chunks), None)
            if missing:
                raise UserError(
                    f"{head.path}: names {missing.name}, which is not there or holds no messages; copy the whole folder"
                )
            of_chunks = [chunks.pop(path.resolve()) for path in paths]
            messages = (value for chunk in of_chunks for value in source.objects(chunk))
        elif head.has("metadata"):
            messages = (value for value in source.items(head, "messages.item"))
        else:
            continue
        yield from of_chat(source, head, messages)
    if lone := next(iter(chunks), None):
        raise UserError(f"{lone}: a chunk of an export, without its {MANIFEST}; copy the whole folder")


def chunk_paths(source: "Source", head: "Head") -> list[Path]:
    """Return the chunks that a manifest names, in its order."""
    chunked = next(iter([to_dict(content["chunked"]) for content in source.items(head, "")]))
    folder = to_text(chunked.get("chunksDir")) or "chunks"
    names = [
        to_text(chunk.get("relativePath")) or to_text(chunk.get("file")) or f"{folder}/{to_text(chunk.get('fileName'))}"
        for chunk in map(to_dict, to_list(chunked.get("chunks")))
    ]
    return [head.path.parent / name for name in names]


def of_chat(source: "Source", head: "Head", messages: Iterator[Any]) -> Iterator[Record]:
    peer = to_text(head.get("chatInfo.peerUid"))
    name = head.path.parent.name if head.has("chunked") else head.path.name
    number = NUMBER_IN_NAME.search(name)
    room = peer if peer.isdigit() else source.group or (number[1] or number[2] if number else "")
    private = head.get("chatInfo.type") == "private" and not name.startswith("group_")
    speakers, cards = set(), False
    for message in messages:
        message = to_dict(message)
        if not message:
            yield BAD_LINE
            continue
        sender = to_dict(message.get("sender"))
        speakers.add(to_text(sender.get("uid")))
        cards = cards or bool(sender.get("groupCard"))
        if "messageId" in message and "id" not in message:
            raise UserError(
                f"{head.path}: written by QCE 4.9.7 to 5.0.10 in a form that is not read; export again with QCE 6"
            )
        record = to_record(source, message, sender, room)
        if not room and record.dropped == "system" and not record.sender and to_text(sender.get("uid")).isdigit():
            source.room = source.room or to_text(sender["uid"])  # of system rows it is the number of the group
        yield record
    if peer.startswith("u_") or (private and not cards and len(speakers) <= 3):
        raise UserError(f"{head.path}: a private chat; export a group")
    source.room = source.room or source.group or to_text(head.get("chatInfo.name"))


def to_record(source: "Source", message: dict[str, Any], sender: dict[str, Any], room: str) -> Record:
    content = to_dict(message.get("content"))
    elements = [
        (to_text(of.get("type")), to_dict(of.get("data"))) for of in map(to_dict, to_list(content.get("elements")))
    ]
    collapsed = to_text(message.get("type")).startswith("type_") and "T" not in to_text(message.get("time"))
    notices = bool(elements) and {kind for kind, _ in elements} <= NOTICES
    system = message.get("type") == "system" or notices or (collapsed and message.get("system") is True)
    quotes = [to_quote(data) for kind, data in elements if kind == "reply"]
    return Record(
        to_text(message.get("id")),
        room,
        to_seconds(message.get("timestamp")),
        to_number(message.get("seq")) or None,
        to_sender(source, sender),
        first_text(sender, "groupCard", "nickname", "name"),
        collapsed_parts(source, elements) if collapsed else [part for of in elements for part in to_parts(*of)],
        [id for kind, data in elements if kind == "at" and (id := to_mention(data))],
        quotes[0] if quotes else None,
        "system" if system else None,
    )


def to_sender(source: "Source", sender: dict[str, Any]) -> str:
    """Return the QQ number, else the uid, hidden, of which another row may tell the number."""
    uid, number = to_text(sender.get("uid")), to_text(sender.get("uin"))
    if number in NOBODY:
        return HIDDEN + uid if uid.startswith("u_") else "" if uid in NOBODY or number else uid
    if uid:
        source.people[HIDDEN + uid] = number
    return number


def to_mention(data: dict[str, Any]) -> str:
    uid, number = to_text(data.get("uid")), to_text(data.get("uin"))
    if uid == "all":
        return EVERYBODY
    return number if number not in NOBODY else "" if uid in NOBODY else HIDDEN + uid if uid.startswith("u_") else uid


def to_quote(data: dict[str, Any]) -> Quote:
    ids = [to_text(data.get(name)) for name in ("referencedMessageId", "messageId")]
    key = next((id for id in ids if id not in NOBODY), "")
    is_seq = key.isdigit() and len(key) < SHORTEST_ID
    sender = to_text(data.get("senderUin"))
    time = to_seconds(data.get("timestamp")) or None
    return Quote("" if is_seq else key, int(key) if is_seq else None, time, "" if sender in NOBODY else sender)


def to_parts(kind: str, data: dict[str, Any]) -> Parts:
    """Return the part of an element, none for an empty text."""
    if kind == "text":
        text = to_text(data.get("text"))
        return [("text", text)] if text else []
    if kind == "at":
        return [("at", "@" + to_text(data.get("name")).lstrip("@"))]
    if kind in ("face", "market_face"):
        name = to_text(data.get("name")).strip(AROUND_A_NAME)
        name = name or (names_of_faces().get(to_number(data.get("id")) or -1, "") if kind == "face" else "")
        return [(kind, f"[{name}]" if name else None)]
    return [(KINDS.get(kind, f"unknown:{kind}"), None)]


def collapsed_parts(source: "Source", elements: list[tuple[str, dict[str, Any]]]) -> Parts:
    """Return the parts of form B: the quote, then the typed text with its mentions, then the other elements. What
    stands in the text for a quote or an element is cut out of it."""
    texts = [to_text(data.get("text")) for kind, data in elements if kind == "text"]
    others = [(kind, data) for kind, data in elements if kind not in ("text", "at", "reply")]
    text, parts = "".join(texts), []
    for _, data in (of for of in elements if of[0] == "reply"):
        parts.append(("reply", None))
        beginning = f"[回复 {to_text(data.get('senderName'))}: {to_text(data.get('content'))}]\n"
        source.odd["texts of quotes left in a message"] += text.startswith("[回复 ") and not text.startswith(beginning)
        text = text.removeprefix(beginning)
    for kind, data in others:
        text = text.replace(placeholder(kind, data), "", 1) if placeholder(kind, data) else text
    names = [("@" + to_text(data.get("name")).lstrip("@"), "at") for kind, data in elements if kind == "at"]
    return [*parts, *cut_at(text, names), *(part for of in others for part in to_parts(*of))]


def placeholder(kind: str, data: dict[str, Any]) -> str:
    """Return what form B writes into the text for an element."""
    file, title = to_text(data.get("filename")), to_text(data.get("title"))
    return {
        "image": f"[图片: {file}]",
        "video": f"[视频: {file}]",
        "file": f"[文件: {file}]",
        "audio": f"[语音 {data.get('duration')}秒]",
        "face": f"[{to_text(data.get('name'))}]",
        "market_face": f"[{to_text(data.get('name'))}]",
        "json": f"[卡片消息: {title}]",
        "forward": f"[合并转发: {data.get('messageCount')}条]",
        "location": f"[位置: {title}]",
    }.get(kind, "")
