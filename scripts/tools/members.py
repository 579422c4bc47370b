"""List the members and whether each has enough to learn from, to choose TARGET.

    python scripts/tools/members.py data/default/parsed/messages.parquet data/default/combined/turns.parquet \\
        --out data/default/members

Writes members.parquet, a row per group and member, and prints the busiest of each group.
"""

import huiyin.common.starting  # noqa: F401

from huiyin.common.chinese import translated
from huiyin.common.errors import run
from huiyin.common.lazy import polars as pl
from huiyin.common.stage import Stage, arguments, need, read_receipt
from huiyin.common.tables import MESSAGES, NOT_ONE_PERSON, TURNS, scan_table
from huiyin.common.terminal import fit, right

MEMBER = ["group_id", "user_id"]
# A turn becomes at most one row of the dataset, and gen keeps 5 % of the rows for evaluation: 10 of 200, 50 of 1,000.
# Fewer than 10 do not show whether the model has learnt anything; 50 give a loss that can be compared.
THIN, ENOUGH = 200, 1_000
SHOWN = 30  # members of a group on the terminal; all of them are in the file
NAME_WIDTH = 20
COLUMNS = dict.fromkeys(["messages", "turns", "different"], 10) | {
    **dict.fromkeys(["quotes", "quoted", "length", "months"], 8),
    "text": 7,
}


def members(messages, turns):
    """Return the frame of members.parquet (data/README.md), the busiest member first within each group."""
    quotes = pl.col("reply_to").is_not_null() | pl.col("reply_dangling")
    counted = messages.group_by(MEMBER).agg(
        nickname=pl.col("nickname").last(),
        messages=pl.len(),
        quotes_given=quotes.sum(),
        active_months=pl.col("time").dt.truncate("1mo").n_unique(),
        first_time=pl.col("time").min(),
        last_time=pl.col("time").max(),
    )
    quoted = (
        messages.filter(pl.col("reply_to").is_not_null())
        .select("reply_to", quoting="user_id")
        .join(messages.select(*MEMBER, "message_id"), left_on="reply_to", right_on="message_id")
    )
    received = quoted.filter(pl.col("quoting") != pl.col("user_id")).group_by(MEMBER).agg(quotes_received=pl.len())
    of_turns = turns.group_by(MEMBER).agg(
        turns=pl.len(),
        with_text=pl.col("message_ids").list.len().sum(),
        median_length=pl.col("text").str.len_chars().median(),
    )
    # a model learns from all groups of its TARGET, and from a text that is repeated a hundred times only once
    different = turns.group_by("user_id").agg(different_turns=pl.col("text").n_unique())
    table = (
        counted.join(of_turns, on=MEMBER, how="left")
        .join(received, on=MEMBER, how="left")
        .join(different, on="user_id", how="left")
        .with_columns(pl.col("turns", "with_text", "quotes_received", "different_turns").fill_null(0))
        .with_columns(share_of_text=pl.col("with_text") / pl.col("messages"))
    )
    several, different = pl.col("user_id").is_in(NOT_ONE_PERSON), pl.col("different_turns")
    enough = pl.when(several).then(pl.lit("not one person")).when(different >= ENOUGH).then(pl.lit("enough"))
    verdict = enough.when(different >= THIN).then(pl.lit("thin")).otherwise(pl.lit("too little"))
    counts = "messages", "turns", "different_turns", "quotes_given", "quotes_received", "active_months"
    others = "median_length", "share_of_text", "first_time", "last_time"
    return (
        table.select(*MEMBER, "nickname", pl.col(counts).cast(pl.Int64), *others, verdict=verdict)
        .sort("group_id", "turns", "messages", "user_id", descending=[False, True, True, False])
        .collect()
    )


def origins(messages, receipt):
    """Return {group_id: where its messages came from, quotes found and how, share of times to the second}, in words;
    receipt: that of parse, {} if there is none."""
    source = receipt.get("format", "QQNT" if "rows_by_outer_type" in receipt else "")
    counts = messages.group_by("group_id").agg(
        messages=pl.len(), found=pl.col("reply_to").count(), dangling=pl.col("reply_dangling").sum()
    )
    told = {}
    for group, count, found, dangling in counts.collect().iter_rows():
        ways = {way: number for way, number in receipt.get("quotes", {}).get(group, {}).items() if way != "dangling"}
        how = f" (by {', '.join(f'{way}: {number:,}' for way, number in ways.items())})" if ways else ""
        exact = 1 - min(receipt.get("times_without_seconds", {}).get(group, 0), count) / count
        told[group] = (
            f"{f'from {source}, ' if source else ''}{count:,} messages, {found + dangling:,} quotes, {found:,} of them "
            f"found{how}, times to the second {exact:.0%}"
        )
    return told


def lines(table, origin):
    """Yield the lines for the terminal. origin: what `origins` returns."""
    for (group,), rows in table.group_by("group_id", maintain_order=True):
        yield translated(f"group {group}")
        yield f"  {translated(origin[group])}"
        heads = "".join(right(translated(name), width) for name, width in COLUMNS.items())
        yield f"  {'TARGET':<14} {fit(translated('name'), NAME_WIDTH)}{heads}  {translated('verdict')}"
        for row in rows.head(SHOWN).iter_rows(named=True):
            length = "-" if row["median_length"] is None else f"{row['median_length']:.0f}"
            yield (
                f"  {row['user_id'] or '(unknown)':<14} {fit(row['nickname'], NAME_WIDTH)}{row['messages']:>10,}"
                f"{row['turns']:>10,}{row['different_turns']:>10,}{row['quotes_given']:>8,}"
                f"{row['quotes_received']:>8,}{length:>8}{row['active_months']:>8}{row['share_of_text']:>7.0%}"
                f"  {translated(row['verdict'])}"
            )
        if rows.height > SHOWN:
            yield translated(f"  ... and {rows.height - SHOWN:,} more")
    yield translated(
        f"The verdict depends on a member's different turns in all groups: enough from {ENOUGH:,}, thin from {THIN}."
    )
    yield translated("Put the TARGET of your choice into config/target.txt.")


def main(argv=None):
    args = arguments(__doc__, "messages", "turns", config=False).parse_args(argv)
    with Stage("members", args.out, packages=["polars"]) as stage:
        made_by = "`make parse` makes it", "`make combine` makes it"
        messages = scan_table(stage.input(need(args.messages, made_by[0])), MESSAGES, made_by[0])
        turns = scan_table(stage.input(need(args.turns, made_by[1])), TURNS, made_by[1])
        table = members(messages, turns)
        table.write_parquet(stage.output("members.parquet"))
        stage.ledger.read = messages.select(pl.len()).collect().item()
        stage.ledger.written = table.height
        stage.ledger.merged = stage.ledger.read - table.height
        origin = origins(messages, read_receipt(args.messages.parent))
    print("\n".join(lines(table, origin)))


if __name__ == "__main__":
    run(main)
