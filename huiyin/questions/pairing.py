"""The two questions of pair, and the rules for a valid answer.

Chat is untrusted: each message is one line between tags, the schema allows no other answers than the given choices,
and the answer is checked once more.
"""

import unicodedata
from collections import Counter

from huiyin.linking.cases import Turn
from huiyin.llm.backend import Unusable
from huiyin.llm.client import Question
from huiyin.questions.prompts import (
    FRAME_TOKENS,
    TOKENS_PER_CHARACTER,
    TYPED,
    NameOf,
    Numbers,
    Prompt,
    name_of,
    object_schema,
    one_line,
)

NONE = "none"  # the answer for a turn that replies to nobody
CHANGED_SHARE = 0.1  # characters that a merged reply may add, and lose


def which_turn(prompt: Prompt, turn: Turn, window: list[Turn], characters: int, temperature: float) -> Question:
    """Which turn of `window` does `turn` answer? The value is its number (from 1, other members' turns only) or NONE.

    characters: how many of a turn are shown.
    """
    others = [other for other in window if other["user_id"] != turn["user_id"]]
    choices = [*map(str, range(1, len(others) + 1)), NONE]

    def filled(name: NameOf) -> tuple[str, str]:
        lines, numbers = [], iter(choices)
        for other in window:
            label = "-" if other["user_id"] == turn["user_id"] else f"{next(numbers)}."
            seconds = int((turn["time"] - other["time"]).total_seconds())
            lines.append(f"{label} {name(other)}（{seconds}秒前）：{one_line(other['text'], characters)}")
        reply = one_line(turn["text"], characters)
        return prompt.fill(name=name(turn), context="\n".join(lines), reply=reply)

    def accept(answer):
        if answer["answers"] not in choices:
            raise Unusable("the answer is not one of the choices")
        return answer["answers"]

    (system, user), (_, unnamed) = filled(name_of), filled(Numbers())
    schema = object_schema({"answers": {"enum": choices}})
    return Question(
        system, user, schema, accept, temperature, FRAME_TOKENS, choices, unnamed=unnamed, time=turn["time"]
    )


def which_belong_together(prompt: Prompt, turns: list[Turn], temperature: float) -> Question:
    """Which neighbours in `turns` (of one member) are one turn? The value is [(first index, last index, text), ...]."""
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
                raise Unusable("the merged turns are no neighbours in order")
            merges.append((first - 1, last - 1, " ".join(merge["text"].translate(TYPED).split())))
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
    tokens = TOKENS_PER_CHARACTER * characters + FRAME_TOKENS * len(turns)
    return Question(system, user, schema, accept, temperature, tokens, time=turns[-1]["time"])


def same_words(texts: list[str], merged: str) -> bool:
    """Does `merged` have the letters of `texts`, with at most CHANGED_SHARE of them added or lost?"""
    before, after = Counter(letters("".join(texts))), Counter(letters(merged))
    allowed = CHANGED_SHARE * before.total()
    return (after - before).total() <= allowed and (before - after).total() <= allowed


def letters(text: str) -> str:
    """Return `text` without white space and punctuation, which merging may change."""
    return "".join(letter for letter in text if unicodedata.category(letter)[0] not in "PZC")
