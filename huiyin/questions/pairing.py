"""The three questions we ask: what is shown, how the answer is bound, and when it is good enough.

Chat is untrusted: each message is one line between tags, the schema leaves the model no other answers than ours, and
what it answers is checked once more.
"""

import unicodedata
from collections import Counter
from difflib import SequenceMatcher

from huiyin.llm.client import TRIES, Question
from huiyin.questions.prompts import as_typed, one_line

NONE = "none"  # the model's word for "answers nobody"
NAME_CHARACTERS = 30
TOKENS_PER_CHARACTER = 3  # a byte-level vocabulary writes a Chinese character in up to 3 tokens
FRAME_TOKENS = 32  # braces, keys and quotes around one item of an answer
CHANGED_SHARE = 0.1  # characters that a merged reply may add, and lose
COPIED_FROM, COPIED_SHARE = 4, 0.5  # a run of the reply from so many characters on, and longer than this share of it
FOREIGN_FROM, FOREIGN_SHARE = 10, 0.05  # letters; see `foreign`


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
    return Question(system, user, record({"answers": {"enum": choices}}), accept, temperature, FRAME_TOKENS, choices)


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
    merge = record(
        {
            "first": {"enum": numbers},
            "last": {"enum": numbers},
            "text": {"type": "string", "minLength": 1, "maxLength": 2 * characters},
        }
    )
    schema = record({"merged": {"type": "array", "maxItems": len(turns) // 2, "items": merge}})
    system, user = prompt.fill(context="\n".join(lines))
    return Question(
        system, user, schema, accept, temperature, TOKENS_PER_CHARACTER * characters + FRAME_TOKENS * len(turns)
    )


def same_words(texts, merged):
    """Are these the characters of `texts`, but for punctuation, with at most CHANGED_SHARE of them added or lost?"""
    before, after = Counter(letters("".join(texts))), Counter(letters(merged))
    allowed = CHANGED_SHARE * before.total()
    return (after - before).total() <= allowed and (before - after).total() <= allowed


def missing_halves(prompt, items, name, settings, temperature, round_):
    """What could others have said before each of `items`, [(line of unpaired.jsonl, turns before it), ...]?

    The value is {place in items: text} with the texts that are good enough; ValueError if none is.
    """
    shown = []
    for number, (line, context) in enumerate(items, 1):
        before = "\n".join(f"{name_of(turn)}：{one_line(turn['text'], settings.characters_shown)}" for turn in context)
        shown.append(
            f"<第{number}段>\n{before or '（没有更早的发言）'}\n（这里缺一句话）\n"
            f"{name}：{one_line(line['reply'], settings.characters_shown)}\n</第{number}段>"
        )

    def accept(answer):
        good = {}
        for place, (line, context) in enumerate(items):
            text = " ".join(answer[str(place + 1)].split())
            chat = line["reply"] + "".join(turn["text"] for turn in context)
            if not wrong_with(text, line["reply"], chat, settings.max_characters):
                good[place] = text
        if not good:
            raise ValueError(
                "nothing in the answer is good enough: "
                + wrong_with(text, line["reply"], chat, settings.max_characters)
            )
        return good

    said = {"type": "string", "minLength": 1, "maxLength": settings.max_characters}
    schema = record({str(number): said for number in range(1, len(items) + 1)})
    system, user = prompt.fill(items="\n".join(shown), name=name)
    tokens = len(items) * (TOKENS_PER_CHARACTER * settings.max_characters + FRAME_TOKENS)
    return Question(system, user, schema, accept, temperature, tokens, tries=1, seed=round_ * TRIES, may_be_split=True)


def wrong_with(text, reply, chat, max_characters):
    """Return why `text` cannot be what `reply` answers, or an empty string; `chat` shows the languages spoken."""
    if not text:
        return "it is empty"
    if len(text) > max_characters:
        return "it is too long"
    if copied(text, reply):
        return "it repeats the reply"
    if foreign(text, chat):
        return "it is in another language"
    return ""


def copied(text, reply):
    """Is `text` the reply again, or does it share a run of COPIED_FROM characters or more, over half of the reply?"""
    text, reply = text.casefold(), reply.casefold()
    if text == reply:
        return True
    run = SequenceMatcher(None, text, reply, autojunk=False).find_longest_match().size
    return run >= COPIED_FROM and run > COPIED_SHARE * len(reply)


def foreign(text, chat):
    """Is `text` mostly in a script hardly anybody uses in `chat`? A few letters (ok, DNA) are no language yet."""
    script, count = max(scripts(text).items(), key=lambda item: item[1], default=("", 0))
    used = scripts(chat)
    return count >= FOREIGN_FROM and used[script] < FOREIGN_SHARE * used.total()


def scripts(text):
    """Count the letters of `text` by script, as the names of Unicode's characters begin: CJK, LATIN, HIRAGANA, ..."""
    return Counter(unicodedata.name(letter, "?").split()[0] for letter in text if letter.isalpha())


def letters(text):
    """Return `text` without white space and punctuation, which merging may change."""
    return "".join(letter for letter in text if unicodedata.category(letter)[0] not in "PZC")


def name_of(turn):
    return one_line(turn["nickname"], NAME_CHARACTERS)


def record(properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
