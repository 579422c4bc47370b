"""How long decrypt and parse take on a large history, beside the least that could be done: medians of a few rounds.

    python bench/history.py 1000000 data/bench/history

Makes an encrypted history of so many rows in that folder, once, and runs the stages on it. Beside them, in the same
round: a bare `sqlcipher_export` for decrypt; for parse a loop on one core that selects the rows (with all the columns
parse needs, or the bodies only), calls FromString and reads kind and text of every element; for a CSV `polars.read_csv`
and one `ast.literal_eval` a row. Memory is that of all processes of a stage together (PSS).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

SCRIPTS = Path(__file__).parent.parent / "scripts"
CONFIG = SCRIPTS.parent / "config"
SECONDS_BETWEEN_LOOKS = 0.1

BARE_EXPORT = """
import sqlcipher3
from huiyin.qqnt.cipher import Cipher
connection = sqlcipher3.connect(given[0], isolation_level=None)
for statement in Cipher(hmac="SHA1").pragmas(open(given[1]).read().strip()):
    connection.execute(statement)
start = time.perf_counter()
connection.execute("ATTACH DATABASE ? AS plain KEY ''", (given[2],))
connection.execute("SELECT sqlcipher_export('plain')")
connection.execute("DETACH DATABASE plain")
"""
BARE_LOOP = """
import sqlite3
from huiyin.qqnt.qqnt_pb2 import Body
start = time.perf_counter()
for row in sqlite3.connect(given[0]).execute(f"SELECT {given[1]} FROM group_msg_table"):
    if row[-1]:
        for element in Body.FromString(row[-1]).elements:
            element.kind, element.text
"""
BARE_CSV = """
import ast
import polars
start = time.perf_counter()
for literal in polars.read_csv(given[0], has_header=False, infer_schema=False).to_series(4):
    ast.literal_eval(literal)
"""
BODIES = "[40800]"
ALL_COLUMNS = (
    "[40001], [40003], [40011], [40012], [40013], [40050], [40850], [40027], [40030], [40033], [40060], "
    "[40021], [40020], [40090], [40093], [40800]"
)


def bare(code, *given):
    """Return the seconds that `code` takes from its `start` on, in a process of its own."""
    code = f"import sys, time\ngiven = sys.argv[1:]\n{code}\n"
    code += "print(time.perf_counter() - start)"
    done = subprocess.run([sys.executable, "-c", code, *map(str, given)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def stage(name, *given):
    """Run a stage; return its seconds, start of the interpreter included, and its peak memory in MB."""
    start, peak = time.perf_counter(), 0
    command = [sys.executable, SCRIPTS / f"{name}.py", *map(str, given), "--config", CONFIG / f"{name}.yaml"]
    with subprocess.Popen(command, start_new_session=True) as process:
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(SECONDS_BETWEEN_LOOKS)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{name} failed")
    return seconds, peak


def memory_of(session):
    """Return the memory in MB of all processes of a session; what several share is counted once."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rpartition(")")[2].split()[3]) == session:
                rollup = status.with_name("smaps_rollup").read_text()
                total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue  # it has ended
    return total / 1024


def round_of(folder, scratch):
    """Return {what: (seconds, MB or None)} of one round."""
    source, key = folder / "nt_msg.db", folder / "key.txt"
    stripped = scratch / "bare.db"
    with open(source, "rb") as old, open(stripped, "wb") as new:
        old.seek(1024)
        while block := old.read(1 << 20):
            new.write(block)
    found = {"sqlcipher_export": (bare(BARE_EXPORT, stripped, key, scratch / "export.db"), None)}
    stripped.unlink()
    (scratch / "export.db").unlink()
    found["decrypt"] = stage("decrypt", source, "--key", key, "--out", scratch / "decrypted")
    plain = scratch / "decrypted/nt_msg.db"
    found["loop over the rows"] = bare(BARE_LOOP, plain, ALL_COLUMNS), None
    found["loop over the bodies"] = bare(BARE_LOOP, plain, BODIES), None
    found["parse"] = stage("parse", plain, "--out", scratch / "parsed")
    written = scratch / "parsed/messages.csv"
    found["read_csv, literal_eval"] = bare(BARE_CSV, written), None
    found["parse of the CSV"] = stage("parse", written, "--out", scratch / "again")
    found["ciphertext to parquet"] = found["decrypt"][0] + found["parse"][0], None
    return found


BESIDE = {
    "decrypt": ("sqlcipher_export", 1.5),
    "parse": ("loop over the rows", 2.5),
    "parse of the CSV": ("read_csv, literal_eval", 3),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    folder = args.folder / str(args.rows)
    if not (folder / "receipt.json").exists():
        sample = [sys.executable, SCRIPTS / "sample.py", "--messages", str(args.rows), "--out", folder]
        subprocess.run(sample, check=True)
    rounds = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            rounds.append(round_of(folder, Path(scratch)))

    size = (folder / "nt_msg.db").stat().st_size
    print(f"\n{args.rows:,} rows, {size / 1e6:,.0f} MB, {size / args.rows:.0f} bytes a row; medians of {args.rounds}\n")
    print("| what | seconds | memory, MB | ratio | at most |\n|---|---|---|---|---|")
    for what in rounds[0]:
        seconds = median(found[what][0] for found in rounds)
        memory = f"{max(found[what][1] for found in rounds):,.0f}" if rounds[0][what][1] else ""
        other, limit = BESIDE.get(what, (None, ""))
        ratio = f"{median(found[what][0] / found[other][0] for found in rounds):.2f}" if other else ""
        print(f"| {what} | {seconds:.1f} | {memory} | {ratio} | {limit} |")


if __name__ == "__main__":
    main()
