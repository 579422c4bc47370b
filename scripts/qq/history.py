"""A decrypted nt_msg.db as a frame of messages: ids, names, replies and copies worked out over all rows at once.

Rows are read once, in the order of the file, in chunks that become polars columns; what needs the other rows (who
has which number, which name, what is quoted) is then done on narrow frames of the columns it takes.
"""

import sqlite3
from contextlib import closing
from itertools import chain

import polars as pl

from common.errors import Mistake
from common.progress import Progress
from qq.body import Content

CHUNK = 50_000
MESSAGES = "group_msg_table"
NUMBERS = {
    "message_id": 40001, "seq": 40003, "outer": 40011, "outer_subtype": 40012, "origin": 40013, "conversation": 40027,
    "group_number": 40030, "number": 40033, "time": 40050, "old": 40060, "replied_seq": 40850,
}  # fmt: skip
TEXTS = {"uid": 40020, "peer": 40021, "card": 40090, "name": 40093}
BODY = 40800
NEEDED = {40001, 40003, 40021, 40027, 40033, 40050, 40800}  # the other columns come and go with QQ's versions
CONTENT = {
    "fragments": pl.List(pl.String), "kinds": pl.List(pl.String), "mentions": pl.List(pl.String), "is_tip": pl.Boolean,
    "quotes": pl.Boolean, "quoted_seq": pl.Int64, "quoted_time": pl.Int64, "quoted_number": pl.Int64,
    "quoted_uid": pl.String, "body": pl.Int64, "bodiless": pl.Boolean,
}  # fmt: skip
SCHEMA = {**dict.fromkeys(NUMBERS, pl.Int64), **dict.fromkeys(TEXTS, pl.String), **CONTENT}

NOTHING = Content([], [], [], None, False)
SYSTEM = 3
MAX_INT = (1 << 63) - 1
HOLLOW = (1, 0)  # what is left of some recalled messages
LAST_SECOND = 253_402_300_799  # of the year 9999; what lies beyond is no time


def read_history(path, reader):
    """Return all rows of the database at `path` as a frame with the columns of messages.parquet, and besides
    `dropped` (the reason, null if there is none), `copy_of` (the message it repeats) and `outer` (40011)."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            connection.text_factory = lambda text: text.decode("utf-8", "replace")
            known = columns_of(connection, MESSAGES)
            if not known:
                raise Mistake(f"{path}: no {MESSAGES} in it; give a decrypted nt_msg.db")
            if missing := sorted(NEEDED - known):
                raise Mistake(f"{path}: {MESSAGES} has no column {', '.join(map(str, missing))}; is it QQNT's?")
            frame = pl.concat([pl.DataFrame(schema=SCHEMA), *chunks(connection, known, reader)])
            mapping = read_table(connection, "nt_uid_mapping_table", {"uid": 48902, "number": 1002})
            members = read_table(
                connection, "group_member3",
                {"group_id": 60001, "uid": 1000, "number": 1002, "member_card": 64003, "member_name": 20002},
            )  # fmt: skip
            profiles = read_table(connection, "profile_info_v6", {"uid": 1000, "number": 1002, "profile_name": 20002})
    except sqlite3.DatabaseError as error:
        raise Mistake(f"{path}: cannot be read ({error}); if it is encrypted, decrypt it first") from None

    frame = frame.with_columns(group_id(), pl.col("uid", "peer", "card", "name", "quoted_uid").fill_null(""))
    numbers = [table.select("uid", "number") for table in (mapping, members, profiles)]
    frame = with_people(frame, pl.concat([*numbers, frame.select("uid", pl.col("number").cast(pl.String))]))
    frame = with_names(frame, members, profiles)
    frame = with_copies(frame)
    frame = with_replies(frame)
    return frame.with_columns(reason())


def columns_of(connection, table):
    return {int(row[1]) for row in connection.execute(f"PRAGMA table_info([{table}])") if row[1].isdecimal()}


def chunks(connection, known, reader):
    """Yield frames of CHUNK rows. The casts see to it that exported copies, where types went astray, read the same."""
    wanted = [(number, "INTEGER") for number in NUMBERS.values()] + [(number, "TEXT") for number in TEXTS.values()]
    selected = [f"CAST([{name}] AS {kind})" if name in known else "NULL" for name, kind in [*wanted, (BODY, "BLOB")]]
    total = connection.execute(f"SELECT count(*) FROM {MESSAGES}").fetchone()[0]
    cursor = connection.execute(f"SELECT {', '.join(selected)} FROM {MESSAGES}")
    with Progress("parse", total, "rows") as progress:
        while rows := cursor.fetchmany(CHUNK):
            *plain, bodies = zip(*rows, strict=True)
            content = zip(*(content_row(body, reader) for body in bodies), strict=True)
            columns = zip(SCHEMA.items(), [*plain, *content], strict=True)
            yield pl.DataFrame([column(name, kind, values) for (name, kind), values in columns])
            progress.add(len(rows))


def column(name, kind, values):
    """Return a series. Of lists of text polars makes a series each, which takes six times as long as one of all their
    items, grouped afterwards."""
    if kind != pl.List(pl.String):
        return pl.Series(name, values, kind)
    items = pl.DataFrame(
        {"row": [row for row, items in enumerate(values) for _ in items], name: list(chain.from_iterable(values))},
        schema={"row": pl.Int64, name: pl.String},
    )
    lists = items.group_by("row", maintain_order=True).agg(name)
    rows = pl.DataFrame({"row": pl.int_range(len(values), eager=True)})
    return rows.join(lists, on="row", how="left", maintain_order="left")[name].fill_null([])


def content_row(body, reader):
    """Return the values of CONTENT for one body. Of the body itself its hash is enough: it is compared only among
    rows with the same number, sender and second."""
    content = reader.read(body) if body else NOTHING
    quote = content.quote
    quoted = (False, 0, 0, 0, "") if quote is None else (
        True, quote.quoted_seq & MAX_INT, quote.quoted_time, quote.quoted_qq & MAX_INT,
        quote.quoted_uid.decode("utf-8", "replace"),
    )  # fmt: skip
    return (content.fragments, content.kinds, content.mentions, content.is_tip, *quoted, hash(body or b""), not body)


def read_table(connection, table, columns):
    """Return columns of a table as text, "" for NULL and 0; no rows if the table or one of its columns is missing."""
    schema = dict.fromkeys(columns, pl.String)
    if not columns_of(connection, table) >= set(columns.values()):
        return pl.DataFrame(schema=schema)
    selected = ", ".join(f"coalesce(CAST(nullif([{number}], 0) AS TEXT), '')" for number in columns.values())
    return pl.DataFrame(connection.execute(f"SELECT {selected} FROM [{table}]").fetchall(), schema=schema, orient="row")


def group_id():
    peer, number = pl.col("peer"), pl.col("group_number")
    return (
        pl.when(peer.str.contains(r"^[0-9]+$")).then(peer)
        .when(number != 0).then(number.cast(pl.String))
        .otherwise(pl.col("conversation").cast(pl.String)).fill_null("").alias("group_id")
    )  # fmt: skip


def with_people(frame, pairs):
    """Add `user_id` and `person` (the uid where there is one), each made good from the other: uid and number are one
    to one. Mentions by uid become numbers too; who has none is left out of them."""
    pairs = pairs.filter((pl.col("uid") != "") & ~pl.col("number").is_in(["", "0"]))
    number_of = pairs.unique("uid", keep="first", maintain_order=True)
    uid_of = pairs.unique("number", keep="first", maintain_order=True)
    ids = frame.select(
        pl.when(pl.col("number") > 0).then(pl.col("number").cast(pl.String)).otherwise(
            pl.col("uid").replace_strict(number_of["uid"], number_of["number"], default="", return_dtype=pl.String)
        ).alias("user_id"),
        "uid",
    )  # fmt: skip
    uid = pl.col("user_id").replace_strict(
        uid_of["number"], uid_of["uid"], default=pl.col("user_id"), return_dtype=pl.String
    )
    person = pl.when(pl.col("uid") != "").then("uid").otherwise(uid).alias("person")
    mention = pl.element().replace(number_of["uid"], number_of["number"])
    mentions = pl.col("mentions").list.eval(mention.filter(~mention.str.starts_with("u_")))
    return frame.with_columns(ids.select("user_id", person)).with_columns(mentions)


def with_names(frame, members, profiles):
    """Add `nickname`: the name at send time, else one the sender has elsewhere, never empty."""
    keys = ["group_id", "person"]
    names = frame.select(*keys, "user_id", "time", "seq", "message_id", own_name().alias("own"))
    latest = names.drop_nulls("own").sort("time", "seq", "message_id").group_by(keys).agg(latest=pl.col("own").last())
    members = members.rename({"uid": "person"}).unique(keys, keep="last", maintain_order=True)
    profiles = profiles.rename({"uid": "person"}).unique("person", keep="last", maintain_order=True)
    nameless = (
        names.filter(pl.col("own").is_null())
        .join(latest, on=keys, how="left", maintain_order="left")
        .join(members, on=keys, how="left", maintain_order="left")
        .join(profiles, on="person", how="left", maintain_order="left")
    )
    sources = ["latest", "member_card", "member_name", "profile_name", "user_id", "person"]
    found = nameless.select("message_id", pl.coalesce(filled(pl.col(name)) for name in sources).fill_null("unknown"))
    found = found.rename({"latest": "found"})
    nickname = names.join(found, on="message_id", how="left", maintain_order="left").select(
        pl.coalesce("own", "found").alias("nickname")
    )
    return frame.with_columns(nickname)


def own_name():
    """The group card, else the nickname in the row. Rows moved from old QQ have `card(number)` or `card<mail>`."""
    card, old = pl.col("card"), pl.col("old").fill_null(0) != 0
    number = card.str.extract(r"\(([0-9]+)\)$")
    cleaned = (
        pl.when(number.is_not_null() & (old | (number == pl.col("number").cast(pl.String))))
        .then(card.str.replace(r"\([0-9]+\)$", ""))
        .when(old).then(card.str.replace(r"<[^<>@\s]+@[^<>@\s]+>$", ""))
        .otherwise(card)
    )  # fmt: skip
    return pl.coalesce(filled(cleaned), filled(pl.col("name")))


def filled(text):
    return pl.when(text != "").then(text)


def with_copies(frame):
    """Add `copy_of`: the smallest id among rows with the same group, number, sender, time and body."""
    same = ["group_id", "seq", "person", "time", "body"]
    copies = (
        frame.select(*same, "message_id")
        .filter(pl.struct("group_id", "seq").is_duplicated())
        .with_columns(copy_of=pl.col("message_id").min().over(same))
        .filter(pl.col("copy_of") != pl.col("message_id"))
        .select("message_id", "copy_of")
    )
    found = frame.select("message_id").join(copies, on="message_id", how="left", maintain_order="left")
    return frame.with_columns(found["copy_of"])


def with_replies(frame):
    """Add `reply_to` and `reply_dangling`. Numbers are reused across groups and, rarely, within one: time, then
    sender, then the smallest id decide."""
    sought = pl.when(pl.col("quoted_seq") != 0).then("quoted_seq").otherwise("replied_seq").fill_null(0)
    there = frame.select(
        "conversation", pl.col("seq").alias("sought"), pl.col("message_id").alias("target"), "copy_of",
        pl.col("time").alias("target_time"), pl.col("number").alias("target_number"), pl.col("uid").alias("target_uid"),
    )  # fmt: skip
    same_sender = ((pl.col("target_number") == pl.col("quoted_number")) & (pl.col("target_number") != 0)) | (
        (pl.col("target_uid") == pl.col("quoted_uid")) & (pl.col("target_uid") != "")
    )
    targets = (
        frame.select("message_id", "conversation", "time", "quoted_time", "quoted_number", "quoted_uid", sought=sought)
        .filter(pl.col("sought") != 0)
        .join(there, on=["conversation", "sought"])
        .filter(pl.col("target") != pl.col("message_id"), pl.col("target_time") <= pl.col("time"))
        .with_columns(other_time=pl.col("target_time") != pl.col("quoted_time"), other_sender=~same_sender)
        .sort("message_id", "other_time", "other_sender", "target")
        .unique("message_id", keep="first")
        .select("message_id", pl.coalesce("copy_of", "target").alias("reply_to"))
    )
    found = frame.select("message_id").join(targets, on="message_id", how="left", maintain_order="left")
    quotes = pl.col("quotes") | (pl.col("replied_seq").fill_null(0) != 0)
    return frame.with_columns(found["reply_to"]).with_columns(reply_dangling=quotes & pl.col("reply_to").is_null())


def reason():
    """Why a row is no message, the first reason that applies; null if it is one."""
    hollow = (pl.col("outer") == HOLLOW[0]) & (pl.col("outer_subtype") == HOLLOW[1]) & pl.col("bodiless")
    return (
        pl.when((pl.col("origin") == SYSTEM).fill_null(False) | hollow.fill_null(False) | pl.col("is_tip"))
        .then(pl.lit("system"))
        .when(~pl.col("time").is_between(1, LAST_SECOND).fill_null(False)).then(pl.lit("no_time"))
        .when(pl.col("kinds").list.len() == 0).then(pl.lit("no_body"))
        .alias("dropped")
    )  # fmt: skip
