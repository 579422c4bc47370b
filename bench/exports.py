"""Compare what parse makes of exports of other programs with what is expected: cases in folders.

    python bench/exports.py FOLDER

FOLDER holds a folder for each case: the export, about.json (`source`, `settings`, `ledger`) and expected.jsonl, a line
for each record in the order of the files; and `refused/refused.jsonl`, files that must end with one line. What differs
is printed; the exit status is 1 then.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl
import yaml

from huiyin.sources.record import to_user_id

SCRIPT = Path(__file__).parent.parent / "scripts/parse.py"
SAME = ("group_id", "time", "user_id", "nickname", "fragments", "kinds", "mentions", "reply_dangling")


def parse(source, settings, out):
    config = out.with_suffix(".yaml")
    config.write_text(yaml.safe_dump({"preset": "seed", **settings}))
    command = [sys.executable, SCRIPT, source, "--config", config, "--out", out]
    return subprocess.run(command, capture_output=True, text=True)


def differences(case, scratch):
    """Yield a line for each difference of a case."""
    about = json.loads((case / "about.json").read_text("utf-8"))
    expected = [json.loads(line) for line in (case / "expected.jsonl").read_text("utf-8").split("\n") if line]
    done = parse(case / about["source"], about["settings"], scratch / case.name)
    if done.returncode:
        yield done.stderr.strip().splitlines()[-1]
        return
    ledger = json.loads((scratch / case.name / "receipt.json").read_text())["ledger"]
    counted = {"written": ledger["written"], **ledger["dropped"]}
    if counted != about["ledger"]:
        yield f"ledger {counted}, not {about['ledger']}"
    rows = pl.read_parquet(scratch / case.name / "messages.parquet").to_dicts()
    found = {row["message_id"]: row | {"time": row["time"].strftime("%Y-%m-%dT%H:%M:%SZ")} for row in rows}
    ids = {}  # {index of a record: message_id}
    for row in expected:
        if row["dropped"] is None:
            free = (of for of, have in found.items() if of not in ids.values() and same(row, have))
            ids[row["index"]] = next(free, None)
            if ids[row["index"]] is None:
                near = [seen(have) for have in found.values() if have["time"] == row["time"]]
                yield f"missing: {seen(row)}\n     near: {near}"
    for row in expected:
        if ids.get(row["index"]) is None:
            continue
        reply, target = found[ids[row["index"]]]["reply_to"], row["reply_to"]
        if (target is None) != (reply is None) or ids.get(target, reply) != reply:
            yield f"record {row['index']} replies to {reply}, not to record {row['reply_to']}"
    if extra := found.keys() - set(ids.values()):
        yield f"too many: {[seen(found[of]) for of in extra]}"


def seen(row):
    return {name: row[name] for name in SAME}


def same(expected, found):
    ids = {"user_id": to_user_id(expected["user_id"]), "mentions": list(map(to_user_id, expected["mentions"]))}
    return seen(expected) | ids == seen(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", nargs="*")
    args = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        for case in sorted(args.folder.iterdir()):
            if args.cases and case.name not in args.cases:
                continue
            if (case / "about.json").exists():
                problems = list(differences(case, Path(scratch)))
                print(f"{case.name}: {'as expected' if not problems else ''}")
                wrong += bool(problems)
                for problem in problems:
                    print(f"  {problem}")
        refused = args.folder / "refused"
        for line in (refused / "refused.jsonl").read_text("utf-8").splitlines() if not args.cases else ():
            name = json.loads(line)["file"]
            done = parse(refused / name, {}, Path(scratch) / "refused")
            good = done.returncode == 1 and len(done.stderr.splitlines()) == 1
            wrong += not good
            print(f"{'refused' if good else 'NOT REFUSED'}: {done.stderr.replace(str(refused) + '/', '').strip()}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
