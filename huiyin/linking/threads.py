"""Features of the second pass, from what the first one found: which threads there are, and who replied to whom.

Arrays have the axes of `conversation.py`; in the names of features, "answers" are replies and "share" is a probability.
"""

from dataclasses import dataclass

import numpy as np

from huiyin.linking.conversation import WIDTH, Columns, ContextWindow, Conversation
from huiyin.linking.features import CHUNK

OF_PAIR = """
    first_share first_rank first_lead answers my_answers answers_share my_answers_share starts answers_me
    answers_somebody in_thread_of_my_last i_am_in_thread newest_of_thread size_of_thread unanswered answers_mine
    depth people_of_thread author_answers_me_next my_next_answer_it next_of_others_answer_it author_goes_on_next
""".split()
OF_LINE = ["first_none", "next_answer_me", "my_next_go_on"]
NAMES = [*OF_PAIR, *OF_LINE]
DEEPEST = 8  # replies; deeper messages count as that deep


@dataclass
class FirstPass:
    """The result of the first pass for the messages of a conversation."""

    probabilities: np.ndarray  # [message, distance]: that it replies to the one distance + 1 before it
    none: np.ndarray  # [message]: that it replies to none; -1 where the first pass was not asked
    parents: np.ndarray  # [message]: position of the one that it replies to, -1 for none
    roots: np.ndarray  # [message]: position of the first message of its thread
    depths: np.ndarray  # [message]: replies from there, DEEPEST at most


def thread_features(
    conversation: Conversation, positions: np.ndarray, probabilities: np.ndarray, none: np.ndarray
) -> np.ndarray:
    """Return the rows that are put beside those of `features` for `positions`, columns NAMES.

    probabilities, none: as in `FirstPass`.
    """
    replies = (none >= 0) & (probabilities.max(1) > none)
    parents = np.where(replies, np.arange(len(none)) - 1 - probabilities.argmax(1), -1)
    first = FirstPass(probabilities, none, parents, *roots_and_depths(parents))
    starts = range(0, len(positions), CHUNK)
    windows = (ContextWindow(conversation, positions[start : start + CHUNK]) for start in starts)
    return np.concatenate([features_of_chunk(window, first) for window in windows])


def roots_and_depths(parents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `roots` and `depths` of `FirstPass`."""
    roots, depths = np.where(parents >= 0, parents, np.arange(len(parents))), np.zeros(len(parents), int)
    for _ in range(int(np.log2(max(len(parents), 2))) + 1):
        roots = roots[roots]
    ancestors = parents
    for _ in range(DEEPEST):
        depths += ancestors >= 0
        ancestors = np.where(ancestors >= 0, parents[ancestors], -1)
    return roots, depths


def features_of_chunk(window: ContextWindow, first: FirstPass) -> np.ndarray:
    """Return what `thread_features` does, for the messages of `window`."""
    probabilities, none = first.probabilities[window.positions], first.none[window.positions]
    most_probable = np.maximum(probabilities.max(1), none)
    columns = {
        "first_share": probabilities,
        "first_rank": (-probabilities).argsort(1, kind="stable").argsort(1, kind="stable"),
        "first_lead": probabilities - most_probable[:, None],
        "first_none": none,
        **reply_features(window, first),
        **membership_features(window, first),
        **following_features(window, first),
    }
    return window.table(OF_PAIR, OF_LINE, columns, {"first_share": none, "first_lead": none - most_probable})


def reply_features(window: ContextWindow, first: FirstPass) -> Columns:
    """Return which candidates reply to the candidate, and whom it replies to."""
    index, own, users = window.index, window.own[:, None, :], window.conversation.users
    column = np.arange(WIDTH)
    parent = np.where(window.exists, first.parents[index], -2)
    is_later = window.later & window.exists[:, :, None]  # [message, candidate, other]
    replies = (parent[:, None, :] == index[:, :, None]) & is_later
    distance = np.maximum(column[:, None] - column - 1, 0)  # [candidate, other]: from the other to the candidate
    probability = np.where(is_later, first.probabilities[index[:, None, :], distance], 0)
    before = index[:, :, None] - 1 - column  # [message, candidate, distance]: what the candidate may reply to
    users_before = np.where(before >= 0, users[np.maximum(before, 0)], -1)
    return {
        "answers": replies.sum(2),
        "my_answers": (replies & own).sum(2),
        "answers_share": probability.sum(2),
        "my_answers_share": (probability * own).sum(2),
        "starts": first.none[index],
        "answers_me": (first.probabilities[index] * (users_before == window.me[:, :, None])).sum(2),
        "answers_somebody": first.probabilities[index].sum(2),
        "unanswered": ~replies.any(2),
        "answers_mine": (parent >= 0) & (users[np.maximum(parent, 0)] == window.me),
    }


def membership_features(window: ContextWindow, first: FirstPass) -> Columns:
    """Return which candidates are in the same thread."""
    own, later = window.own, window.later
    root = np.where(window.exists, first.roots[window.index], -1 - np.arange(WIDTH))
    root_of_my_last = np.take_along_axis(root, own.argmax(1)[:, None], 1)
    same_thread = root[:, :, None] == root[:, None, :]
    is_last_of_author = window.author_after == 0
    return {
        "in_thread_of_my_last": own.any(1)[:, None] & (root == root_of_my_last),
        "i_am_in_thread": (same_thread & own[:, None, :]).any(2),
        "newest_of_thread": ~(same_thread & later).any(2),
        "size_of_thread": same_thread.sum(2),
        "depth": first.depths[window.index],
        "people_of_thread": (same_thread & is_last_of_author[:, None, :]).sum(2),
    }


def following_features(window: ContextWindow, first: FirstPass) -> Columns:
    """Return which of the following messages reply to the message, and which to the candidate."""
    exists, following = window.next_exists, window.next_index
    distance = following - window.positions[:, None] - 1  # [message, following]
    probabilities = first.probabilities[following, np.clip(distance, 0, WIDTH - 1)]
    to_message = np.where(exists & (distance < WIDTH), probabilities, 0)
    distance = following[:, :, None] - window.index[:, None, :] - 1  # [message, following, candidate]
    probabilities = first.probabilities[following[:, :, None], np.clip(distance, 0, WIDTH - 1)]
    possible = exists[:, :, None] & window.exists[:, None, :] & (distance < WIDTH)
    to_candidate = np.where(possible, probabilities, 0)
    mine, authors = (window.next_users == window.me)[:, :, None], window.is_next.transpose(0, 2, 1)
    return {
        "author_answers_me_next": (authors * to_message[:, :, None]).sum(1),
        "my_next_answer_it": (to_candidate * mine).sum(1),
        "next_of_others_answer_it": (to_candidate * ~mine * ~authors).sum(1),
        "author_goes_on_next": (to_candidate * authors).sum(1),
        "next_answer_me": to_message.sum(1),
        "my_next_go_on": (to_message * mine[..., 0]).sum(1),
    }
