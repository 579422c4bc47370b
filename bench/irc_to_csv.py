"""Turn annotated IRC logs (JSON lines: log_id, line_no, time, user, text, is_system) into the five-column CSV.

    python bench/irc_to_csv.py dev.jsonl.gz data/raw/irc.csv

A log becomes a group, a nickname a user id. System lines (joins, topics) are left out. Times have a resolution of one
minute and are kept as they are.
"""

import csv
import gzip
import json
import re
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Message = dict[str, Any]  # a line of the annotated logs


def read_messages(source: Path) -> Iterator[Message]:
    """Yield the messages of people, in the order of the file; the message ids of the pipeline count them from 0."""
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        yield from (message for message in map(json.loads, lines) if not message.get("is_system"))


def rows(messages: Iterable[Message]) -> Iterator[list[str]]:
    """Yield [group, time, nickname, user id, fragments] for each message."""
    for message in messages:
        time = datetime.fromtimestamp(message["time"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        # a TARGET may contain only letters, digits and _ . - but nicknames may contain []\`^{}| as well
        user = re.sub(r"[^A-Za-z0-9_.-]", lambda odd: f".{ord(odd[0]):x}", message["user"].lower())
        yield [message["log_id"], time, message["user"], user, repr([message.get("text") or ""])]


def main(source: Path, target: Path) -> None:
    with open(target, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows(read_messages(source)))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
