"""Rows of QQNT's group_msg_table as a frame of messages: ids, names, replies and copies worked out over all rows at once.

What repeats (groups, people, names, orders of kinds) is kept once, in small tables beside the rows, which hold its number
there; so seven million rows fit, and what is worked out for a person or a name is worked out once.
"""

from collections import Counter
from dataclasses import dataclass
from zlib import adler32, crc32

import polars as pl

from huiyin.qqnt.body import BodyReader, kind_name
from huiyin.sources.frames import list_column, lists_of

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
COLUMNS = [*NUMBERS.values(), *TEXTS.values(), BODY]
SHARED = {  # the tables beside the rows: {name: columns}
    "place": {"conversation": pl.Int64, "group_number": pl.Int64, "peer": pl.String},
    "who": {"uid": pl.String, "number": pl.Int64},
    "label": {"card": pl.String, "name": pl.String, "old": pl.Boolean, "number": pl.Int64},
    "kinds": {"kinds": pl.List(pl.String)},
}
ROW = {
    "message_id": pl.Int64,
    "seq": pl.Int64,
    "time": pl.Int64,
    **dict.fromkeys(SHARED, pl.UInt32),
    "body": pl.UInt64,
    "dropped": pl.Enum(["system", "no_time", "no_body", "filtered", "duplicate"]),
    "fragments": pl.List(pl.String),
}
QUOTE = {
    "row": pl.Int64,
    "sought": pl.Int64,
    "quoted_time": pl.Int64,
    "quoted_number": pl.Int64,
    "quoted_uid": pl.String,
}
MENTION = {"row": pl.Int64, "mentions": pl.String}

UNKNOWN = "unknown:"
SAMPLES = 3
SYSTEM = 3
TIPS = {8, 26}
MAX_INT = (1 << 63) - 1
HOLLOW = (1, 0)  # what is left of some recalled messages
LAST_SECOND = 253_402_300_799  # of the year 9999; what lies beyond is no time


@dataclass
class Chunk:
    """Some rows, as a worker hands them over. Of `shared` each row has a number in this chunk's own tables."""

    rows: pl.DataFrame
    quotes: pl.DataFrame
    mentions: pl.DataFrame
    shared: dict[str, list]
    counts: Counter


# ---- a chunk of rows


def to_chunk(rows, placeholders):
    """Return the `Chunk` of rows with the values of COLUMNS, texts as bytes."""
    (
        ids,
        seqs,
        outers,
        subtypes,
        origins,
        times,
        replied,
        conversations,
        groups,
        numbers,
        old,
        peers,
        uids,
        cards,
        names,
        bodies,
    ) = zip(*rows, strict=True)
    places, people, labels, patterns = Numbered(), Numbered(), Numbered(), Numbered()
    reader, fragments, quotes, mentions = BodyReader(placeholders), [], [], []
    kinds, read = [], reader.read
    for row, body in enumerate(bodies):
        content = read(body) if body else NOTHING
        fragments.append(content[0])
        kinds.append(patterns[tuple(content[1])])
        if content[2]:
            mentions += [(row, mention) for mention in content[2]]
        if content[3] is not None or replied[row]:
            quotes.append(quote_row(row, content[3], replied[row]))
    frame = pl.DataFrame(
        {
            "message_id": pl.Series(ids, dtype=pl.Int64),
            "seq": pl.Series(seqs, dtype=pl.Int64),
            "time": pl.Series(times, dtype=pl.Int64),
            "place": pl.Series(
                [places[key] for key in zip(conversations, groups, peers, strict=True)], dtype=pl.UInt32
            ),
            "who": pl.Series([people[key] for key in zip(uids, numbers, strict=True)], dtype=pl.UInt32),
            "label": pl.Series([labels[key] for key in zip(cards, names, old, numbers, strict=True)], dtype=pl.UInt32),
            "kinds": pl.Series(kinds, dtype=pl.UInt32),
            "body": pl.Series([crc32(body) << 32 | adler32(body) if body else 0 for body in bodies], dtype=pl.UInt64),
        }
    )
    empty, tips = (
        pl.Series([test(pattern) for pattern in patterns], dtype=pl.Boolean).gather(frame["kinds"])
        for test in (lambda pattern: not pattern, lambda pattern: bool(pattern) and set(pattern) <= TIPS)
    )
    hollow = (
        (pl.Series(outers, dtype=pl.Int64) == HOLLOW[0])
        & (pl.Series(subtypes, dtype=pl.Int64) == HOLLOW[1])
        & pl.Series([not body for body in bodies], dtype=pl.Boolean)
    ).fill_null(False)
    system = (pl.Series(origins, dtype=pl.Int64) == SYSTEM).fill_null(False) | hollow | tips
    timeless = ~pl.col("time").is_between(1, LAST_SECOND).fill_null(False)
    dropped = (
        pl.when(system)
        .then(pl.lit("system"))
        .when(timeless)
        .then(pl.lit("no_time"))
        .when(empty)
        .then(pl.lit("no_body"))
    )
    return Chunk(
        frame.with_columns(dropped.cast(ROW["dropped"]).alias("dropped"), list_column("fragments", fragments)),
        pl.DataFrame(quotes, QUOTE, orient="row"),
        pl.DataFrame(mentions, MENTION, orient="row"),
        {
            "place": [(conversation, group, to_text(peer)) for conversation, group, peer in places],
            "who": [(to_text(uid), number) for uid, number in people],
            "label": [(to_text(card), to_text(name), bool(was_old), number) for card, name, was_old, number in labels],
            "kinds": list(patterns),
        },
        Counter(
            {("outer", value): count for value, count in Counter(outers).items()}
            | {
                ("count", "undecodable_bodies"): reader.undecodable,
                ("count", "invalid_utf8_texts"): reader.invalid_texts,
            }
        ),
    )


NOTHING = ([], (), (), None)


class Numbered(dict):
    """Gives each new key the next number."""

    def __missing__(self, key):
        number = self[key] = len(self)
        return number


def to_text(value):
    return "" if value is None else value.decode("utf-8", "replace")


def quote_row(row, quote, replied):
    if quote is None:
        return row, replied, 0, 0, ""
    return (
        row,
        quote.quoted_seq & MAX_INT or replied or 0,
        quote.quoted_time,
        quote.quoted_qq & MAX_INT,
        quote.quoted_uid.decode("utf-8", "replace"),
    )


# ---- all of them


def to_history(chunks, mapping, members, profiles):
    """Return the frame that `read_history` does, made of all `chunks`, and the counts."""
    shared = {name: Numbered() for name in SHARED}
    parts, counts, height = {"rows": [], "quotes": [], "mentions": []}, Counter(), 0
    for chunk in chunks:
        numbers = [
            pl.Series([table[key] for key in chunk.shared[name]], dtype=pl.UInt32).gather(chunk.rows[name]).alias(name)
            for name, table in shared.items()
        ]
        parts["rows"].append(chunk.rows.with_columns(numbers))
        for name in ("quotes", "mentions"):
            parts[name].append(getattr(chunk, name).with_columns(pl.col("row") + height))
        counts += chunk.counts
        height += chunk.rows.height
    schemas = {"rows": ROW, "quotes": QUOTE, "mentions": MENTION}
    rows, quotes, mentions = (
        pl.concat([pl.DataFrame(schema=schemas[name]), *frames]) for name, frames in parts.items()
    )
    parts.clear()
    named = [[kind_name(number) for number in pattern] for pattern in shared.pop("kinds")]
    patterns = pl.Series(named, dtype=SHARED["kinds"]["kinds"])
    found = report(rows, named, counts)
    place, who, label = (pl.DataFrame(list(shared[name]), SHARED[name], orient="row") for name in shared)

    place = place.with_columns(group_id())
    known = pl.concat([table.select("uid", "number") for table in (mapping, members, profiles)])
    who, number_of = with_people(who, known)
    rows = rows.with_columns(
        codes(place["group_id"]).gather(rows["place"]).alias("group"),
        codes(who["person"]).gather(rows["who"]).alias("person"),
        copy_of=pl.lit(None, pl.Int64),
    )
    nickname = nicknames(rows, place, who, label, members, profiles)
    rows = rows.with_columns(copies(rows))
    replies = reply_targets(rows, quotes, place, who)
    return rows.select(
        "message_id",
        place["group_id"].gather(rows["place"]),
        "time",
        "seq",
        who["user_id"].gather(rows["who"]),
        nickname,
        "fragments",
        patterns.gather(rows["kinds"]).alias("kinds"),
        lists_of(
            mentions.with_columns(pl.col("mentions").replace(number_of["uid"], number_of["number"])).filter(
                ~pl.col("mentions").str.starts_with("u_")
            ),
            height,
        ),
        *replies,
        "dropped",
        "copy_of",
    ), found


def report(rows, patterns, counts):
    """Return what a receipt tells about the rows; of kinds that are not known also some messages that have them."""
    kinds, unknown = Counter(), {}
    for pattern, times in rows["kinds"].value_counts().sort("kinds").iter_rows():
        for name in patterns[pattern]:
            kinds[name] += times
            if name.startswith(UNKNOWN):
                some = rows.filter(pl.col("kinds") == pattern)["message_id"].head(SAMPLES).to_list()
                unknown.setdefault(name, []).extend(some)
    return {
        "rows_by_outer_type": {str(key): times for (of, key), times in counts.most_common() if of == "outer"},
        "elements_by_kind": dict(kinds.most_common()),
        "unknown_kinds": {
            name.removeprefix(UNKNOWN): {"elements": kinds[name], "messages": sorted(set(ids))[:SAMPLES]}
            for name, ids in sorted(unknown.items())
        },
        **{name: counts["count", name] for name in ("undecodable_bodies", "invalid_utf8_texts")},
    }


def codes(values):
    """Return a number for each of `values`, the same for the same."""
    return values.rank("dense").cast(pl.UInt32)


def group_id():
    peer, number = pl.col("peer"), pl.col("group_number")
    return (
        pl.when(peer.str.contains(r"^[0-9]+$"))
        .then(peer)
        .when(number != 0)
        .then(number.cast(pl.String))
        .otherwise(pl.col("conversation").cast(pl.String))
        .fill_null("")
        .alias("group_id")
    )


def with_people(who, known):
    """Add `user_id` and `person` (the uid where there is one), each made good from the other: uid and number are one
    to one. Also return the numbers found, by uid."""
    pairs = pl.concat([known, who.select("uid", pl.col("number").cast(pl.String))])
    pairs = pairs.filter((pl.col("uid") != "") & ~pl.col("number").is_in(["", "0"]))
    number_of = pairs.unique("uid", keep="first", maintain_order=True)
    uid_of = pairs.unique("number", keep="first", maintain_order=True)
    who = who.with_columns(
        user_id=pl.when(pl.col("number") > 0)
        .then(pl.col("number").cast(pl.String))
        .otherwise(
            pl.col("uid").replace_strict(number_of["uid"], number_of["number"], default="", return_dtype=pl.String)
        )
    )
    uid = pl.col("user_id").replace_strict(
        uid_of["number"], uid_of["uid"], default=pl.col("user_id"), return_dtype=pl.String
    )
    return who.with_columns(person=pl.when(pl.col("uid") != "").then("uid").otherwise(uid)), number_of


def nicknames(rows, place, who, label, members, profiles):
    """Return each row's `nickname`: the name at send time, else one the sender has elsewhere, never empty."""
    own = label.select(own_name().alias("own"))["own"].gather(rows["label"]).alias("nickname")
    if not own.null_count():
        return own
    keys = ["group_id", "person"]
    nameless = rows.filter(own.is_null()).select("group", "person", "place", "who").unique(["group", "person"])
    latest = (
        rows.select("group", "person", "time", "seq", "message_id", latest=own)
        .drop_nulls("latest")
        .join(nameless, on=["group", "person"], how="semi")
        .sort("time", "seq", "message_id")
        .group_by("group", "person")
        .agg(pl.col("latest").last())
    )
    members = members.rename({"uid": "person"}).unique(keys, keep="last", maintain_order=True)
    profiles = profiles.rename({"uid": "person"}).unique("person", keep="last", maintain_order=True)
    sources = ["latest", "member_card", "member_name", "profile_name", "user_id", "person"]
    found = (
        nameless.join(latest, on=["group", "person"], how="left")
        .select(
            "group",
            pl.col("person").alias("code"),
            "latest",
            place["group_id"].gather(nameless["place"]),
            who["user_id"].gather(nameless["who"]),
            who["person"].gather(nameless["who"]),
        )
        .join(members, on=keys, how="left")
        .join(profiles, on="person", how="left")
        .select(
            "group",
            pl.col("code").alias("person"),
            pl.coalesce(filled(pl.col(name)) for name in sources).fill_null("unknown").alias("found"),
        )
    )
    every = rows.select("group", "person").join(found, on=["group", "person"], how="left", maintain_order="left")
    return every.select(pl.coalesce(own, "found").alias("nickname"))["nickname"]


def own_name():
    """The group card, else the nickname in the row. Rows moved from old QQ have `card(number)` or `card<mail>`."""
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


def filled(text):
    return pl.when(text != "").then(text)


def copies(rows):
    """Return `copy_of`: the smallest id among rows with the same group, number, sender, time and body."""
    same = ["group", "seq", "person", "time", "body"]
    found = (
        rows.select("message_id", *same)
        .with_row_index("row")
        .filter((pl.col("seq") * 1_000_003 + pl.col("group")).is_duplicated())  # few are left for the exact test
        .with_columns(copy_of=pl.col("message_id").min().over(same))
        .filter(pl.col("copy_of") != pl.col("message_id"))
    )
    return spread(found, "copy_of", rows.height)


def spread(found, name, height):
    """Return a column of `found` as a series for all rows, null where `row` is not among them."""
    return pl.repeat(None, height, dtype=found.schema[name], eager=True).scatter(found["row"], found[name]).alias(name)


def reply_targets(rows, quotes, place, who):
    """Return `reply_to` and `reply_dangling`. Numbers are reused across groups and, rarely, within one: time, then
    sender, then the smallest id decide."""
    conversation = codes(place["conversation"])
    there = rows.select(
        conversation.gather(rows["place"]).alias("room"),
        pl.col("seq").alias("sought"),
        pl.col("message_id").alias("target"),
        "copy_of",
        pl.col("time").alias("target_time"),
        "who",
    )
    asking = rows.select("message_id", "time", "place")[quotes["row"]]
    quotes = quotes.with_columns(asking.select("message_id", "time", room=conversation.gather(asking["place"])))
    same_sender = ((pl.col("number") == pl.col("quoted_number")) & (pl.col("number") != 0)) | (
        (pl.col("uid") == pl.col("quoted_uid")) & (pl.col("uid") != "")
    )
    targets = (
        quotes.filter(pl.col("sought") != 0)
        .join(there, on=["room", "sought"])
        .filter(pl.col("target") != pl.col("message_id"), pl.col("target_time") <= pl.col("time"))
        .join(who.select("uid", "number").with_row_index("who"), on="who")
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
