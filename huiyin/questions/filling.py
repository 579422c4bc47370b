"""The question of gen: what could others have said before a reply? And the rules for a valid answer."""

import unicodedata
from collections import Counter
from difflib import SequenceMatcher
from typing import Any

from huiyin.llm.backend import Unusable
from huiyin.llm.client import TRIES, Question
from huiyin.questions.prompts import FRAME_TOKENS, TOKENS_PER_CHARACTER, Prompt, name_of, object_schema, one_line

COPIED_FROM, COPIED_SHARE = 4, 0.5  # a run of the reply of at least 4 characters, and longer than half of it
FOREIGN_FROM, FOREIGN_SHARE = 10, 0.05  # letters; see `foreign`


def missing_halves(
    prompt: Prompt,
    items: list[tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]],
    settings: Any,
    temperature: float,
    round_: int,
) -> Question:
    """What could others have said before each of `items`, [(line of unpaired.jsonl, its turn, turns before it), ...]?

    The value of the answer is {index in items: text}, with the texts that are valid; Unusable if none is. settings:
    those of gen. round_: from 0, so that asking again gives other answers. `$name`, if the prompt has it, is the
    nickname of the last item: a later one would make it another question, and the answer cache would not have it.
    """
    shown = []
    for number, (line, turn, context) in enumerate(items, 1):
        before = "\n".join(said(other, other["text"], settings) for other in context)
        shown.append(
            f"<第{number}段>\n{before or '（没有更早的发言）'}\n（这里缺一句话）\n"
            f"{said(turn, line['reply'], settings)}\n</第{number}段>"
        )

    def accept(answer):
        valid, problem = {}, ""
        for index, (line, _, context) in enumerate(items):
            text = " ".join(answer[str(index + 1)].split())
            chat = line["reply"] + "".join(other["text"] for other in context)
            problem = problem_with(text, line["reply"], chat, settings.max_characters)
            if not problem:
                valid[index] = text
        if not valid:
            raise Unusable(f"nothing in the answer is good enough: {problem}")
        return valid

    string = {"type": "string", "minLength": 1, "maxLength": settings.max_characters}
    schema = object_schema({str(number): string for number in range(1, len(items) + 1)})
    system, user = prompt.fill(items="\n".join(shown), name=name_of(items[-1][1]))
    tokens = len(items) * (TOKENS_PER_CHARACTER * settings.max_characters + FRAME_TOKENS)
    return Question(system, user, schema, accept, temperature, tokens, tries=1, seed=round_ * TRIES, may_be_split=True)


def said(turn: dict[str, Any], text: str, settings: Any) -> str:
    """Return the line that shows `text` under the nickname that its member had in `turn`."""
    return f"{name_of(turn)}：{one_line(text, settings.characters_shown)}"


def problem_with(text: str, reply: str, chat: str, max_characters: int) -> str:
    """Return why `text` cannot be what `reply` answers, or ""; `chat` shows which languages are spoken."""
    if not text:
        return "it is empty"
    if len(text) > max_characters:
        return "it is too long"
    if copied(text, reply):
        return "it repeats the reply"
    if foreign(text, chat):
        return "it is in another language"
    return ""


def copied(text: str, reply: str) -> bool:
    """Is `text` the reply again, or does it share with it a run of COPIED_FROM characters and COPIED_SHARE of it?"""
    text, reply = text.casefold(), reply.casefold()
    if text == reply:
        return True
    run = SequenceMatcher(None, text, reply, autojunk=False).find_longest_match().size
    return run >= COPIED_FROM and run > COPIED_SHARE * len(reply)


def foreign(text: str, chat: str) -> bool:
    """Is `text` mostly in a script that is rare in `chat`? Fewer than FOREIGN_FROM letters (ok, DNA) do not count."""
    script, count = max(scripts(text).items(), key=lambda item: item[1], default=("", 0))
    used = scripts(chat)
    return count >= FOREIGN_FROM and used[script] < FOREIGN_SHARE * used.total()


def scripts(text: str) -> Counter[str]:
    """Count the letters of `text` by script, the first word of their Unicode names: CJK, LATIN, HIRAGANA, ..."""
    return Counter(unicodedata.name(letter, "?").split()[0] for letter in text if letter.isalpha())
