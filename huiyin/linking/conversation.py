"""The messages of one group as arrays, and the messages around each of them that may be its reply partners.

Axes: `message`; `candidate`, one of the WIDTH messages before it (0 is the message just before); `other`, the same
candidates where two of them are compared; `following`, one of the LOOKAHEAD messages after it; `user`, a code.
"""

from collections.abc import Iterable, Sequence

import numpy as np

LOOKAHEAD = 8  # messages after each that are looked at: who continues with whom
WIDTH = 15  # messages before each that are looked at
NAMED = 4  # people that a message names, at most; the one addressed comes first
REGULAR = 50  # earlier turns from which on somebody is no newcomer
MINUTE = 60  # seconds

Columns = dict[str, np.ndarray]  # feature -> [message, candidate] or [message]


class Conversation:
    """The messages of one group as arrays: authors, seconds, who is named, texts."""

    def __init__(
        self,
        users: Sequence[str],
        times: Iterable[float],
        texts: Sequence[str],
        named: Sequence[Sequence[str]],
        earlier_turns: Sequence[int],
    ):
        """Take what is known about each message, oldest first.

        times: epoch seconds; named: the user ids that it names; earlier_turns: how many turns its author had written
        before (newcomers are the ones who ask).
        """
        self.codes: dict[str, int] = {}
        self.users = np.array([self.code(user) for user in users])
        self.times = spread_over_minutes(times)
        self.texts, self.earlier_turns = texts, np.minimum(earlier_turns, REGULAR)
        self.named = self.codes_of_named(named, users)

    def code(self, user: str) -> int:
        return self.codes.setdefault(user, len(self.codes))

    def codes_of_named(self, named: Sequence[Sequence[str]], users: Sequence[str]) -> np.ndarray:
        """Return the user ids that each of `users` has `named` as an array [message, NAMED], -1 for none."""
        table = np.full((len(named), NAMED), -1)
        for row, ids, author in zip(table, named, users, strict=True):
            codes = [self.code(user) for user in ids if user != author][:NAMED]
            row[: len(codes)] = codes
        return table


class ContextWindow:
    """The candidates of the messages at `positions` of `conversation`, and the LOOKAHEAD messages after each.

    "me" is the author of the message, "author" the author of the candidate.
    """

    def __init__(self, conversation: Conversation, positions: np.ndarray):
        self.conversation, self.positions = conversation, positions
        column = np.arange(WIDTH)
        before = positions[:, None] - 1 - column
        self.exists = before >= 0  # [message, candidate]
        self.index = np.where(self.exists, before, 0)  # [message, candidate]: its position in the conversation
        self.rows = np.concatenate([self.exists, np.ones((len(before), 1), bool)], 1)  # of `table`, the last for none
        self.me = conversation.users[positions][:, None]
        self.users = np.where(self.exists, conversation.users[self.index], -1 - column)  # [message, candidate]
        self.own = self.users == self.me
        self.others = self.exists & ~self.own
        self.own_position = first_true(self.own)  # [message]: the nearest candidate by the same author, or WIDTH
        self.since_own = column < self.own_position[:, None]  # [message, candidate]: is it later than that?
        self.later = np.tri(WIDTH, k=-1, dtype=bool)  # [candidate, other]: other is the later message
        self.same_author = self.users[:, :, None] == self.users[:, None, :]  # [message, candidate, other]
        self.author_after = (self.same_author & self.later).sum(2)  # how many later ones its author wrote
        self.latest = self.exists & (self.author_after == 0)  # is it the latest by its author?
        # [message, NAMED] and [message, candidate, NAMED]: whom the message and the candidate name
        self.named = conversation.named[positions]
        self.names = np.where(self.exists[..., None], conversation.named[self.index], -1)
        self.names_anybody = np.any(self.named >= 0, 1, keepdims=True)  # [message, 1]
        self.is_named = (self.named[:, None, :] == self.users[..., None]).any(2)  # is its author named?
        self.names_somebody = np.any(self.names >= 0, 2)  # does it name anybody, and does it name me?
        self.names_me = (self.names == self.me[..., None]).any(2)
        after = positions[:, None] + 1 + np.arange(LOOKAHEAD)
        self.next_exists = after < len(conversation.users)  # [message, following]
        self.next_index = np.where(self.next_exists, after, 0)
        self.next_users = np.where(self.next_exists, conversation.users[self.next_index], -1)
        self.is_next = self.next_users[:, None, :] == self.users[..., None]  # [message, candidate, following]

    def table(
        self, of_pair: list[str], of_line: list[str], columns: Columns, of_none: dict[str, np.ndarray | int]
    ) -> np.ndarray:
        """Return the rows of all messages: those of its candidates that exist, then the row for "replies to none".

        of_pair: the `columns` [message, candidate]; of_line: those that are [message]; of_none: what the row for none
        has in place of a column of_pair, [message] or a number; other columns of_pair are NaN there.
        """
        table = np.full((*self.rows.shape, len(of_pair) + len(of_line)), np.nan, np.float32)
        for number, name in enumerate(of_pair):
            table[:, :WIDTH, number] = columns[name]
            table[:, WIDTH, number] = of_none.get(name, np.nan)
        for number, name in enumerate(of_line, len(of_pair)):
            table[..., number] = columns[name][:, None]
        return table[self.rows]


def first_true(mask: np.ndarray) -> np.ndarray:
    """Return the index of the first True along the last axis, WIDTH if there is none."""
    return np.where(mask.any(-1), mask.argmax(-1), WIDTH)


def spread_over_minutes(times: Iterable[float]) -> np.ndarray:
    """Return `times` (epoch seconds) as floats; if all are whole minutes, those of a minute are spread over it."""
    seconds = np.asarray(times, float)
    if len(seconds) and not (seconds % MINUTE).any():
        starts = np.flatnonzero(np.diff(seconds, prepend=seconds[0] - 1))
        counts = np.diff(np.append(starts, len(seconds)))
        number = np.arange(len(seconds)) - np.repeat(starts, counts)
        return seconds + MINUTE * (number + 0.5) / np.repeat(counts, counts)
    return seconds
