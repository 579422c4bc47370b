"""Accuracy of pairing on annotated chat without a language model. Quotes are not measured: they are certain.

    python bench/replies.py FOLDER        # with dev.jsonl.gz; make bench-replies DATA=FOLDER

A turn counts if all its messages were annotated. A reply to something outside its window counts as a reply to nothing,
in the annotation as in the prediction: a pairing step that looks only there cannot know better. `calls`: turns with a
candidate. `at 90 %`, `at 95 %`: the percentage of the calls that can be decided, the most confident first, so that as
many of them are right. With `no names` nobody names anybody.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from huiyin.common.errors import run
from huiyin.common.stage import arguments
from huiyin.linking.cases import Turn
from huiyin.linking.linker import Linker
from irc_to_csv import read_messages
from predict_replies import LineId, Method, by_linker, by_rule, groups_of, namer, window_of

ROUNDS = 3

Gold = dict[LineId, list[int]]  # annotated message -> line numbers that it replies to; its own: replies to none


@dataclass
class Prediction:
    """A turn that was annotated, and what a method says about it."""

    names: bool  # does it name somebody?
    gold: set[int]  # the turns that it replies to
    predicted: int | None
    confidence: float
    call: bool  # is there a candidate?

    @property
    def right(self) -> bool:
        return self.predicted in self.gold if self.predicted is not None else not self.gold


def gold_of(source: Path) -> Gold:
    annotated = (message for message in read_messages(source) if message.get("annotated"))
    return {(message["log_id"], message["line_no"]): message["parents"] for message in annotated}


def annotated_turns(turns: Sequence[Turn], ids: Sequence[LineId], gold: Gold) -> Iterator[tuple[int, set[int]]]:
    """Yield (index, {turn_ids of other turns that it replies to}) for each turn whose messages were all annotated."""
    turn_of = {ids[message]: turn["turn_id"] for turn in turns for message in turn["message_ids"]}
    for index, turn in enumerate(turns):
        lines = [ids[message] for message in turn["message_ids"]]
        if all(line in gold for line in lines):
            replied_to = {turn_of.get((line[0], parent)) for line in lines for parent in gold[line]}
            yield index, {turn_id for turn_id in replied_to if turn_id is not None and turn_id != turn["turn_id"]}


def previous(turns: Sequence[Turn], stop_at_own_turn: bool) -> Iterator[tuple[Turn | None, float]]:
    """Yield (the turn before it, 0) for each of the turns, as `by_rule` does."""
    for index in range(len(turns)):
        near = window_of(turns, index, stop_at_own_turn)
        yield near[-1] if near else None, 0


def predictions(
    groups: Sequence[Sequence[Turn]], ids: Sequence[LineId], gold: Gold, method: Method, stop_at_own_turn: bool
) -> list[Prediction]:
    results = []
    for turns in groups:
        decisions, named = list(method(turns, stop_at_own_turn)), namer(turns)
        for index, replied_to in annotated_turns(turns, ids, gold):
            turn, (prompt, confidence) = turns[index], decisions[index]
            near = window_of(turns, index, stop_at_own_turn)
            candidates = {other["turn_id"] for other in near if other["user_id"] != turn["user_id"]}
            predicted = prompt["turn_id"] if prompt and prompt["user_id"] != turn["user_id"] else None
            gold_turns = replied_to & candidates
            results.append(Prediction(bool(named(turn)), gold_turns, predicted, confidence, bool(candidates)))
    return results


def decided_at(calls: Sequence[Prediction], share: float) -> float:
    """Return the percentage of the calls that can be decided, the most confident first, so that `share` are right."""
    right, best = 0, 0
    for number, call in enumerate(sorted(calls, key=lambda call: -call.confidence), 1):
        right += call.right
        if right >= share * number:
            best = number
    return 100 * best / len(calls)


def percentages(results: Sequence[Prediction]) -> list[float]:
    """Return accuracy of all and of the calls, precision, recall, F1, calls decided at 90 and 95 %, in percent."""
    hits = sum(result.predicted in result.gold for result in results)
    calls = [result for result in results if result.call]
    predicted = sum(result.predicted is not None for result in results)
    gold = sum(len(result.gold) for result in results)
    return [
        100 * statistics.mean(result.right for result in results),
        100 * statistics.mean(call.right for call in calls),
        100 * hits / max(predicted, 1),
        100 * hits / max(gold, 1),
        200 * hits / max(predicted + gold, 1),
        decided_at(calls, 0.90),
        decided_at(calls, 0.95),
    ]


def print_accuracy(groups: Sequence[Sequence[Turn]], ids: Sequence[LineId], gold: Gold, linker: Linker) -> None:
    columns = "".join(f"{name:>10}" for name in ("number", "accuracy", "calls", "P", "R", "F1", "at 90 %", "at 95 %"))
    print(f"{'window':<10}{'method':<20}{'turns':<16}{columns}")
    methods: dict[str, Method] = {"previous turn": previous, "rule": by_rule, "linker": by_linker(linker)}
    methods["linker, no names"] = by_linker(linker, with_names=False)
    for name, stop_at_own_turn in (("seed", True), ("default", False)):
        for method, decide in methods.items():
            results = predictions(groups, ids, gold, decide, stop_at_own_turn)
            for kind, wanted in (("all", (True, False)), ("name somebody", (True,)), ("name nobody", (False,))):
                part = [result for result in results if result.names in wanted]
                values = "".join(f"{value:>10.1f}" for value in percentages(part))
                print(f"{name:<10}{method:<20}{kind:<16}{len(part):>10}{values}")


def print_speed(groups: Sequence[Sequence[Turn]], linker: Linker) -> None:
    count = sum(map(len, groups))
    for name, decide in {"rule": by_rule, "linker": by_linker(linker)}.items():
        seconds = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for turns in groups:
                list(decide(turns, False))
            seconds.append(time.perf_counter() - started)
        print(f"the {name}: {count / statistics.median(seconds):,.0f} turns/s on one core, names included")


def main() -> None:
    source = arguments(__doc__, "folder", config=False, out=False).parse_args().folder / "dev.jsonl.gz"
    groups, ids = groups_of(source)
    linker = Linker()
    print_accuracy(groups, ids, gold_of(source), linker)
    print_speed(groups, linker)


if __name__ == "__main__":
    run(main)
