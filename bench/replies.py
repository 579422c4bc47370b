"""How often is the turn right that pairing names, without a language model? On annotated chat; quotes are certain.

    python bench/replies.py FOLDER        # with dev.jsonl.gz; make bench-replies DATA=FOLDER

A turn counts if all its lines were judged. What it answers outside its window counts as nothing, on both sides: a
pairing step that looks only there can know no better. `at 90 %`, `at 95 %`: share of the calls, turns with a candidate,
that can be decided, the surest first, so that so many of them are right. Under `no names` nobody names anybody.
"""

import gzip
import json
import statistics
import time
from pathlib import Path

from predict_replies import CANDIDATES, Linker, by_linker, by_rule, groups_of, namer, parser_of, run, window

ROUNDS = 3


def gold_of(source):
    """Return {(log_id, line_no): lines it answers} of the judged lines; itself = nothing."""
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        judged = [line for line in map(json.loads, lines) if line.get("annotated") and not line.get("is_system")]
    return {(line["log_id"], line["line_no"]): line["parents"] for line in judged}


def judged_turns(turns, ids, gold):
    """Yield (place, {turn_ids it answers, of other turns}) for each turn whose lines were all judged."""
    turn_of = {ids[message]: turn["turn_id"] for turn in turns for message in turn["message_ids"]}
    for place, turn in enumerate(turns):
        lines = [ids[message] for message in turn["message_ids"]]
        if all(line in gold for line in lines):
            answered = {turn_of.get((line[0], parent)) for line in lines for parent in gold[line]}
            yield place, answered - {None, turn["turn_id"]}


def previous(turns, stop_at_own_turn):
    """Yield (the turn before it, 0) for each of the turns, as `by_rule` does."""
    for place, turn in enumerate(turns):
        near = window(turns[max(0, place - CANDIDATES) : place], turn["user_id"], CANDIDATES, stop_at_own_turn)
        yield near[-1] if near else None, 0


def score(groups, ids, gold, method, stop_at_own_turn):
    """Return a dict for each judged turn: `names` somebody?, `gold` turns, the `predicted` one, how `sure`, `call`?"""
    found = []
    for turns in groups:
        decisions, named = list(method(turns, stop_at_own_turn)), namer(turns)
        for place, answered in judged_turns(turns, ids, gold):
            turn, (predicted, sure) = turns[place], decisions[place]
            near = window(turns[max(0, place - CANDIDATES) : place], turn["user_id"], CANDIDATES, stop_at_own_turn)
            candidates = {other["turn_id"] for other in near if other["user_id"] != turn["user_id"]}
            if predicted is not None and predicted["user_id"] == turn["user_id"]:
                predicted = None
            found.append(
                {
                    "names": bool(named(turn)),
                    "gold": answered & candidates,
                    "sure": sure,
                    "predicted": predicted and predicted["turn_id"],
                    "call": bool(candidates),
                }
            )
    return found


def is_right(case):
    return case["predicted"] in case["gold"] if case["predicted"] is not None else not case["gold"]


def decided_at(found, share):
    """Return the percentage of the calls that can be decided, the surest first, with so many of them right."""
    right, best = 0, 0
    calls = sorted((case for case in found if case["call"]), key=lambda case: -case["sure"])
    for number, case in enumerate(calls, 1):
        right += is_right(case)
        if right >= share * number:
            best = number
    return 100 * best / len(calls)


def figures(found):
    """Return number, accuracy of all and of the calls, precision, recall, F1, calls decided at 90 and 95 %, in %."""
    hits = sum(case["predicted"] in case["gold"] for case in found)
    calls = [case for case in found if case["call"]]
    made, there = sum(case["predicted"] is not None for case in found), sum(len(case["gold"]) for case in found)
    return [
        len(found),
        100 * sum(map(is_right, found)) / len(found),
        100 * sum(map(is_right, calls)) / len(calls),
        100 * hits / max(made, 1),
        100 * hits / max(there, 1),
        200 * hits / max(made + there, 1),
        decided_at(found, 0.90),
        decided_at(found, 0.95),
    ]


def main():
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path)
    source = parser.parse_args().folder / "dev.jsonl.gz"
    groups, ids = groups_of(source)
    gold = gold_of(source)
    linker, seconds = Linker(), {"rule": [], "linker": []}
    for _ in range(ROUNDS):
        for name, decide in (("rule", by_rule), ("linker", by_linker(linker))):
            started = time.perf_counter()
            for turns in groups:
                list(decide(turns, stop_at_own_turn=False))
            seconds[name].append(time.perf_counter() - started)
    columns = "".join(f"{name:>10}" for name in ("number", "accuracy", "calls", "P", "R", "F1", "at 90 %", "at 95 %"))
    print(f"{'window':<10}{'method':<20}{'turns':<16}{columns}")
    for name, stop_at_own_turn in (("seed", True), ("default", False)):
        for method, decide in (
            ("previous turn", previous),
            ("rule", by_rule),
            ("linker", by_linker(linker)),
            ("linker, no names", by_linker(linker, with_names=False)),
        ):
            found = score(groups, ids, gold, decide, stop_at_own_turn)
            for kind, part in (
                ("all", found),
                ("name somebody", [case for case in found if case["names"]]),
                ("name nobody", [case for case in found if not case["names"]]),
            ):
                number, *percent = figures(part)
                print(f"{name:<10}{method:<20}{kind:<16}{number:>10}" + "".join(f"{value:>10.1f}" for value in percent))
    number = sum(map(len, groups))
    for name, runs in seconds.items():
        print(f"the {name}: {number / statistics.median(runs):,.0f} turns/s on one core, names and all")


if __name__ == "__main__":
    run(main)
