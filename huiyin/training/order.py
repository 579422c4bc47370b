"""The order of the rows in an epoch: rows of like length together, so that little padding is computed."""

from collections.abc import Sequence

PADDED_TO = 8  # LLaMA-Factory's collator pads a micro-batch to its longest row, rounded up to a multiple of this

Batch = list[int]  # rows of the dataset


def padded(length: int) -> int:
    """Return `length`, in tokens, rounded up as the collator does."""
    return -(-length // PADDED_TO) * PADDED_TO


def together(shuffled: Sequence[int], lengths: Sequence[int], size: int) -> list[int]:
    """Return the rows of an epoch, which come `shuffled`, such that each `size` in succession are of like length.

    The groups are in the order in which the first row of each was shuffled, so a step of several has rows of any
    length; and the result depends on nothing else, so a run that is resumed goes on with the same rows. With a size of
    1 the order is as it was. What does not make a whole group comes last.
    """
    whole = len(shuffled) - len(shuffled) % size
    places = sorted(range(whole), key=lambda place: padded(lengths[shuffled[place]]))  # equal ones stay shuffled
    groups = sorted((places[start : start + size] for start in range(0, whole, size)), key=min)
    return [shuffled[place] for group in groups for place in group] + list(shuffled[whole:])


def computed(rows: Sequence[int], lengths: Sequence[int], size: int) -> int:
    """Return the tokens that are computed for the rows in this order in micro-batches of `size`, with the padding."""
    batches = (rows[start : start + size] for start in range(0, len(rows), size))
    return sum(len(batch) * padded(max(lengths[row] for row in batch)) for batch in batches)
