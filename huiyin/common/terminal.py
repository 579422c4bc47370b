"""Text in columns of a terminal, where Chinese characters take two."""

import unicodedata
from bisect import bisect
from itertools import accumulate


def widths(text: str) -> list[int]:
    return [2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text]


def columns(text: str) -> int:
    """Return how many columns `text` takes."""
    return sum(widths(text))


def fit(text: str, width: int) -> str:
    """Return `text` cut or filled to `width` columns."""
    text = "".join(" " if unicodedata.category(character)[0] == "C" else character for character in text)
    taken = widths(text)
    shown = bisect(list(accumulate(taken)), width)
    return text[:shown] + " " * (width - sum(taken[:shown]))


def right(text: str, width: int) -> str:
    """Return `text` with blanks before it, so that it ends at `width` columns."""
    return " " * (width - columns(text)) + text
