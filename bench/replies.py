"""How often is the turn right that pairing names, without a model? On annotated chat; quotes aside, which are certain.

    python bench/replies.py FOLDER        # with dev.jsonl.gz; make bench-replies DATA=FOLDER

A turn counts if all its lines were judged. What it answers outside its window counts as nothing, on both sides: a
pairing step that looks only there can know no better.
"""

import gzip
import json
import statistics
import sys
import time
from pathlib import Path

from predict_replies import CANDIDATES, add_named, groups_of, linked, window

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
    """Yield (turn, the turn before it, 0), as `linked` does."""
    for place, turn in enumerate(turns):
        near = window(turns[max(0, place - CANDIDATES):place], turn["user_id"], CANDIDATES, stop_at_own_turn)
        yield turn, near[-1] if near else None, 0


def score(groups, ids, gold, method, stop_at_own_turn):
    """Return [(does it name somebody?, turns rightly named, the predicted one or None), ...] of the judged turns."""
    found = []
    for turns in groups:
        decisions = list(method(turns, stop_at_own_turn))
        for place, answered in judged_turns(turns, ids, gold):
            turn, predicted, _ = decisions[place]
            near = window(turns[max(0, place - CANDIDATES):place], turn["user_id"], CANDIDATES, stop_at_own_turn)
            in_reach = answered & {other["turn_id"] for other in near if other["user_id"] != turn["user_id"]}
            if predicted is not None and predicted["user_id"] == turn["user_id"]:
                predicted = None
            found.append((bool(turn["named"]), in_reach, predicted and predicted["turn_id"]))
    return found


def figures(found):
    """Return accuracy, precision, recall, F1 in percent, and the number of turns."""
    hits = sum(predicted in gold for _, gold, predicted in found)
    right = hits + sum(predicted is None and not gold for _, gold, predicted in found)
    made, there = sum(predicted is not None for *_, predicted in found), sum(len(gold) for _, gold, _ in found)
    return [100 * right / len(found), 100 * hits / max(made, 1), 100 * hits / max(there, 1),
            200 * hits / max(made + there, 1), len(found)]


def main(folder):
    source = Path(folder) / "dev.jsonl.gz"
    gold = gold_of(source)
    groups, ids = groups_of(source)
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for turns in groups:
            add_named(turns)
            for _ in linked(turns, stop_at_own_turn=False):
                pass
        seconds.append(time.perf_counter() - started)
    print(f"{'window':<10}{'method':<16}{'turns':<18}{'number':>7}{'accuracy':>10}{'P':>8}{'R':>8}{'F1':>8}")
    for name, stop_at_own_turn in (("seed", True), ("default", False)):
        for method, decide in (("previous turn", previous), ("rule", linked)):
            found = score(groups, ids, gold, decide, stop_at_own_turn)
            for kind, part in (("all", found), ("name somebody", [case for case in found if case[0]]),
                               ("name nobody", [case for case in found if not case[0]])):
                accuracy, precision, recall, f1, number = figures(part)
                print(f"{name:<10}{method:<16}{kind:<18}{number:>7}{accuracy:>10.1f}"
                      f"{precision:>8.1f}{recall:>8.1f}{f1:>8.1f}")
    number = sum(map(len, groups))
    print(f"the rule: {number / statistics.median(seconds):,.0f} turns/s on one core, names and all")


if __name__ == "__main__":
    main(*sys.argv[1:])
