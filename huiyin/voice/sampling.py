"""Which texts are measured: bounded in number and length, so that memory and time are."""

import math
from collections.abc import Sequence

import numpy as np

Texts = Sequence[str]
MOST_LEARNT, MOST_TESTED, MOST_CHARACTERS = 10_000, 2_000, 300


def sample(texts: Texts, most: int, seed: int) -> list[str]:
    """Return the texts that are not blank, at most `most` of them, drawn at random; 300 characters of each."""
    written = [text for text in cut(texts) if text.strip()]
    if len(written) <= most:
        return written
    chosen = np.random.default_rng(seed).choice(len(written), most, replace=False)
    return [written[place] for place in sorted(chosen)]


def cut(texts: Texts) -> list[str]:
    """Return the first 300 characters of each text, half a surrogate pair replaced by a question mark."""
    return [text[:MOST_CHARACTERS].encode("utf-8", "replace").decode() for text in texts]


def size_class(number: float) -> int:
    """Return the class of a size; two classes to a doubling: below 1, 1, below 2, 2, 3, 4-5, 6-7, 8-11, 12-15, ..."""
    return 1 + int(2 * math.log2(number)) if number >= 1 else 0
