"""What the page tells, read from receipts, tables and lines. What is not there yet, or cannot be read, is left out."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from huiyin.common.errors import UserError
from huiyin.common.lazy import polars as pl
from huiyin.common.predicted import Compared, compared
from huiyin.common.stage import STAGES, anew, read_receipt
from huiyin.common.tables import COMMA, MESSAGES, PAIR, UNPAIRED, read_records, scan_table

Rows = list[dict[str, Any]]

SPEAKERS = 7  # who are shown with a name; the others are one
EXAMPLES = 4  # of pairs and of unpaired turns
BIN_ENDS = [1, 2, 4, 8, 16, 32, 64, 128, 256]  # characters; the last bin has no end
DAY, MONTHS = 62, 72  # longer than so many days: by month; than so many months: by year


@dataclass
class Facts:
    """Everything on the page; an empty part is not there yet.

    receipts: {stage: receipt}; name: the member's latest nickname; group: what `of_group` returns; pairs, unpaired,
    alpaca, held_out: lines and rows; voice, previous: voice.json, and that of the version before; log: lines of
    trainer_log.jsonl; separator: what parts the messages of a reply; others: {user id: latest nickname} of members who
    have a page, too; planned: what `make plan` said of the stages, and what happened."""

    target: str
    receipts: dict[str, dict[str, Any]] = field(default_factory=dict)
    name: str = ""
    group: dict[str, Any] = field(default_factory=dict)
    pairs: Rows = field(default_factory=list)
    unpaired: Rows = field(default_factory=list)
    rows: Rows = field(default_factory=list)
    held_out: Rows = field(default_factory=list)
    voice: dict[str, Any] = field(default_factory=dict)
    previous: dict[str, Any] = field(default_factory=dict)
    log: Rows = field(default_factory=list)
    separator: str = "\n"
    others: dict[str, str] = field(default_factory=dict)
    planned: list[Compared] = field(default_factory=list)

    @property
    def shown_name(self) -> str:
        return self.name or self.target


def read_facts(target: str, stages: Sequence[Path], voice: Path, others: Collection[str], plan: Path = Path()) -> Facts:
    """Return what there is; `UserError` if there are messages, but none of `target`. stages: the folders of STAGES;
    voice: that of `make voice`; others: user ids of members who have a page, too; plan: plan.json."""
    folders = dict(zip(STAGES, stages, strict=True))
    receipts = {stage: receipt for stage, folder in folders.items() if (receipt := read_receipt(folder))}
    facts = Facts(target, receipts, others={user: user for user in others})
    facts.planned = list(compared(plan, {folders[stage]: receipt for stage, receipt in receipts.items()}))
    if "parse" in receipts:
        messages = scan_table(folders["parse"] / "messages.parquet", MESSAGES, "`make parse` makes it")
        facts.group = of_group(messages, target)
        facts.others |= names_of(messages, others) if others else {}
        if not facts.group:
            raise UserError(f"nobody with the id {target} has written anything here; `make members` lists who is there")
        facts.name = facts.group["name"]
    if "pair" in receipts:
        made_by = "`make pair` makes it"
        facts.pairs = read_records(folders["pair"] / "pairs.jsonl", PAIR, made_by)
        facts.unpaired = read_records(folders["pair"] / "unpaired.jsonl", UNPAIRED, made_by)
    if "gen" in receipts:
        facts.rows = read_json(folders["gen"] / "alpaca.json", list, "gen")
        facts.held_out = read_json(folders["gen"] / "alpaca_eval.json", list, "gen")
        facts.separator = separator_of(receipts["gen"])
    if "train" in receipts:
        facts.log = read_log(folders["train"] / "trainer_log.jsonl")
    if receipt := read_receipt(voice):
        facts.receipts["voice"] = receipt
        facts.voice = read_json(voice / "voice.json", dict, "voice")
        if "previous.json" in receipt["outputs"]:
            facts.previous = read_json(voice / "previous.json", dict, "voice")
    return facts


def read_json(path: Path, kind: type, stage: str) -> Any:
    """Return the content of a JSON file of a stage; `UserError` if it is not of that kind."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, kind):
        raise UserError(f"{path}: cannot be read; {anew(path, f'`make {stage}` makes it')}")
    return content


def read_log(path: Path) -> Rows:
    """Return the lines of LLaMA-Factory's log of a training that have a loss."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("current_steps"), int)]


def separator_of(receipt: Mapping[str, Any]) -> str:
    """Return what stands between the messages of a reply, by the receipt of gen."""
    values = [used.get("values", {}) for used in receipt["settings"].values()]
    return next((one["message_separator"] for one in values if "message_separator" in one), COMMA)


# ---- the group


def of_group(messages: pl.LazyFrame, target: str) -> dict[str, Any]:
    """Return what was said in the groups of `target`, {} if nowhere: {name, groups, messages, first, last, unit, times,
    speakers: [{name, is_member, total, counts}, ...]}, the busiest first, the others as one without a name at the end;
    counts: a number for each of the `times`."""
    where = messages.filter(pl.col("user_id") == target).select("group_id").unique()
    here = messages.join(where, on="group_id", how="semi")
    table = here.select(
        messages=pl.len(),
        groups=pl.col("group_id").n_unique(),
        first=pl.col("time").min(),
        last=pl.col("time").max(),
    )
    facts = table.collect(engine="streaming").row(0, named=True)
    if not facts["messages"]:
        return {}
    unit = unit_of((facts["last"] - facts["first"]).days)
    by_user = here.group_by("user_id", pl.col("time").dt.truncate(unit))
    found = by_user.agg(count=pl.len(), name=pl.col("nickname").last())
    counts = found.sort("time", "user_id").collect(engine="streaming")
    times = counts.select(pl.datetime_range(pl.col("time").min(), pl.col("time").max(), unit)).to_series().to_list()
    speakers = speakers_of(counts, target, times)
    name = next(speaker["name"] for speaker in speakers if speaker["is_member"])
    people = counts["user_id"].n_unique()
    return {**facts, "name": name, "people": people, "unit": unit, "times": times, "speakers": speakers}


def names_of(messages: pl.LazyFrame, users: Iterable[str]) -> dict[str, str]:
    """Return {user id: the latest nickname} of those of `users` who have written anything."""
    found = messages.filter(pl.col("user_id").is_in(list(users))).sort("time", maintain_order=True)
    return dict(found.group_by("user_id").agg(pl.col("nickname").last()).collect().iter_rows())


def speakers_of(counts: pl.DataFrame, target: str, times: Sequence[Any]) -> Rows:
    """Return the speakers of `of_group`. counts: rows of user_id, time, count, name, the latest last."""
    people = counts.group_by("user_id", maintain_order=True).agg(pl.col("count").sum(), pl.col("name").last())
    people = people.sort("count", "user_id", descending=[True, False])
    shown = people.head(SPEAKERS).rows()
    if target not in [user for user, _, _ in shown]:
        shown[-1:] = people.filter(pl.col("user_id") == target).rows()
    speakers = []
    for user, total, name in shown:
        of_one = by_time(counts, times, pl.col("user_id") == user)
        speakers.append({"name": name or user, "is_member": user == target, "total": total, "counts": of_one})
    others = ~pl.col("user_id").is_in([user for user, _, _ in shown])
    if rest := counts["count"].sum() - sum(total for _, total, _ in shown):
        speakers.append({"name": "", "is_member": False, "total": rest, "counts": by_time(counts, times, others)})
    return speakers


def unit_of(days: int) -> str:
    return "1d" if days <= DAY else "1mo" if days <= 31 * MONTHS else "1y"


def by_time(counts: pl.DataFrame, times: Sequence[Any], which: pl.Expr) -> list[int]:
    found = dict(counts.filter(which).group_by("time").agg(pl.col("count").sum()).iter_rows())
    return [found.get(time, 0) for time in times]


# ---- pairs and rows


def examples(lines: Rows, number: int = EXAMPLES) -> Rows:
    """Return so many lines, always the same, in their order."""
    chosen = sorted(random.Random(1).sample(range(len(lines)), min(number, len(lines))))
    return [lines[index] for index in chosen]


def lengths(texts: Iterable[str]) -> tuple[list[tuple[str, int]], float]:
    """Return ([(characters, as in 4-7, number of texts), ...], the median of the lengths)."""
    numbers = [len(text) for text in texts]
    ends = [*BIN_ENDS[1:], max([*numbers, BIN_ENDS[-1]]) + 1]
    bins = []
    for start, end in zip(BIN_ENDS, ends, strict=True):
        label = str(start) if end == start + 1 else f"{start}-{end - 1}" if end in BIN_ENDS else f"{start}+"
        bins.append((label, sum(start <= number < end for number in numbers)))
    return bins, median(numbers) if numbers else 0


def by_month(lines: Rows) -> tuple[list[str], list[int]]:
    """Return (the months from the first to the last, as 2024-03; the number of lines of each)."""
    counts = Counter(line["time"][:7] for line in lines)
    if not counts:
        return [], []
    first, last = min(counts), max(counts)
    numbers = range(12 * int(first[:4]) + int(first[5:]) - 1, 12 * int(last[:4]) + int(last[5:]))
    months = [f"{number // 12:04}-{number % 12 + 1:02}" for number in numbers]
    return months, [counts[month] for month in months]


def predicted_and_seen(receipt: Mapping[str, Any], log: Rows) -> dict[str, Any]:
    """Return of a training what preflight said and what happened: GiB of the card (seen: None on the
    processor), hours."""
    attempts = receipt.get("attempts") or [{}]
    seen = max((line.get("vram_reserved") or 0 for line in log), default=0)
    return {
        "plan": attempts[-1],
        "gib": (attempts[-1].get("peak", 0) / 2**30, seen if seen > 0 else None),
        "hours": (attempts[-1].get("hours", 0), receipt["seconds"] / 3600),
    }
