"""What the turns of a member reply to, as far as quotes and the linker tell; no language model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from huiyin.common.characters import INVISIBLE
from huiyin.common.lazy import polars as pl
from huiyin.linking.calibration import Decisions
from huiyin.linking.cases import Case, History, Turn


def turns_of(turns: pl.DataFrame, user: str, newest: int = 0) -> tuple[list[Turn], dict[str, int]]:
    """Return (the turns of `user` that are to be paired, in the order of `turns`; counts: "read", and why the others
    are left out). newest: so many at most, 0 for all."""
    of_others = pl.when(pl.col("user_id") != user).then("turn_id")
    turns = turns.with_columns(
        previous_text=pl.col("text").shift().over("group_id"),
        previous_of_others=of_others.forward_fill().over("group_id"),
    )
    own = turns.filter(pl.col("user_id") == user)
    kept = own.sort("time", maintain_order=True).tail(newest) if newest else own
    text, before = (pl.col(name).str.replace_all(INVISIBLE, "") for name in ("text", "previous_text"))
    new = kept.filter(text.ne_missing(before)).sort("turn_id")
    counts = {"read": len(own), "older": len(own) - len(kept), "repeats_previous": len(kept) - len(new)}
    return [{**turn, "turn_ids": [turn["turn_id"]]} for turn in new.iter_rows(named=True)], counts


def decide_by_quote(case: Case, quotes_first: bool = True) -> None:
    """Decide what a quote tells, unless not `quotes_first`, and what has no candidates."""
    # a member who quotes their own turn is continuing it, not replying to anyone
    if quotes_first and case.quoted and case.quoted["user_id"] != case.turn["user_id"]:
        case.decide(case.quoted, "quote", 1.0)
    elif quotes_first and case.turn["quotes_outside"]:
        case.reason = "quotes_outside"
    elif not case.candidates:
        case.reason = "no_candidates"


def apply_linker(
    cases: Iterable[Case], decisions: Decisions, thresholds: Mapping[str, Mapping[str, Any]], min_confidence: float = 0
) -> None:
    """Apply the linker's decisions from the threshold of the group on; the other cases stay open."""
    for case in cases:
        replied_to, confidence = decisions[case.turn["turn_id"]]
        threshold = thresholds[case.turn["group_id"]]["threshold"]
        if threshold is not None and confidence >= threshold:
            prompt = next((other for other in case.candidates if other["turn_id"] == replied_to), None)
            case.decide(prompt, "linker", confidence, min_confidence)


def record_of(case: Case) -> dict[str, Any]:
    """Return what a line of pairs.jsonl or unpaired.jsonl holds."""
    turn = case.turn
    record = {
        "turn_id": turn["turn_id"],
        "turn_ids": turn["turn_ids"],
        "group_id": turn["group_id"],
        "reply": turn["text"],
        "time": turn["time"].strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if case.prompt is None:
        return {**record, "reason": case.reason}
    return {
        **record,
        "prompt_turn_id": case.prompt["turn_id"],
        "prompt": case.prompt["text"],
        "decided_by": case.decided_by,
        "confidence": case.confidence,
        "candidates": [other["turn_id"] for other in case.candidates],
    }


def pairs_by_linker(turns: pl.DataFrame, kept: Sequence[Turn], candidates: int) -> list[dict[str, Any]]:
    """Return the records of those of `kept` (some of `turns`, of `turns_of`) that reply to one of the so many
    `candidates` before them. The linker decides whatever a quote does not."""
    from huiyin.linking.linker import Linker  # scipy and LightGBM take half a second

    history = History(turns, candidates, stop_at_own_turn=False)
    cases = history.cases(kept)
    for case in cases:
        decide_by_quote(case)
    open_cases = [case for case in cases if case.open]
    thresholds = {case.turn["group_id"]: {"threshold": 0.0} for case in open_cases}
    apply_linker(open_cases, Linker().decide_cases(open_cases, history), thresholds)
    return [record_of(case) for case in cases if case.prompt]
