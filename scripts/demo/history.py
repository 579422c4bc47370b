"""Write an invented group history as QQNT keeps it: encrypted, with the oddities that real ones have.

    python scripts/demo/history.py --seed 1 --messages 1500 --out data/demo/sample

Two groups, eight members; none of them exists. The same seed gives the same messages (only the random salts of the
encryption differ). Messages are made one by one and none is kept, so millions of them need no more memory.
"""

import argparse
import heapq
import json
import random
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import sqlcipher3

from huiyin.common.errors import run
from huiyin.common.progress import Progress
from huiyin.common.stage import Stage
from huiyin.qqnt.body import ELEMENT_TAG
from huiyin.qqnt.cipher import Cipher, build_header
from huiyin.qqnt.qqnt_pb2 import Element, Header
from scripts.demo.talk import EXCHANGES, NASTY, OPENERS, REMARKS, SLOTS, TARGET_REMARKS, THANKS

KEY = "h8#K'q2\"x;Z%7\\mP"  # 16 printable characters, the awkward ones among them
START = 1_660_471_938  # 2022-08-14T10:12:18Z
LIVELY = START + 3 * 365 * 86_400  # from then on little silence, or seven million messages would end after 2038
ODD_EVERY = 20  # in each group every so often comes one of ODDITIES, in turn
BATCH = 5_000


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
    silent: bool = False  # its rows carry no name: that is in the companion databases
    talks: int = 2  # how much, beside the others

    @property
    def uid(self):
        return "u_" + f"{self.qq}-sample-sample-sample"[:22]

    def card_in(self, group):
        return self.cards[GROUPS.index(group)]

    def name_in(self, group):
        return self.card_in(group) or self.nickname


@dataclass(frozen=True)
class Part:
    """One element: its kind in parse's words, its text and, of a mention, the id."""

    kind: str
    text: str = ""
    who: str = ""


@dataclass(frozen=True)
class Quote:
    """What a reply says of the message it quotes; `message_id` is None if that one is not in the history."""

    message_id: int | None
    seq: int
    qq: int
    time: int
    text: str


@dataclass(frozen=True)
class Message:
    """One row and what parse has to make of it: kept, or `dropped` for a reason."""

    message_id: int
    group: Group
    seq: int
    time: int
    sender: Member | None  # None: a system row
    parts: list[Part] | None  # None: the body is NULL
    quote: Quote | None = None
    dropped: str = ""
    outer: tuple[int, int] = (2, 1)  # columns 40011 and 40012
    numberless: bool = False  # 40033 is 0: the uid says who it is

    def as_quote(self):
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


# ---- who says what, and when


def history(seed, messages):
    """Yield `messages` Messages in the order of their time, both groups mixed."""
    rooms = (Room(random.Random(f"{seed}/{group.number}"), group).talk() for group in GROUPS)
    return islice(heapq.merge(*rooms, key=lambda message: message.message_id >> 32), messages)


class Room:
    """One group: its clock and its numbers."""

    def __init__(self, rng, group):
        self.rng, self.group, self.clock, self.seq = rng, group, START, 1000

    def say(self, sender, parts, wait=15, **more):
        """Return the next message of the group."""
        self.clock += self.rng.randint(0, 2 * wait)
        self.seq += 1
        # Ids rise with time, as QQ's do, and exceed 2^53; bit 1 is free for the second copy of a message.
        message_id = self.clock << 32 | self.seq << 2 & 0xFFFFFFFF | GROUPS.index(self.group)
        return Message(message_id, self.group, self.seq, self.clock, sender, parts, **more)

    def talk(self):
        """Yield messages without end: threads, at times two or three at once, and an oddity now and then."""
        threads, oddities, until_odd = [], cycle(ODDITIES), ODD_EVERY
        while True:
            if not threads:
                idle = 2400 if self.clock < LIVELY else 60
                self.clock += 120 + int(self.rng.expovariate(1 / idle))
            if not threads or (len(threads) < 3 and self.rng.random() < 0.08):
                threads.append(self.thread())
            thread = self.rng.choice(threads)
            message = next(thread, None)
            if message is None:
                threads.remove(thread)
                continue
            yield message
            until_odd -= 1
            if until_odd == 0:
                until_odd = ODD_EVERY
                yield from next(oddities)(self)

    def thread(self):
        """Yield a question, some answers to it, remarks on these and thanks."""
        rng = self.rng
        members = rng.sample(MEMBERS, len(MEMBERS))
        asker = members.pop()
        answering = sorted(members, key=lambda member: rng.random() ** (1 / member.talks))[-rng.randint(1, 3) :]
        words = {name: rng.choice(choices) for name, choices in SLOTS.items()}
        question, answers, target_answers = rng.choice(EXCHANGES)
        if rng.random() < 0.25:
            yield self.say(asker, [Part("text", rng.choice(OPENERS))])
        asked = self.say(asker, [Part("text", question.format(**words)), *self.flourish()], 5)
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

    def answer(self, sender, message, text):
        """Return an answer to `message`: it quotes it, mentions its sender, or just stands there."""
        parts, dice = [Part("text", text), *self.flourish()], self.rng.random()
        if dice < 0.18:
            return self.quote(sender, message.as_quote(), parts)
        if dice < 0.30:
            parts[:1] = [mention(message), Part("text", " " + text)]
        return self.say(sender, parts, 20)

    def quote(self, sender, quote, parts):
        return self.say(sender, [Part("reply"), *parts], 20, quote=quote, outer=(9, 33))

    def flourish(self):
        dice = self.rng.random()
        return [Part("face", "/捂脸")] if dice < 0.06 else [Part("image")] if dice < 0.1 else []

    def remark(self, member):
        return self.rng.choice(TARGET_REMARKS if member is TARGET else REMARKS)

    def anybody(self):
        return self.rng.choice(MEMBERS)


def mention(message):
    return Part("at", "@" + message.sender.name_in(message.group), str(message.sender.qq))


# ---- what readers stumble over


def nasty(room):
    yield room.say(room.anybody(), [Part("text", room.rng.choice(NASTY))])


def images(room):
    shown = room.say(room.anybody(), [Part("image")])
    yield shown
    yield room.say(room.anybody(), [Part("image"), Part("text", "这张怎么样")])
    yield room.quote(room.anybody(), shown.as_quote(), [Part("text", "这是哪里")])


def dangling(room):
    lost = Quote(None, room.seq % 900 + 1, 20001, START - DAY, "以前说过的话")  # the room starts after 1000
    yield room.quote(room.anybody(), lost, [Part("text", "考古")])


def stickers(room):
    yield room.say(room.anybody(), [Part("market_face", "[贴贴]")], outer=(17, 8))
    yield room.say(room.anybody(), [Part("face", "/斜眼笑"), Part("face", "/斜眼笑")], outer=(2, 16))


def everybody(room):
    yield room.say(room.anybody(), [Part("at", "@全体成员", "all"), Part("text", " 明天交表")])


def two_mentions(room):
    first = room.say(room.anybody(), [Part("text", "谁去")])
    yield first
    second = mention(replace(first, sender=MEMBERS[4]))
    yield room.say(room.anybody(), [mention(first), Part("text", " "), second, Part("text", " 你们去吧")])


def recalled(room):
    yield room.say(room.anybody(), None, outer=(1, 0), dropped="system")
    yield room.say(room.anybody(), [Part("tip", "recall")], outer=(5, 4), dropped="system")


def tips(room):
    yield room.say(None, [Part("tip", "加入了群聊")], outer=(5, 8), dropped="system")
    yield room.say(room.anybody(), [Part("tip", "戳了戳")], outer=(5, 12), dropped="system")


def bodiless(room):
    yield room.say(room.anybody(), None, dropped="no_body")
    yield room.say(room.anybody(), [], dropped="no_body")


def timeless(room):
    yield replace(room.say(room.anybody(), [Part("text", "时间丢了")]), time=-room.rng.randint(0, 1), dropped="no_time")


def doubled(room):
    said = room.say(room.anybody(), [Part("text", "说了一遍")])
    yield said
    yield replace(said, message_id=said.message_id | 2, dropped="duplicate")
    yield room.say(said.sender, said.parts, 0)  # the same words once more are no duplicate
    yield room.quote(room.anybody(), said.as_quote(), [Part("text", "听到了")])


def numberless(room):
    yield room.say(room.anybody(), [Part("text", "我的号码呢")], numberless=True)


def other_kinds(room):
    yield room.say(room.anybody(), [Part("unknown:99")], outer=(99, 0))
    yield room.say(room.anybody(), [Part("ark", "[分享]一首歌")], outer=(11, 0))
    yield room.say(room.anybody(), [Part("file", "作业.docx")], outer=(3, 16))
    yield room.say(room.anybody(), [Part("voice")], outer=(6, 0))


ODDITIES = (
    nasty,
    images,
    recalled,
    dangling,
    doubled,
    nasty,
    stickers,
    everybody,
    tips,
    bodiless,
    two_mentions,
    timeless,
    numberless,
    other_kinds,
)


# ---- as QQNT writes it


def to_varint(value):
    """Return `value` as protobuf writes numbers."""
    digits = [value & 0x7F]
    while value := value >> 7:
        digits[-1] |= 0x80
        digits.append(value & 0x7F)
    return bytes(digits)


INTEGERS, TEXTS, BLOBS = "INTEGER", "TEXT", "BLOB"
COLUMNS = {
    40001: "INTEGER PRIMARY KEY",
    40002: INTEGERS,
    40003: INTEGERS,
    40005: INTEGERS,
    40006: INTEGERS,
    40010: INTEGERS,
    40011: INTEGERS,
    40012: INTEGERS,
    40013: INTEGERS,
    40020: TEXTS,
    40021: TEXTS,
    40026: INTEGERS,
    40027: INTEGERS,
    40030: INTEGERS,
    40033: INTEGERS,
    40040: INTEGERS,
    40041: INTEGERS,
    40050: INTEGERS,
    40052: INTEGERS,
    40058: INTEGERS,
    40060: INTEGERS,
    40090: TEXTS,
    40093: TEXTS,
    40100: INTEGERS,
    40105: INTEGERS,
    40600: BLOBS,
    40601: BLOBS,
    40605: BLOBS,
    40800: BLOBS,
    40801: BLOBS,
    40850: INTEGERS,
    40851: INTEGERS,
    40900: BLOBS,
}
INDEXES = ("[40027], [40003]", "[40027], [40003], [40002]", "[40027], [40058]", "[40011], [40012], [40027]")
CONSTANT_40600 = bytes.fromhex("C2E91304A8D11400")
SNAPSHOT_40801 = bytes.fromhex("FAF41308E8A11402F0A11400") * 5  # nobody knows what it is for
# QQ writes what is zero or empty too; it stands before the values, since in protobuf the last one counts.
ZEROS = b"".join(
    to_varint(field << 3) + b"\0"
    for field in (45003, 45102, 45103, 45104, 45106, 45107, 45108, 45109, 45110, 45112, 47401, 49156)
)
ZEROS += b"".join(to_varint(field << 3 | 2) + b"\0" for field in (45105, 45111, 49157))
ZEROS += to_varint(49154 << 3 | 2) + b"\x04nt_1"
DAY, UTC_8 = 86_400, 8 * 3600
TIP_XML = '<gtip><qq uin="u_x" nm="豆豆"/><nor txt="{}"/></gtip>'


def to_element(part, message, place):
    """Return the protobuf element for `part`, the `place`-th of `message`."""
    common = {"element_id": message.seq << 32 | message.time & 0xFFFFFFF0 | place & 0xF}
    text = part.text.encode()
    match part.kind:
        case "text":
            return Element(kind=1, text=text, **common)
        case "at":
            if part.who == "all":
                return Element(kind=1, text=text, at_kind=1, **common)
            return Element(kind=1, text=text, at_kind=2, at_qq=int(part.who), at_uid=UID_OF[part.who], **common)
        case "image":
            return Element(
                kind=2,
                file_name=b"0123456789ABCDEF.jpg",
                file_size=20480,
                file_md5=bytes(16),
                width=640,
                height=480,
                picture_kind=1000,
                **common,
            )
        case "file":
            return Element(kind=3, file_name=text, file_size=3 << 31, **common)
        case "voice":
            return Element(kind=4, voice_seconds=3, **common)
        case "face":
            return Element(kind=6, face_id=264, face_label=text, **common)
        case "reply":
            quote = message.quote
            inner = [Element(kind=1, text=quote.text.encode())]
            return Element(
                kind=7,
                quoted_seq=quote.seq,
                quoted_qq=quote.qq,
                quoted_time=quote.time,
                quoted_summary=quote.text.encode(),
                quoted_uid=UID_OF[str(quote.qq)],
                quoted_elements=inner,
                **common,
            )
        case "tip":
            if text == b"recall":
                return Element(kind=8, subkind=1, recall_sender_uid=message.sender.uid.encode(), **common)
            return Element(kind=8, subkind=12, tip_xml=TIP_XML.format(part.text).encode(), **common)
        case "ark":
            card = {"app": "com.tencent.structmsg", "prompt": part.text, "meta": {"title": "别人的话"}}
            return Element(kind=10, ark_json=json.dumps(card, ensure_ascii=False).encode(), **common)
        case "market_face":
            return Element(kind=11, market_face_label=text, **common)
    return Element(kind=int(part.kind.removeprefix("unknown:")), **common)


UID_OF = {str(member.qq): member.uid.encode() for member in MEMBERS}


def to_body(message):
    body = b""
    for place, part in enumerate(message.parts):
        element = ZEROS + to_element(part, message, place).SerializeToString()
        body += ELEMENT_TAG + to_varint(len(element)) + element
    return body


def to_row(message, chat_type=2):
    """Return the values of COLUMNS; `chat_type` is 2 for a group, 1 for a private chat."""
    sender, group = message.sender, message.group
    body = None
    if message.parts is not None:
        body = to_body(message)
    card = name = ""
    if sender and not sender.silent:
        card = sender.card_in(group)
        name = "" if card else sender.nickname  # QQ often leaves the nickname out where there is a card
    by_number = sender and not message.numberless
    day = message.time - (message.time + UTC_8) % DAY if message.time > 0 else 0
    return (
        message.message_id,
        message.message_id * 2654435761 & 0x7FFFFFFF,
        message.seq,
        0,
        0x0100000000000000 | message.message_id >> 8,
        chat_type,
        *message.outer,
        0 if sender else 3,
        sender.uid if sender else "",
        str(group.number),
        0,
        group.key,
        group.number if sender else 0,
        sender.qq if by_number else 0,
        0,
        2,
        message.time,
        0,
        day,
        0,
        card,
        name,
        0,
        0,
        CONSTANT_40600,
        None,
        None,
        body,
        body and SNAPSHOT_40801,
        message.quote.seq if message.quote else 0,
        0,
        None,
    )


def write_messages(connection, messages, total):
    columns = ", ".join(f"[{name}] {kind}" for name, kind in COLUMNS.items())
    places = ", ".join("?" * len(COLUMNS))
    for table in ("group_msg_table", "c2c_msg_table"):
        connection.execute(f"CREATE TABLE {table} ({columns})")
    rows = 0
    with Progress("sample", total, "messages") as progress:
        while batch := [to_row(message) for message in islice(messages, BATCH)]:
            connection.executemany(f"INSERT INTO group_msg_table VALUES ({places})", batch)
            rows += len(batch)
            progress.add(len(batch))
    for number, indexed in enumerate(INDEXES):
        unique = "UNIQUE" if "40002" in indexed else ""
        connection.execute(f"CREATE {unique} INDEX group_msg_{number} ON group_msg_table ({indexed})")
    # Private words that must never be seen again, so that a test can look for them.
    secret = Message(1, GROUPS[0], 1, START, TARGET, [Part("text", "私聊：谁也不许看")])
    connection.execute(f"INSERT INTO c2c_msg_table VALUES ({places})", to_row(secret, chat_type=1))
    fill(
        connection,
        "nt_uid_mapping_table",
        "[48901] INTEGER PRIMARY KEY, [48902] TEXT, [48912] TEXT, [1002] INTEGER",
        [(number, member.uid, None, member.qq) for number, member in enumerate(MEMBERS, 1)],
    )
    return rows


def write_groups(connection):
    fill(
        connection,
        "group_list",
        "[60001] INTEGER PRIMARY KEY, [60007] TEXT, [60006] INTEGER",
        [(group.number, group.name, len(MEMBERS)) for group in GROUPS],
    )
    fill(
        connection,
        "group_member3",
        "[60001] INTEGER, [1000] TEXT, [1002] INTEGER, [64003] TEXT, [20002] TEXT, [64010] INTEGER",
        [
            (group.number, member.uid, member.qq, member.card_in(group), "" if member.silent else member.nickname, 0)
            for group in GROUPS
            for member in MEMBERS
        ],
    )
    fill(connection, "group_bulletin", "[60001] INTEGER, [1] TEXT", [(GROUPS[0].number, "公告：只给群里的人看")])


def write_profiles(connection):
    fill(
        connection,
        "profile_info_v6",
        "[1000] TEXT PRIMARY KEY, [1002] INTEGER, [20002] TEXT, [20009] TEXT",
        [(member.uid, member.qq, member.nickname, "") for member in MEMBERS],
    )


def fill(connection, table, columns, rows):
    connection.execute(f"CREATE TABLE {table} ({columns})")
    connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)


def write_database(path, write, *given):
    """Create the encrypted database `path` with what `write(connection, *given)` puts in; return what that returns."""
    bare = path.with_name(f".bare{path.name}")
    cipher = Cipher(hmac="SHA1")
    with closing(sqlcipher3.connect(str(bare), isolation_level=None)) as connection:
        for statement in [*cipher.pragmas(KEY), "PRAGMA journal_mode = OFF", "BEGIN"]:
            connection.execute(statement)
        result = write(connection, *given)
        connection.execute("COMMIT")
    header = Header(account=b"sample" + b"0" * 122, version=b"1.1.0.1", hmac=b"HMAC_SHA1", time=START)
    with open(bare, "rb") as pages, open(path, "wb") as whole:
        whole.write(build_header(header))
        while block := pages.read(1 << 20):
            whole.write(block)
    bare.unlink()
    return result


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--messages", type=int, default=1500)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args(argv)
    with Stage("sample", args.out, packages=["sqlcipher3", "protobuf"]) as stage:
        messages = history(args.seed, args.messages)
        rows = write_database(stage.output("nt_msg.db"), write_messages, messages, args.messages)
        write_database(stage.output("group_info.db"), write_groups)
        write_database(stage.output("profile_info.db"), write_profiles)
        stage.output("key.txt").write_text(KEY + "\n")
        stage.ledger.read = stage.ledger.written = rows
        stage.receipt |= {"seed": args.seed, "target": str(TARGET.qq)}


if __name__ == "__main__":
    run(main)
