"""How long decrypt and parse take on a large history, compared with lower bounds: medians of a few rounds.

    python bench/history.py 1000000 data/bench/history

Writes an encrypted history with that many rows to that folder, once, and runs the stages on it. Lower bounds, in the
same round: for decrypt `sqlcipher_export` alone; for parse a loop on one core that selects the rows (with all columns
that parse needs, or only the bodies), calls FromString and reads kind and text of every element; for a CSV
`polars.read_csv` and one `ast.literal_eval` a row. Memory is that of all processes of a stage together (PSS).
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from huiyin.sources.history import BODY, COLUMNS

SCRIPTS = Path(__file__).parent.parent / "scripts"
CONFIG = SCRIPTS.parent / "config"
SECONDS_BETWEEN_SAMPLES = 0.1  # of the memory

BARE_EXPORT = """
import sqlcipher3
from huiyin.qqnt.cipher import Cipher
connection = sqlcipher3.connect(arguments[0], isolation_level=None)
for statement in Cipher(hmac="SHA1").pragmas(open(arguments[1]).read().strip()):
    connection.execute(statement)
start = time.perf_counter()
connection.execute("ATTACH DATABASE ? AS plain KEY ''", (arguments[2],))
connection.execute("SELECT sqlcipher_export('plain')")
connection.execute("DETACH DATABASE plain")
"""
BARE_LOOP = """
import sqlite3
from huiyin.qqnt.qqnt_pb2 import Body
start = time.perf_counter()
for row in sqlite3.connect(arguments[0]).execute(f"SELECT {arguments[1]} FROM group_msg_table"):
    if row[-1]:
        for element in Body.FromString(row[-1]).elements:
            element.kind, element.text
"""
BARE_CSV = """
import ast
import polars
start = time.perf_counter()
for literal in polars.read_csv(arguments[0], has_header=False, infer_schema=False).to_series(4):
    ast.literal_eval(literal)
"""


def bare(code, *arguments):
    """Return the seconds that `code` takes from its `start` on, in a new process."""
    code = f"import sys, time\narguments = sys.argv[1:]\n{code}\nprint(time.perf_counter() - start)"
    return float(subprocess.check_output([sys.executable, "-c", code, *map(str, arguments)]))


def stage(name, *arguments):
    """Run a stage; return its seconds, with the start of the interpreter, and its peak memory in MB."""
    start, peak = time.perf_counter(), 0
    command = [sys.executable, SCRIPTS / f"{name}.py", *map(str, arguments), "--config", CONFIG / f"{name}.yaml"]
    with subprocess.Popen(command, start_new_session=True) as process:
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(SECONDS_BETWEEN_SAMPLES)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{name} failed")
    return seconds, peak


def memory_of(session):
    """Return the memory in MB of all processes of a session; shared memory counts once."""
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
    """Return {name: (seconds, MB or None)} of one round."""
    source, key = folder / "nt_msg.db", folder / "key.txt"
    stripped = scratch / "bare.db"
    with open(source, "rb") as old, open(stripped, "wb") as new:
        old.seek(1024)
        shutil.copyfileobj(old, new)
    results = {"sqlcipher_export": (bare(BARE_EXPORT, stripped, key, scratch / "export.db"), None)}
    stripped.unlink()
    (scratch / "export.db").unlink()
    results["decrypt"] = stage("decrypt", source, "--key", key, "--out", scratch / "decrypted")
    plain = scratch / "decrypted/nt_msg.db"
    all_columns = ", ".join(f"[{number}]" for number in COLUMNS)
    results["loop over the rows"] = bare(BARE_LOOP, plain, all_columns), None
    results["loop over the bodies"] = bare(BARE_LOOP, plain, f"[{BODY}]"), None
    results["parse"] = stage("parse", plain, "--out", scratch / "parsed")
    written = scratch / "parsed/messages.csv"
    results["read_csv, literal_eval"] = bare(BARE_CSV, written), None
    results["parse of the CSV"] = stage("parse", written, "--out", scratch / "again")
    results["ciphertext to parquet"] = results["decrypt"][0] + results["parse"][0], None
    return results


LOWER_BOUNDS = {  # {name: (its lower bound, the ratio that must not be exceeded)}
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
        sample = [sys.executable, SCRIPTS / "demo/history.py", "--messages", str(args.rows), "--out", folder]
        subprocess.run(sample, check=True)
    rounds = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            rounds.append(round_of(folder, Path(scratch)))

    size = (folder / "nt_msg.db").stat().st_size
    print(f"\n{args.rows:,} rows, {size / 1e6:,.0f} MB, {size / args.rows:.0f} bytes a row; medians of {args.rounds}\n")
    print("| what | seconds | memory, MB | ratio | at most |\n|---|---|---|---|---|")
    for name, (_, memory) in rounds[0].items():
        seconds = median(results[name][0] for results in rounds)
        peak = f"{max(results[name][1] for results in rounds):,.0f}" if memory else ""
        bound, limit = LOWER_BOUNDS.get(name, (None, ""))
        ratio = f"{median(results[name][0] / results[bound][0] for results in rounds):.2f}" if bound else ""
        print(f"| {name} | {seconds:.1f} | {peak} | {ratio} | {limit} |")


if __name__ == "__main__":
    main()
