"""Rows of QQNT's group_msg_table as a frame of messages: ids, names, replies and copies, over all rows at once.

Values that repeat (chats, senders, names, patterns of kinds) are stored once, in small tables next to the rows, and a
row has only their index. So seven million rows fit into memory, and what depends on a sender or a name is computed
once for it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from zlib import adler32, crc32

import polars as pl

from huiyin.common.errors import UserError
from huiyin.qqnt.body import BodyReader, Content, Element, kind_name
from huiyin.sources.frames import list_columns, lists_of

NUMBERS = {
    "message_id": 40001,
    "seq": 40003,
    "outer": 40011,
    "outer_subtype": 40012,
    "origin": 40013,
    "time": 40050,
    "replied_seq": 40850,
    "conversation": 40027,
    "group_number": 40030,
    "number": 40033,
    "old": 40060,
}
TEXTS = {"peer": 40021, "uid": 40020, "card": 40090, "name": 40093}
BODY = 40800
COMPANIONS = {  # what tells about people, {table: {name: column}}; the arguments of `to_history`
    "nt_uid_mapping_table": {"uid": 48902, "number": 1002},
    "group_member3": {"group_id": 60001, "uid": 1000, "number": 1002, "member_card": 64003, "member_name": 20002},
    "profile_info_v6": {"uid": 1000, "number": 1002, "profile_name": 20002},
}
COLUMNS = [*NUMBERS.values(), *TEXTS.values(), BODY]
FIELDS = [*NUMBERS, *TEXTS, "body"]  # the names of COLUMNS
# One column of each: message, its number in the group, group, sender, time, body. The others depend on QQ's version.
NEEDED = [[40001], [40003], [40021, 40030, 40027], [40033, 40020], [40050], [BODY]]
SHARED: dict[str, dict[str, Any]] = {  # the tables next to the rows: {name: columns}
    "chat": {"conversation": pl.Int64, "group_number": pl.Int64, "peer": pl.String},
    "sender": {"uid": pl.String, "number": pl.Int64},
    "names": {"card": pl.String, "name": pl.String, "old": pl.Boolean, "number": pl.Int64},
    "kinds": {"kinds": pl.List(pl.String)},
}
ROW: dict[str, Any] = {
    "message_id": pl.Int64,
    "seq": pl.Int64,
    "time": pl.Int64,
    **dict.fromkeys(SHARED, pl.UInt32),
    "body": pl.UInt64,
    "dropped": pl.Enum(["system", "no_time", "no_body", "undecodable", "filtered", "duplicate"]),
    "fragments": pl.List(pl.String),
}
QUOTE: dict[str, Any] = {
    "row": pl.Int64,
    "quoted_seq": pl.Int64,
    "quoted_time": pl.Int64,
    "quoted_number": pl.Int64,
    "quoted_uid": pl.String,
}
MENTION: dict[str, Any] = {"row": pl.Int64, "mentions": pl.String}

UNKNOWN = "unknown:"
SAMPLES = 3  # messages in the report for each unknown kind
SYSTEM_ORIGIN = 3  # column 40013
TIP_KINDS = {8, 26}  # notices in grey: recalled, joined, poked
RECALLED_TYPE = (1, 0)  # columns 40011 and 40012 of some recalled messages, which have no body
MAX_INT = (1 << 63) - 1
LAST_SECOND = 253_402_300_799  # of the year 9999; a later time is invalid
MOST_UNDECODABLE = 0.01  # of the bodies; with more, something is wrong with the file and not with a message
NO_CONTENT = Content([], [], [], None)


@dataclass
class Chunk:
    """Some rows, or all of them. For each of `shared`, a row has an index into the list with that name."""

    rows: pl.DataFrame
    quotes: pl.DataFrame
    mentions: pl.DataFrame
    shared: dict[str, list[tuple]]
    counts: Counter[tuple[str, Any]]


class Numbered(dict[tuple, int]):
    """Gives each new key the next number."""

    def __missing__(self, key: tuple) -> int:
        number = self[key] = len(self)
        return number


def missing_columns(existing: Iterable[int]) -> str:
    """Return which columns must be there and are not, as in "40003, 40033 or 40020"; "" for none."""
    return ", ".join(" or ".join(map(str, any_of)) for any_of in NEEDED if not set(any_of) & set(existing))


# ---- a chunk of rows


def to_chunk(rows: Sequence[tuple], placeholders: Iterable[str], name_faces: bool) -> Chunk:
    """Return the `Chunk` of rows with the values of COLUMNS, texts as bytes; the others are those of `BodyReader`."""
    values: dict[str, tuple] = dict(zip(FIELDS, zip(*rows, strict=True), strict=True))
    reader = BodyReader(placeholders, name_faces)
    contents = [reader.read(body) if body else NO_CONTENT for body in values["body"]]
    kinds = (tuple(content.kinds) for content in contents)
    tables = {name: Numbered() for name in SHARED}
    columns = {name: pl.Series(values[name], dtype=ROW[name]) for name in ("message_id", "seq", "time")}
    for name, table in tables.items():
        keys = kinds if name == "kinds" else zip(*(values[column] for column in SHARED[name]), strict=True)
        columns[name] = pl.Series([table[key] for key in keys], dtype=pl.UInt32)
    hashes = [crc32(body) << 32 | adler32(body) if body else 0 for body in values["body"]]
    frame = pl.DataFrame({**columns, "body": pl.Series(hashes, dtype=pl.UInt64)})
    quotes = [
        quote_row(row, content.quote, replied)
        for row, (content, replied) in enumerate(zip(contents, values["replied_seq"], strict=True))
        if content.quote is not None or replied
    ]
    mentions = [(row, mention) for row, content in enumerate(contents) for mention in content.mentions]
    counts = Counter({("outer", value): count for value, count in Counter(values["outer"]).items()})
    counts["count", "undecodable_bodies"] = reader.undecodable
    counts["count", "invalid_utf8_texts"] = reader.invalid_texts
    fragments = [content.fragments for content in contents]
    frame = frame.with_columns(
        drop_reasons(values, columns["kinds"], list(tables["kinds"])).alias("dropped"),
        *list_columns(list(map(len, fragments)), {"fragments": chain.from_iterable(fragments)}),
    )
    undecodable = (frame["dropped"] == "undecodable").arg_true()
    counts += Counter(("undecodable", looks_like(values["body"][row])) for row in undecodable)
    return Chunk(
        frame,
        pl.DataFrame(quotes, QUOTE, orient="row"),
        pl.DataFrame(mentions, MENTION, orient="row"),
        {name: list(table) if name == "kinds" else decoded(table, SHARED[name]) for name, table in tables.items()},
        counts,
    )


def drop_reasons(values: dict[str, tuple], kinds: pl.Series, patterns: list[tuple]) -> pl.Expr:
    """Return an expression over the rows: why a row is no message, null if it is one. `kinds` are indices in
    `patterns`."""
    empty = pl.Series([not pattern for pattern in patterns], dtype=pl.Boolean).gather(kinds)
    tips = pl.Series([bool(pattern) and set(pattern) <= TIP_KINDS for pattern in patterns], dtype=pl.Boolean)
    outer, subtype, origin = (pl.Series(values[name], dtype=pl.Int64) for name in ("outer", "outer_subtype", "origin"))
    bodiless = pl.Series([not body for body in values["body"]], dtype=pl.Boolean)
    recalled = ((outer == RECALLED_TYPE[0]) & (subtype == RECALLED_TYPE[1]) & bodiless).fill_null(False)
    system = (origin == SYSTEM_ORIGIN).fill_null(False) | recalled | tips.gather(kinds)
    has_time = pl.col("time").is_between(1, LAST_SECOND).fill_null(False)
    reason = pl.when(system).then(pl.lit("system")).when(~has_time).then(pl.lit("no_time"))
    reason = reason.when(empty & bodiless).then(pl.lit("no_body"))
    return reason.when(empty).then(pl.lit("undecodable")).cast(ROW["dropped"])


def looks_like(body: bytes) -> str:
    """Return what a body looks like that is none, in words that tell nothing of its content."""
    text = body.decode("utf-8", "replace")
    if "\ufffd".encode() in body:
        return "text with U+FFFD, all that DB Browser 3.10 leaves"
    return "text" if "".join(text.split()).isprintable() and "\ufffd" not in text else "other bytes"


def decoded(keys: Iterable[tuple], columns: dict[str, Any]) -> list[tuple]:
    """Return `keys` with bytes as text and numbers as truth values, where `columns` has such types."""
    converters: dict[Any, Callable[[Any], Any]] = {pl.String: to_text, pl.Boolean: bool}
    convert = [converters.get(kind, lambda value: value) for kind in columns.values()]
    return [tuple(change(value) for change, value in zip(convert, key, strict=True)) for key in keys]


def to_text(value: bytes | None) -> str:
    return "" if value is None else value.decode("utf-8", "replace")


def quote_row(row: int, quote: Element | None, replied: int | None) -> tuple:
    """Return the values of QUOTE; `replied` is column 40850, for a reply without an element."""
    if quote is None:
        return row, replied, 0, 0, ""
    return (
        row,
        quote.quoted_seq & MAX_INT or replied or 0,
        quote.quoted_time,
        quote.quoted_qq & MAX_INT,
        quote.quoted_uid.decode("utf-8", "replace"),
    )


# ---- all rows


def to_history(
    path: Path,
    advice: str,
    chunks: Iterable[Chunk],
    mapping: pl.DataFrame,
    members: pl.DataFrame,
    profiles: pl.DataFrame,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return what `read_history` does, made of all `chunks`; the other frames are those of COMPANIONS.

    path, advice: for the `UserError` if too many bodies are none.
    """
    whole = merge(chunks)
    check_bodies(path, advice, whole)
    rows, quotes = whole.rows, whole.quotes
    patterns = [[kind_name(number) for number in pattern] for pattern in whole.shared.pop("kinds")]
    for_receipt = report(rows, patterns, whole.counts)
    chat, sender, names = (pl.DataFrame(keys, SHARED[name], orient="row") for name, keys in whole.shared.items())

    chat = chat.with_columns(group_id())
    sender, number_of = with_people(
        sender, pl.concat(table.select("uid", "number") for table in (mapping, members, profiles))
    )
    if rows.height and (sender["user_id"] == "").all():
        raise UserError(f"{path}: no sender has a number, 40033, nor is one known for their 40020; {advice}")
    rows = rows.with_columns(
        codes(chat["group_id"]).gather(rows["chat"]).alias("group"),
        codes(sender["person"]).gather(rows["sender"]).alias("person"),
        copy_of=pl.lit(None, pl.Int64),
    )
    nickname = nicknames(rows, chat, sender, names, members, profiles)
    rows = rows.with_columns(copies(rows))
    replies = reply_targets(rows, quotes, sender)
    mentions = whole.mentions.with_columns(pl.col("mentions").replace(number_of["uid"], number_of["number"]))
    return rows.select(
        "message_id",
        chat["group_id"].gather(rows["chat"]),
        "time",
        "seq",
        sender["user_id"].gather(rows["sender"]),
        nickname,
        "fragments",
        pl.Series(patterns, dtype=SHARED["kinds"]["kinds"]).gather(rows["kinds"]).alias("kinds"),
        *lists_of(mentions.filter(~pl.col("mentions").str.starts_with("u_")), rows.height),
        *replies,
        "dropped",
        "copy_of",
    ), for_receipt


def check_bodies(path: Path, advice: str, whole: Chunk) -> None:
    looks = {look: count for (of, look), count in whole.counts.most_common() if of == "undecodable"}
    undecodable = sum(looks.values())
    bodies = undecodable + whole.rows["dropped"].null_count()
    if undecodable > MOST_UNDECODABLE * bodies:
        kinds = ", ".join(f"{look}: {count:,}" for look, count in looks.items())
        raise UserError(f"{path}: {undecodable:,} of {bodies:,} message bodies cannot be read ({kinds}); {advice}")


def merge(chunks: Iterable[Chunk]) -> Chunk:
    """Return one `Chunk` of all rows in the order of `chunks`."""
    tables = {name: Numbered() for name in SHARED}
    frames = {
        name: [pl.DataFrame(schema=types)] for name, types in (("rows", ROW), ("quotes", QUOTE), ("mentions", MENTION))
    }
    counts: Counter[tuple[str, Any]] = Counter()
    height = 0
    for chunk in chunks:
        indices = [
            pl.Series([table[key] for key in chunk.shared[name]], dtype=pl.UInt32).gather(chunk.rows[name]).alias(name)
            for name, table in tables.items()
        ]
        frames["rows"].append(chunk.rows.with_columns(indices))
        frames["quotes"].append(chunk.quotes.with_columns(pl.col("row") + height))
        frames["mentions"].append(chunk.mentions.with_columns(pl.col("row") + height))
        counts += chunk.counts
        height += chunk.rows.height
    rows, quotes, mentions = (pl.concat(frames.pop(name)) for name in list(frames))  # the parts are freed at once
    return Chunk(rows, quotes, mentions, {name: list(table) for name, table in tables.items()}, counts)


def report(rows: pl.DataFrame, patterns: list[list[str]], counts: Counter[tuple[str, Any]]) -> dict[str, Any]:
    """Return the receipt's counts of the rows, and for unknown kinds the ids of some messages that have them."""
    kinds: Counter[str] = Counter()
    unknown: dict[str, list[int]] = {}
    for pattern, count in rows["kinds"].value_counts().sort("kinds").iter_rows():
        for name in patterns[pattern]:
            kinds[name] += count
            if name.startswith(UNKNOWN):
                samples = rows.filter(pl.col("kinds") == pattern)["message_id"].head(SAMPLES).to_list()
                unknown.setdefault(name, []).extend(samples)
    return {
        "rows_by_outer_type": {str(key): count for (of, key), count in counts.most_common() if of == "outer"},
        "elements_by_kind": dict(kinds.most_common()),
        "unknown_kinds": {
            name.removeprefix(UNKNOWN): {"elements": kinds[name], "messages": sorted(set(ids))[:SAMPLES]}
            for name, ids in sorted(unknown.items())
        },
        **{name: counts["count", name] for name in ("undecodable_bodies", "invalid_utf8_texts")},
    }


def codes(values: pl.Series) -> pl.Series:
    """Return a number for each of `values`; equal values have the same number."""
    return values.rank("dense").cast(pl.UInt32)


def group_id() -> pl.Expr:
    """The QQ number of the group if the row has one, else the number of the conversation on this client."""
    peer, number = pl.col("peer"), pl.col("group_number")
    return pl.coalesce(
        pl.when(peer.str.contains(r"^[0-9]+$")).then(peer),
        pl.when(number != 0).then(number.cast(pl.String)),
        pl.col("conversation").cast(pl.String),
        pl.lit(""),
    ).alias("group_id")


def with_people(sender: pl.DataFrame, companions: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Add `user_id` and `person` (the uid, if any); one follows from the other, since uid and QQ number are one to one.
    Also return the numbers by uid. `companions`: pairs of `uid` and `number` from the companion databases."""
    pairs = pl.concat([companions, sender.select("uid", pl.col("number").cast(pl.String))])
    pairs = pairs.filter((pl.col("uid") != "") & ~pl.col("number").is_in(["", "0"]))
    number_of = pairs.unique("uid", keep="first", maintain_order=True)
    uid_of = pairs.unique("number", keep="first", maintain_order=True)
    number, user_id = pl.col("number"), pl.col("user_id")
    known = pl.col("uid").replace_strict(number_of["uid"], number_of["number"], default="", return_dtype=pl.String)
    sender = sender.with_columns(user_id=pl.when(number > 0).then(number.cast(pl.String)).otherwise(known))
    uid = user_id.replace_strict(uid_of["number"], uid_of["uid"], default=user_id, return_dtype=pl.String)
    return sender.with_columns(person=pl.when(pl.col("uid") != "").then("uid").otherwise(uid)), number_of


def nicknames(
    rows: pl.DataFrame,
    chat: pl.DataFrame,
    sender: pl.DataFrame,
    names: pl.DataFrame,
    members: pl.DataFrame,
    profiles: pl.DataFrame,
) -> pl.Series:
    """Return each row's `nickname`: the name when it was sent, else another name of the sender, never empty."""
    own = names.select(own_name().alias("own"))["own"].gather(rows["names"]).alias("nickname")
    if not own.null_count():
        return own
    member = ["group", "person"]
    nameless = rows.filter(own.is_null()).select(*member, "chat", "sender").unique(member)
    nameless = nameless.select(
        *member,
        chat["group_id"].gather(nameless["chat"]),
        sender["user_id"].gather(nameless["sender"]),
        sender["person"].gather(nameless["sender"]).alias("uid"),
    )
    latest = (
        rows.select(*member, "time", "seq", "message_id", latest=own)
        .drop_nulls("latest")
        .join(nameless, on=member, how="semi")
        .sort("time", "seq", "message_id")
        .group_by(member)
        .agg(pl.col("latest").last())
    )
    sources = ["latest", "member_card", "member_name", "profile_name", "user_id", "uid"]
    other_names = (
        nameless.join(latest, on=member, how="left")
        .join(members.unique(["group_id", "uid"], keep="last", maintain_order=True), on=["group_id", "uid"], how="left")
        .join(profiles.unique("uid", keep="last", maintain_order=True), on="uid", how="left")
        .select(*member, pl.coalesce(filled(pl.col(name)) for name in sources).fill_null("unknown").alias("other"))
    )
    every = rows.select(member).join(other_names, on=member, how="left", maintain_order="left")
    return every.select(pl.coalesce(own, "other").alias("nickname"))["nickname"]


def own_name() -> pl.Expr:
    """The group card, else the nickname in the row. Rows imported from old QQ have `card(number)` or `card<mail>`."""
    card, old = pl.col("card"), pl.col("old").fill_null(0) != 0
    number = card.str.extract(r"\(([0-9]+)\)$")
    cleaned = (
        pl.when(number.is_not_null() & (old | (number == pl.col("number").cast(pl.String))))
        .then(card.str.replace(r"\([0-9]+\)$", ""))
        .when(old)
        .then(card.str.replace(r"<[^<>@\s]+@[^<>@\s]+>$", ""))
        .otherwise(card)
    )
    return pl.coalesce(filled(cleaned), filled(pl.col("name")))


def filled(text: pl.Expr) -> pl.Expr:
    return pl.when(text != "").then(text)


def copies(rows: pl.DataFrame) -> pl.Series:
    """Return `copy_of`: the smallest id among rows with the same group, number, sender, time and body."""
    same = ["group", "seq", "person", "time", "body"]
    repeated = (
        rows.select("message_id", *same)
        .with_row_index("row")
        .filter((pl.col("seq") * 1_000_003 + pl.col("group")).is_duplicated())  # leaves few rows for the exact test
        .with_columns(copy_of=pl.col("message_id").min().over(same))
        .filter(pl.col("copy_of") != pl.col("message_id"))
    )
    return spread(repeated, "copy_of", rows.height)


def spread(some: pl.DataFrame, name: str, height: int) -> pl.Series:
    """Return a column of `some` as a series for all `height` rows, null for a row that is not in `row`."""
    return pl.repeat(None, height, dtype=some.schema[name], eager=True).scatter(some["row"], some[name]).alias(name)


def reply_targets(rows: pl.DataFrame, quotes: pl.DataFrame, sender: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """Return `reply_to` and `reply_dangling`. Sequence numbers repeat across groups and, rarely, within one: of several
    messages the one with the right time counts, then the right sender, then the smallest id."""
    candidates = rows.select(
        "group",
        pl.col("seq").alias("quoted_seq"),
        pl.col("message_id").alias("target"),
        "copy_of",
        pl.col("time").alias("target_time"),
        "sender",
    )
    quotes = quotes.with_columns(rows.select("message_id", "time", "group")[quotes["row"]])
    same_sender = ((pl.col("number") == pl.col("quoted_number")) & (pl.col("number") != 0)) | (
        (pl.col("uid") == pl.col("quoted_uid")) & (pl.col("uid") != "")
    )
    targets = (
        quotes.filter(pl.col("quoted_seq") != 0)
        .join(candidates, on=["group", "quoted_seq"])
        .filter(pl.col("target") != pl.col("message_id"), pl.col("target_time") <= pl.col("time"))
        .join(sender.select("uid", "number").with_row_index("sender"), on="sender")
        .with_columns(
            other_time=pl.col("target_time") != pl.col("quoted_time"), other_sender=~same_sender.fill_null(False)
        )
        .sort("row", "other_time", "other_sender", "target")
        .unique("row", keep="first", maintain_order=True)
        .select("row", pl.coalesce("copy_of", "target").alias("reply_to"))
    )
    reply_to = spread(targets, "reply_to", rows.height)
    quoting = pl.repeat(False, rows.height, dtype=pl.Boolean, eager=True).scatter(quotes["row"], True)
    return reply_to, (quoting & reply_to.is_null()).alias("reply_dangling")
