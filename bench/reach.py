"""Measure on annotated IRC logs (JSON lines, README beside them) what the rules of combine do to the answers in them.

    python bench/reach.py dev.jsonl.gz

Prints, for rules of combine and orders of the turns: how many turns there are, and how many of those which answer
somebody else's turn have it before them, among the 10 turns before them, and there after the member's own last turn.
Then, by how many messages of others lie between two that combine merges, how often they belong together.

IRC has stamps of a minute and no quotes. So everything is measured twice: as it is, and with the messages of a minute
spread over its 60 seconds. And each annotated answer to somebody else is also taken for a quote, as if people quoted
whatever they answer: an upper bound of what a rule about quotes can do.
"""

import gzip
import json
import sys
from collections import defaultdict

import polars as pl

from scripts.combine import Settings, turns_of

WINDOW = 10
SEED = Settings.PRESETS["seed"]
ORDERS = {"mean": "time", "first message": "first_time", "last message": "last_time"}
RULES = {
    "at most 2 between, < 60 s": {},
    "at most 1": {"max_others_between": 1},
    "none between": {"max_others_between": 0},
    "< 30 s": {"max_gap_seconds": 30},
    "< 120 s": {"max_gap_seconds": 120},
    "no merging": {"merge": "none"},
}


def read_logs(path):
    logs = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if not row.get("is_system"):
                logs[row["log_id"]].append(row)
    return logs


def messages_of(logs, spread, quoting):
    """Return a frame as turns_of takes it and {message_id: row}; ids are places in the frame."""
    rows = {}
    for log in logs.values():
        known, authors, in_minute = {}, {}, defaultdict(int)
        for row in log:
            in_minute[row["time"]] += 1
        seen = defaultdict(int)
        for row in log:
            place, user = len(rows), row["user"].lower()
            known[row["line_no"]], authors[row["line_no"]] = place, user
            parents = [line for line in row.get("parents") or [] if line in known and line != row["line_no"]]
            answered = [known[line] for line in parents if authors[line] != user]
            offset = 60_000 * seen[row["time"]] // in_minute[row["time"]] if spread else 0
            seen[row["time"]] += 1
            rows[place] = {
                "message_id": place,
                "position": place,
                "group_id": row["log_id"],
                "user_id": user,
                "nickname": user,
                "time": row["time"] * 1000 + offset,
                "text": row.get("text") or "",
                "mentions": [],
                "reply_to": max(answered) if answered and quoting else None,
                "reply_dangling": False,
                "parents": {known[line] for line in parents},
                "answered": answered,
                "annotated": bool(row.get("annotated")),
            }
    schema = {
        "message_id": pl.Int64,
        "position": pl.UInt32,
        "group_id": pl.String,
        "user_id": pl.String,
        "nickname": pl.String,
        "time": pl.Int64,
        "text": pl.String,
        "mentions": pl.List(pl.String),
        "reply_to": pl.Int64,
        "reply_dangling": pl.Boolean,
    }
    frame = pl.DataFrame([{name: row[name] for name in schema} for row in rows.values()], schema)
    return frame.with_columns(pl.col("time").cast(pl.Datetime("ms", "UTC"))).sort("group_id", "position"), rows


def measure(turns, rows, order):
    """Return the counts of a table's line."""
    turns = turns.sort("group_id", ORDERS[order], "position").to_dicts()
    place_of = {message: place for place, turn in enumerate(turns) for message in turn["message_ids"]}
    own, counts = {}, defaultdict(int)
    for place, turn in enumerate(turns):
        member = turn["group_id"], turn["user_id"]
        last_own, own[member] = own.get(member, -1), place
        judged = [rows[message] for message in turn["message_ids"]]
        if not all(row["annotated"] for row in judged):
            continue
        counts["turns"] += 1
        answered = {place_of[message] for row in judged for message in row["answered"]} - {place}
        if not answered:
            continue
        counts["answering"] += 1
        counts["several"] += len(answered) > 1
        counts["before"] += any(other < place for other in answered)
        counts["in reach"] += any(place - WINDOW <= other < place for other in answered)
        counts["after own"] += any(max(place - WINDOW, last_own + 1) <= other < place for other in answered)
        for row in judged:
            near = {place_of[message] for message in row["answered"]} - {place}
            counts["links"] += bool(near)
            counts["links in reach"] += any(place - WINDOW <= other < place for other in near)
    return counts


def merges(turns, rows):
    """Return {messages of others between: [merges, a chain, answers to one message]} of seed's merges."""
    counts = defaultdict(lambda: [0, 0, 0])
    for turn in turns.to_dicts():
        ids = turn["message_ids"]
        for place in range(1, len(ids)):
            earlier, parents = ids[:place], rows[ids[place]]["parents"]
            if rows[ids[place]]["annotated"]:
                count = counts[ids[place] - ids[place - 1] - 1]
                chained = bool(parents & set(earlier))
                count[0] += 1
                count[1] += chained
                count[2] += not chained and any(parents & rows[message]["parents"] for message in earlier)
    return counts


def line(name, order, counts):
    answering = counts["answering"]
    share = [f"{counts[key] / answering:.1%}" for key in ("before", "in reach", "after own", "several")]
    print(
        "|",
        " | ".join(
            [
                name,
                order,
                f"{counts['turns']:,}",
                f"{answering:,}",
                *share,
                f"{counts['links']:,}",
                f"{counts['links in reach']:,}",
            ]
        ),
        "|",
    )


def main(path):
    logs = read_logs(path)
    for spread in (False, True):
        print(f"\n{'messages spread over their minute' if spread else 'stamps of a minute, as they are'}\n")
        print(
            "| rule | order | turns | answering others | answered before | within 10 | and after own last | "
            "answer several | lines answering others | of these within 10 |"
        )
        print("|---" * 10 + "|")
        frame_as_is, rows = messages_of(logs, spread, quoting=False)
        for name, values in RULES.items():
            turns = turns_of(frame_as_is, Settings(**{**SEED, **values}))
            for order in ORDERS if values in ({}, {"max_others_between": 1}) else ["mean"]:
                line(name, order, measure(turns, rows, order))
        frame, rows = messages_of(logs, spread, quoting=True)
        for between in (2, 1):
            turns = turns_of(frame, Settings(max_others_between=between, quotes_start_a_turn=True))
            line(f"at most {between}, each answer a quote that starts a turn", "mean", measure(turns, rows, "mean"))
        print("\n| others between | merged | continues the turn | answers the same message | neither |")
        print("|---" * 5 + "|")
        for between, (count, chain, same) in sorted(merges(turns_of(frame_as_is, Settings(**SEED)), rows).items()):
            shares = [f"{part / count:.1%}" for part in (chain, same, count - chain - same)]
            print("|", " | ".join([str(between), str(count), *shares]), "|")


if __name__ == "__main__":
    main(*sys.argv[1:])
