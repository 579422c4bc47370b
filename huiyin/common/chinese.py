"""What is said to people, in Chinese for those who read it, by the catalogue beside this file.

The code says everything in English. A line is translated where it is shown, if the catalogue has it: two lines of
chinese.txt, the English one and the Chinese one, in which {words} stand for what differs and is the same in both.

    python huiyin/common/chinese.py LINE     the line in Chinese
    ... | python huiyin/common/chinese.py    the same of each line, behind its tab if it has one

Make runs it so, before any package is installed; our scripts are started with `python -X language=zh` where the locale
is Chinese.
"""

from __future__ import annotations  # whichever Python the Makefile finds reads this file

import re
import sys
from functools import cache
from pathlib import Path

CATALOGUE = Path(__file__).with_suffix(".txt")
DEEPEST = 4  # of lines within lines
WORD = re.compile("[\u4e00-\u9fff]|[A-Za-z]{2,}(?![^{]*})")
NAME = re.compile(r"\\\{(\w+)\\\}")


def translated(line: str) -> str:
    """Return `line` in the language of the user."""
    return to_chinese(line) if sys._xoptions.get("language") == "zh" else line


def to_chinese(line: str, deepest: int = DEEPEST) -> str:
    """Return `line` in Chinese, with what stands around it in blanks; itself if the catalogue has it not. What {words}
    stand for may be in the catalogue, too."""
    text = line.strip()
    for pattern, chinese in catalogue() if text and deepest else ():
        if found := pattern.fullmatch(text):
            values = {name: to_chinese(value, deepest - 1) for name, value in found.groupdict().items()}
            if values != found.groupdict() or WORD.search(chinese):  # not if nothing but a comma would change
                return line.replace(text, chinese.format(**values))
    return line


@cache
def catalogue() -> list[tuple[re.Pattern[str], str]]:
    """Return (pattern of a line, its translation) of each entry, those with the most text of their own first."""
    lines = [line for line in CATALOGUE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    pairs = [(lines[index], lines[index + 1]) for index in range(0, len(lines), 2)]
    entries = sorted(pairs, key=lambda pair: -len(NAME.sub("", re.escape(pair[0]))))
    return [(pattern_of(english), chinese) for english, chinese in entries]


def pattern_of(english: str) -> re.Pattern[str]:
    """Return the pattern of lines with any text for {words}, the shortest that will do; the same for the same word."""
    seen: set[str] = set()

    def any_text(match: re.Match[str]) -> str:
        if match[1] in seen:
            return f"(?P={match[1]})"
        seen.add(match[1])
        return f"(?P<{match[1]}>.+?)"

    return re.compile(NAME.sub(any_text, re.escape(english)), re.DOTALL)


def main(words: list[str]) -> None:
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    if words:
        print(to_chinese(" ".join(words)))
        return
    for line in sys.stdin:
        name, tab, text = line.rstrip("\n").rpartition("\t")
        print(f"{name}{tab}{to_chinese(text)}")


if __name__ == "__main__":
    main(sys.argv[1:])
