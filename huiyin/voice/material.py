"""What a voice is measured with: replies that nobody trained on, and texts of the member and of the others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from huiyin.common.control import harmless
from huiyin.common.errors import UserError
from huiyin.common.lazy import polars as pl
from huiyin.common.stage import Stage, need
from huiyin.common.tables import NOT_ONE_PERSON, SOURCE, TURNS, read_records, scan_table
from huiyin.questions.messages import Join, joiner
from huiyin.training.rows import Dataset, Row, read_dataset, read_gen_settings
from huiyin.training.template import Encoding
from huiyin.voice.copies import can_be_drawn_out, first_third
from huiyin.voice.others import Rows, held_out_rows, most_active

MADE_BY = "`make gen` makes it"
MOST_TURNS = 20_000  # the latest, of which texts are taken


@dataclass(frozen=True)
class Material:
    own: Rows  # held-out rows of the member
    sources: Rows  # their lines in sources.jsonl
    others: dict[str, Rows]  # {user id: held-out rows}
    begun: Rows  # rows that were trained on, with a "beginning" of their reply
    training: list[str]  # all replies that were trained on
    system: str
    texts: dict[str, list[str]]  # turns: "member", "others" before the cut, "others_real" after it
    redaction: Any
    separator: str  # between the messages of a turn


class Fitter:
    """Makes rows fit as train does: with as much of their history as fits into cutoff_len."""

    def __init__(self, dataset: Dataset, encoding: Encoding, cutoff_len: int) -> None:
        self.dataset, self.encoding, self.cutoff_len = dataset, encoding, cutoff_len

    def __call__(self, rows: Sequence[Row]) -> list[dict[str, Any] | None]:
        """Return the rows that fit, None for one whose reply does not."""
        measured = Dataset(self.dataset.files[1:], list(rows), [], self.dataset.system).measure(self.encoding, 0).rows
        newest = [(row, *row.parts(self.cutoff_len)[-1]) for row in measured]
        return [
            row.part(start, stop) if row.tokens(start, stop) <= self.cutoff_len else None for row, start, stop in newest
        ]

    def of_others(self, rows: Rows) -> Rows:
        """Return those rows of another member that fit and hold no control token, as gen leaves none in a dataset."""
        plain = msgspec.convert(rows, list[Row])
        texts = [[text for exchange in row.exchanges() for text in exchange] for row in plain]
        safe = [
            row for row, found in zip(plain, texts, strict=True) if not any(map(self.encoding.control_token, found))
        ]
        return [row for row in self(safe) if row]


def begin(rows: Sequence[Row], fit: Fitter, count: int, seed: int) -> Rows:
    """Return so many of the long rows, drawn at random, with the first third of the reply as its beginning."""
    long = [row for row in rows if can_be_drawn_out(row.output)]
    chosen = random.Random(seed).sample(long, min(count, len(long)))
    return [{**row, "beginning": first_third(row["output"])} for row in fit(chosen) if row]


def read_held_out(generated: Path, dataset: Dataset, fit: Fitter, most: int, stage: Stage) -> tuple[Rows, Rows, Rows]:
    """Return (held-out rows that fit, at most so many, the latest; their lines in sources.jsonl; those of all held-out
    rows). `UserError` if there are none."""
    if not dataset.held_out:
        raise UserError(
            f"{dataset.files[1]}: no reply is held out, so nothing can be measured; raise eval_share in gen.yaml, or "
            "take a member with more turns (`make members` lists them)"
        )
    lines = read_records(stage.input(need(generated / "sources.jsonl", MADE_BY)), SOURCE, MADE_BY)
    sources = sorted(lines, key=lambda line: line["row"])[-len(dataset.held_out) :]
    fitted = fit(dataset.held_out)
    whole = [(row, source) for row, source in zip(fitted, sources, strict=True) if row]
    kept = whole[-most:]
    stage.ledger.read, stage.ledger.written = len(fitted), len(kept)
    stage.ledger.dropped["too_long"] = len(fitted) - len(whole)
    stage.ledger.dropped["older"] = len(whole) - len(kept)
    if not kept:
        raise UserError(f"{dataset.files[1]}: no held-out reply fits into cutoff_len; raise it in train.yaml")
    return [row for row, _ in kept], [source for _, source in kept], sources


@dataclass(frozen=True)
class Groups:
    """The member's groups: all turns, whose they are, and the time from which on nobody trained on them."""

    turns: pl.DataFrame
    target: str
    cut: datetime

    @classmethod
    def of(cls, turns: pl.DataFrame, sources: Rows) -> Groups:
        """Return the groups of the member whose held-out rows have these lines in sources.jsonl."""
        held_out = turns.filter(pl.col("turn_id").is_in([source["turn_ids"][0] for source in sources]))
        target = held_out["user_id"][0]
        groups = turns.filter(pl.col("user_id") == target)["group_id"].unique().to_list()
        return cls(turns.filter(pl.col("group_id").is_in(groups)), target, min(held_out["time"]))

    def of_others(self) -> pl.DataFrame:
        return self.turns.filter(~pl.col("user_id").is_in([*NOT_ONE_PERSON, self.target]))

    def texts(self, joined: Join) -> dict[str, list[str]]:
        """Return the messages of the latest turns, `joined` as in gen: of "member" and "others" before the cut, of
        "others_real" after it."""
        own, others, early = pl.col("user_id") == self.target, self.of_others(), pl.col("time") < self.cut
        parts = {"member": self.turns.filter(own, early), "others": others.filter(early)}
        parts["others_real"] = others.filter(~early)
        return {
            name: list(map(joined, part.sort("time", maintain_order=True)["texts"].tail(MOST_TURNS).to_list()))
            for name, part in parts.items()
        }


def read_material(
    generated: Path, turns_file: Path, encoding: Encoding, cutoff_len: int, settings: Any, stage: Stage
) -> Material:
    """Return what is measured with. settings: those of voice; cutoff_len: that of the training."""
    from huiyin.questions.dataset import redaction_for

    dataset, used = read_dataset(generated), SimpleNamespace(**read_gen_settings(generated))
    fit = Fitter(dataset, encoding, cutoff_len)
    own, sources, all_sources = read_held_out(generated, dataset, fit, settings.replies, stage)
    made_by = "`make combine` makes it"
    turns = scan_table(stage.input(need(turns_file, made_by)), TURNS, made_by).collect()
    groups, redaction = Groups.of(turns, all_sources), redaction_for(turns, used.hide_names)

    plainly = joiner(used.message_separator, redaction if used.hide_personal_data else str)

    def joined(messages: Sequence[str]) -> str:
        return harmless(plainly(messages))

    users = most_active(groups.of_others(), groups.cut, settings.other_members)
    of_users = held_out_rows(groups.turns, users, groups.cut, settings.replies, joined, dataset.system, used)
    return Material(
        own,
        sources,
        others={user: kept for user, rows in of_users.items() if (kept := fit.of_others(rows))},
        begun=begin(dataset.rows, fit, settings.continued, settings.seed),
        training=[reply for row in dataset.rows for _, reply in row.exchanges()],
        system=dataset.system,
        texts=groups.texts(joined),
        redaction=redaction_for(turns, hide_names=False),
        separator=used.message_separator,
    )
