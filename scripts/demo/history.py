"""Write an invented group history as QQNT stores it: encrypted, with the special cases that real ones have.

    python scripts/demo/history.py --seed 1 --messages 1500 --out data/demo/sample

Two groups, eight members; none of them exists. The same seed gives the same messages (only the random salts of the
encryption differ). Messages are generated one at a time, so millions of them need no more memory.
"""

from __future__ import annotations

import huiyin.common.starting  # noqa: F401

import heapq
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from huiyin.common.errors import run
from huiyin.common.progress import Progress
from huiyin.common.stage import Stage, arguments
from huiyin.qqnt.body import ELEMENT_TAG
from huiyin.qqnt.cipher import Cipher, build_header
from huiyin.qqnt.qqnt_pb2 import Element, Header
from scripts.demo.talk import EXCHANGES, OPENERS, REMARKS, SLOTS, TARGET_REMARKS, THANKS, TRICKY_TEXTS

KEY = "h8#K'q2\"x;Z%7\\mP"  # 16 printable characters, with those that need quoting
START = 1_660_471_938  # 2022-08-14T10:12:18Z
DAY, UTC_8 = 86_400, 8 * 3600
BUSY = START + 3 * 365 * DAY  # then pauses are short, or seven million messages would end after 2038
SPECIAL_EVERY = 20  # messages of a group between two SPECIAL_CASES, which take turns
SPECIAL_CASES = """
    tricky_text images recalled dangling doubled tricky_text stickers everybody tips bodiless two_mentions timeless
    numberless other_kinds
""".split()
BATCH = 5_000
FACES = {"/捂脸": 264, "/斜眼笑": 178, "/吃瓜": 271, "/狂笑": 283, "/打call": 311}  # label -> id


@dataclass(frozen=True)
class Group:
    number: int
    key: int  # column 40027, here a local number as on some clients
    name: str


@dataclass(frozen=True)
class Member:
    qq: int
    nickname: str
    cards: tuple[str, str] = ("", "")  # one for each group
    silent: bool = False  # rows have no name of this member; the companion databases have it
    talks: int = 2  # a weight: members with more answer more often

    @property
    def uid(self) -> str:
        return "u_" + f"{self.qq}-sample-sample-sample"[:22]

    def card_in(self, group: Group) -> str:
        return self.cards[GROUPS.index(group)]

    def name_in(self, group: Group) -> str:
        return self.card_in(group) or self.nickname


@dataclass(frozen=True)
class Part:
    """One element: its kind, as parse names it, its text, and for a mention the user id."""

    kind: str
    text: str = ""
    user_id: str = ""

    @property
    def fragment(self) -> str:
        """What parse must make of it; "" for no fragment."""
        if self.kind in ("face", "market_face"):
            return f"[{self.text.strip('/[]')}]"
        return self.text if self.kind in ("text", "at") else ""


@dataclass(frozen=True)
class Quote:
    """The quoted message as a reply describes it; `message_id` is None if it is not in the history."""

    message_id: int | None
    seq: int
    qq: int
    time: int
    text: str


@dataclass(frozen=True)
class Message:
    """One row, and what parse must do with it: keep it, or drop it for the reason `dropped`."""

    message_id: int
    group: Group
    seq: int
    time: int
    sender: Member | None  # None: a system row
    parts: list[Part] | None  # None: the body is NULL
    quote: Quote | None = None
    dropped: str = ""
    outer: tuple[int, int] = (2, 1)  # columns 40011 and 40012
    numberless: bool = False  # 40033 is 0: only the uid identifies the sender

    def as_quote(self) -> Quote:
        assert self.parts is not None and self.sender is not None
        text = "".join(part.text for part in self.parts) or "[图片]"
        return Quote(self.message_id, self.seq, self.sender.qq, self.time, text)


GROUPS = (Group(700100200, 51, "回音小区"), Group(2900100300, 52, "三教自习室"))
TARGET = Member(10002, "老陈", ("陈师傅", ""), talks=7)
MEMBERS = (
    TARGET,
    Member(20001, "林小雨", ("小雨", "小雨(班长)")),
    Member(20003, "阿杰"),
    Member(20004, "Mia", ("", 'Mia, the "foreigner"')),
    Member(3456789012, "夜猫子", ("夜猫子🐱", "")),
    Member(20006, "豆豆"),
    Member(4012345678, "[引号'侠]", ("", "['侠']\n换行"), talks=1),
    Member(20008, "沉默是金", ("", "潜水员"), silent=True, talks=1),
)


# ---- the conversations


def history(seed: int, messages: int) -> Iterator[Message]:
    """Yield `messages` Messages in the order of their time, both groups mixed."""
    conversations = (Conversation(random.Random(f"{seed}/{group.number}"), group).talk() for group in GROUPS)
    return islice(heapq.merge(*conversations, key=lambda message: message.message_id >> 32), messages)


class Conversation:
    """The messages of one group: the next time and the next sequence number."""

    def __init__(self, rng: random.Random, group: Group):
        self.rng, self.group, self.clock, self.seq = rng, group, START, 1000

    def say(self, sender: Member | None, parts: list[Part] | None, wait: int = 15, **fields: Any) -> Message:
        """Return the next message of the group, `wait` seconds after the last one on average."""
        self.clock += self.rng.randint(0, 2 * wait)
        self.seq += 1
        # Ids rise with time, like QQ's, and exceed 2^53; bit 1 is free for the second copy of a message.
        message_id = self.clock << 32 | self.seq << 2 & 0xFFFFFFFF | GROUPS.index(self.group)
        return Message(message_id, self.group, self.seq, self.clock, sender, parts, **fields)

    def talk(self) -> Iterator[Message]:
        """Yield messages without end: threads, sometimes two or three at once, and now and then a special case."""
        threads: list[Iterator[Message]] = []
        special_cases, until_special = cycle(SPECIAL_CASES), SPECIAL_EVERY
        while True:
            if not threads:
                idle = 2400 if self.clock < BUSY else 60
                self.clock += 120 + int(self.rng.expovariate(1 / idle))
            if not threads or (len(threads) < 3 and self.rng.random() < 0.08):
                threads.append(self.thread())
            thread = self.rng.choice(threads)
            message = next(thread, None)
            if message is None:
                threads.remove(thread)
                continue
            yield message
            until_special -= 1
            if until_special == 0:
                until_special = SPECIAL_EVERY
                yield from self.special(next(special_cases))

    def thread(self) -> Iterator[Message]:
        """Yield a question, some answers to it, remarks on these, and thanks."""
        rng = self.rng
        members = rng.sample(MEMBERS, len(MEMBERS))
        asker = members.pop()
        answering = sorted(members, key=lambda member: rng.random() ** (1 / member.talks))[-rng.randint(1, 3) :]
        words = {name: rng.choice(choices) for name, choices in SLOTS.items()}
        question, answers, target_answers = rng.choice(EXCHANGES)
        if rng.random() < 0.25:
            yield self.say(asker, [Part("text", rng.choice(OPENERS))])
        asked = self.say(asker, [Part("text", question.format(**words)), *self.extra()], 5)
        yield asked
        for member, plain in zip(answering, rng.sample(answers, len(answers)), strict=False):
            text = rng.choice(target_answers) if member is TARGET else plain
            answer = self.answer(member, asked, text.format(**words))
            yield answer
            if rng.random() < 0.4:  # a burst
                yield self.say(member, [Part("text", self.remark(member))], 4)
            if rng.random() < 0.3:
                other = rng.choice([TARGET, *members])
                if other is not member:
                    yield self.answer(other, answer, self.remark(other))
        if rng.random() < 0.5:
            yield self.answer(asker, answer, rng.choice(THANKS))

    def answer(self, sender: Member, message: Message, text: str) -> Message:
        """Return an answer to `message`: with a quote, with a mention of its sender, or with neither."""
        parts, dice = [Part("text", text), *self.extra()], self.rng.random()
        if dice < 0.18:
            return self.quote(sender, message.as_quote(), parts)
        if dice < 0.30:
            assert message.sender is not None
            parts[:1] = [mention(message.sender, self.group), Part("text", " " + text)]
        return self.say(sender, parts, 20)

    def quote(self, sender: Member, quote: Quote, parts: list[Part]) -> Message:
        return self.say(sender, [Part("reply"), *parts], 20, quote=quote, outer=(9, 33))

    def extra(self) -> list[Part]:
        dice = self.rng.random()
        if dice < 0.06:
            return [Part("face", list(FACES)[int(dice / 0.06 * len(FACES))])]
        return [Part("image")] if dice < 0.1 else []

    def remark(self, member: Member) -> str:
        return self.rng.choice(TARGET_REMARKS if member is TARGET else REMARKS)

    def say_by_anybody(self, parts: list[Part] | None, **fields: Any) -> Message:
        return self.say(self.rng.choice(MEMBERS), parts, **fields)

    def quote_by_anybody(self, quote: Quote, text: str) -> Message:
        return self.quote(self.rng.choice(MEMBERS), quote, [Part("text", text)])

    def special(self, case: str) -> Iterator[Message]:
        """Yield the messages of one of SPECIAL_CASES, which readers must handle."""
        say, quote = self.say_by_anybody, self.quote_by_anybody
        match case:
            case "tricky_text":
                yield self.say(self.rng.choice(MEMBERS), [Part("text", self.rng.choice(TRICKY_TEXTS))])
            case "images":
                yield (shown := say([Part("image")]))
                yield say([Part("image"), Part("text", "这张怎么样")])
                yield quote(shown.as_quote(), "这是哪里")
            case "dangling":  # numbers of the group start after 1000
                yield quote(Quote(None, self.seq % 900 + 1, 20001, START - DAY, "以前说过的话"), "考古")
            case "stickers":
                yield say([Part("market_face", "[贴贴]")], outer=(17, 8))
                yield say([Part("face", "/斜眼笑"), Part("face", "/斜眼笑")], outer=(2, 16))
            case "everybody":
                yield say([Part("at", "@全体成员", "all"), Part("text", " 明天交表")])
            case "two_mentions":
                yield (asked := say([Part("text", "谁去")]))
                assert asked.sender is not None
                first, second = mention(asked.sender, self.group), mention(MEMBERS[4], self.group)
                yield say([first, Part("text", " "), second, Part("text", " 你们去吧")])
            case "recalled":
                yield say(None, outer=(1, 0), dropped="system")
                yield say([Part("tip", "recall")], outer=(5, 4), dropped="system")
            case "tips":
                yield self.say(None, [Part("tip", "加入了群聊")], outer=(5, 8), dropped="system")
                yield say([Part("tip", "戳了戳")], outer=(5, 12), dropped="system")
            case "bodiless":
                yield say(None, dropped="no_body")
                yield say([], dropped="no_body")
            case "timeless":
                yield replace(say([Part("text", "时间丢了")]), time=-self.rng.randint(0, 1), dropped="no_time")
            case "doubled":
                yield (message := say([Part("text", "说了一遍")]))
                yield replace(message, message_id=message.message_id | 2, dropped="duplicate")
                yield self.say(message.sender, message.parts, 0)  # the same words sent again are no duplicate
                yield quote(message.as_quote(), "听到了")
            case "numberless":
                yield say([Part("text", "我的号码呢")], numberless=True)
            case "other_kinds":
                yield say([Part("unknown:99")], outer=(99, 0))
                yield say([Part("ark", "[分享]一首歌")], outer=(11, 0))
                yield say([Part("file", "作业.docx")], outer=(3, 16))
                yield say([Part("voice")], outer=(6, 0))


def mention(member: Member, group: Group) -> Part:
    return Part("at", "@" + member.name_in(group), str(member.qq))


# ---- the format of QQNT


def to_varint(value: int) -> bytes:
    """Return `value` as protobuf writes numbers."""
    digits = [value & 0x7F]
    while value := value >> 7:
        digits[-1] |= 0x80
        digits.append(value & 0x7F)
    return bytes(digits)


TEXTS, BLOBS = {40020, 40021, 40090, 40093}, {40600, 40601, 40605, 40800, 40801, 40900}
COLUMN_NUMBERS = (
    "40001 40002 40003 40005 40006 40010 40011 40012 40013 40020 40021 40026 40027 40030 40033 40040 40041 "
    "40050 40052 40058 40060 40090 40093 40100 40105 40600 40601 40605 40800 40801 40850 40851 40900"
)
COLUMNS = {  # of group_msg_table: {number: type}
    number: "TEXT" if number in TEXTS else "BLOB" if number in BLOBS else "INTEGER"
    for number in map(int, COLUMN_NUMBERS.split())
}
COLUMNS[40001] += " PRIMARY KEY"
NO_VALUES: dict[int, Any] = {number: None if number in BLOBS else 0 for number in COLUMNS}
INDEXES = ("[40027], [40003]", "[40027], [40003], [40002]", "[40027], [40058]", "[40011], [40012], [40027]")
CONSTANT_40600 = bytes.fromhex("C2E91304A8D11400")
SNAPSHOT_40801 = bytes.fromhex("FAF41308E8A11402F0A11400") * 5  # its purpose is unknown
# QQ writes zeros and empty values too. They come before the values here, since in protobuf the last one counts.
ZEROS = b"".join(
    to_varint(field << 3) + b"\0"
    for field in (45003, 45102, 45103, 45104, 45106, 45107, 45108, 45109, 45110, 45112, 47401, 49156)
)
ZEROS += b"".join(to_varint(field << 3 | 2) + b"\0" for field in (45105, 45111, 49157))
ZEROS += to_varint(49154 << 3 | 2) + b"\x04nt_1"
TIP_XML = '<gtip><qq uin="u_x" nm="豆豆"/><nor txt="{}"/></gtip>'
UID_OF = {str(member.qq): member.uid.encode() for member in MEMBERS}


def to_element(part: Part, message: Message, index: int) -> Element:
    """Return the protobuf element for `part`, which has this index in `message`."""
    text, kind, fields = part.text.encode(), 0, dict[str, Any]()
    match part.kind:
        case "text":
            kind, fields = 1, {"text": text}
        case "at" if part.user_id == "all":
            kind, fields = 1, {"text": text, "at_kind": 1}
        case "at":
            kind, fields = 1, {"text": text, "at_kind": 2, "at_qq": int(part.user_id), "at_uid": UID_OF[part.user_id]}
        case "image":
            kind, fields = 2, {"file_name": b"0123456789ABCDEF.jpg", "file_md5": bytes(16), "picture_kind": 1000}
            fields |= {"file_size": 20480, "width": 640, "height": 480}
        case "file":
            kind, fields = 3, {"file_name": text, "file_size": 3 << 31}
        case "voice":
            kind, fields = 4, {"voice_seconds": 3}
        case "face":
            kind, fields = 6, {"face_id": FACES[part.text]}
            if message.seq % 2:  # QQ does not always write the label
                fields["face_label"] = text
        case "reply":
            assert message.quote is not None
            kind, fields = 7, quote_fields(message.quote)
        case "tip" if part.text == "recall":
            assert message.sender is not None
            kind, fields = 8, {"subkind": 1, "recall_sender_uid": message.sender.uid.encode()}
        case "tip":
            kind, fields = 8, {"subkind": 12, "tip_xml": TIP_XML.format(part.text).encode()}
        case "ark":
            card = {"app": "com.tencent.structmsg", "prompt": part.text, "meta": {"title": "别人的话"}}
            kind, fields = 10, {"ark_json": json.dumps(card, ensure_ascii=False).encode()}
        case "market_face":
            kind, fields = 11, {"market_face_label": text}
        case _:
            kind = int(part.kind.removeprefix("unknown:"))
    return Element(kind=kind, element_id=message.seq << 32 | message.time & 0xFFFFFFF0 | index & 0xF, **fields)


def quote_fields(quote: Quote) -> dict[str, Any]:
    text = quote.text.encode()
    return {
        "quoted_seq": quote.seq,
        "quoted_qq": quote.qq,
        "quoted_time": quote.time,
        "quoted_summary": text,
        "quoted_uid": UID_OF[str(quote.qq)],
        "quoted_elements": [Element(kind=1, text=text)],
    }


def to_body(message: Message) -> bytes | None:
    if message.parts is None:
        return None
    body = b""
    for index, part in enumerate(message.parts):
        element = ZEROS + to_element(part, message, index).SerializeToString()
        body += ELEMENT_TAG + to_varint(len(element)) + element
    return body


def to_row(message: Message, chat_type: int = 2) -> tuple:
    """Return the values of COLUMNS; `chat_type` is 2 for a group, 1 for a private chat."""
    sender, group, body = message.sender, message.group, to_body(message)
    card = name = ""
    if sender and not sender.silent:
        card = sender.card_in(group)
        name = "" if card else sender.nickname  # QQ often omits the nickname where there is a card
    values = {
        40001: message.message_id,
        40002: message.message_id * 2654435761 & 0x7FFFFFFF,
        40003: message.seq,
        40006: 0x0100000000000000 | message.message_id >> 8,
        40010: chat_type,
        40011: message.outer[0],
        40012: message.outer[1],
        40013: 0 if sender else 3,
        40020: sender.uid if sender else "",
        40021: str(group.number),
        40027: group.key,
        40030: group.number if sender else 0,
        40033: sender.qq if sender and not message.numberless else 0,
        40041: 2,
        40050: message.time,
        40058: message.time - (message.time + UTC_8) % DAY if message.time > 0 else 0,  # midnight
        40090: card,
        40093: name,
        40600: CONSTANT_40600,
        40800: body,
        40801: body and SNAPSHOT_40801,
        40850: message.quote.seq if message.quote else 0,
    }
    return tuple((NO_VALUES | values).values())


def write_messages(connection: Any, messages: Iterator[Message], total: int) -> int:
    columns = ", ".join(f"[{name}] {kind}" for name, kind in COLUMNS.items())
    insert = f"INSERT INTO {{}} VALUES ({', '.join('?' * len(COLUMNS))})"
    for table in ("group_msg_table", "c2c_msg_table"):
        connection.execute(f"CREATE TABLE {table} ({columns})")
    rows = 0
    with Progress("sample", total, "messages") as progress:
        while batch := [to_row(message) for message in islice(messages, BATCH)]:
            connection.executemany(insert.format("group_msg_table"), batch)
            rows += len(batch)
            progress.add(len(batch))
    for number, indexed in enumerate(INDEXES):
        unique = "UNIQUE" if "40002" in indexed else ""
        connection.execute(f"CREATE {unique} INDEX group_msg_{number} ON group_msg_table ({indexed})")
    # A private message, which must not reach any result: a test looks for it.
    secret = Message(1, GROUPS[0], 1, START, TARGET, [Part("text", "私聊：谁也不许看")])
    connection.execute(insert.format("c2c_msg_table"), to_row(secret, chat_type=1))
    columns = "[48901] INTEGER PRIMARY KEY, [48902] TEXT, [48912] TEXT, [1002] INTEGER"
    mapping = [(number, member.uid, None, member.qq) for number, member in enumerate(MEMBERS, 1)]
    fill(connection, "nt_uid_mapping_table", columns, mapping)
    return rows


def write_groups(connection: Any) -> None:
    columns = "[60001] INTEGER PRIMARY KEY, [60007] TEXT, [60006] INTEGER"
    fill(connection, "group_list", columns, [(group.number, group.name, len(MEMBERS)) for group in GROUPS])
    columns = "[60001] INTEGER, [1000] TEXT, [1002] INTEGER, [64003] TEXT, [20002] TEXT, [64010] INTEGER"
    members = [
        (group.number, member.uid, member.qq, member.card_in(group), "" if member.silent else member.nickname, 0)
        for group in GROUPS
        for member in MEMBERS
    ]
    fill(connection, "group_member3", columns, members)
    fill(connection, "group_bulletin", "[60001] INTEGER, [1] TEXT", [(GROUPS[0].number, "公告：只给群里的人看")])


def fill(connection: Any, table: str, columns: str, rows: list[tuple]) -> None:
    connection.execute(f"CREATE TABLE {table} ({columns})")
    connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)


def write_database(path: Path, write: Callable[..., Any], *arguments: Any) -> Any:
    """Create the encrypted database `path`; `write(connection, *arguments)` fills it. Return what that returns."""
    import sqlcipher3

    bare = path.with_name(f".bare{path.name}")
    with closing(sqlcipher3.connect(str(bare), isolation_level=None)) as connection:
        for statement in [*Cipher(hmac="SHA1").pragmas(KEY), "PRAGMA journal_mode = OFF", "BEGIN"]:
            connection.execute(statement)
        result = write(connection, *arguments)
        connection.execute("COMMIT")
    header = Header(account=b"sample" + b"0" * 122, version=b"1.1.0.1", hmac=b"HMAC_SHA1", time=START)
    with open(bare, "rb") as pages, open(path, "wb") as whole:
        whole.write(build_header(header))
        shutil.copyfileobj(pages, whole)
    bare.unlink()
    return result


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, config=False)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--messages", type=int, default=1500)
    args = parser.parse_args(argv)
    with Stage("sample", args.out, packages=["sqlcipher3", "protobuf"]) as stage:
        messages = history(args.seed, args.messages)
        rows = write_database(stage.output("nt_msg.db"), write_messages, messages, args.messages)
        write_database(stage.output("group_info.db"), write_groups)
        columns = "[1000] TEXT PRIMARY KEY, [1002] INTEGER, [20002] TEXT, [20009] TEXT"
        profiles = [(member.uid, member.qq, member.nickname, "") for member in MEMBERS]
        write_database(stage.output("profile_info.db"), fill, "profile_info_v6", columns, profiles)
        stage.output("key.txt").write_text(KEY + "\n")
        stage.ledger.read = stage.ledger.written = rows
        stage.receipt |= {"seed": args.seed, "target": str(TARGET.qq)}


if __name__ == "__main__":
    run(main)
