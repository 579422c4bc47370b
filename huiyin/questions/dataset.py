"""The rows of a dataset, made of samples: a prompt, the reply to it, and where it was said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from huiyin.common.control import harmless
from huiyin.common.lazy import polars as pl
from huiyin.questions.conversations import Conversation, conversations, order

if TYPE_CHECKING:
    from huiyin.questions.redaction import Redaction

Record = dict[str, Any]  # a line of pairs.jsonl or unpaired.jsonl, a turn, a sample or a row of the dataset


def training_rows(samples: list[Record], system: str, settings: Any) -> list[tuple[Record, Conversation]]:
    """Return (dataset row, the samples in it, of which it learns the reply), each sample in one row only.

    samples: of `with_threads`, sorted by time; settings: those of gen.
    """
    found = conversations(samples, settings.history_turns + 1, settings.history_gap_minutes)
    return [(row_of(one, system), one) for one in found]


def held_out_rows(samples: list[Record], system: str, settings: Any) -> list[tuple[Record, Conversation]]:
    """Return (dataset row, its one sample) for each of the samples, as `training_rows`; the others of its conversation,
    the latest before it, are its history, of which nothing is counted."""
    found = conversations(samples, None, settings.history_gap_minutes)
    latest = [one[max(0, stop - 1 - settings.history_turns) : stop] for one in found for stop in range(1, len(one) + 1)]
    return [(row_of(one, system), one[-1:]) for one in sorted(latest, key=lambda one: order(one[-1]))]


def row_of(conversation: Conversation, system: str) -> Record:
    *history, last = conversation
    row = {"instruction": last["prompt"], "input": "", "output": last["reply"], "system": system}
    return {**row, "history": [[sample["prompt"], sample["reply"]] for sample in history]}


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
