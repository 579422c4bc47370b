"""The export of a program as a frame of messages: what comes after every reader, once for all formats.

Names, duplicates, quotes and reasons are found over all rows at once; the file itself passes as a stream, so that
memory grows with the messages and not with the file.
"""

import gc
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
from msgspec.structs import astuple

from huiyin.common.errors import UserError
from huiyin.sources.browser_json import read_table
from huiyin.sources.detect import Found, Head
from huiyin.sources.files import Hashed, json_items, json_lines, json_values
from huiyin.sources.frames import list_columns, lists_of
from huiyin.sources.history import LAST_SECOND, SAMPLES, UNKNOWN, spread
from huiyin.sources.record import BY_NAME, HIDDEN, Parts, Record, to_user_id

ROW: dict[str, Any] = {
    **{"key": pl.String, "room": pl.String, "time": pl.Int64, "seq": pl.Int64, "sender": pl.String, "name": pl.String},
    "dropped": pl.String,
}
QUOTE: dict[str, Any] = {
    **{"row": pl.Int64, "key": pl.String, "seq": pl.Int64, "time": pl.Int64, "sender": pl.String, "words": pl.String},
}
MENTION: dict[str, Any] = {"row": pl.Int64, "mentions": pl.String}
WAYS = {  # how a quoted message is found: {name: what is the same}, the first that gives one
    "key": ["room", "key"],
    "seq": ["room", "seq"],
    "time and sender": ["room", "time", "sender"],
    "time and words": ["room", "time", "words"],
    "words": ["room", "words"],
}
PLACEHOLDERS = {
    **{
        "image": "[图片]",
        "file": "[文件]",
        "voice": "[语音]",
        "video": "[视频]",
        "face": "[表情]",
        "market_face": "[表情]",
    },
    **{"wallet": "[红包]", "ark": "[卡片]", "markdown": "[文档]", "forward": "[聊天记录]", "call": "[通话]"},
}
RECORDS = 10_000  # of which frames are made at a time
FACES = ("face", "market_face")
ZONES = "Asia/Tokyo, Europe/Berlin, America/New_York"
EPOCH = datetime(1970, 1, 1)


@dataclass
class Source:
    """An export while it is read: its files, what the settings say of it, and what its reader learns on the way."""

    found: Found
    zone: str = ""
    group: str = ""
    skip_bad_lines: bool = False
    config: Path = Path("parse.yaml")
    room: str = ""  # the group of the records that name none
    people: dict[str, str] = field(default_factory=dict)  # {HIDDEN and another id of a person: the id}
    members: set[tuple[str, str]] = field(default_factory=set)  # (name, id) of people who may not have written
    digests: dict[Path, str] = field(default_factory=dict)
    odd: Counter[str] = field(default_factory=Counter)  # {what a reader could not make sense of: how often}
    notes: list[str] = field(default_factory=list)  # what was assumed, a line each
    minutes: Counter[str] = field(default_factory=Counter)  # {room: messages whose time has no seconds}
    private: set[str] = field(default_factory=set)  # rooms that are no groups
    local_times: list[str] = field(default_factory=list)  # some that lack a zone
    most: int | None = None  # rows that are read; None: all of them
    opened: dict[Path, Hashed] = field(default_factory=dict)  # the files, as they are read for the last time

    @property
    def path(self) -> Path:
        return self.found.path

    def __post_init__(self) -> None:
        self.tz = ZoneInfo(self.zone) if self.zone else None

    @property
    def default_room(self) -> str:
        return self.room or self.group or self.path.stem

    @property
    def share(self) -> float:
        """The share of its files that was read: 1 if all of them were."""
        size = sum(path.stat().st_size for path in self.found.files)
        return min(1.0, sum(file.progress.done for file in self.opened.values()) / max(1, size))

    @contextmanager
    def open(self, path: Path) -> Iterator[Hashed]:
        """Open a file of the export; its digest is known when it was read to its end."""
        with Hashed(path) as file:
            self.opened[path] = file
            yield file
        self.digests[path] = file.digest.hexdigest()

    def items(self, head: Head, prefix: str) -> Iterator[Any]:
        """Yield the values at `prefix` (ijson's) of a file of JSON."""
        with self.open(head.path) as file:
            yield from json_items(head.path, file, prefix)
            while file.read(1 << 16):  # what comes after the values belongs to the digest
                pass

    def values(self, head: Head, prefixes: Collection[str]) -> Iterator[tuple[str, Any]]:
        """Yield what `json_values` does."""
        with self.open(head.path) as file:
            yield from json_values(head.path, file, prefixes)

    def byte_lines(self, head: Head) -> Iterator[bytes]:
        """Yield the lines of a file, each with its line feed."""
        with self.open(head.path) as file:
            yield from file

    def objects(self, head: Head) -> Iterator[dict[str, Any]]:
        """Yield the objects of a file of JSONL; {} for a bad line, if the settings let it be."""
        yield from json_lines(head.path, self.byte_lines(head), self.skip_bad_lines)

    def lines(self, head: Head, note: bool = True) -> Iterator[str]:
        """Yield the lines of a text, UTF-8 or GB18030; `UserError` for one in neither. note: say if not UTF-8."""
        encoding = head.encoding or "utf-8"
        if note and encoding != "utf-8":
            self.notes.append(f"{head.path.name} is read as {encoding}")
        for number, line in enumerate(self.byte_lines(head), 1):
            try:
                yield line.decode(encoding)
            except UnicodeDecodeError:
                raise UserError(f"{head.path} line {number}: not {encoding}; save the file as UTF-8 text") from None

    def local(self, text: str, moment: datetime | None = None) -> int | None:
        """Return the seconds of a local time in ISO's form, or of `moment`, which was read from `text`; None for what
        is no time. An hour that comes twice in autumn is taken as the first. `UserError` if the settings name no
        zone."""
        if self.tz is None:
            self.local_times.append(text)
            if len(self.local_times) > 1:
                self.refuse_local()
            return 0
        try:
            moment = moment or datetime.fromisoformat(text)
        except ValueError:
            return None
        if moment.tzinfo:
            moment = moment.replace(tzinfo=None)
        offset = offset_on(moment.date(), self.tz)
        if offset is None:
            offset = moment.replace(tzinfo=self.tz).utcoffset() or timedelta(0)
        return int((moment - EPOCH - offset).total_seconds())

    def refuse_local(self) -> None:
        """`UserError` if a time was local and there is no zone."""
        if self.local_times:
            times = " and ".join(dict.fromkeys(text.strip() for text in self.local_times))
            raise UserError(
                f"{self.path}: its times are local and name no zone ({times}); write into {self.config} where it was "
                f"exported, such as zone: Asia/Shanghai (also {ZONES})"
            )


@lru_cache(100_000)  # most days have many messages
def offset_on(day: date, zone: ZoneInfo) -> timedelta | None:
    """Return the offset from UTC that a zone has all day; None if it changes its clocks on that day."""
    first, last = (datetime.combine(day, at, zone).utcoffset() for at in (time.min, time.max))
    return first if first == last else None


def read_export(source: Source, faces: bool, placeholders: Iterable[str]) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return the rows of an export, like `read_history`, and what the receipt says of them."""
    if source.found.format == "db_browser":  # rows of QQNT's table
        (path,) = source.found.files
        with source.open(path) as file:
            return read_table(path, file, placeholders, faces, source.most)
    rows, quotes, mentions = read_records(source, ({} if faces else dict.fromkeys(FACES)) | labels(placeholders))
    reader = source.found.reader
    ids = ids_of([rows["sender"], quotes["sender"], mentions["mentions"]], source, keep=reader.AS_IT_IS)
    rows = rows.with_columns(ids("sender"), pl.col("room").replace("", source.default_room))
    rows = rows.with_columns(
        message_ids(rows, reader.NATIVE_IDS), nicknames(rows), reasons(source.private, empty=reader.AS_IT_IS)
    )
    if (rows["dropped"] == "not_a_group").any() and not rows["dropped"].null_count():
        raise UserError(f"{source.path}: a private chat or a channel, no group; export a group")
    rows = rows.with_columns(copies(rows))
    targets = reply_targets(rows, quotes.with_columns(ids("sender")))
    rows = rows.with_columns(
        spread(targets, "reply_to", rows.height),
        *lists_of(mentioned(mentions.with_columns(ids("mentions")), rows, source), rows.height),
        quoting=pl.repeat(False, rows.height, dtype=pl.Boolean, eager=True).scatter(quotes["row"], True),
    )
    frame = rows.select(
        *("message_id", pl.col("room").alias("group_id"), pl.col("time").fill_null(0), "seq"),
        *(pl.col("sender").alias("user_id"), "nickname", "fragments", "kinds", "mentions", "reply_to"),
        (pl.col("quoting") & pl.col("reply_to").is_null()).alias("reply_dangling"),
        *("dropped", "copy_of"),
        *([pl.when(pl.col("key") != "").then("key").alias("source_id")] if (rows["key"] != "").any() else []),
    )
    return frame, report(rows, targets, source)


@contextmanager
def no_garbage() -> Iterator[None]:
    """Within the block Python looks for no cycles: there are none, and to look takes a quarter of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def labels(placeholders: Iterable[str]) -> dict[str, str | None]:
    return {kind: PLACEHOLDERS[kind] for kind in placeholders}


def read_records(source: Source, shown: Mapping[str, str | None]) -> list[pl.DataFrame]:
    """Return frames of rows, quotes and mentions of all records; `shown`: the `labels` of `frames_of`."""
    records = islice(source.found.reader.records(source), source.most)
    chunks, height = [frames_of([], 0, {})], 0
    with no_garbage():
        for chunk in iter(lambda: list(islice(records, RECORDS)), []):
            chunks.append(frames_of(chunk, height, shown))
            height += len(chunk)
    source.refuse_local()
    return [pl.concat(frames) for frames in zip(*chunks, strict=True)]


def frames_of(records: list[Record], height: int, labels: Mapping[str, str | None]) -> tuple[pl.DataFrame, ...]:
    """Return frames of rows, quotes and mentions of some records, of which `height` others come before. labels: the
    fragment that each element of a kind has, in place of its own; None for none."""
    keys, rooms, times, seqs, senders, names, parts, mentions, quotes, dropped = (
        zip(*map(astuple, records), strict=True) if records else [()] * 10
    )
    rows = frame_of(ROW, [keys, rooms, times, seqs, senders, names, dropped])
    quoting = [(row, *quote) for row, quote in enumerate(quotes, height) if quote is not None]
    mentioning = [(row, mention) for row, each in enumerate(mentions, height) if each for mention in each]
    return (
        rows.hstack(fragments_and_kinds(parts, labels)),
        frame_of(QUOTE, zip(*quoting, strict=True) if quoting else [()] * len(QUOTE)),
        frame_of(MENTION, zip(*mentioning, strict=True) if mentioning else [()] * len(MENTION)),
    )


def frame_of(schema: Mapping[str, Any], columns: Iterable[Sequence[Any]]) -> pl.DataFrame:
    """Return a frame of columns, which polars takes in a fraction of the time that it needs for rows."""
    of = zip(schema.items(), columns, strict=True)
    return pl.DataFrame([pl.Series(name, values, kind) for (name, kind), values in of])


def fragments_and_kinds(parts: Sequence[Parts], labels: Mapping[str, str | None]) -> pl.DataFrame:
    """Return the columns `fragments` and `kinds` with the parts of each row; labels: those of `frames_of`."""
    kinds, fragments = zip(*chain.from_iterable(parts), strict=True) if any(parts) else ((), ())
    if labels:
        fragments = tuple(labels.get(kind, text) for kind, text in zip(kinds, fragments, strict=True))
    return list_columns(list(map(len, parts)), {"fragments": fragments, "kinds": kinds})


def ids_of(written: list[pl.Series], source: Source, keep: bool) -> Callable[[str], pl.Expr]:
    """Return a function from the name of a column with ids as records have them to an expression: the `user_id`s. A
    name (BY_NAME) stays. keep: ids have no rule of form."""
    known = {}
    for each in pl.concat(series.rename("id").unique() for series in written).unique().drop_nulls():
        of = source.people.get(each, "") if each.startswith(HIDDEN) and not each.startswith(BY_NAME) else each
        known[each] = of if keep or of.startswith(BY_NAME) else to_user_id(of)
    changed = {each: of for each, of in known.items() if each != of}
    return lambda name: pl.col(name).replace(list(changed), list(changed.values()))


def mentioned(mentions: pl.DataFrame, rows: pl.DataFrame, source: Source) -> pl.DataFrame:
    """Return `mentions` with the id in place of a name that exactly one member of the room has; unknown ones go."""
    name = pl.when(pl.col("mentions").str.starts_with(BY_NAME)).then(pl.col("mentions").str.slice(len(BY_NAME)))
    mentions = mentions.with_columns(rows["room"].gather(mentions["row"]), name=name)
    if mentions["name"].null_count() < mentions.height:
        rooms = rows.select(pl.col("room").unique())
        listed = [(name, to_user_id(of)) for name, of in source.members]
        members = pl.DataFrame(listed, {"name": pl.String, "sender": pl.String}, orient="row")
        bearers = pl.concat([rows.select("room", "name", "sender").unique(), rooms.join(members, how="cross")])
        bearers = bearers.filter(pl.col("name") != "", pl.col("sender") != "").unique()
        single = bearers.filter(~pl.struct("room", "name").is_duplicated())
        mentions = mentions.join(single, on=["room", "name"], how="left", maintain_order="left")
        mentions = mentions.with_columns(
            pl.when(pl.col("name").is_null()).then("mentions").otherwise("sender").alias("mentions")
        )
    return mentions.filter(pl.col("mentions").fill_null("") != "").select("row", "mentions")


def message_ids(rows: pl.DataFrame, native: bool) -> pl.Series:
    """Return `message_id`: the number of the row, but the platform's own id where that is QQ's (column 40001)."""
    numbers = pl.int_range(rows.height, dtype=pl.Int64)
    if native:
        key = pl.col("key").cast(pl.Int64, strict=False)
        numbers = pl.when((key >= rows.height) & key.is_first_distinct()).then(key).otherwise(numbers)
    return rows.select(numbers.alias("message_id"))["message_id"]


def nicknames(rows: pl.DataFrame) -> pl.Series:
    """Return `nickname`: the name in the record, else the person's latest other one in the room, never empty."""
    own = rows.select(nickname=pl.when(pl.col("name") != "").then("name"))["nickname"]
    if not own.null_count():
        return own
    latest = (
        rows.filter(pl.col("name") != "", pl.col("sender") != "")
        .sort("time", maintain_order=True)
        .group_by("room", "sender")
        .agg(latest=pl.col("name").last())
    )
    every = rows.select("room", "sender", own).join(latest, on=["room", "sender"], how="left", maintain_order="left")
    sender = pl.when(pl.col("sender") != "").then("sender")
    return every.select(nickname=pl.coalesce(own, "latest", sender, pl.lit("unknown")))["nickname"]


def reasons(private: set[str], empty: bool) -> pl.Expr:
    """Return `dropped`: the reason of the reader, or that the room is private, or no time or nothing is in a message.
    empty: a message may be so."""
    has_time = pl.col("time").is_between(1, LAST_SECOND).fill_null(False)
    return pl.coalesce(
        "dropped",
        pl.when(pl.col("room").is_in(list(private))).then(pl.lit("not_a_group")),
        pl.when(~has_time).then(pl.lit("no_time")),
        pl.when((pl.col("kinds").list.len() == 0) & (not empty)).then(pl.lit("no_body")),
    ).alias("dropped")


def copies(rows: pl.DataFrame) -> pl.Series:
    """Return `copy_of`: the id of the first row with the same room, key, sender, time and parts; null for itself."""
    same = ["room", "key", "sender", "time", "kinds", "fragments"]
    repeated = (
        rows.with_row_index("row")
        .filter(pl.col("key") != "")
        .filter(pl.struct("room", "key").is_duplicated())
        .with_columns(pl.col("kinds", "fragments").list.join("\0"))
        .with_columns(copy_of=pl.col("message_id").first().over(same))
        .filter(pl.col("copy_of") != pl.col("message_id"))
    )
    return spread(repeated, "copy_of", rows.height)


def reply_targets(rows: pl.DataFrame, quotes: pl.DataFrame) -> pl.DataFrame:
    """Return `row`, `reply_to`, `way`, `room` of each quote. Its target is the single message that agrees in what the
    quote tells, said before it, and at the time that the quote tells; without one its way is "dangling"."""
    candidates = rows.select(
        *("room", "key", "seq", "time", "sender", "message_id", "copy_of"),
        words=pl.col("fragments").list.join("") if (quotes["words"] != "").any() else pl.lit(""),
    ).with_row_index("target")
    candidates = candidates.filter(pl.col("copy_of").is_null())
    at = rows.select("room", pl.col("time").alias("at"))[quotes["row"]]
    left = pl.concat([quotes, at], how="horizontal")
    found = [pl.DataFrame(schema={"row": pl.Int64, "reply_to": pl.Int64, "way": pl.String, "room": pl.String})]
    for way, same in WAYS.items():
        told = [pl.col(name).is_not_null() & (pl.col(name).cast(pl.String) != "") for name in same]
        asking = left.filter(told)
        if asking.is_empty():
            continue
        single = candidates.filter(told).join(asking, on=same, how="semi").unique(same, keep="none")
        resolved = asking.join(single, on=same, suffix="_found")
        time = pl.col("time" if "time" in same else "time_found")
        resolved = resolved.filter(
            pl.col("target") != pl.col("row"),
            (time < pl.col("at")) | ((time == pl.col("at")) & ((pl.col("target") < pl.col("row")) | (way != "words"))),
            pl.col("time").is_null() | (time == pl.col("time")),
        )
        found.append(resolved.select("row", "room", reply_to="message_id", way=pl.lit(way)).select(found[0].columns))
        left = left.join(resolved, on="row", how="anti")
    return pl.concat([*found, left.select("row", reply_to=pl.lit(None, pl.Int64), way=pl.lit("dangling"), room="room")])


def report(rows: pl.DataFrame, targets: pl.DataFrame, source: Source) -> dict[str, Any]:
    kinds = rows.select("message_id", "kinds").explode("kinds").drop_nulls()
    counts = dict(kinds["kinds"].value_counts(sort=True).iter_rows())
    unknown = kinds.filter(pl.col("kinds").str.starts_with(UNKNOWN)).group_by("kinds", maintain_order=True)
    samples = dict(unknown.agg(pl.col("message_id").head(SAMPLES)).iter_rows())
    unknown_kinds = {
        name.removeprefix(UNKNOWN): {"elements": counts[name], "messages": messages}
        for name, messages in sorted(samples.items())
    }
    quotes: dict[str, dict[str, int]] = {}
    for room, way, count in sorted(targets.group_by("room", "way").len().iter_rows()):
        quotes.setdefault(room, {})[way] = count
    minutes = {room or source.default_room: count for room, count in source.minutes.items()}
    return {
        "format": source.found.format,
        "elements_by_kind": counts,
        **({"unknown_kinds": unknown_kinds} if unknown_kinds else {}),
        **({"quotes": quotes} if quotes else {}),
        **({"times_without_seconds": minutes} if minutes else {}),
        **({"odd": dict(+source.odd)} if +source.odd else {}),
        **({"assumed": source.notes} if source.notes else {}),
    }
