"""The lines of turns. One may answer somebody and the next of the same turn go on: the linker looks at lines."""

from itertools import pairwise

import numpy as np
import polars as pl

from huiyin.common.tables import COMMA
from huiyin.linking.features import Talk


def with_said(turns):
    """Return the frame `turns` with `said`: how many turns the user had said before in that group."""
    return turns.with_columns(said=pl.int_range(pl.len()).over("group_id", "user_id"))


def lines_of(turns, named):
    """Return (the Talk of the lines of `turns`, the place of each line's turn, the message id of each line).

    turns: dicts of one group, oldest first, of `with_said`; named: a function, turn -> the user ids that it names, who
    is addressed first. Where messages hold the comma themselves, the parts are dealt out evenly. Times between the
    first and the last message of a turn are not known, but spread evenly.
    """
    lines = []
    for place, turn in enumerate(turns):
        messages, (first, last) = turn["message_ids"], (turn["first_time"].timestamp(), turn["last_time"].timestamp())
        texts = dealt(turn["text"], len(messages))
        for number, (message, text) in enumerate(zip(messages, texts, strict=True)):
            mentions = turn["mentions"] if number == 0 else []  # of which message they were turns do not say
            time = first + (last - first) * number / max(len(messages) - 1, 1)
            lines.append((time, message, place, text, named({**turn, "text": text, "mentions": mentions})))
    lines.sort(key=lambda line: line[:3])  # the ids of messages of one time rise as they were said
    times, messages, places, texts, naming = zip(*lines, strict=True)
    talk = Talk(
        [turns[place]["user_id"] for place in places], times, texts, naming, [turns[place]["said"] for place in places]
    )
    return talk, np.array(places), messages


def dealt(text, many):
    """Return `text` as the texts of `many` messages."""
    if many == 1:
        return [text]
    parts = text.split(COMMA)
    ends = [len(parts) * number // many for number in range(many + 1)]
    return [COMMA.join(parts[start:end]) for start, end in pairwise(ends)]


def shares_of_turns(shares, turn_of, turns, reach):
    """Return [turn, distance]: how probable it is that a turn answers the one 1 to `reach` turns before it.

    shares: [line, distance] of lines; turn_of: the place of the turn of each line; turns: how many there are. Of the
    lines of a turn, the one counts that is surest.
    """
    lines, width = shares.shape
    answered = np.arange(lines)[:, None] - 1 - np.arange(width)
    back = turn_of[:, None] - 1 - np.where(answered >= 0, turn_of[np.maximum(answered, 0)], lines)
    good = (answered >= 0) & (back >= 0) & (back < reach)
    of_lines = np.zeros((lines, reach))
    np.add.at(of_lines, (np.nonzero(good)[0], back[good]), shares[good])
    of_turns = np.zeros((turns, reach))
    np.maximum.at(of_turns, turn_of, of_lines)
    return of_turns
