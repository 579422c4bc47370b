"""Calibration on held-out quotes, shown to the linker as if they were none: may it decide alone in this group?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from huiyin.common.lazy import polars as pl
from huiyin.linking.cases import Case, History

QUOTES_OF_GROUP = 1_000  # the latest
QUOTES_NEEDED = 50
DECIDED_NEEDED = 20  # of those quotes; with fewer the share of right decisions means nothing
SHARE_RIGHT = 0.9
# As much a threshold of the last time must still have, so that it stays. With a fifth more quotes that of annotated IRC
# logs was up to 0.02 higher, and 6 % of what was asked about older turns had not been asked before.
SHARE_STAYS = 0.88
STEP = 0.01

Decisions = Mapping[int, tuple[int | None, float]]  # {turn_id: (turn_id that it replies to or None, confidence)}


def held_out_quotes(history: History, groups: Iterable[str]) -> list[Case]:
    """Return the Cases of the latest quotes in each of `groups`, of all members, as if they were no quotes.

    Clients put an @ of the quoted author before a quote, so that mention is removed, too.
    """
    quoting = history.turns.filter(pl.col("reply_to_turn").is_not_null(), pl.col("group_id").is_in(list(groups)))
    latest = quoting.sort("time", maintain_order=True).group_by("group_id", maintain_order=True).tail(QUOTES_OF_GROUP)
    cases = history.cases(latest.sort("turn_id").iter_rows(named=True))
    for case in cases:
        author = case.quoted and case.quoted["user_id"]
        mentions, *mentioned = (
            [user for user in users if user != author] for users in (case.turn["mentions"], *case.turn["mentioned"])
        )
        case.turn = {**case.turn, "mentions": mentions, "mentioned": mentioned}
    return cases


def calibrated_thresholds(
    groups: Iterable[str], quotes: Iterable[Case], decisions: Decisions, settings: Any, earlier: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return {group: {"threshold": the linker decides from this confidence on, or None: never, ...}}; print why.

    quotes: Cases that quote one of their candidates; decisions: those of the linker, of these quotes and maybe others;
    settings: those of pair; earlier: what was returned the last time, with fewer messages.
    """
    quotes, thresholds = list(quotes), {}
    for group in groups:
        if not settings.use_llm:  # nobody else can decide; min_confidence removes doubtful decisions
            thresholds[group] = {"threshold": 0.0}
        elif settings.linker_alone == "always":
            thresholds[group] = {"threshold": settings.linker_threshold}
        else:
            tested = []
            for case in quotes:
                if case.turn["group_id"] == group:
                    replied_to, confidence = decisions[case.turn["turn_id"]]
                    tested.append((confidence, replied_to == case.turn["reply_to_turn"]))
            before = earlier.get(group, {}).get("threshold")
            thresholds[group], why = calibrated_threshold(tested, settings.linker_threshold, before)
            print(f"pair: group {group}: the linker decides {why}", flush=True)
    return thresholds


def calibrated_threshold(
    tested: list[tuple[float, bool]], lowest: float, before: float | None = None
) -> tuple[dict[str, Any], str]:
    """Return what goes into the receipt of a group, and the reason.

    tested: (confidence, is it right?) of each quote; lowest: the threshold, which is raised until the share of right
    decisions is SHARE_RIGHT; before: that of the last time, where SHARE_STAYS is enough.
    """
    result: dict[str, Any] = {"threshold": None, "quotes": len(tested)}
    if len(tested) < QUOTES_NEEDED:
        return result, f"nothing alone: {len(tested):,} held-out quotes, {QUOTES_NEEDED} are needed"
    for step in range(round((1 - lowest) / STEP) + 1):
        threshold = round(lowest + step * STEP, 4)
        right = [is_right for confidence, is_right in tested if confidence >= threshold]
        if len(right) < DECIDED_NEEDED:
            break
        result |= {"decided": len(right), "right": sum(right)}
        if sum(right) >= (SHARE_STAYS if threshold == before else SHARE_RIGHT) * len(right):
            return {**result, "threshold": threshold}, (
                f"alone from confidence {threshold} on: {sum(right) / len(right):.0%} of its decisions on "
                f"{len(right):,} of {len(tested):,} held-out quotes are right"
            )
    if "decided" not in result:
        return result, (
            f"nothing alone: it is confident (from {lowest} on) about fewer than {DECIDED_NEEDED} "
            f"of {len(tested):,} held-out quotes"
        )
    return result, (
        f"nothing alone: {result['right'] / result['decided']:.0%} of its decisions on the {result['decided']:,} "
        f"most confident of {len(tested):,} held-out quotes are right"
    )
