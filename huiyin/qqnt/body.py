"""Message bodies (column 40800): from protobuf to fragments, kinds, mentions and the quote."""

import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError

from huiyin.common.characters import WHITE_SPACE
from huiyin.common.tables import EVERYBODY
from huiyin.qqnt.qqnt_pb2 import Body, Element

KINDS = {  # field 45002 of an element
    **{1: "text", 2: "image", 3: "file", 4: "voice", 5: "video", 6: "face", 7: "reply", 8: "tip", 9: "wallet"},
    **{10: "ark", 11: "market_face", 14: "markdown", 16: "forward", 21: "call", 27: "face"},
}
TEXT, REPLY = 1, 7
MENTION = -TEXT  # our own number: QQ gives a mention the kind of a text
MENTIONS_EVERYBODY = 1  # field 45102
FACE = 6
FACE_LABELS: dict[int, Callable[[Element], bytes]] = {  # {kind of a face: what it calls itself, in UTF-8}
    FACE: lambda element: element.face_label,
    11: lambda element: element.market_face_label,
    27: lambda element: element.bubble_face_label,
}
GESTURE = 5  # subkind of a face: a poke, a heart, ..., numbered by themselves
AROUND_A_NAME = f"[]/{WHITE_SPACE}"  # QQ writes /捂脸 in one kind of faces, [贴贴] in another
ELEMENT_TAG = bytes.fromhex("82F613")  # field 40800, length-delimited


class Content(NamedTuple):
    """What a body holds. `kinds` has a number for each element (45002, or MENTION), see `kind_name`. `mentions` has QQ
    numbers, EVERYBODY, and where there is no number a uid, `u_...`."""

    fragments: list[str]
    kinds: list[int]
    mentions: list[str]
    quote: Element | None


def kind_name(number: int) -> str:
    return "at" if number == MENTION else KINDS.get(number) or f"unknown:{number}"


class BodyReader:
    """Reads bodies and counts the damage in them.

    Elements of the kinds `placeholders` get a fragment too; with `name_faces` so do faces, if they have a name.
    """

    def __init__(self, placeholders: Iterable[str] = (), name_faces: bool = False):
        self.placeholders = {number: kind for number, kind in KINDS.items() if kind in placeholders}
        self.face_labels = FACE_LABELS if name_faces else {}
        self.undecodable = 0  # bodies that protobuf refuses as a whole
        self.invalid_texts = 0  # texts that are not UTF-8

    def read(self, body: bytes) -> Content:
        try:
            elements = Body.FromString(body).elements
        except DecodeError:
            self.undecodable += 1
            elements = whole_elements(body)
        fragments: list[str] = []
        kinds: list[int] = []
        mentions: list[str] = []
        quote = None
        for element in elements:
            number = element.kind
            if number == TEXT:
                fragments.append(self.decode(element.text))
                if element.at_kind or element.at_uid:
                    number = MENTION
                    mentions.append(mentioned(element))
            elif number == REPLY:
                quote = quote or element
            elif number in self.face_labels and (name := self.face_name(element)):
                fragments.append(f"[{name}]")
            elif number in self.placeholders:
                fragments.append(self.decode(PLACEHOLDERS[self.placeholders[number]](element)))
            kinds.append(number)
        return Content(fragments, kinds, mentions, quote)

    def face_name(self, element: Element) -> str:
        """Return the label of a face without the marks around it, else the name that QQ gives its id, else ""."""
        name = self.decode(self.face_labels[element.kind](element)).strip(AROUND_A_NAME)
        if not name and element.kind == FACE and element.subkind != GESTURE:
            return names_of_faces().get(element.face_id, "")
        return name

    def decode(self, text: bytes) -> str:
        try:
            return text.decode()
        except UnicodeDecodeError:
            self.invalid_texts += 1
            return text.decode("utf-8", "replace")


@cache
def names_of_faces() -> dict[int, str]:
    """Return QQ's own names of its faces by id (47601), from faces.tsv beside this file. The ids and names are facts of
    QQ's clients, as the documents of many bots list them; the table contains no picture and no text of anybody."""
    lines = Path(__file__).with_name("faces.tsv").read_text(encoding="utf-8").splitlines()
    return {int(number): name for number, name in (line.split("\t") for line in lines)}


def mentioned(element: Element) -> str:
    if element.at_kind == MENTIONS_EVERYBODY:
        return EVERYBODY
    return str(element.at_qq) if element.at_qq else element.at_uid.decode("utf-8", "replace")


def whole_elements(body: bytes) -> Iterator[Element]:
    """Yield the elements of a damaged body up to the first that is not whole."""
    offset = 0
    while body.startswith(ELEMENT_TAG, offset):
        length, offset = read_varint(body, offset + len(ELEMENT_TAG))
        if length is None or offset + length > len(body):
            return
        try:
            yield Element.FromString(body[offset : offset + length])
        except DecodeError:
            return
        offset += length


def read_varint(data: bytes, offset: int) -> tuple[int | None, int]:
    """Return the number at `offset` and the offset after it; None for a number without an end."""
    value = shift = 0
    for byte in data[offset : offset + 10]:
        offset += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, offset
    return None, offset


def ark_prompt(card: bytes) -> bytes:
    try:
        return json.loads(card)["prompt"].encode("utf-8", "replace")
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return b""


PLACEHOLDERS: dict[str, Callable[[Element], bytes]] = {  # {kind: its text in UTF-8}
    "image": lambda element: b"".join(element.picture_label) or "[图片]".encode(),
    "file": lambda element: "[文件]".encode() + element.file_name,
    "voice": lambda element: element.voice_transcript or "[语音]".encode(),
    "video": lambda element: "[视频]".encode(),
    "face": lambda element: element.face_label or element.bubble_face_label or "[表情]".encode(),
    "market_face": lambda element: element.market_face_label or "[表情]".encode(),
    "wallet": lambda element: element.wallet.greeting or element.wallet.prompt or "[红包]".encode(),
    "ark": lambda element: ark_prompt(element.ark_json) or "[卡片]".encode(),
    "markdown": lambda element: element.markdown_text or "[文档]".encode(),
    "forward": lambda element: "[聊天记录]".encode(),
    "call": lambda element: element.call_text or element.call_summary or "[通话]".encode(),
}
