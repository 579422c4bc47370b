"""Print ten random rows of the dataset with their sources.

python scripts/tools/rows.py data/default/10001/generated
"""

import huiyin.common.starting  # noqa: F401

import random
from collections.abc import Sequence

from huiyin.common.errors import UserError, run
from huiyin.common.stage import anew, arguments, need
from huiyin.common.tables import SOURCE, read_records
from huiyin.training.rows import read_rows

MADE_BY = "`make gen` makes it"
ROWS = 10


def main(argv: Sequence[str] | None = None) -> None:
    folder = arguments(__doc__, "generated", config=False, out=False).parse_args(argv).generated
    rows = [row for name in ("alpaca.json", "alpaca_eval.json") for row in read_rows(need(folder / name, MADE_BY))]
    path = need(folder / "sources.jsonl", MADE_BY)
    sources = read_records(path, SOURCE, MADE_BY)
    if len(sources) != len(rows):
        raise UserError(f"{path}: {len(sources):,} lines for {len(rows):,} rows; {anew(path, MADE_BY)}")
    for index in sorted(random.sample(range(len(rows)), min(ROWS, len(rows)))):
        row, source = rows[index], sources[index]
        print(f"--- row {index}, turns {source['turn_ids']}, {source['decided_by']}")
        for prompt, reply in row.exchanges():
            for text, first in ((prompt, "    "), (reply, "      → ")):  # a line for each message
                print(first + text.replace("\n", "\n" + " " * len(first)))


if __name__ == "__main__":
    run(main)
