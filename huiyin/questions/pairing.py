"""The three questions we ask: what is shown, how the answer is bound, and when it is good enough.

Chat is untrusted: each message is one line between tags, the schema leaves the model no other answers than ours, and
what it answers is checked once more.
"""

import unicodedata
from collections import Counter

from huiyin.llm.client import Question
from huiyin.questions.prompts import FRAME_TOKENS, TOKENS_PER_CHARACTER, as_typed, name_of, object_schema, one_line

NONE = "none"  # the model's word for "answers nobody"
CHANGED_SHARE = 0.1  # characters that a merged reply may add, and lose


def which_turn(prompt, turn, window, characters, temperature):
    """Which turn of `window` does `turn` answer? The value is the number (from 1, those of others only) or NONE."""
    lines, number = [], 0
    for other in window:
        label = "-"
        if other["user_id"] != turn["user_id"]:
            number += 1
            label = f"{number}."
        seconds = int((turn["time"] - other["time"]).total_seconds())
        lines.append(f"{label} {name_of(other)}（{seconds}秒前）：{one_line(other['text'], characters)}")
    choices = [*map(str, range(1, number + 1)), NONE]

    def accept(answer):
        if answer["answers"] not in choices:
            raise ValueError("the answer is not one of the choices")
        return answer["answers"]

    system, user = prompt.fill(name=name_of(turn), context="\n".join(lines), reply=one_line(turn["text"], characters))
    return Question(
        system, user, object_schema({"answers": {"enum": choices}}), accept, temperature, FRAME_TOKENS, choices
    )


def which_belong_together(prompt, turns, temperature):
    """Which neighbours of `turns` (of one member) are one? The value is [(first, last, text), ...], places from 0."""
    lines, before = [], turns[0]["time"]
    for number, turn in enumerate(turns, 1):
        seconds = int((turn["time"] - before).total_seconds())
        # whole, since what is not shown cannot be kept
        lines.append(f"{number}. （{seconds}秒后）{one_line(turn['text'], len(turn['text']))}")
        before = turn["time"]
    numbers = [str(number) for number in range(1, len(turns) + 1)]

    def accept(answer):
        merges, end = [], 0
        for merge in answer["merged"]:
            first, last = int(merge["first"]), int(merge["last"])
            if not end < first < last <= len(turns):
                raise ValueError("the merged turns are no neighbours in order")
            merges.append((first - 1, last - 1, as_typed(merge["text"])))
            end = last
        return merges

    characters = sum(len(turn["text"]) for turn in turns)
    merge = object_schema(
        {
            "first": {"enum": numbers},
            "last": {"enum": numbers},
            "text": {"type": "string", "minLength": 1, "maxLength": 2 * characters},
        }
    )
    schema = object_schema({"merged": {"type": "array", "maxItems": len(turns) // 2, "items": merge}})
    system, user = prompt.fill(context="\n".join(lines))
    return Question(
        system, user, schema, accept, temperature, TOKENS_PER_CHARACTER * characters + FRAME_TOKENS * len(turns)
    )


def same_words(texts, merged):
    """Are these the characters of `texts`, but for punctuation, with at most CHANGED_SHARE of them added or lost?"""
    before, after = Counter(letters("".join(texts))), Counter(letters(merged))
    allowed = CHANGED_SHARE * before.total()
    return (after - before).total() <= allowed and (before - after).total() <= allowed


def letters(text):
    """Return `text` without white space and punctuation, which merging may change."""
    return "".join(letter for letter in text if unicodedata.category(letter)[0] not in "PZC")
