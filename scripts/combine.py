"""Merge messages into turns: what one member sends in one burst becomes one turn.

    python scripts/combine.py data/default/parsed/messages.parquet --config config/combine.yaml \\
        --out data/default/combined

Writes turns.parquet and, per group, turns.<group_id>.json.
"""

import huiyin.common.starting  # noqa: F401

import hashlib
import json
import re
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar, Literal
from urllib.parse import quote

from huiyin.common.characters import VISIBLE, WHITE_SPACE
from huiyin.common.errors import UserError, run
from huiyin.common.lazy import polars as pl
from huiyin.common.progress import Progress
from huiyin.common.settings import AtLeast0, Text, UpTo1000, read_settings
from huiyin.common.stage import Stage, anew, arguments, need
from huiyin.common.tables import (
    COMMA,
    EVERYBODY,
    MESSAGES,
    MESSAGES_ORDER,
    NOT_ONE_PERSON,
    SAME_PERSON,
    TURNS,
    other_ids,
    scan_table,
)

RESULTS = 2  # to be raised when the same input gives another result
MADE_BY = "`make parse` makes it"
PART = 500_000  # messages processed at a time: memory depends on the turns, not on the intermediate frames
NAMES_OF_EVERYBODY = dict.fromkeys(["全体成员", "所有人"], EVERYBODY)  # QQ's, and what other programs write
LONGEST_NAME, DIGITS = 220, 16  # characters of a file's name that stand for a group, of its digest
FACES = ["face", "market_face"]  # kinds of elements that have a fragment if they have a name
BLANK = re.compile(f"[{WHITE_SPACE}]")
WORD = re.compile("[A-Za-z0-9]")
BRACKETED = re.compile(r"\[.+\]", re.DOTALL)


@dataclass
class Settings:
    merge: Literal["rule", "none"] = "rule"
    max_gap_seconds: AtLeast0 = 60
    max_others_between: UpTo1000 = 1
    quotes_start_a_turn: bool = True
    invisible_is_empty: bool = True
    special_texts: list[Text] = field(
        default_factory=lambda: [
            *("请使用最新版手机QQ体验新功能", "请使用新版手机QQ查看闪照", "请使用新版手机QQ查收红包"),
            *("[图片]", "[表情]", "[动画表情]", "[语音]", "[视频]", "[文件]", "[聊天记录]"),
        ]
    )

    PRESETS: ClassVar = {
        "default": {},
        "seed": {"max_others_between": 2, "quotes_start_a_turn": False, "invisible_is_empty": False},
    }


def combine(path, settings, ledger):
    """Return the turns (contract, section 3) of the messages in the parquet file at `path`."""
    history = in_order(scan_table(path, MESSAGES, MADE_BY))
    metadata = pl.read_parquet_metadata(path)
    with_fragment = ["text", "at", *filter(None, metadata.get("placeholders", "").split(","))]
    faces = [kind for kind in FACES if metadata.get("faces") == "names" and kind not in with_fragment]
    names = names_by_group(history)
    ledger.read = history.select(pl.len()).collect().item()
    ledger.dropped["empty"] = ledger.merged = 0
    turns = []
    with Progress("combine", ledger.read, "messages") as progress:
        for messages in parts(history, settings):
            try:
                with_words, dropped = with_text(messages, with_fragment, faces, names, settings)
            except pl.exceptions.ShapeError:
                raise UserError(f"{path}: fragments and kinds do not pair up; {anew(path, MADE_BY)}") from None
            ledger.dropped.update(dropped)
            turns.append(turns_of(with_words, settings))
            ledger.written += turns[-1].height
            ledger.merged += with_words.height - turns[-1].height
            progress.add(messages.height)
    return with_numbers(turns)


# ---- the messages, in order and in parts


def in_order(messages):
    """Return the lazy frame sorted as parse sorts it; other programs may write this file, too."""
    keys = messages.select(key=pl.struct(MESSAGES_ORDER)).collect()["key"]
    if keys.is_sorted(nulls_last=False):  # far cheaper than to sort what is sorted
        return messages
    return messages.collect().sort(MESSAGES_ORDER, nulls_last=False).lazy()


def parts(messages, settings):
    """Yield the messages in frames of about PART rows, with their `position` in the whole. A part ends where the group
    ends or is silent for so long that no turn continues, so the turns of the parts are those of the whole."""
    silence = pl.col("time").diff() >= pl.duration(seconds=settings.max_gap_seconds)
    cuts = (
        messages.select("group_id", "time")
        .with_row_index("position")
        .filter(silence | (pl.col("group_id") != pl.col("group_id").shift()))
        .group_by(pl.col("position") // PART, maintain_order=True)
        .agg(cut=pl.col("position").first())
        .collect()["cut"]
        .to_list()
    )
    for start, end in zip([0, *cuts], [*cuts, None], strict=True):
        length = None if end is None else end - start
        yield messages.slice(start, length).collect().with_row_index("position", start)


# ---- the text of a message


def with_text(messages, with_fragment, faces, names, settings):
    """Return the messages that have a text, with this `text`, and {reason: count} of the others.

    with_fragment: the kinds of elements that have a fragment; faces: those that have one if they have a name.
    """
    kinds = pl.col("kinds").list.filter(pl.element().is_in(with_fragment + faces))
    fragments = (
        messages.select("position", "group_id", "seq", text="fragments", kind=kinds)
        .filter(pl.col("text").list.len() > 0)
        .pipe(without_nameless, faces)
        .explode("text", "kind")
        .filter(pl.col("kind") != "at")  # in QQNT a mention is a fragment of its own
        .with_row_index("row")
        .with_columns(pl.col("text").str.strip_chars(WHITE_SPACE))
    )
    # few texts hold anything to remove: only these are processed closely
    odd = fragments.filter(pl.col("text").str.contains_any(["@", *settings.special_texts]), pl.col("kind") == "text")
    odd, typed = without_typed_mentions(odd, names)
    odd = without_special_texts(odd, settings.special_texts)
    odd = odd.select("row", "special", rest="text")
    fragments = fragments.join(odd, on="row", how="left", maintain_order="left")
    fragments = fragments.with_columns(text=pl.coalesce("rest", "text"))
    special = fragments.drop_nulls("special").group_by("position").agg(pl.col("special").first())
    readable = pl.col("text").str.contains(VISIBLE) if settings.invisible_is_empty else pl.col("text") != ""
    texts = (
        fragments.filter(readable)
        .set_sorted("position")
        .group_by("position", maintain_order=True)
        .agg("text")
        .with_columns(pl.col("text").list.join(COMMA))
    )
    # the texts around a special text leave no comma at an end and no two in a row
    tidy = pl.col("text").str.replace_all(f"，[{WHITE_SPACE}，]*，", COMMA).str.strip_chars(COMMA + WHITE_SPACE)
    torn = texts.join(special, on="position", how="semi").with_columns(tidy)
    torn = torn.select("position", tidy=pl.when(readable).then("text").otherwise(pl.lit("")))
    texts = (
        texts.join(torn, on="position", how="left", maintain_order="left")
        .select("position", text=pl.coalesce("tidy", "text"))
        .filter(pl.col("text") != "")
    )
    empty = messages.select("position").join(texts, on="position", how="anti").join(special, on="position", how="left")
    dropped = empty["special"].fill_null("empty").value_counts()
    with_words = messages.drop("fragments", "kinds", "seq").join(texts, on="position", maintain_order="left")
    if not typed.is_empty():
        with_words = (
            with_words.join(typed, on="position", how="left", maintain_order="left")
            .with_columns(mentions=pl.concat_list("mentions", pl.col("typed").fill_null([])))
            .drop("typed")
        )
    return with_words, dict(dropped.iter_rows())


def without_nameless(messages, faces):
    """Remove the faces without a name from each `kind`, so that it is as long as `text`, the list of fragments."""
    some = messages.filter(pl.col("kind").list.len() > pl.col("text").list.len())
    if some.is_empty():
        return messages
    rows = some.select("kind", "text").iter_rows()
    named = pl.Series([kinds_of(kinds, fragments, faces) for kinds, fragments in rows], dtype=pl.List(pl.String))
    named = some.select("position", named=named)
    messages = messages.join(named, on="position", how="left", maintain_order="left")
    return messages.with_columns(kind=pl.coalesce("named", "kind")).drop("named")


def kinds_of(kinds, fragments, faces):
    """Return the kind of each of `fragments`, where `kinds` has more, because some of the `faces` have no name.

    Which ones only the form of the fragments tells: if a message has faces with and without a name, a text that is all
    in brackets may count as a face.
    """
    named: list[str] = []
    nameless, others = len(kinds) - len(fragments), sum(kind not in faces for kind in kinds)  # that are still to come
    for kind in kinds:
        if kind not in faces:
            others -= 1
        elif nameless:
            looks_so = BRACKETED.fullmatch(fragments[len(named)]) if len(named) < len(fragments) else None
            if not looks_so or len(fragments) - len(named) == others:
                nameless -= 1
                continue
        named.append(kind)
    return named


def without_special_texts(fragments, special_texts):
    """Remove the special texts with the blanks around them from each `text`; `special` is the first one in it, or null.

    One in brackets is removed anywhere. Any other is a notice of QQ's: it is removed where it is the whole fragment,
    apart from a label before and a full stop after it, as in `[打call]请使用最新版手机QQ体验新功能。`.
    """
    text, blank = pl.col("text"), pl.lit("")
    # the longest first: of two that begin at the same character the first in the list is taken
    brackets = sorted((e for e in special_texts if e.startswith("[") and e.endswith("]")), key=len, reverse=True)
    notices = [entry for entry in special_texts if entry not in brackets]
    found = {entry: text.str.contains(entry, literal=True) for entry in brackets}
    found |= {entry: text.str.contains(rf"^(\[[^\[\]]*\])?{pl.escape_regex(entry)}。?$") for entry in notices}
    first_special = [pl.when(found[entry]).then(pl.lit(entry)) for entry in special_texts]
    fragments = (
        fragments.with_columns(text.str.strip_chars(WHITE_SPACE))
        .with_columns(special=pl.coalesce(*first_special, pl.lit(None, pl.String)))
        .with_columns(text.str.replace_many(pl.lit(brackets, pl.List(pl.String)), [""], leftmost=True))
        .with_columns(text.str.strip_chars(WHITE_SPACE))
    )
    for notice in notices:
        fragments = fragments.with_columns(text=pl.when(found[notice]).then(blank).otherwise(text))
    return fragments


def names_by_group(history):
    """Return {group_id: {name: user_id}} of a source without mention elements, everybody's names included; the last
    bearer of a name counts."""
    names = (
        history.filter(pl.col("seq").is_null(), pl.col("nickname").str.strip_chars(WHITE_SPACE) != "")
        .group_by("group_id", "nickname")
        .agg(pl.col("user_id").last())
        .collect()
    )
    by_group = names.partition_by("group_id", as_dict=True, include_key=False)
    return {group: dict(members.iter_rows()) | NAMES_OF_EVERYBODY for (group,), members in by_group.items()}


def without_typed_mentions(fragments, names):
    """Remove `@name` from the texts of sources which have no mention elements (CSV); return the fragments and a frame
    `position`, `typed` with the ids so mentioned."""
    texts: dict[int, str] = {}
    mentions: dict[int, list[str]] = {}
    with_at = fragments.filter(pl.col("seq").is_null(), pl.col("text").str.contains("@", literal=True))
    for row, position, group, text in with_at.select("row", "position", "group_id", "text").iter_rows():
        rest, ids = without_mentions(text, names.get(group, NAMES_OF_EVERYBODY))
        if rest != text:
            texts[row] = rest
            mentions.setdefault(position, []).extend(filter(None, ids))
    changed = pl.DataFrame({"row": texts.keys(), "changed": texts.values()}, {"row": pl.UInt32, "changed": pl.String})
    typed = pl.DataFrame(
        {"position": mentions.keys(), "typed": mentions.values()}, {"position": pl.UInt32, "typed": pl.List(pl.String)}
    )
    fragments = fragments.join(changed, on="row", how="left", maintain_order="left")
    return fragments.with_columns(text=pl.coalesce("changed", "text")).drop("changed"), typed


def without_mentions(text, names):
    """Return `text` without its mentions and the ids mentioned.

    `@name` is a mention only where white space or the end of the text follows the name; the longest name wins. With an
    ASCII letter or digit on both sides the `@` belongs to an address or to code. `@all` is one if it is all there is.
    """
    if text.lower() == f"@{EVERYBODY}" and text[1:] not in names:
        return "", [EVERYBODY]
    longest, ids, start = max(map(len, names), default=0), [], 0
    while (at := text.find("@", start)) >= 0:
        start = at + 1
        if WORD.match(text[max(at - 1, 0) : at]) and WORD.match(text[start : start + 1]):
            continue
        ends = [blank.start() for blank in BLANK.finditer(text, start + 1, start + longest + 1)]
        if len(text) <= start + longest:
            ends.append(len(text))
        for end in reversed(ends):
            if text[start:end] in names:
                ids.append(names[text[start:end]])
                text, start = text[:at] + text[end:], at
                break
    return text, ids


# ---- which messages are one turn


def turns_of(messages, settings):
    """Return the turns of `messages`, all of which have a text; `position` is that of a turn's first message."""
    quotes = pl.col("reply_to").is_not_null() | pl.col("reply_dangling")
    # the previous row of the same member; all rows between the two are by others
    before = pl.col("index").shift().over("group_id", "user_id")
    continues = (
        (pl.col("index") - pl.col("before") - 1 <= settings.max_others_between)
        & (pl.col("time") - pl.col("time").gather("before") < pl.duration(seconds=settings.max_gap_seconds))
        & ~pl.col("user_id").is_in(NOT_ONE_PERSON)
    )
    if settings.merge == "none":
        continues = pl.lit(False)
    if settings.quotes_start_a_turn:
        continues &= ~quotes
    return (
        messages.with_columns(pl.col("mentions").list.unique(maintain_order=True), index=pl.int_range(pl.len()))
        .with_columns(before=before)
        .with_columns(first=pl.when(~continues.fill_null(False)).then("index"))
        .with_columns(pl.col("first").forward_fill().over("group_id", "user_id"))
        .sort("first", maintain_order=True)  # adjacent rows are quicker to group
        .group_by("first", maintain_order=True)
        .agg(
            pl.col("position", "group_id", "user_id").first(),
            pl.col("nickname").last(),
            time=pl.col("time").dt.timestamp("ms").sum().floordiv(pl.len()).cast(pl.Datetime("ms", "UTC")),
            first_time=pl.col("time").first(),
            last_time=pl.col("time").last(),
            texts=pl.col("text"),
            times=pl.col("time"),
            mentioned=pl.col("mentions"),
            message_ids=pl.col("message_id"),
            mentions=pl.col("mentions").list.explode(keep_nulls=False, empty_as_null=False).unique(maintain_order=True),
            quoted=pl.col("reply_to").filter(quotes),  # null for a message that is not in the history
        )
        .with_columns(text=pl.col("texts").list.join(COMMA))
        .sort("group_id", "time", "position")
    )


def with_numbers(parts):
    """Return one frame of `parts`, frames of turns in order, with the columns that depend on turns of other parts."""
    turns = pl.concat(part.select("group_id", "time", "message_ids", "quoted") for part in parts)
    since = pl.when(pl.col("group_id") == pl.col("group_id").shift()).then(pl.col("time").diff().dt.total_seconds())
    turns = turns.with_columns(turn_id=pl.int_range(pl.len()), seconds_since_previous=since.fill_null(0))
    new = turns.select("turn_id", "seconds_since_previous").hstack(resolve_quotes(turns))
    # the parts stay pieces of the frame: polars takes ten times as long to write lists of texts that are one piece
    starts = accumulate((part.height for part in parts), initial=0)
    pieces = (part.hstack(new.slice(start, part.height)) for part, start in zip(parts, starts, strict=False))
    return pl.concat(pieces).select(*TURNS)


def resolve_quotes(turns):
    """Return `reply_to_turn` and `quotes_outside` of each turn: from messages quoted to the turns which hold them."""
    turn_of = turns.select("message_ids", quoted_turn="turn_id").explode("message_ids")
    quotes = (
        turns.select("turn_id", "quoted")
        .filter(pl.col("quoted").list.len() > 0)
        .explode("quoted")
        .join(turn_of, left_on="quoted", right_on="message_ids", how="left", maintain_order="left")
        .group_by("turn_id")
        .agg(reply_to_turn=pl.col("quoted_turn").first(), quotes_outside=pl.col("quoted_turn").is_null().any())
    )
    return (
        turns.select("turn_id")
        .join(quotes, on="turn_id", how="left", maintain_order="left")
        .select(
            reply_to_turn=pl.when(pl.col("reply_to_turn") != pl.col("turn_id")).then("reply_to_turn"),
            quotes_outside=pl.col("quotes_outside").fill_null(False),
        )
    )


# ---- files


def file_name(group):
    """Return the name of the file of `group`, which may be any text. File systems take names of 255 bytes, and while it
    writes the stage adds some; a name that would be too long ends with a digest of the group instead."""
    name = quote(group, safe="")
    if len(name) > LONGEST_NAME:
        digest = hashlib.sha256(group.encode()).hexdigest()[:DIGITS]
        name = f"{name[: LONGEST_NAME - DIGITS - 1]}-{digest}"
    return f"turns.{name}.json"


def write_turns(turns, path, ids):
    metadata = {SAME_PERSON: json.dumps(ids, ensure_ascii=False)} if ids else None  # pair finds its target by it
    # level 1: half the time of the default, for a file 4 % larger; nobody looks for rows by their statistics
    turns.write_parquet(path, compression_level=1, statistics=False, metadata=metadata)


def write_json(turns, path):
    """Write [[user_id, text, "12秒 "], ...], one turn a line."""
    quoted = json.encoder.encode_basestring  # json.dumps makes an encoder a call, which takes four times as long
    with open(path, "w", encoding="utf-8") as file:
        separator = "[\n"
        for user, text, seconds in turns.select("user_id", "text", "seconds_since_previous").iter_rows():
            file.write(f'{separator}[{quoted(user)}, {quoted(text)}, "{seconds}秒 "]')
            separator = ",\n"
        file.write("\n]\n")


def main(argv=None):
    args = arguments(__doc__, "messages").parse_args(argv)
    settings = read_settings(args.config, Settings)
    with Stage("combine", args.out, RESULTS, packages=["polars"]) as stage:
        stage.use(args.config, settings)
        path = stage.input(need(args.messages, MADE_BY))
        stage.stop_if_done()
        turns = combine(path, settings, stage.ledger)
        write_turns(turns, stage.output("turns.parquet"), other_ids(path))
        for (group,), of_group in turns.group_by("group_id", maintain_order=True):
            write_json(of_group, stage.output(file_name(group)))


if __name__ == "__main__":
    run(main)
