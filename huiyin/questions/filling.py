"""What could others have said before a reply? What is shown, how the answer is bound, and when it is good enough."""

import unicodedata
from collections import Counter
from difflib import SequenceMatcher

from huiyin.llm.client import TRIES, Question
from huiyin.questions.prompts import FRAME_TOKENS, TOKENS_PER_CHARACTER, name_of, object_schema, one_line

COPIED_FROM, COPIED_SHARE = 4, 0.5  # a run of the reply from so many characters on, and longer than this share of it
FOREIGN_FROM, FOREIGN_SHARE = 10, 0.05  # letters; see `foreign`


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
    schema = object_schema({str(number): said for number in range(1, len(items) + 1)})
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
