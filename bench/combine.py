"""Measure combine at ten million messages: time against one sort of the same messages, memory, growth.

    python bench/combine.py FOLDER [--messages 10000000]

Writes invented histories into FOLDER (some 600 MB) and prints two tables. Each figure is the median of three runs, each
in a process of its own but for the last table. What is compared runs in turn, so that a busy machine slows both; "core"
is reading the parquet, the rules, and writing turns.parquet.
"""

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path

import numpy as np
import polars as pl

ROOT = Path(__file__).parent.parent
GROUPS = {"700100200": 0.6, "2900100300": 0.25, "800100400": 0.15}  # share of the messages
MEMBERS = 200
START = 1_500_000_000_000
CHUNK = 1_000_000
RUNS = 3


# ---- invented histories


def write_history(path, count, structured=True):
    """Write `count` messages as parse does; without `structured` as it does for a CSV."""
    random = np.random.default_rng(1)
    texts = invented_texts(random)
    frames = []
    for group, share in GROUPS.items():
        rows = round(count * share)
        start, last_id = START, len(frames) << 40
        for first in range(0, rows, CHUNK):
            frame = chunk(random, texts, group, first, min(CHUNK, rows - first), start, last_id, structured)
            start, last_id = frame["time"].dt.timestamp("ms")[-1], last_id + frame.height
            frames.append(frame)
    pl.concat(frames).sort("group_id", "time", "seq", "message_id", maintain_order=True).write_parquet(
        path, metadata={"placeholders": ""}
    )


def invented_texts(random, count=300_000):
    """Texts of 1 to 30 Chinese characters, some with a special text, a mention or an address in them."""
    characters = np.array([chr(c) for c in range(0x4E00, 0x4E00 + 3000)])
    lengths = np.minimum(1 + random.geometric(0.12, count), 30)
    flat = "".join(random.choice(characters, lengths.sum()))
    ends = lengths.cumsum().tolist()
    texts = [flat[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]
    odd = ["[图片]", "{}[表情]", "  ", "请使用最新版手机QQ体验新功能", "{} me@example.com"]
    texts[::50] = [form.format(text) for form, text in zip(cycle(odd), texts[::50], strict=False)]
    return pl.Series(texts)


def chunk(random, texts, group, first, rows, start, last_id, structured):  # noqa: PLR0914  each name is a column
    """Bursts: somebody says something, goes on within seconds (12 %), while others talk; then a longer pause."""
    goes_on = random.random(rows) < 0.12
    who = np.floor(MEMBERS * random.random(rows) ** 2).astype(int)  # some talk much more than others
    who = who[np.maximum.accumulate(np.where(goes_on, 0, np.arange(rows)))]
    gaps = np.where(goes_on, random.exponential(6, rows), random.exponential(45, rows))
    times = start + (gaps * 1000).astype("int64").cumsum() // 1000 * 1000
    mark = random.random(rows)
    frame = pl.DataFrame(
        {
            "message_id": last_id + np.arange(rows),
            "group_id": pl.repeat(group, rows, eager=True),
            "time": times,
            "seq": np.arange(first, first + rows),
            "user": who,
            "mark": mark,
            "text": texts.gather(random.integers(0, len(texts), rows)),
            "more": texts.gather(random.integers(0, len(texts), rows)),
            "other": random.integers(0, MEMBERS, rows),
        }
    ).with_columns(
        user_id=pl.format("{}", 10_000 + pl.col("user")),
        nickname=pl.format("成员{}", "user"),
        at=pl.format("@成员{}", "other"),
        mentioned=pl.format("{}", 10_000 + pl.col("other")),
    )
    image, at, two, quote = (
        pl.col("mark").is_between(low, high, "left")
        for low, high in ((0, 0.1), (0.1, 0.15), (0.15, 0.18), (0.18, 0.23))
    )
    of_kind = {
        kind: pl.when(when).then(pl.lit(kind)) for kind, when in (("image", image), ("at", at), ("text", ~image))
    }
    more, more_kind, nobody = (
        pl.when(two).then("more"),
        pl.when(two).then(pl.lit("text")),
        pl.lit([], pl.List(pl.String)),
    )
    if structured:
        fragments = pl.concat_list(pl.when(at).then("at"), pl.when(~image).then("text"), more)
        kinds = pl.concat_list(*of_kind.values(), more_kind)
        mentions = pl.when(at).then(pl.concat_list("mentioned")).otherwise(nobody)
    else:
        fragments = pl.concat_list(pl.when(at).then(pl.format("{} {}", "at", "text")).when(~image).then("text"), more)
        kinds, mentions = pl.concat_list(of_kind["text"], more_kind), nobody
    return frame.select(
        "message_id",
        "group_id",
        pl.col("time").cast(pl.Datetime("ms", "UTC")),
        pl.col("seq") if structured else pl.lit(None, pl.Int64).alias("seq"),
        "user_id",
        "nickname",
        fragments.list.drop_nulls().alias("fragments"),
        kinds.list.drop_nulls().alias("kinds"),
        mentions.alias("mentions"),
        pl.when(quote & structured).then(pl.col("message_id") - 1 - pl.col("other")).alias("reply_to"),
        (pl.col("mark") > 0.999).alias("reply_dangling") & pl.lit(structured),
    )


# ---- one measurement: runs in a process of its own, prints seconds and the peak of its memory


def sort(path):
    messages = pl.read_parquet(path)
    started = time.monotonic()
    messages.sort("group_id", "user_id", "time")
    return time.monotonic() - started, {}


def core(path):
    from huiyin.common.stage import Ledger
    from scripts import combine

    started, ledger = time.monotonic(), Ledger()
    turns = combine.combine(path, combine.Settings(), ledger)
    combine.write_turns(turns, path.with_suffix(".turns"), {})
    seconds = time.monotonic() - started
    ledger.check()
    alone = (turns["message_ids"].list.len() == 1).sum() / turns["message_ids"].list.len().sum()
    return seconds, {"turns": ledger.written, "alone": alone}


def write_json(path):
    from scripts import combine

    turns = pl.read_parquet(path.with_suffix(".turns"))
    started = time.monotonic()
    for (group,), of_group in turns.group_by("group_id", maintain_order=True):
        combine.write_json(of_group, path.with_name(f"turns.{group}.json"))
    return time.monotonic() - started, {}


def pandas(path):
    from scripts import combine
    from tests.plain_turns import plain_turns

    started = time.monotonic()
    messages = pl.read_parquet(path).to_pandas()
    turns, _ = plain_turns(messages, **dataclasses.asdict(combine.Settings()))
    return time.monotonic() - started, {"turns": len(turns)}


def compare(path):
    """core and pandas in turn in one process, so that neither pays for starting: medians."""
    runs = [(core(path)[0], pandas(path)[0]) for _ in range(RUNS)]
    fast, plain = (statistics.median(seconds) for seconds in zip(*runs, strict=True))
    return fast, {"pandas": plain}


def measure(what, path):
    """Run `what` on the history at `path` in a new process; return what it found."""
    done = subprocess.run([sys.executable, __file__, str(path), "--only", what], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def in_turn(path, *names):
    """Return {name: medians of RUNS runs}, the measurements taking turns."""
    runs = [{name: measure(name, path) for name in names} for _ in range(RUNS)]
    return {name: {key: statistics.median(run[name][key] for run in runs) for key in runs[0][name]} for name in names}


def history(folder, count, structured=True):
    path = folder / f"{'qqnt' if structured else 'csv'}-{count}.parquet"
    if not path.exists():
        subprocess.run([sys.executable, __file__, str(path), "--only", "write", "--messages", str(count)], check=True)
    return path


def main(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    print(
        "| messages | turns | alone in their turn | sort, s | core, s | core / sort | turns.*.json, s | "
        "peak of sort, GB | of core, GB | of json, GB |"
    )
    print("|---" * 10 + "|")
    core_seconds = []
    for size, structured in ((count // 10, True), (count, True), (count, False)):
        found = in_turn(history(folder, size, structured), "sort", "core", "write_json")
        sorting, core, writing = (figures["seconds"] for figures in found.values())
        core_seconds.append(core)
        times = " | ".join(f"{figure:.2f}" for figure in (sorting, core, core / sorting, writing))
        memory = " | ".join(f"{figures['gigabytes']:.2f}" for figures in found.values())
        turns = f"{found['core']['turns']:,.0f} | {found['core']['alone']:.1%}"
        print(f"| {size:,}{'' if structured else ', as from a CSV'} | {turns} | {times} | {memory} |", flush=True)
    growth = core_seconds[1] / core_seconds[0]
    print(f"\nfrom {count // 10:,} to {count:,} messages core takes {growth:.1f} times as long")
    found = measure("compare", history(folder, count // 100))
    print("\n| messages | core, s | pandas, row by row, s | pandas / core |")
    print("|---" * 4 + "|")
    fast, plain = found["seconds"], found["pandas"]
    print(f"| {count // 100:,} | {fast:.2f} | {plain:.1f} | {plain / fast:.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--messages", type=int, default=10_000_000)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only == "write":
        write_history(args.folder, args.messages, args.folder.name.startswith("qqnt"))
    elif args.only:
        seconds, figures = globals()[args.only](args.folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps({"seconds": seconds, "gigabytes": peak, **figures}))
    else:
        main(args.folder, args.messages)
