"""Does the history of a row belong to its last reply? Conversations of annotated chat, by thread and by time alone.

    python bench/threads.py FOLDER [--show 3]        # with train.jsonl.gz or dev.jsonl.gz

Every author is the member once; the linker finds what each turn replies to. Of the exchanges in the histories, as gen
makes them: which share is of the conversation of the last exchange, as people who read the chat have linked it? Only
turns whose messages were all annotated count. --show: so many stretches of chat in which the two differ, as rows.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import polars as pl

from huiyin.common.errors import run
from huiyin.linking.linker import Linker
from huiyin.questions.conversations import conversations, order, with_threads
from predict_replies import by_linker, groups_of
from replies import gold_of

LEAST_CONFIDENCE, MOST, GAP_MINUTES = 0.5, 4, 10


def conversation_of(gold):
    """Return {annotated message: any one message of its conversation}, which are those that links connect."""
    parent = {}

    def root(line):
        while parent.setdefault(line, line) != line:
            parent[line] = line = parent[parent[line]]
        return line

    for (log, line), parents in gold.items():
        for other in parents:
            parent[root((log, line))] = root((log, other))
    return {line: root(line) for line in gold}


def samples_of(turns, linker):
    """Return {author: samples} of the turns of a group that the linker knows a prompt for."""
    found = defaultdict(list)
    for turn, (prompt, confidence) in zip(turns, by_linker(linker)(turns, False), strict=True):
        if prompt and prompt["user_id"] != turn["user_id"] and confidence >= LEAST_CONFIDENCE:
            texts = {"prompt": prompt["text"], "reply": turn["text"], "prompt_turn_id": prompt["turn_id"]}
            time = turn["time"].strftime("%Y-%m-%dT%H:%M:%SZ")
            place = {"turn_id": turn["turn_id"], "turn_ids": [turn["turn_id"]], "group_id": turn["group_id"]}
            found[turn["user_id"]].append({**place, **texts, "time": time})
    columns = {name: [turn[name] for turn in turns] for name in ("turn_id", "user_id", "reply_to_turn")}
    table = pl.DataFrame(columns, schema_overrides={"reply_to_turn": pl.Int64})
    return {user: sorted(with_threads(samples, table), key=order) for user, samples in found.items()}


def by_time(samples):
    return [{**sample, "partner": None, "thread": []} for sample in samples]


def count(parts, conversation):
    """Return [exchanges in histories, those that count, those of the conversation of the last] of some rows.
    conversation: {turn_id: that of a turn whose messages were all annotated}."""
    numbers = [0, 0, 0]
    for *history, last in parts:
        for sample in history:
            known = {one["turn_id"] for one in (sample, last)} <= conversation.keys()
            same = known and conversation[sample["turn_id"]] == conversation[last["turn_id"]]
            numbers = [number + more for number, more in zip(numbers, (1, known, same), strict=True)]
    return numbers


def show(name, parts):
    print(f"\n{name}:")
    for part in parts:
        print("".join(f"    {sample['prompt']!r}\n      → {sample['reply']!r}\n" for sample in part))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--show", type=int, default=0, metavar="N")
    args = parser.parse_args()
    totals, stretches, linker = {"by thread": [0, 0, 0], "by time": [0, 0, 0]}, [], Linker()
    for file in sorted(args.folder.glob("*.jsonl.gz")):
        groups, ids = groups_of(file)
        gold = gold_of(file)
        whole = conversation_of(gold)
        for turns in groups:
            lines = {turn["turn_id"]: [ids[message] for message in turn["message_ids"]] for turn in turns}
            known = {turn: whole[of[0]] for turn, of in lines.items() if all(line in gold for line in of)}
            for samples in samples_of(turns, linker).values():
                ways = dict(zip(totals, (samples, by_time(samples)), strict=True))
                made = {way: conversations(of_way, MOST, GAP_MINUTES) for way, of_way in ways.items()}
                for way, parts in made.items():
                    totals[way] = [old + new for old, new in zip(totals[way], count(parts, known), strict=True)]
                gain = count(made["by thread"], known)[2] - count(made["by time"], known)[2]
                stretches.append((gain, len(stretches), made))
    print("| history | exchanges | annotated | of the conversation of the reply |\n|---|---|---|---|")
    for way, (number, annotated, same) in totals.items():
        print(f"| {way} | {number:,} | {annotated:,} | {same:,} ({same / max(annotated, 1):.1%}) |")
    for _, _, made in sorted(stretches, reverse=True)[: args.show]:
        for way, parts in made.items():
            show(way, [part for part in parts if len(part) > 1][:5])


if __name__ == "__main__":
    run(main)
