"""Make turns of messages: the bursts of one member become one turn.

    python scripts/combine.py data/default/parsed/messages.parquet --config config/combine.yaml \\
        --out data/default/combined

Writes turns.parquet and, per group, turns.<group_id>.json.
"""

import json
from dataclasses import dataclass, field
from typing import ClassVar, Literal
from urllib.parse import quote

import polars as pl

from common.errors import run
from common.settings import read_settings
from common.stage import Stage, arguments, need

ANONYMOUS = ["", "80000000"]  # senders nobody can be told apart by: QQ's number for "anonymous", and no number at all


@dataclass
class Settings:
    merge: Literal["rule", "none"] = "rule"
    max_gap_seconds: int = 60
    max_others_between: int = 2
    notices: list[str] = field(default_factory=lambda: ["请使用最新版手机QQ体验新功能"])
    markers: list[str] = field(default_factory=lambda: [
        "[图片]", "[表情]", "[动画表情]", "[语音]", "[视频]", "[文件]", "[聊天记录]"])

    PRESETS: ClassVar = {"default": {}, "seed": {}}


def clean(messages, placeholders, settings):
    """Return `messages` with row number `position`, cleaned `fragments` (List(String)) and `mentions`."""
    messages = messages.with_row_index("position").with_columns(pl.col("position").cast(pl.Int64))
    with_fragment = ["text", "at", *placeholders]
    fragments = (
        messages.select(
            "position", "group_id", "fragments", structured=pl.col("seq").is_not_null(),
            kinds=pl.col("kinds").list.eval(pl.element().filter(pl.element().is_in(with_fragment))))
        .filter(pl.col("fragments").list.len() > 0)
        .explode("fragments", "kinds")
        .filter(pl.col("kinds") != "at")
        .rename({"fragments": "text"})
    )
    fragments, mentioned = remove_typed_mentions(fragments, names_by_group(messages))
    text = pl.col("text")
    for marker in settings.markers:
        text = text.str.replace_all(marker, "", literal=True)
    fragments = (
        fragments.with_columns(text=text.str.strip_chars())
        .filter(pl.col("text") != "", ~pl.col("text").is_in(settings.notices))
        .group_by("position", maintain_order=True).agg(fragments=pl.col("text"))
    )
    return (
        messages.drop("fragments")
        .join(fragments, on="position", how="inner", maintain_order="left")
        .join(mentioned, on="position", how="left", maintain_order="left")
        .with_columns(mentions=pl.concat_list("mentions", pl.col("typed").fill_null([])))
        .drop("typed")
    )


def names_by_group(messages):
    """Return {group_id: {name: user_id}} of a source without mention elements; who bore a name last counts."""
    unstructured = messages.filter(pl.col("seq").is_null())
    names = unstructured.group_by("group_id", "nickname").agg(pl.col("user_id").last())
    found = {}
    for group, name, user in names.iter_rows():
        found.setdefault(group, {})[name] = user
    return found


def remove_typed_mentions(fragments, names):
    """Take `@name` out of the texts of sources which have no mention elements (CSV).

    Returns the fragments and a frame `position`, `typed` with the ids so mentioned.
    """
    fragments = fragments.with_row_index("row")
    with_at = fragments.filter(~pl.col("structured"), pl.col("text").str.contains("@", literal=True))
    texts, mentions = {}, {}
    for row, position, group, text in with_at.select("row", "position", "group_id", "text").iter_rows():
        rest, ids = without_mentions(text, names[group])
        if ids:
            texts[row] = rest
            mentions.setdefault(position, []).extend(ids)
    changed = pl.DataFrame({"row": texts.keys(), "changed": texts.values()}, {"row": pl.UInt32, "changed": pl.String})
    typed = pl.DataFrame({"position": mentions.keys(), "typed": mentions.values()},
                         {"position": pl.Int64, "typed": pl.List(pl.String)})
    fragments = fragments.join(changed, on="row", how="left", maintain_order="left")
    return fragments.with_columns(text=pl.coalesce("changed", "text")).drop("row", "changed"), typed


def without_mentions(text, names):
    """Return `text` without its mentions and the ids mentioned.

    `@name` is a mention only where white space or the end of the text follows the name; the longest name wins.
    """
    longest, ids, start = max(map(len, names)), [], 0
    while (at := text.find("@", start)) >= 0:
        start = at + 1
        for end in range(min(len(text), start + longest), at + 1, -1):
            if (end == len(text) or text[end].isspace()) and text[start:end] in names:
                ids.append(names[text[start:end]])
                text, start = text[:at] + text[end:], at
                break
    return text, ids


def turns_of(messages, settings):
    """Return the turns (contract, section 3) of cleaned messages which are sorted by group and time."""
    member = ["group_id", "user_id"]
    # every row counts as one message in between, since those of the same member would be the previous one themselves
    between = (pl.col("place") - pl.col("place").shift() - 1).over(member)
    gap = (pl.col("time") - pl.col("time").shift()).over(member)
    goes_on = (
        (between <= settings.max_others_between)
        & (gap < pl.duration(seconds=settings.max_gap_seconds))
        & ~pl.col("user_id").is_in(ANONYMOUS)
    )
    if settings.merge == "none":
        goes_on = pl.lit(False)
    quotes = pl.col("reply_to").is_not_null() | pl.col("reply_dangling")
    milliseconds = pl.col("time").dt.timestamp("ms")
    return (
        messages.with_columns(place=pl.int_range(pl.len()).over("group_id"))
        .with_columns(starts=~goes_on.fill_null(False))
        .with_columns(burst=pl.col("starts").cast(pl.Int64).cum_sum().over(member))
        .group_by(*member, "burst", maintain_order=True)
        .agg(
            position=pl.col("position").first(), nickname=pl.col("nickname").last(),
            time=milliseconds.sum().floordiv(pl.len()).cast(pl.Datetime("ms", "UTC")),
            first_time=pl.col("time").min(), last_time=pl.col("time").max(),
            text=pl.col("fragments").list.explode().str.join("，"), message_ids=pl.col("message_id"),
            mentions=pl.col("mentions").list.explode(keep_nulls=False, empty_as_null=False).unique(maintain_order=True),
            first_quoted=pl.col("reply_to").filter(quotes).first(),
            quoted=pl.col("reply_to").drop_nulls(), dangling=pl.col("reply_dangling").any(),
        )
        .sort("group_id", "time", "position")
        .with_row_index("turn_id").with_columns(pl.col("turn_id").cast(pl.Int64))
        .with_columns(
            seconds_since_previous=pl.col("time").diff().over("group_id").dt.total_seconds().fill_null(0))
    )


def resolve_quotes(turns):
    """Add `reply_to_turn` and `quotes_outside`: from the messages quoted to the turns which hold them."""
    turn_of = turns.select("message_ids", "turn_id").explode("message_ids").rename(
        {"message_ids": "first_quoted", "turn_id": "reply_to_turn"})
    outside = (
        turns.select("turn_id", "quoted").filter(pl.col("quoted").list.len() > 0).explode("quoted")
        .join(turn_of, left_on="quoted", right_on="first_quoted", how="anti")
        .select("turn_id", outside=True).unique()
    )
    return (
        turns.join(turn_of, on="first_quoted", how="left", maintain_order="left")
        .join(outside, on="turn_id", how="left", maintain_order="left")
        .with_columns(
            reply_to_turn=pl.when(pl.col("reply_to_turn") != pl.col("turn_id")).then("reply_to_turn"),
            quotes_outside=pl.col("dangling") | pl.col("outside").fill_null(False))
        .select("turn_id", "group_id", "user_id", "nickname", "time", "first_time", "last_time", "text", "message_ids",
                "mentions", "reply_to_turn", "quotes_outside", "seconds_since_previous")
    )


def write_json(turns, path):
    """Write [[user_id, text, "12秒 "], ...], one turn a line."""
    with open(path, "w", encoding="utf-8") as file:
        separator = "[\n"
        for user, text, seconds in turns.select("user_id", "text", "seconds_since_previous").iter_rows():
            file.write(separator + json.dumps([user, text, f"{seconds}秒 "], ensure_ascii=False))
            separator = ",\n"
        file.write("\n]\n")


def main():
    args = arguments(__doc__, "messages").parse_args()
    settings = read_settings(args.config, Settings)
    with Stage("combine", args.out, packages=["polars"]) as stage:
        stage.use(args.config, settings)
        path = stage.input(need(args.messages, "`make parse` makes it"))
        placeholders = pl.read_parquet_metadata(path).get("placeholders", "")
        messages = pl.read_parquet(path)
        with_text = clean(messages, [kind for kind in placeholders.split(",") if kind], settings)
        turns = resolve_quotes(turns_of(with_text, settings))

        turns.write_parquet(stage.output("turns.parquet"))
        for (group,), of_group in turns.group_by("group_id", maintain_order=True):
            write_json(of_group, stage.output(f"turns.{quote(group, safe='')}.json"))
        stage.ledger.read = len(messages)
        stage.ledger.written = len(turns)
        stage.ledger.merged = len(with_text) - len(turns)
        stage.ledger.dropped["empty"] = len(messages) - len(with_text)


if __name__ == "__main__":
    run(main)
