"""Damage one input of a stage at random, again and again: does the stage end well, or with one line?

    PYTHONPATH=.:tests python bench/fuzz.py FOLDER all [--seconds 60] [--seed 1]
    PYTHONPATH=.:tests python bench/fuzz.py FOLDER wal --seconds 0 --seed 417    # that damage alone, once more

Targets are the sources (encrypted, wal, plain, plain_wal, companions, key, json, csv; exports of other programs: qce,
chatlab, "chatlab lines", weflow, telegram, old_qq, wechat_csv, weq, discord, own_csv) and our own files (messages,
turns, pairs, dataset, sources, receipts, answers, settings, train_yaml, prompts). For each seed a file of the target is
damaged: bits, cuts, blocks, bytes, doubled and missing parts, wrong types, numbers out of range, deep nesting, NUL, odd
names.
Then a script that reads it runs, in a process with a limit of memory and time. It may end with status 0, or with one
line and status 1; a stage checks its ledger itself. Everything else is a finding: it is printed, and kept with its
input in FOLDER/findings. FOLDER keeps the sound inputs, small ones of the demo's kind, for the next call.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path

from scripts.demo.history import GROUPS
from written import FORMATS, messages, write

ROOT = Path(__file__).parent.parent
EXPORTS = {name: of for name, of in FORMATS.items() if name != "csv"}

MEMORY, SECONDS = 8 << 30, 120  # address space of a process, the duration of one run
MESSAGES = 150
DATA = ["decrypted", "parsed", "combined", "paired", "generated"]
BIG = [-1, 0, 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64, 10**30, 10**400]
NUMBERS = [*BIG, 0.5, 1e308, float("inf"), float("nan")]
TEXTS = [
    *("", " ", "\0", "a\0b", "\n", "\r", "\ufeff", "\u202e", "\ud800", "\uffff", "𝟙", "٣", "x" * 300, "好" * 5000),
    *(
        "../../x",
        "/",
        ".",
        "-",
        "--help",
        "~",
        "null",
        "NaN",
        "[1]",
        "{}",
        "*",
        "!!python/object",
        "&a",
        "%s",
        "{name}",
    ),
    *("http://[", "a: b", "- x", "<|im_end|>", "$name", "$", "${name", "0x1", "1_000", "2022-13-45"),
]
VALUES = [None, True, False, [], {}, [[]], [None], {"a": 1}, *NUMBERS, *TEXTS]


# ---- damage


def bits(chance, content):
    for _ in range(chance.choice([1, 1, 3, 20])):
        if content:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return content


def cut(chance, content):
    return content[: chance.randrange(len(content) + 1)]


def remove(chance, content):
    start, stop = span(chance, content)
    return content[:start] + content[stop:]


def double(chance, content):
    start, stop = span(chance, content)
    return content[:stop] + content[start:]


def swap(chance, content):
    start, stop = span(chance, content)
    place = chance.randrange(len(content) + 1)
    rest, block = content[:start] + content[stop:], content[start:stop]
    return rest[:place] + block + rest[place:]


def insert(chance, content):
    place = chance.randrange(len(content) + 1)
    odd = [b"\0", b"\xff", b"\xef\xbb\xbf", b'"', b"'", b"\\", b"\n", b"\r\n", b",", b"\xed\xa0\x80", b"\0" * 4096]
    piece = chance.choice([*odd, b"[" * 100_000, b'{"a":' * 100_000, b"(" * 100_000, chance.randbytes(30)])
    return content[:place] + piece + content[place:]


def overwrite(chance, content):
    """Write an odd number over some bytes: lengths and page numbers are often such."""
    place, size = chance.randrange(len(content) + 1), chance.choice([1, 2, 4, 8])
    number = chance.choice([0, 1, (1 << 8 * size) - 1, (1 << 8 * size - 1) - 1, 1 << 8 * size - 1])
    content[place : place + size] = number.to_bytes(size, chance.choice(["big", "little"]))
    return content


def word(chance, content):
    """Put an odd number or text in the place of a word."""
    words = list(re.finditer(rb"[\w.+-]+", content))
    if not words:
        return content
    start, stop = chance.choice(words).span()
    return content[:start] + str(chance.choice(VALUES)).encode("utf-8", "replace") + content[stop:]


def span(chance, content):
    start = chance.randrange(len(content) + 1)
    return start, min(len(content), start + chance.choice([1, 4, 40, 400, 4096]))


DAMAGES = [bits, cut, remove, double, swap, insert, overwrite, word]


def damage_bytes(chance, path):
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 2, 5])):
        content = bytearray(chance.choice(DAMAGES)(chance, content))
    path.write_bytes(content)


def damage_value(chance, value):
    """Return a JSON value in which one part is another, gone, renamed or in a list."""
    if isinstance(value, dict | list) and value and chance.random() < 0.85:
        copy = value.copy()
        keys = list(copy) if isinstance(copy, dict) else range(len(copy))
        key, what = chance.choice(keys), chance.random()
        if what < 0.1:
            del copy[key]
        elif what < 0.2 and isinstance(copy, dict):
            copy[chance.choice([text for text in TEXTS if text.isprintable()])] = copy.pop(key)
        else:
            copy[key] = damage_value(chance, copy[key])
        return copy
    return chance.choice([*VALUES, [value], {"a": value}, str(value), [value, value]])


def damage_json(chance, path):
    """Damage a file of JSON, or a line of one of JSON Lines."""
    whole = path.suffix == ".json"
    lines = [path.read_text(encoding="utf-8")] if whole else path.read_text(encoding="utf-8").splitlines()
    if lines:
        index = chance.randrange(len(lines))
        lines[index] = json.dumps(damage_value(chance, json.loads(lines[index])))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def damage_yaml(chance, path):
    """Give a setting, one that the comments name or any, an odd value."""
    names = re.findall(r"^(?:# )?([a-z_]+):", path.read_text(encoding="utf-8"), re.MULTILINE)
    lines = [f"{chance.choice(names)}: {show(chance)}" for _ in range(chance.choice([1, 1, 2]))]
    kept = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in kept if line.split(":")[0] not in {new.split(":")[0] for new in lines}]
    path.write_text("\n".join([*kept, *lines]) + "\n", encoding="utf-8", errors="surrogatepass")


def show(chance):
    value = chance.choice(VALUES)
    return json.dumps(value) if chance.random() < 0.6 else value


def damage_table(chance, path):
    """Give a column of a parquet file another type or other values, or take it away."""
    import polars as pl

    table = pl.read_parquet(path)
    name, what = chance.choice(table.columns), chance.randrange(8)
    column = table[name]
    with contextlib.suppress(pl.exceptions.PolarsError, TypeError, OverflowError):
        if what == 0:
            table = table.drop(name)
        elif what == 1:
            table = table.with_columns(pl.lit(None, column.dtype).alias(name))
        elif what == 2:
            table = table.clear() if chance.random() < 0.3 else pl.concat([table, table])
        elif what == 3:
            table = table.with_columns(column.cast(chance.choice([pl.String, pl.Int32, pl.Float64, pl.Binary])))
        elif what == 4:
            table = table.with_columns(column.shuffle(chance.randrange(100)).alias(name))
        else:  # some values
            values = column.to_list()
            for _ in range(chance.choice([1, 5, len(values)])):
                values[chance.randrange(len(values))] = odd(chance, column.dtype)
            table = table.with_columns(pl.Series(name, values, column.dtype))
    table.write_parquet(path, metadata={"placeholders": chance.choice(["", "", "image", "\0", ",,x"])})


def odd(chance, kind):
    import polars as pl

    if isinstance(kind, pl.List):
        return chance.choice([None, [], [None], [odd(chance, kind.inner)]])
    if kind == pl.Boolean:
        return chance.choice([None, True, False])
    if kind == pl.String:
        return chance.choice([None, *(text for text in TEXTS if text != "\ud800")])
    return chance.choice([None, *(number for number in BIG if -(2**63) <= number < 2**63)])


def damage_rows(chance, path):
    """Change cells, columns or the schema of a plain SQLite file."""
    with (
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database,
        contextlib.suppress(sqlite3.Error),
    ):
        database.execute("PRAGMA journal_mode = DELETE")
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        table = chance.choice(tables)
        column = chance.choice([row[1] for row in database.execute(f"PRAGMA table_info([{table}])")])
        what, values = chance.randrange(10), [None, *filter(in_sqlite, NUMBERS), *TEXTS[:8], b"", b"\xff\0", 1.5]
        if what < 6:
            count = chance.choice([1, 3, 10_000])
            old = database.execute(
                f"SELECT rowid, [{column}] FROM [{table}] ORDER BY random() LIMIT {count}"
            ).fetchall()
            for row, value in old:
                new = chance.choice(values)
                if isinstance(value, bytes) and chance.random() < 0.8:
                    new = bytes(chance.choice(DAMAGES[:-1])(chance, bytearray(value)))[:5000]
                database.execute(f"UPDATE OR REPLACE [{table}] SET [{column}] = ? WHERE rowid = ?", [new, row])
        elif what == 6:
            database.execute(
                f"ALTER TABLE [{table}] RENAME COLUMN [{column}] TO [{chance.choice(['40001', 'x', '٣'])}]"
            )
        elif what == 7:
            database.execute(f"ALTER TABLE [{table}] RENAME TO [old]")
            kind = chance.choice(["VIEW", "TABLE"])
            database.execute(f"CREATE {kind} [{table}] AS SELECT * FROM [old]")
        elif what == 8:
            database.execute(f"DELETE FROM [{table}]")
        else:
            database.execute("PRAGMA writable_schema = ON")
            name, sql = chance.choice(database.execute("SELECT name, sql FROM sqlite_schema").fetchall())
            text = bytes(chance.choice(DAMAGES)(chance, bytearray(str(sql).encode()))).decode("utf-8", "replace")
            database.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", [text[:100_000], name])


def in_sqlite(value):
    return isinstance(value, float) or -(2**63) <= value < 2**63


def damage_answers(chance, path):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        values = [*TEXTS[:8], 7, b"\xff", "[" * 100_000, '{"answers": 5}', '{"answers": []}', '{"text": null}', "null"]
        for (key,) in database.execute("SELECT key FROM answers ORDER BY random() LIMIT 5").fetchall():
            [(old,)] = database.execute("SELECT answer FROM answers WHERE key = ?", [key]).fetchall()
            with contextlib.suppress(ValueError):
                values.append(json.dumps(damage_value(chance, json.loads(old))))
            database.execute("UPDATE answers SET answer = ? WHERE key = ?", [chance.choice(values), key])


# ---- what is damaged, and which scripts read it

DECRYPT, PARSE = ["decrypt"], ["parse"]
TARGETS = {  # {name: ([files], [ways to damage], [names in `commands`])}
    "encrypted": (["raw/nt_msg.db"], [damage_bytes], DECRYPT),
    "wal": (["wal/nt_msg.db-wal"], [damage_bytes], ["decrypt_wal"]),
    "plain": (["decrypted/nt_msg.db"], [damage_bytes, damage_rows], ["decrypt_plain", "parse"]),
    "plain_wal": (["plain_wal/nt_msg.db-wal", "plain_wal/nt_msg.db"], [damage_bytes], ["decrypt_plain_wal"]),
    "companions": (["raw/group_info.db", "raw/profile_info.db"], [damage_bytes], DECRYPT),
    "key": (["raw/key.txt"], [damage_bytes], DECRYPT),
    "json": (["raw/chat.json"], [damage_bytes, damage_json], ["parse_json"]),
    "csv": (["raw/chat.csv"], [damage_bytes], ["parse_csv", "parse_csv_leniently"]),
    **{  # what other programs export, as bench/written.py writes it
        name: (
            [f"exports/{file}"],
            [damage_bytes, damage_json] if file.endswith("json") else [damage_bytes],
            [f"parse_{file}"],
        )
        for name, (file, _) in EXPORTS.items()
    },
    "messages": (["parsed/messages.parquet"], [damage_bytes, damage_table, damage_table], ["combine", "members"]),
    "turns": (["combined/turns.parquet"], [damage_bytes, damage_table, damage_table], ["pair", "gen", "members"]),
    "pairs": (["paired/pairs.jsonl", "paired/unpaired.jsonl"], [damage_bytes, damage_json], ["gen"]),
    "dataset": (
        [f"generated/{name}" for name in ("alpaca.json", "alpaca_eval.json", "dataset_info.json", "system.txt")],
        [damage_bytes, damage_json],
        ["train", "rows"],
    ),
    "sources": (["generated/sources.jsonl"], [damage_bytes, damage_json], ["rows"]),
    "receipts": (
        [f"{stage}/receipt.json" for stage in DATA],
        [damage_bytes, damage_json],
        ["verify", "summary", *DATA],
    ),
    "answers": (["answers.db"], [damage_bytes, damage_answers], ["pair_llm", "gen"]),
    "settings": (
        [
            f"config/{name}.yaml"
            for name in ("decrypt", "parse", "combine", "pair", "gen", "preflight", "export", "llm")
        ],
        [damage_bytes, damage_yaml, damage_yaml],
        ["all"],
    ),
    "train_yaml": (["config/train.yaml"], [damage_bytes, damage_yaml, damage_yaml], ["train"]),
    "prompts": (
        [f"config/prompts/{name}.md" for name in ("pair", "gen", "persona")],
        [damage_bytes],
        ["pair_llm", "gen"],
    ),
}
STAGE_OF = {"decrypted": "decrypt", "parsed": "parse", "combined": "combine", "paired": "pair", "generated": "gen"}
READS = {"preflight": "train", "export": "train", "llm": "pair"}  # settings that another script reads than theirs


def commands(folder):
    """Return {name: arguments of the script with that name, up to a `_`}; results go where the sound ones are."""
    config = {name: f"{folder}/config/{name}.yaml" for name in "decrypt parse combine pair gen train".split()}
    prompts, llm = f"{folder}/config/prompts", ["--llm", f"{folder}/config/llm.yaml"]
    turns, alone = f"{folder}/combined/turns.parquet", ["--config", f"{folder}/config/pair_alone.yaml"]

    def decrypt(source):
        key = ["--key", f"{folder}/raw/key.txt"]
        return [f"{folder}/{source}", *key, "--config", config["decrypt"], "--out", f"{folder}/out"]

    def parse(source, settings="parse"):
        return [f"{folder}/{source}", "--config", f"{folder}/config/{settings}.yaml", "--out", f"{folder}/parsed"]

    pair = [turns, "--target=10002", "--prompt", f"{prompts}/pair.md", "--merge-prompt", f"{prompts}/merge.md", *llm]
    pair += ["--answers", f"{folder}/answers.db", "--out", f"{folder}/paired"]
    gen = [f"{folder}/paired", "--turns", turns, "--prompt", f"{prompts}/gen.md", "--persona", f"{prompts}/persona.md"]
    gen += [*llm, "--answers", f"{folder}/answers.db", "--config", config["gen"], "--out", f"{folder}/generated"]
    train = [f"{folder}/generated", "--config", config["train"], "--preflight", f"{folder}/config/preflight.yaml", *llm]
    train += ["--models", f"{folder}/config/models.yaml"]
    train += ["--export", f"{folder}/config/export.yaml", "--gpu", "none", "--cache", f"{folder}/cache", "--dry-run"]
    stages = [f"{folder}/{stage}" for stage in DATA]
    messages = f"{folder}/parsed/messages.parquet"
    return {
        "decrypt": [*decrypt("raw/nt_msg.db")[:-1], f"{folder}/decrypted"],
        "decrypt_wal": decrypt("wal/nt_msg.db"),
        "decrypt_plain": decrypt("decrypted/nt_msg.db"),
        "decrypt_plain_wal": decrypt("plain_wal/nt_msg.db"),
        "parse": parse("decrypted/nt_msg.db"),
        "parse_json": parse("raw/chat.json"),
        **{f"parse_{file}": parse(f"exports/{file}", "zoned") for file, _ in EXPORTS.values()},
        "parse_csv": parse("raw/chat.csv"),
        "parse_csv_leniently": parse("raw/chat.csv", "leniently"),
        "combine": [messages, "--config", config["combine"], "--out", f"{folder}/combined"],
        "members": [messages, turns, "--out", f"{folder}/members"],
        "pair": [*pair, *alone],
        "pair_llm": [*pair, "--config", config["pair"]],
        "gen": gen,
        "train": [*train, "--out", f"{folder}/trained"],
        "rows": [f"{folder}/generated"],
        "summary": stages,
        "verify": [*stages, "--export", f"{folder}/config/export.yaml"],
    }


def run(folder, name):
    """Run a script on the inputs in `folder`; return (status, what it printed on stderr)."""
    from helpers import run_script

    script = name.split("_")[0]
    tool = "tools/" if script in ("members", "rows", "summary", "verify") else ""
    done = run_script(f"{tool}{script}", *commands(folder)[name])
    return done.returncode, done.stderr


# ---- the sound inputs


def make_sound(folder, url):
    """Write the sound inputs into `folder`."""
    from helpers import run_script
    from scripts.demo.history import KEY
    from test_decrypt import LOGGED, ORDINARY, write_database

    shutil.copytree(ROOT / "config", folder / "config", ignore=shutil.ignore_patterns("demo", "target.txt"))
    run_script("demo/history", "--out", folder / "raw", "--messages", MESSAGES)
    (folder / "raw/key.txt").write_text(f"{KEY}\n")
    llm = f"url: {url}\nmodel: tiny\nnum_ctx: 16384\npair_temperature: 3.0\nmax_failed_share: 1\n"
    settings = {
        "llm": f"{llm}max_failures_in_a_row: 100\n",
        "pair_alone": "use_llm: false\n",
        "leniently": "skip_bad_lines: true\n",
        "zoned": "zone: Asia/Shanghai\nskip_bad_lines: true\n",
        "gen": "max_rubbish_share: 1\n",
        "export": "ollama: none\n",
    }
    train = (ROOT / "config/demo/train.yaml").read_text(encoding="utf-8")
    settings["train"] = train.replace("data/tiny", str(folder.parent / "tiny"))
    for name, text in settings.items():
        commented = ROOT / f"config/{name}.yaml"
        comments = commented.read_text(encoding="utf-8").replace("preset:", "# preset:") if commented.exists() else ""
        (folder / f"config/{name}.yaml").write_text(comments * (name != "train") + text, encoding="utf-8")
    for name, device in (("wal", "Linux"), ("plain_wal", "plain")):
        (folder / name).mkdir()
        fill = (
            "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 60) INSERT INTO group_msg_table"
        )
        statements = [ORDINARY, f"{fill} SELECT n * 977, 2, n, randomblob(n * 9) FROM s"]
        write_database(folder / name / "nt_msg.db", device, statements, LOGGED)
    for name in ("decrypt", "parse", "combine", "pair_llm", "gen"):
        status, errors = run(folder, name)
        assert status == 0, errors
    shutil.copy(folder / "parsed/messages.csv", folder / "raw/chat.csv")
    for name in EXPORTS:
        write(name, folder / "exports", messages(MESSAGES, GROUPS[0].number), GROUPS[0])
    with contextlib.closing(sqlite3.connect(folder / "decrypted/nt_msg.db")) as database:
        database.row_factory = sqlite3.Row
        rows = [dict(row) for row in database.execute("SELECT * FROM group_msg_table")]
    (folder / "raw/chat.json").write_text(json.dumps(rows, default=in_base64, indent=1))


def in_base64(body):
    import base64

    return base64.b64encode(body).decode()


# ---- one damage, in a process of its own


def try_once(folder, target, seed):
    """Damage a copy of the sound inputs and run a script on them; return what is wrong, "" for nothing."""
    chance = random.Random(f"{target} {seed}")
    files, ways, scripts = TARGETS[target]
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(folder / "sound", work)
    file, script = chance.choice(files), chance.choice(scripts)
    name = Path(file).stem
    script = READS.get(name, name) if script == "all" else STAGE_OF.get(script, script)
    way = chance.choice(ways if file.endswith((".json", ".jsonl")) or damage_json not in ways else [damage_bytes])
    way(chance, work / file)
    what = f"{script} with {file} after {way.__name__}"
    (folder / "now.txt").write_text(what)
    if not file.endswith("receipt.json") and chance.random() < 0.5:
        # which would say that the file was changed; of people's own files there is none
        (work / file).with_name("receipt.json").unlink(missing_ok=True)
    sys.set_int_max_str_digits(sys.int_info.default_max_str_digits)  # parse of JSON lifts this limit
    status, errors = run(work, script)
    lines = errors.splitlines()
    if status == 0 or (status == 1 and len(lines) == 1 and "Traceback" not in errors):
        return ""
    ours = [line.strip() for line in lines if line.startswith("  File ") and f"{ROOT}/" in line and ".venv" not in line]
    where = ours[-1].replace(f"{ROOT}/", "") if ours else ""
    return f"{lines[-1][:200] if lines else f'status {status}'} ({where})\n{what}\n{errors}"


def work(folder, target, pipe):
    """Try each seed that comes through `pipe`; send back what is wrong. Runs in a process of its own."""
    os.sched_setaffinity(0, [chance_core()])  # no process of its own has workers, which take a second to start
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        pipe.send(try_once(folder, target, pipe.recv()))


def chance_core():
    return random.choice(sorted(os.sched_getaffinity(0)))


class Worker:
    """A process that tries seeds; it is started anew after one that ended or stopped it."""

    def __init__(self, folder, target):
        self.arguments, self.process = (folder, target), None

    def try_seed(self, seed):
        if self.process is None:
            self.pipe, theirs = multiprocessing.Pipe()
            self.process = multiprocessing.get_context("spawn").Process(target=work, args=(*self.arguments, theirs))
            self.process.start()
            theirs.close()
            self.fresh = True
        self.pipe.send(seed)
        wait, self.fresh = SECONDS + 60 * self.fresh, False  # what it imports takes a while
        try:
            if self.pipe.poll(wait):
                return self.pipe.recv()
            problem = f"hangs: not done after {wait} s"
        except EOFError:
            self.process.join()
            problem = f"ended: exit status {self.process.exitcode}"
        self.end()
        return f"{problem}\n{(self.arguments[0] / 'now.txt').read_text()}"

    def end(self):
        if self.process:
            self.process.kill()
            self.process.join()
            self.process = None


def fuzz(folder, target, seconds, seed):
    """Try seeds for so many seconds, one at least; return Counter of what was found."""
    found, end, first = Counter(), time.monotonic() + seconds, seed
    worker = Worker(folder, target)
    try:
        while seed == first or time.monotonic() < end:
            if problem := worker.try_seed(seed):
                kind = re.sub(r"\d+", "#", problem.splitlines()[0])
                found[kind] += 1
                if found[kind] == 1:
                    print(f"{target} {seed}: {problem if seconds == 0 else problem.splitlines()[0]}", flush=True)
                    kept = folder / f"findings/{target}-{seed}"
                    shutil.copytree(folder / "work", kept, dirs_exist_ok=True)
                    (kept / "problem.txt").write_text(problem, encoding="utf-8", errors="replace")
            seed += 1
    finally:
        worker.end()
    print(f"{target}: {seed - first} tried, {found.total()} findings of {len(found)} kinds", flush=True)
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", choices=["all", *TARGETS])
    parser.add_argument("--seconds", type=float, default=60, help="for each target (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="the first one (default 1)")
    parser.add_argument("--port", type=int, default=18435, help="for the server; another one for a second run beside")
    args = parser.parse_args(argv)

    from helpers import run_script
    from ollama_server import OllamaServer

    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tiny").exists():
        run_script("demo/tiny", "--out", folder / "tiny")
    with OllamaServer(folder / "tiny/tiny.gguf", ["tiny"], port=args.port) as server:
        server.remembered = {}
        if not (folder / "sound").exists():
            make_sound(folder / "making", server.url)
            (folder / "making").rename(folder / "sound")
        targets = TARGETS if args.target == "all" else [args.target]
        found = sum((fuzz(folder, target, args.seconds, args.seed) for target in targets), Counter())
    if found:
        sys.exit(f"{found.total()} findings")


if __name__ == "__main__":
    main()
