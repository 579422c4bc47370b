"""Measure on annotated IRC logs (JSON lines) how the rules of combine affect the replies in them.

    python bench/reach.py dev.jsonl.gz

Prints, for rules of combine and orders of the turns: how many turns there are, and how many of those which reply to
somebody else's turn have it before them, among the 10 turns before them, and there after the member's own last turn.
Then, by how many messages of others lie between two that combine merges, how often they belong together.

IRC has times with a resolution of one minute, and no quotes. So everything is measured twice: as it is, and with the
messages of a minute spread over its 60 seconds. And each annotated reply to somebody else is also treated as a quote,
as if people quoted whatever they reply to: an upper bound of what a rule about quotes can do.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from irc_to_csv import Message, read_messages
from scripts.combine import Settings, turns_of

WINDOW = 10
SEED: dict[str, Any] = Settings.PRESETS["seed"]
ORDERS = {"mean": "time", "first message": "first_time", "last message": "last_time"}
RULES: dict[str, dict[str, Any]] = {
    "at most 2 between, < 60 s": {},
    "at most 1": {"max_others_between": 1},
    "none between": {"max_others_between": 0},
    "< 30 s": {"max_gap_seconds": 30},
    "< 120 s": {"max_gap_seconds": 120},
    "no merging": {"merge": "none"},
}
SCHEMA = {"message_id": pl.Int64, "group_id": pl.String, "user_id": pl.String, "time": pl.Int64, "text": pl.String}
SCHEMA["reply_to"] = pl.Int64

Rows = dict[int, dict[str, Any]]  # message id -> a row of `rows_of`


def rows_of(messages: Iterable[Message], spread: bool, quoting: bool) -> Rows:
    """Return a row for each message: the columns of SCHEMA, `parents`, `replied_to` (parents of others), `annotated`.

    Ids are the positions in the sorted logs. spread: over the minute of the messages; quoting: replies are quotes.
    """
    by_log = sorted(messages, key=lambda message: message["log_id"])
    minutes = Counter((message["log_id"], message["time"]) for message in by_log)
    ids: dict[tuple[str, int], int] = {}  # (log_id, line_no) -> message id
    written: Counter[tuple[str, int]] = Counter()  # in each minute so far
    rows: Rows = {}
    for number, message in enumerate(by_log):
        log, user, minute = message["log_id"], message["user"].lower(), (message["log_id"], message["time"])
        parents = [ids[log, line] for line in message.get("parents") or [] if (log, line) in ids]
        replied_to = [parent for parent in parents if rows[parent]["user_id"] != user]
        offset = 60_000 * written[minute] // minutes[minute] if spread else 0
        written[minute] += 1
        ids[log, message["line_no"]] = number
        rows[number] = {
            "message_id": number,
            "group_id": log,
            "user_id": user,
            "time": message["time"] * 1000 + offset,
            "text": message.get("text") or "",
            "reply_to": max(replied_to) if replied_to and quoting else None,
            "parents": set(parents),
            "replied_to": replied_to,
            "annotated": bool(message.get("annotated")),
        }
    return rows


def frame_of(rows: Rows) -> pl.DataFrame:
    """Return the frame that turns_of takes."""
    return pl.DataFrame(list(rows.values()), SCHEMA).with_columns(
        pl.col("time").cast(pl.Datetime("ms", "UTC")),
        position=pl.col("message_id").cast(pl.UInt32),
        nickname="user_id",
        mentions=pl.lit([], pl.List(pl.String)),
        reply_dangling=False,
    )


def measure(turns: pl.DataFrame, rows: Rows, order: str) -> Mapping[str, int]:
    """Return the counts of a table's line."""
    ordered = turns.sort("group_id", ORDERS[order], "position").to_dicts()
    turn_of = {message: index for index, turn in enumerate(ordered) for message in turn["message_ids"]}
    own: dict[tuple[str, str], int] = {}
    counts: dict[str, int] = defaultdict(int)
    for index, turn in enumerate(ordered):
        member = turn["group_id"], turn["user_id"]
        last_own, own[member] = own.get(member, -1), index
        messages = [rows[message] for message in turn["message_ids"]]
        if not all(row["annotated"] for row in messages):
            continue
        counts["turns"] += 1
        by_message = [{turn_of[message] for message in row["replied_to"]} - {index} for row in messages]
        replied_to = set().union(*by_message)
        if not replied_to:
            continue
        counts["replies"] += 1
        counts["several"] += len(replied_to) > 1
        counts["before"] += any(other < index for other in replied_to)
        counts["in window"] += any(index - WINDOW <= other < index for other in replied_to)
        counts["after own"] += any(max(index - WINDOW, last_own + 1) <= other < index for other in replied_to)
        counts["messages"] += sum(map(bool, by_message))
        counts["messages in window"] += sum(
            any(index - WINDOW <= other < index for other in near) for near in by_message
        )
    return counts


def merges(turns: pl.DataFrame, rows: Rows) -> dict[int, list[int]]:
    """Return {messages of others between: [merges, a chain, replies to one message]} of seed's merges."""
    counts: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
    for ids in turns["message_ids"].to_list():
        for index in range(1, len(ids)):
            earlier, parents = ids[:index], rows[ids[index]]["parents"]
            if rows[ids[index]]["annotated"]:
                count = counts[ids[index] - ids[index - 1] - 1]
                chained = bool(parents & set(earlier))
                count[0] += 1
                count[1] += chained
                count[2] += not chained and any(parents & rows[message]["parents"] for message in earlier)
    return counts


def print_line(name: str, order: str, counts: Mapping[str, int]) -> None:
    shares = [f"{counts[key] / counts['replies']:.1%}" for key in ("before", "in window", "after own", "several")]
    turns, replies, messages, near = (
        f"{counts[key]:,}" for key in ("turns", "replies", "messages", "messages in window")
    )
    print("|", " | ".join([name, order, turns, replies, *shares, messages, near]), "|")


def print_rules(messages: Iterable[Message], spread: bool) -> None:
    print(
        "| rule | order | turns | reply to others | to an earlier turn | within 10 | and after own last | "
        "reply to several | messages that reply to others | of these within 10 |"
    )
    print("|---" * 10 + "|")
    rows = rows_of(messages, spread, quoting=False)
    frame = frame_of(rows)
    for name, values in RULES.items():
        turns = turns_of(frame, Settings(**{**SEED, **values}))
        for order in ORDERS if values in ({}, {"max_others_between": 1}) else ["mean"]:
            print_line(name, order, measure(turns, rows, order))
    rows = rows_of(messages, spread, quoting=True)
    for between in (2, 1):
        turns = turns_of(frame_of(rows), Settings(max_others_between=between, quotes_start_a_turn=True))
        print_line(f"at most {between}, each reply a quote that starts a turn", "mean", measure(turns, rows, "mean"))


def print_merges(messages: Iterable[Message], spread: bool) -> None:
    print("\n| others between | merged | continues the turn | replies to the same message | neither |")
    print("|---" * 5 + "|")
    rows = rows_of(messages, spread, quoting=False)
    for between, (count, chain, same) in sorted(merges(turns_of(frame_of(rows), Settings(**SEED)), rows).items()):
        shares = [f"{part / count:.1%}" for part in (chain, same, count - chain - same)]
        print("|", " | ".join([str(between), str(count), *shares]), "|")


def main(path: str) -> None:
    messages = list(read_messages(Path(path)))
    for spread in (False, True):
        print(f"\n{'messages spread over their minute' if spread else 'times in minutes, as they are'}\n")
        print_rules(messages, spread)
        print_merges(messages, spread)


if __name__ == "__main__":
    main(*sys.argv[1:])
