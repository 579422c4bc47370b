"""Who is named in a text: for sources which have no mention elements, and for people who call others without an @."""

import re
from collections import Counter

from huiyin.common.tables import COMMA

SHORTEST_NAME = 2
COMMON_SHARE, COMMON_FROM = 0.005, 3  # a name in more of the texts than this, and more than so many, is a word, too
ADDRESS = ":：,，"  # `name: text` and `name，text` address somebody, whatever the name means otherwise
EDGES = "_|`^[]{}-\\~ "  # what people leave away when they call `name_` or `[name]`


class Names:
    """The names of one group.

    `names` is [(name, user id), ...], of two who bear the same name the later counts; `texts` shows which of the
    names are words of everyday talk: those count only where they address somebody.
    """

    def __init__(self, names, texts):
        self.users = {}
        for name, user in names:
            if len(short := name.strip(EDGES).casefold()) > SHORTEST_NAME:
                self.users.setdefault(short, user)
        for name, user in names:
            if len(name) >= SHORTEST_NAME:
                self.users[name.casefold()] = user
        self.lengths = {}  # first character of a name -> lengths such names have, longest first
        for name in self.users:
            self.lengths.setdefault(name[0], set()).add(len(name))
        self.lengths = {first: sorted(lengths, reverse=True) for first, lengths in self.lengths.items()}
        self.common = set()
        seen = Counter()
        for text in texts:
            # `name: text` says nothing of how common the word is
            seen.update({name for name, addressed in self.found(text) if not addressed})
        self.common = {name for name, count in seen.items() if count > max(COMMON_FROM, COMMON_SHARE * len(texts))}

    def named(self, text):
        """Return the ids of those whom `text` names, who is addressed first; each once."""
        found = sorted(self.found(text), key=lambda hit: not hit[1])
        return list(
            dict.fromkeys(self.users[name] for name, addressed in found if addressed or name not in self.common)
        )

    def found(self, text):
        """Yield (name, does it address somebody?) for each name in `text`, the longest where several begin."""
        text, place, start = text.casefold(), 0, True  # start: of a message; combine joins them with `，`
        while place < len(text):
            length = next(
                (
                    length
                    for length in self.lengths.get(text[place], ())
                    if text[place : place + length] in self.users and whole(text, place, place + length)
                ),
                0,
            )
            if length:
                after = text[place + length : place + length + 1]
                yield text[place : place + length], start and after != "" and after in ADDRESS
            start = not length and (text[place] == COMMA or (start and text[place] in "@ "))
            place += length or 1


def whole(text, start, end):
    """Is text[start:end] no part of a longer word? Only letters and digits of the Latin kind form words so."""
    return not (
        (start and latin(text[start - 1]) and latin(text[start]))
        or (end < len(text) and latin(text[end]) and latin(text[end - 1]))
    )


def latin(character):
    return re.match(r"[0-9A-Za-z_\u00c0-\u024f]", character) is not None
