"""Turns split into their messages: within a turn the first may reply and the next may not, so messages are scored."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from huiyin.linking.cases import Namer, Turn
from huiyin.linking.conversation import Conversation


def with_earlier_turns(turns: pl.DataFrame) -> pl.DataFrame:
    """Return `turns` with `earlier_turns`: how many turns the user had written before in that group."""
    return turns.with_columns(earlier_turns=pl.int_range(pl.len()).over("group_id", "user_id"))


def messages_of(turns: Sequence[Turn], named: Namer) -> tuple[Conversation, np.ndarray, tuple[int, ...]]:
    """Return (the Conversation of the messages of `turns`, the index of the turn of each message, its message id).

    turns: those of one group, oldest first, with `earlier_turns`.
    """
    messages = []
    for index, turn in enumerate(turns):
        columns = (turn[name] for name in ("times", "message_ids", "texts", "mentioned"))
        for time, message_id, text, mentions in zip(*columns, strict=True):
            of_message = {**turn, "text": text, "mentions": mentions}
            messages.append((time.timestamp(), message_id, index, text, named(of_message)))
    messages.sort(key=lambda message: message[:3])  # ids of the same time increase in the order of sending
    times, message_ids, turn_of, texts, names = zip(*messages, strict=True)
    users = [turns[index]["user_id"] for index in turn_of]
    earlier_turns = [turns[index]["earlier_turns"] for index in turn_of]
    return Conversation(users, times, texts, names, earlier_turns), np.array(turn_of), message_ids


def probabilities_of_turns(probabilities: np.ndarray, turn_of: np.ndarray, turns: int, horizon: int) -> np.ndarray:
    """Return [turn, distance]: the probability that a turn replies to the one distance + 1 before it.

    probabilities: [message, distance] of messages; turn_of: the index of the turn of each message; turns, horizon: the
    shape of the result. Of the messages of a turn, the most confident one counts.
    """
    count, width = probabilities.shape
    replied_to = np.arange(count)[:, None] - 1 - np.arange(width)
    distance = turn_of[:, None] - 1 - np.where(replied_to >= 0, turn_of[np.maximum(replied_to, 0)], count)
    valid = (replied_to >= 0) & (distance >= 0) & (distance < horizon)
    of_messages = np.zeros((count, horizon))
    np.add.at(of_messages, (np.nonzero(valid)[0], distance[valid]), probabilities[valid])
    of_turns = np.zeros((turns, horizon))
    np.maximum.at(of_turns, turn_of, of_messages)
    return of_turns
