"""The question of gen: what could others have said before a reply? And the rules for a valid answer."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

from huiyin.llm.backend import Rubbish
from huiyin.llm.client import TRIES, Question
from huiyin.questions.prompts import (
    FRAME_TOKENS,
    TOKENS_PER_CHARACTER,
    NameOf,
    Numbers,
    Prompt,
    name_of,
    object_schema,
    one_line,
)

GAP, NOTHING_BEFORE = "（这里缺一句话）", "（没有更早的发言）"
REFUSED = {  # why a written prompt is not used, as the receipt has it and in words
    "empty": "it is empty",
    "too_long": "it is too long",
    "no_letters": "it has hardly any letters",
    "name": "it is a name",
    "counting": "it counts",
    "copied": "it repeats the reply or a turn before it",
    "instructions": "it repeats the instructions",
    "foreign": "it is in another language",
    "same": "it is the same as others",
}
RUN_FROM = 4  # letters in a row that two texts share by more than chance
# A run of this share is a copy. Of a reply half is enough: it would answer itself. A turn on the same subject may use
# half of the words of an earlier one.
SHARE_OF_REPLY, SHARE_OF_INSTRUCTIONS, SHARE_OF_TURN, SHARE_OF_TEXT = 0.5, 0.5, 0.6, 0.8
FOREIGN_FROM, RARE_SHARE, OWN_SHARE = 3, 0.05, 0.2  # see `foreign`
MOST_DIGITS = 2  # for each letter: dates and numbers of versions have more
SAME_UP_TO, SAME_SHARE = 2, 2 / 15  # of the prompts may be equal: turns like "yes" follow many a question
LABEL = re.compile(r"(?<!\S)(\d+)\s*[:：.、)）]")

Key = TypeVar("Key", bound=Hashable)


def missing_halves(
    prompt: Prompt,
    items: list[tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]],
    settings: Any,
    temperature: float,
    round_: int,
    refused: dict[int, str],
) -> Question:
    """What could others have said before each of `items`, [(line of unpaired.jsonl, its turn, turns before it), ...]?

    The value of the answer is {index in items: text}, with the texts that are valid; Rubbish if none is. settings:
    those of gen. round_: from 0, so that asking again gives other answers. refused: gets {turn_id: key of REFUSED} for
    the others. Members are shown under the nicknames that they had then; `$name`, if the prompt has it, is that of the
    last item.
    """

    def filled(name: NameOf) -> tuple[str, str]:
        def said(turn: dict[str, Any], text: str) -> str:
            return f"{name(turn)}：{one_line(text, settings.characters_shown)}"

        shown = []
        for number, (line, turn, context) in enumerate(items, 1):
            before = "\n".join(said(other, other["text"]) for other in context)
            shown.append(
                f"<第{number}段>\n{before or NOTHING_BEFORE}\n{GAP}\n{said(turn, line['reply'])}\n</第{number}段>"
            )
        return prompt.fill(items="\n".join(shown), name=name(items[-1][1]))

    instructions = letters_of_instructions(prompt.system + prompt.user.template)
    names = {letters_of(name_of(each)) for _, turn, context in items for each in (turn, *context)}

    def accept(answer):
        texts = {index: " ".join(answer[str(index + 1)].split()) for index in range(len(items))}
        problems = dict.fromkeys(repeated(texts, nearly=True), "same")
        for index, (line, _, context) in enumerate(items):
            turns = [other["text"] for other in context]
            given = line["reply"], turns, names, instructions, settings.max_characters
            if problem := problem_with(texts[index], *given):
                problems[index] = problem
        for index, (line, _, _) in enumerate(items):
            refused.pop(line["turn_id"], None)  # of an answer in the cache that the rules of today refuse
            if index in problems:
                refused[line["turn_id"]] = problems[index]
        if len(problems) == len(items):
            raise Rubbish(f"nothing in the answer is good enough: {REFUSED[problems[len(items) - 1]]}")
        return {index: text for index, text in texts.items() if index not in problems}

    string = {"type": "string", "minLength": 1, "maxLength": settings.max_characters}
    schema = object_schema({str(number): string for number in range(1, len(items) + 1)})
    (system, user), (_, unnamed) = filled(name_of), filled(Numbers())
    tokens = len(items) * (TOKENS_PER_CHARACTER * settings.max_characters + FRAME_TOKENS)
    question = Question(system, user, schema, accept, temperature, tokens, tries=1, seed=round_ * TRIES)
    return replace(question, may_be_split=True, unnamed=unnamed)


def problem_with(
    text: str, reply: str, turns: Iterable[str], names: set[str], instructions: str, max_characters: int
) -> str:
    """Return why `text` cannot be what `reply` answers, a key of REFUSED, or "".

    turns: those shown before the reply. names: the letters of the names of all who were shown. instructions: the
    letters of the prompt, which small models repeat. Whether a text is the `same` as others is for `repeated` to say.
    """
    letters, of_reply = letters_of(text), letters_of(reply)
    copied = letters == of_reply or shares(of_reply, letters, SHARE_OF_REPLY)
    digits = sum(map(str.isdigit, text))
    rules = {
        "empty": not text,
        "too_long": len(text) > max_characters,
        "no_letters": digits > MOST_DIGITS * len(letters) or not letters or (len(letters) == 1 and letters.isascii()),
        "name": letters in names,
        "counting": LABEL.findall(text)[:2] == ["1", "2"],
        "copied": copied or any(shares(letters, letters_of(said), SHARE_OF_TURN) for said in (reply, *turns)),
        "instructions": shares(letters, instructions, SHARE_OF_INSTRUCTIONS),
        "foreign": foreign(letters, letters_of("".join([reply, *turns]))),
    }
    return next((reason for reason, broken in rules.items() if broken), "")


def repeated(texts: Mapping[Key, str], nearly: bool = False) -> set[Key]:
    """Return the keys of the texts that stand there more than SAME_UP_TO times, and more than SAME_SHARE of them all.

    Letters count, as in `letters_of`. nearly: texts are the same if either has SHARE_OF_TEXT of the other, as well; the
    time is then the square of their number.
    """
    letters = {key: letters_of(text) for key, text in texts.items()}
    counts, most = Counter(letters.values()), max(SAME_UP_TO, SAME_SHARE * len(texts))
    if nearly:
        alike = {text: [other for other in counts if same(text, other)] for text in counts}
        counts = Counter({text: sum(counts[other] for other in others) for text, others in alike.items()})
    return {key for key, text in letters.items() if counts[text] > most}


def same(text: str, other: str) -> bool:
    return text == other or shares(text, other, SHARE_OF_TEXT) or shares(other, text, SHARE_OF_TEXT)


def shares(text: str, other: str, share: float) -> bool:
    """Does a run of at least RUN_FROM letters of `text`, and `share` of it, stand in `other`?"""
    size = max(RUN_FROM, math.ceil(share * len(text)))
    return any(text[start : start + size] in other for start in range(len(text) - size + 1))


def foreign(text: str, chat: str) -> bool:
    """Is `text` in another script than `chat`? It is if it has FOREIGN_FROM letters of scripts that are less than
    RARE_SHARE of the chat, and less than OWN_SHARE of its letters are of the others (ok, DNA检测 are not foreign)."""
    used, found = scripts(chat), scripts(text)
    own = sum(found[script] for script in used if used[script] >= RARE_SHARE * used.total())
    return bool(used) and found.total() - own >= FOREIGN_FROM and own < OWN_SHARE * found.total()


def scripts(text: str) -> Counter[str]:
    """Count the letters of `text` by script, the first word of their Unicode names: CJK, LATIN, HIRAGANA, ..."""
    return Counter(unicodedata.name(letter, "?").split()[0] for letter in text)


@lru_cache(maxsize=1)  # they are those of each question
def letters_of_instructions(text: str) -> str:
    return letters_of(text + GAP + NOTHING_BEFORE)


def letters_of(text: str) -> str:
    """Return the letters of `text`, in one form and case, without numbers in any script: what tells words apart."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(letter for letter in text if letter.isalpha() and not letter.isnumeric())
