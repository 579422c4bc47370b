"""How long each reader of an export takes, compared with a bare loop over the same file: medians of a few rounds.

    python bench/readers.py 1000000 data/bench/readers [FORMAT ...]

Writes the demo's history with that many messages of one group in each format to that folder, once. The bare loop is
what cuts the file into messages and no more: ijson's `items`, `json.loads` a line, `csv.reader`, or for QQ's text the
reader's pattern of a header on each line. Seconds (of the processor) and memory are those of a process of its own,
without the start of the interpreter; a reader's end with its frame of rows.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import median

from scripts.demo.history import GROUPS
from written import FORMATS, messages, write

PREFIXES = {"weq": "item"}
MOST = 2.5  # times the bare loop
START = """
import resource, sys, time
from pathlib import Path
path = Path(sys.argv[1])
start = time.process_time()
"""
END = """
print(time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
BARE = {
    "json": """
import ijson
for _ in ijson.items(open(path, "rb"), sys.argv[2]): pass
""",
    "jsonl": """
import json
for line in open(path, "rb"): json.loads(line)
""",
    "txt": """
from huiyin.sources.old_qq import HEADER
start = time.process_time()
for line in open(path, encoding="utf-8"): HEADER.match(line)
""",
    "csv": """
import csv
for row in csv.reader(open(path, encoding="utf-8", newline="")): pass
""",
}
READER = """
from huiyin.sources.detect import detect
from huiyin.sources.export import Source, read_export
start = time.process_time()
rows, report = read_export(Source(detect(path), zone="Asia/Shanghai"), True, [])
assert not rows.is_empty()
"""


def run(code: str, *arguments: object) -> tuple[float, float]:
    """Return the seconds and the MB that `code` takes in a process of its own."""
    command = [sys.executable, "-c", START + code + END, *map(str, arguments)]
    seconds, memory = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).split()
    return float(seconds), float(memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("messages", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("formats", nargs="*", default=list(FORMATS))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print("| format | MB | bare loop, s | MB | reader, s | MB | ratio | at most |\n|---|---|---|---|---|---|---|---|")
    for name in args.formats:
        path = args.folder / str(args.messages) / FORMATS[name][0]
        if not path.exists():
            part = write(name, path.parent / ".part", messages(args.messages, GROUPS[0].number), GROUPS[0])
            part.replace(path)
        rounds = []
        for _ in range(args.rounds):
            bare = run(BARE[path.suffix[1:]], path, PREFIXES.get(name, "messages.item"))
            rounds.append((bare, run(READER, path)))
        (bare, bare_memory), (reader, memory) = (
            [median(each[which][what] for each in rounds) for what in (0, 1)] for which in (0, 1)
        )
        ratio = median(each[1][0] / each[0][0] for each in rounds)
        size = path.stat().st_size / 1e6
        print(
            f"| {name} | {size:,.0f} | {bare:.1f} | {bare_memory:,.0f} | {reader:.1f} | {memory:,.0f} | {ratio:.2f} "
            f"| {MOST} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
