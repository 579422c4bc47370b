"""The demo's invented history as other programs would export it: for measurements, and for tests of the readers."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from typing import Any

from huiyin.common.tables import EVERYBODY
from scripts.demo.history import MEMBERS, Group, Message, history

SHANGHAI = timezone(timedelta(hours=8))
NOT_WRITTEN = ("no_time", "no_body", "duplicate", "system")  # an export of a program has no rows that are none
UIDS = {str(member.qq): member.uid for member in MEMBERS}
OF_QCE = {"voice": "audio", "ark": "json", "call": "av_record", "tip": "system"}
OF_WECHAT = {
    "image": "图片",
    "voice": "语音",
    "video": "视频",
    "file": "文件",
    "market_face": "动画表情",
    "face": "动画表情",
}
OF_CHATLAB = {"image": 1, "voice": 2, "video": 3, "file": 4, "market_face": 5, "face": 5}
OF_WEQ = {"image": "pic", "voice": "ptt", "market_face": "mface", "forward": "multiMsg", "tip": "grayTipPoke"}


def messages(count: int, group: int = 0, seed: int = 1) -> Iterator[Message]:
    """Yield `count` messages of the history that an export has; group: its number, 0 for all."""
    kept = (of for of in history(seed, 4 * count + 1000) if not of.dropped and of.sender and of.parts is not None)
    return islice((of for of in kept if group in (0, of.group.number)), count)


def text_of(message: Message) -> str:
    return "".join(part.text for part in message.parts or () if part.kind in ("text", "at"))


def kind_of(message: Message) -> str:
    kinds = [part.kind for part in message.parts or () if part.kind != "reply"]
    return "text" if "text" in kinds or "at" in kinds or not kinds else kinds[0]


def at(time: int, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    return datetime.fromtimestamp(time, SHANGHAI).strftime(form)


def array(beginning: str, rows: Iterable[Any], end: str) -> Iterator[str]:
    yield beginning
    for number, row in enumerate(rows):
        yield ",\n" * bool(number) + json.dumps(row, ensure_ascii=False)
    yield end


# ---- one function a format: the text of a file


def qce(rows: Iterable[Message], group: Group) -> Iterator[str]:
    chat = {"name": group.name, "type": "group", "peerUid": str(group.number)}
    beginning = f'{{"metadata": {{"name": "QQChatExporter"}}, "chatInfo": {json.dumps(chat)}, "messages": [\n'
    yield from array(beginning, (qce_message(of) for of in rows), "]}\n")


def qce_lines(rows: Iterable[Message], group: Group) -> Iterator[str]:
    return (json.dumps(qce_message(of), ensure_ascii=False) + "\n" for of in rows)


def qce_message(of: Message) -> dict[str, Any]:
    sender = {"uid": of.sender.uid, "name": of.sender.name_in(of.group), "groupCard": of.sender.card_in(of.group)}
    if not of.numberless:
        sender["uin"] = str(of.sender.qq)
    elements = []
    for part in of.parts or ():
        data = {"text": part.text}
        if part.kind == "at":
            uid = "all" if part.user_id == EVERYBODY else UIDS.get(part.user_id, "unknown")
            data = {"uid": uid, "uin": "0" if uid == "all" else part.user_id, "name": part.text.lstrip("@")}
        elif part.kind == "reply":
            quote = of.quote
            id = str(quote.message_id or 7_000_000_000_000_000_000 + of.seq)
            data = {"messageId": id, "referencedMessageId": id, "senderUin": str(quote.qq), "timestamp": quote.time}
        elif part.kind != "text":
            data = {"name": part.text, "filename": "a.bin"}
        elements.append({"type": OF_QCE.get(part.kind, part.kind), "data": data})
    return {
        "id": str(of.message_id),
        "seq": str(of.seq),
        "timestamp": of.time * 1000,
        "time": datetime.fromtimestamp(of.time, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "sender": sender,
        "type": "text",
        "content": {"text": text_of(of), "html": "", "elements": elements, "resources": [], "mentions": []},
        "recalled": False,
        "system": False,
    }


def chatlab(rows: Iterable[Message], group: Group) -> Iterator[str]:
    meta = {"name": group.name, "type": "group", "groupId": str(group.number)}
    header = f'{{"chatlab": {{"version": "0.0.2"}}, "meta": {json.dumps(meta)}, "members": [], "messages": [\n'
    yield from array(header, (chatlab_message(of) for of in rows), "]}\n")


def chatlab_lines(rows: Iterable[Message], group: Group) -> Iterator[str]:
    meta = {"name": group.name, "type": "group", "groupId": str(group.number)}
    yield json.dumps({"_type": "header", "chatlab": {"version": "0.0.2"}, "meta": meta}) + "\n"
    for of in rows:
        yield json.dumps({"_type": "message", **chatlab_message(of)}, ensure_ascii=False) + "\n"


def chatlab_message(of: Message) -> dict[str, Any]:
    kind = kind_of(of)
    return {
        "sender": str(of.sender.qq),
        "accountName": of.sender.nickname,
        "groupNickname": of.sender.card_in(of.group),
        "timestamp": of.time,
        "type": 0 if kind == "text" else OF_CHATLAB.get(kind, 99),
        "content": text_of(of) or f"[{kind}]",
        "platformMessageId": str(of.message_id),
        **({"replyToMessageId": str(of.quote.message_id or 1)} if of.quote else {}),
    }


def weflow(rows: Iterable[Message], group: Group) -> Iterator[str]:
    session = {"wxid": f"{group.number}@chatroom", "type": "群聊"}
    header = f'{{"weflow": {{"version": "4"}}, "session": {json.dumps(session)}, "messages": [\n'
    yield from array(header, (weflow_message(number, of) for number, of in enumerate(rows)), "]}\n")


def weflow_message(number: int, of: Message) -> dict[str, Any]:
    kind, words, quote = kind_of(of), text_of(of), {}
    if of.quote:
        words += f"[引用 谁：{of.quote.text}]"
        quote = {
            "replyToMessageId": str(of.quote.message_id or 1),
            "quotedSender": "谁",
            "quotedContent": of.quote.text,
        }
    types = {"text": "引用消息" if of.quote else "文本消息", "image": "图片消息", "voice": "语音消息"}
    return {
        "localId": number,
        "createTime": of.time,
        "formattedTime": at(of.time),
        "type": types.get(kind, "其他消息"),
        "localType": 1,
        "content": words,
        "isSend": 0,
        "senderUsername": f"wxid_{of.sender.qq}",
        "senderDisplayName": of.sender.name_in(of.group),
        "source": "",
        "platformMessageId": str(of.message_id),
        **quote,
    }


def telegram(rows: Iterable[Message], group: Group) -> Iterator[str]:
    header = f'{{"name": {json.dumps(group.name)}, "type": "private_supergroup", "id": {group.number}, "messages": [\n'
    numbers: dict[int, int] = {}  # {message_id: the id in the chat}
    yield from array(header, (telegram_message(numbers, of) for of in rows), "]}\n")


def telegram_message(numbers: dict[int, int], of: Message) -> dict[str, Any]:
    number = numbers[of.message_id] = len(numbers) + 1
    media = {} if kind_of(of) == "text" else {"photo": "photos/photo.jpg"}
    return {
        "id": number,
        "type": "message",
        "date": at(of.time, "%Y-%m-%dT%H:%M:%S"),
        "date_unixtime": str(of.time),
        "from": of.sender.name_in(of.group),
        "from_id": f"user{of.sender.qq}",
        **({"reply_to_message_id": numbers.get(of.quote.message_id or 0, 0)} if of.quote else {}),
        **media,
        "text": text_of(of),
        "text_entities": [{"type": "plain", "text": text_of(of)}],
    }


def old_qq(rows: Iterable[Message], group: Group) -> Iterator[str]:
    line = "=" * 64
    yield f"消息记录（此消息记录为文本格式，不支持重新导入）\r\n\r\n{line}\r\n消息分组:我的QQ群\r\n{line}\r\n"
    yield f"消息对象:{group.name}\r\n{line}\r\n"
    for of in rows:
        name = of.sender.name_in(of.group).replace("\n", " ")
        words = (text_of(of) or "[图片]").replace("\r", "").replace("\n", "\r\n")
        yield f"\r\n{at(of.time)} {name}({of.sender.qq})\r\n{words}\r\n"


def wechat_csv(rows: Iterable[Message], group: Group) -> Iterator[str]:
    yield "id,MsgSvrID,type_name,is_sender,talker,room_name,msg,src,CreateTime\r\n"
    for number, of in enumerate(rows):
        kind, words = kind_of(of), text_of(of)
        if of.quote:
            words += f"\n\n[引用]({at(of.quote.time)})谁:{of.quote.text}"
        line = io.StringIO()
        type_name = "引用回复" if of.quote else "文本" if kind == "text" else OF_WECHAT.get(kind, "未知")
        talker, room = f"wxid_{of.sender.qq}", f"{group.number}@chatroom"
        csv.writer(line).writerow([number, of.message_id, type_name, 0, talker, room, words, "", at(of.time)])
        yield line.getvalue()


def weq(rows: Iterable[Message], group: Group) -> Iterator[str]:
    yield from array("[\n", (weq_message(of) for of in rows), "\n]\n")


def weq_message(of: Message) -> dict[str, Any]:
    elements = []
    for part in of.parts or ():
        data = {"textContent": part.text, "faceText": part.text, "atUid": UIDS.get(part.user_id, "all")}
        if part.kind == "reply" and of.quote:
            data = {"origMsgId": str(of.quote.message_id or 1)}
        elements.append({"type": OF_WEQ.get(part.kind, part.kind), "data": data})
    sender = {"senderUin": str(of.sender.qq), "senderUid": of.sender.uid}
    return {"msgId": str(of.message_id), "msgSeq": str(of.seq), "sendTime": of.time, **sender, "elements": elements}


def discord(rows: Iterable[Message], group: Group) -> Iterator[str]:
    channel = {"id": str(group.number), "type": "GuildTextChat", "name": group.name}
    header = f'{{"guild": {{"id": "5"}}, "channel": {json.dumps(channel)}, "messages": [\n'
    yield from array(header, (discord_message(of) for of in rows), "]}\n")


def discord_message(of: Message) -> dict[str, Any]:
    time = datetime.fromtimestamp(of.time, SHANGHAI).isoformat()
    reference = {"type": "Default", "messageId": str(of.quote.message_id or 1)} if of.quote else None
    return {
        "id": str(of.message_id),
        "type": "Reply" if of.quote else "Default",
        "timestamp": time,
        "isPinned": False,
        "content": text_of(of),
        "author": {"id": str(of.sender.qq), "name": of.sender.nickname, "nickname": of.sender.name_in(of.group)},
        "attachments": [] if text_of(of) else [{"id": "1", "fileName": "a.png"}],
        "embeds": [],
        "stickers": [],
        "mentions": [],
        **({"reference": reference} if reference else {}),
    }


def five_columns(rows: Iterable[Message], group: Group) -> Iterator[str]:
    for of in rows:
        line = io.StringIO()
        time = datetime.fromtimestamp(of.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        fragments = [part.text for part in of.parts or () if part.kind in ("text", "at")]
        csv.writer(line).writerow([group.number, time, of.sender.name_in(of.group), of.sender.qq, fragments])
        yield line.getvalue()


def own_table(rows: Iterable[Message], group: Group) -> Iterator[str]:
    """Yield a table such as people make it: heads in Chinese, local times, a column that nobody needs."""
    yield "发送时间,发送人,QQ,消息内容,备注\r\n"
    for of in rows:
        line = io.StringIO()
        time = f"{datetime.fromtimestamp(of.time, SHANGHAI):%Y年%m月%d日 %H:%M:%S}"
        csv.writer(line).writerow([time, of.sender.name_in(of.group), of.sender.qq, text_of(of), ""])
        yield line.getvalue()


Writer = Callable[[Iterable[Message], Group], Iterator[str]]
FORMATS: dict[str, tuple[str, Writer]] = {  # {name: (name of the file, its writer)}
    "qce": ("qce.json", qce),
    "chatlab": ("chatlab.json", chatlab),
    "chatlab lines": ("chatlab.jsonl", chatlab_lines),
    "weflow": ("weflow.json", weflow),
    "telegram": ("result.json", telegram),
    "old_qq": ("old.txt", old_qq),
    "wechat_csv": ("wechat.csv", wechat_csv),
    "weq": ("weq.json", weq),
    "discord": ("discord.json", discord),
    "csv": ("five.csv", five_columns),
    "own_csv": ("own.csv", own_table),
}


def write(name: str, folder: Path, rows: Iterable[Message], group: Group) -> Path:
    """Write the file of a format with `rows`, which are of `group`; return its path."""
    file, writer = FORMATS[name]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / file, "w", encoding="utf-8", newline="") as out:
        out.writelines(writer(rows, group))
    return folder / file
