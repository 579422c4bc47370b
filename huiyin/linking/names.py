"""Who is named in a text: for sources without mention elements, and for people who call others without an @."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from huiyin.common.tables import COMMA

SHORTEST_NAME = 2
COMMON_SHARE, COMMON_FROM = 0.005, 3  # a name in a larger share of the texts, and in more than 3, is a word, too
ADDRESS = ":：,，"  # `name: text` and `name，text` address somebody, whatever else the name means
WITHIN_WORD = re.compile(r"(?<=[0-9A-Za-z_\u00c0-\u024f])(?=[0-9A-Za-z_\u00c0-\u024f])")  # Latin letters and digits
EDGES = "_|`^[]{}-\\~ "  # what people leave out when they call `name_` or `[name]`


class Names:
    """The names of one group.

    names: (name, user id); if two people have the same name, the later one counts. texts: they show which names are
    also common words; those count only where they address somebody.
    """

    def __init__(self, names: Sequence[tuple[str, str]], texts: Sequence[str]):
        self.users: dict[str, str] = {}
        for name, user in names:
            if len(short := name.strip(EDGES).casefold()) > SHORTEST_NAME:
                self.users.setdefault(short, user)
        for name, user in names:
            if len(name) >= SHORTEST_NAME:
                self.users[name.casefold()] = user
        self.lengths: dict[str, list[int]] = {}  # first character of a name -> lengths of such names, longest first
        for first, length in sorted({(name[0], len(name)) for name in self.users}, reverse=True):
            self.lengths.setdefault(first, []).append(length)
        counts: Counter[str] = Counter()
        for text in texts:
            # `name: text` does not show how common the word is
            counts.update({name for name, addressed in self.occurrences(text) if not addressed})
        least = max(COMMON_FROM, COMMON_SHARE * len(texts))
        self.common = {name for name, count in counts.items() if count > least}

    def named(self, text: str) -> list[str]:
        """Return the ids of those whom `text` names, each once; who is addressed comes first."""
        names = sorted(self.occurrences(text), key=lambda occurrence: not occurrence[1])
        users = (self.users[name] for name, addressed in names if addressed or name not in self.common)
        return list(dict.fromkeys(users))

    def occurrences(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield (name, does it address somebody?) for each name in `text`, the longest where several begin."""
        text, position, is_start = text.casefold(), 0, True  # is_start: of a message; combine joins them with COMMA
        while position < len(text):
            length = self.length_at(text, position)
            if length:
                after = text[position + length : position + length + 1]
                yield text[position : position + length], is_start and after != "" and after in ADDRESS
            is_start = not length and (text[position] == COMMA or (is_start and text[position] in "@ "))
            position += length or 1

    def length_at(self, text: str, start: int) -> int:
        """Return the length of the longest name that begins at `start` of `text`, 0 if there is none."""
        for length in self.lengths.get(text[start], ()):
            end = start + length
            if text[start:end] in self.users and not (WITHIN_WORD.match(text, start) or WITHIN_WORD.match(text, end)):
                return length
        return 0
