"""Print ten random rows of the dataset with their sources.

python scripts/tools/rows.py data/default/10001/generated
"""

import json
import random
from collections.abc import Sequence

from huiyin.common.errors import run
from huiyin.common.stage import arguments, need

ROWS = 10


def main(argv: Sequence[str] | None = None) -> None:
    folder = arguments(__doc__, "generated", config=False, out=False).parse_args(argv).generated
    rows = [
        row
        for name in ("alpaca.json", "alpaca_eval.json")
        for row in json.loads(need(folder / name, "`make gen` makes it").read_text(encoding="utf-8"))
    ]
    with open(folder / "sources.jsonl", encoding="utf-8") as file:
        sources = [json.loads(line) for line in file]
    for index in sorted(random.sample(range(len(rows)), min(ROWS, len(rows)))):
        row, source = rows[index], sources[index]
        print(f"--- row {index}, turns {source['turn_ids']}, {source['decided_by']}")
        for prompt, reply in [*row["history"], [row["instruction"], row["output"]]]:
            print(f"    {prompt}\n      → {reply}")


if __name__ == "__main__":
    run(main)
