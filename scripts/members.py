"""Print who is there, to choose the member to learn from.

    python scripts/members.py data/default/parsed/messages.parquet data/default/combined/turns.parquet
"""

import argparse
import unicodedata
from pathlib import Path

import polars as pl

from common.errors import run
from common.stage import need

NAME_WIDTH = 20


def members(messages, turns):
    """Return a frame: a row per group and member, the busiest first within each group."""
    member = ["group_id", "user_id"]
    counted = messages.group_by(member).agg(
        name=pl.col("nickname").last(), messages=pl.len(),
        with_text=(pl.col("fragments").list.len() > 0).mean(),
        first=pl.col("time").min(), last=pl.col("time").max())
    of_turns = turns.group_by(member).agg(
        turns=pl.len(), quotes=pl.col("reply_to_turn").count(),
        median_characters=pl.col("text").str.len_chars().median())
    return (
        counted.join(of_turns, on=member, how="left").with_columns(pl.col("turns", "quotes").fill_null(0))
        .sort("group_id", "turns", "messages", "user_id", descending=[False, True, True, False])
    )


def fit(text, width):
    """Return `text` cut or filled to `width` columns of a terminal, where Chinese characters take two."""
    shown, used = "", 0
    for character in "".join(" " if unicodedata.category(c)[0] == "C" else c for c in text):
        columns = 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used + columns > width:
            break
        shown, used = shown + character, used + columns
    return shown + " " * (width - used)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("messages", type=Path)
    parser.add_argument("turns", type=Path)
    args = parser.parse_args()
    found = members(pl.read_parquet(need(args.messages, "`make parse` makes it")),
                    pl.read_parquet(need(args.turns, "`make combine` makes it")))
    for (group,), rows in found.group_by("group_id", maintain_order=True):
        print(f"group {group}")
        print(f"  {'TARGET':<14}{fit('name', NAME_WIDTH)}{'messages':>10}{'turns':>10}{'quotes':>8}{'text':>7}"
              f"{'length':>8}  from        to")
        for row in rows.iter_rows(named=True):
            length = f"{row['median_characters']:.0f}" if row["median_characters"] is not None else "-"
            print(f"  {row['user_id'] or '(unknown)':<14}{fit(row['name'], NAME_WIDTH)}{row['messages']:>10,}"
                  f"{row['turns']:>10,}{row['quotes']:>8,}{row['with_text']:>7.0%}{length:>8}"
                  f"  {row['first']:%Y-%m-%d}  {row['last']:%Y-%m-%d}")
    print("Put the TARGET of your choice into config/target.txt.")


if __name__ == "__main__":
    run(main)
