"""Quotes asked blind, as if they were none: may the linker decide alone in this group?"""

import polars as pl

from huiyin.linking.cases import cases_of

QUOTES_OF_GROUP = 1_000  # the latest
QUOTES_NEEDED = 50
DECIDED_NEEDED = 20  # of those quotes; of fewer the share of right ones says nothing
SHARE_RIGHT = 0.9
STEP = 0.01


def blind_quotes(turns, groups, settings):
    """Return the Cases of the latest quotes in each of `groups`, of all members, as if they were no quotes.

    Clients put an @ of the quoted one before a quote, so that goes, too.
    """
    quoting = turns.filter(pl.col("reply_to_turn").is_not_null(), pl.col("group_id").is_in(groups))
    latest = quoting.sort("time", maintain_order=True).group_by("group_id", maintain_order=True).tail(QUOTES_OF_GROUP)
    cases, rows = cases_of(
        latest.sort("turn_id").rows(named=True), turns, settings.candidates, settings.stop_at_own_turn
    )
    for case in cases:
        author = rows[case.turn["reply_to_turn"]]["user_id"]
        case.turn = {**case.turn, "mentions": [user for user in case.turn["mentions"] if user != author]}
    return cases


def in_reach(case):
    """Is the turn that `case` quotes one of its candidates? Others nobody can find."""
    return any(other["turn_id"] == case.turn["reply_to_turn"] for other in case.candidates)


def thresholds_earned(groups, quotes, decisions, settings):
    """Return {group: {"threshold": from this confidence on the linker decides, or None: nowhere, ...}}; say why.

    quotes: Cases within reach; decisions: what the linker says of them, [(turn_id or None, confidence), ...].
    """
    earned = {}
    for group in groups:
        if not settings.use_llm:  # nobody else is there to decide; whoever wants what is sure sets min_confidence
            earned[group] = {"threshold": 0.0}
        elif settings.linker_alone == "always":
            earned[group] = {"threshold": settings.linker_threshold}
        else:
            tried = [
                (confidence, answered == case.turn["reply_to_turn"])
                for case, (answered, confidence) in zip(quotes, decisions, strict=True)
                if case.turn["group_id"] == group
            ]
            earned[group], why = threshold_earned(tried, settings.linker_threshold)
            print(f"pair: group {group}: the linker decides {why}", flush=True)
    return earned


def threshold_earned(tried, lowest):
    """Return what goes into the receipt of a group, and the reason.

    tried: [(confidence, is it right?), ...] of the quotes; lowest: the threshold that is raised until it is right
    often enough.
    """
    earned = {"threshold": None, "quotes": len(tried)}
    if len(tried) < QUOTES_NEEDED:
        return earned, f"nothing alone: {len(tried):,} quotes to test it on, {QUOTES_NEEDED} are needed"
    for step in range(round((1 - lowest) / STEP) + 1):
        threshold = round(lowest + step * STEP, 4)
        right = [is_right for confidence, is_right in tried if confidence >= threshold]
        if len(right) < DECIDED_NEEDED:
            break
        earned |= {"decided": len(right), "right": sum(right)}
        if sum(right) >= SHARE_RIGHT * len(right):
            why = f"alone from {threshold} on: there it decides {len(right):,} of {len(tried):,} quotes asked blind, "
            return {**earned, "threshold": threshold}, why + f"{sum(right) / len(right):.0%} of them rightly"
    if "decided" not in earned:
        return earned, (
            f"nothing alone: of {len(tried):,} quotes asked blind it is sure (from {lowest} on) of fewer "
            f"than {DECIDED_NEEDED}"
        )
    return earned, (
        f"nothing alone: of {len(tried):,} quotes asked blind it is surest of {earned['decided']:,}, and "
        f"there right in {earned['right'] / earned['decided']:.0%}"
    )
