"""Turn annotated IRC logs (JSON lines: log_id, line_no, time, user, text, is_system) into the five-column CSV.

    python bench/irc_to_csv.py dev.jsonl.gz data/raw/irc.csv

A log becomes a group, a nickname a user id. System lines (joins, topics) are left out. Stamps have minute resolution;
they are passed on as they are.
"""

import csv
import gzip
import json
import re
import sys
from datetime import UTC, datetime


def rows(lines):
    """Yield [group, time, nickname, user id, fragments] for each message of a person."""
    for line in lines:
        message = json.loads(line)
        if message.get("is_system"):
            continue
        time = datetime.fromtimestamp(message["time"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        # a TARGET may hold letters, digits and _ . - only; nicknames may hold []\`^{}| as well
        user = re.sub(r"[^A-Za-z0-9_.-]", lambda odd: f".{ord(odd[0]):x}", message["user"].lower())
        yield [message["log_id"], time, message["user"], user, repr([message.get("text") or ""])]


def main(source, target):
    with gzip.open(source, "rt", encoding="utf-8") as lines, open(target, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
