"""Print what each stage read, wrote, merged and dropped, and a reply of the exported model.

python scripts/tools/summary.py data/demo/decrypted data/demo/parsed ... data/demo/10002/exported \\
    --plan data/demo/10002/plan/plan.json
"""

import huiyin.common.starting  # noqa: F401

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huiyin.common.errors import UserError, run
from huiyin.common.predicted import Compared, compared
from huiyin.common.stage import arguments, read_receipt

MIB = 1 << 20


def table(receipts: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table, one per stage."""
    yield f"{'stage':<9}{'read':>10}{'written':>10}{'merged':>10}{'dropped':>10}{'seconds':>10}  why dropped"
    for receipt in receipts:
        ledger = receipt["ledger"]
        why = ", ".join(f"{reason} {count}" for reason, count in ledger["dropped"].items() if count)
        numbers = [ledger["read"], ledger["written"], ledger.get("merged", 0), sum(ledger["dropped"].values())]
        cells = "".join(f"{number:>10,}" for number in numbers)
        yield f"{receipt['stage']:<9}{cells}{receipt['seconds']:>10.1f}  {why}".rstrip()


def predicted_and_seen(stages: Iterable[Compared]) -> Iterator[str]:
    """Yield the lines of the table of what `make plan` has said."""
    yield f"{'stage':<9}{'rows':>21}{'seconds':>19}{'MiB':>17}  predicted / seen"
    for stage in stages:
        rows = "{:,} / {:,}".format(*stage.written) if stage.written else ""
        seconds = "{:,.0f} / {:,.0f}".format(*stage.seconds) if stage.seconds else ""
        size = "{:,.1f} / {:,.1f}".format(*(each / MIB for each in stage.size))
        yield f"{stage.stage:<9}{rows:>21}{seconds:>19}{size:>17}"


def read_asked(folder: Path) -> dict[str, str]:
    """Return what export wrote of the question at its end."""
    try:
        asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
        return {name: asked[name] for name in ("who", "question", "reply")}
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{folder}/asked.json: not what export wrote; make export again") from None


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, config=False, out=False)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--plan", type=Path, default=Path(), metavar="FILE", help="plan.json of `make plan`")
    args = parser.parse_args(argv)
    found = {folder: receipt for folder in args.folders if (receipt := read_receipt(folder))}
    receipts = list(found.values())
    for asked in [read_asked(folder) for folder, receipt in found.items() if "asked.json" in receipt["outputs"]]:
        print(f"\nAsked {asked['who']}: {asked['question']}")
        print(f"It said: {asked['reply']!r}")
        base = next((receipt["base_model"]["name"] for receipt in receipts if "base_model" in receipt), "")
        if "tiny" in Path(base).name:
            print("That is gibberish, as it should be: the demo's model is tiny and its weights are random.")
    quotes: dict[str, int] = next((receipt["quotes"] for receipt in receipts if "quotes" in receipt), {})
    if "found_by_llm" in quotes:
        linker = f"the linker {quotes['found_by_linker']}, " if "found_by_linker" in quotes else ""
        print(
            f"Of {quotes['in_reach']} held-out quotes within the candidates, the model found {quotes['found_by_llm']}, "
            f"{linker}the rule on names {quotes['found_by_rule']}."
        )
    print()
    print("\n".join(table(receipts)))
    if stages := list(compared(args.plan, found)):
        print()
        print("\n".join(predicted_and_seen(stages)))


if __name__ == "__main__":
    run(main)
