"""The rows of a dataset, made of samples: a prompt, the reply to it, and where it was said."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from huiyin.common.control import harmless
from huiyin.common.lazy import polars as pl

if TYPE_CHECKING:
    from huiyin.questions.redaction import Redaction

Record = dict[str, Any]  # a line of pairs.jsonl or unpaired.jsonl, a turn, a sample or a row of the dataset


def rows_of(samples: list[Record], system: str, settings: Any) -> list[Record]:
    """Return the dataset rows of one split; `samples` are sorted by time. `history` never leaves
    the split. settings: those of gen."""
    gap, rows = timedelta(minutes=settings.history_gap_minutes), []
    earlier: dict[str, list[Record]] = {}  # by group, since the last gap
    for sample in samples:
        chain = earlier.setdefault(sample["group_id"], [])
        if chain and time_of(sample) - time_of(chain[-1]) >= gap:
            chain.clear()
        history = chain[-settings.history_turns :] if settings.history_turns else []
        row = {"instruction": sample["prompt"], "input": "", "output": sample["reply"], "system": system}
        rows.append({**row, "history": [[old["prompt"], old["reply"]] for old in history]})
        chain.append(sample)
    return rows


def redaction_for(turns: pl.DataFrame, hide_names: bool) -> Redaction:
    """Return the Redaction that knows the accounts of this history, and if `hide_names` the names in it, too."""
    from huiyin.questions.redaction import Redaction  # telephone numbers take a while to load

    ids = [turns["user_id"], turns["group_id"], turns["mentions"].explode()]
    accounts = pl.concat([column.drop_nulls().unique() for column in ids]).to_list()
    return Redaction(accounts, turns["nickname"].unique().to_list() if hide_names else ())


def without_control_tokens(samples: list[Record]) -> tuple[list[Record], int]:
    """Return the samples with harmless texts, and how many texts that changed. To be done last: what redaction takes
    out could bring the two halves of a token together."""
    safe = [{**sample, "prompt": harmless(sample["prompt"]), "reply": harmless(sample["reply"])} for sample in samples]
    both = zip(samples, safe, strict=True)
    return safe, sum(before[part] != after[part] for before, after in both for part in ("prompt", "reply"))


def time_of(sample: Record) -> datetime:
    return datetime.fromisoformat(sample["time"])
