"""Features of a message and each of the messages before it, as numbers; nothing of it depends on the language.

All messages of a group at once, as arrays with the axes of `conversation.py`. In the names of the features, which are
part of linker.txt, "line" is the message, "me" its author, "author" the author of the candidate.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from huiyin.linking.conversation import LOOKAHEAD, NAMED, WIDTH, Columns, ContextWindow, Conversation, first_true
from huiyin.linking.similarity import character_weights, cosine, greatest_part, products, word_weights

CHUNK = 2_000  # messages worked on at a time
LONGEST = 400  # characters; longer texts count as that long
FAR = 1e6  # seconds
LINK = re.compile("https?://|www[.]")
CALL = re.compile(r"\S{2,}[:：]\s")  # `name: text`, whoever that is

OF_PAIR = """
    is_none distance seconds own own_after author_after author_before people_after latest_of_author named_first
    named names_other names_me_first names_me names_somebody_else names_the_same author_is_my_last
    author_last_named_me named_after i_named_author author_named_me since_dealings turns_taken
    i_name_author_elsewhere author_names_me_elsewhere i_follow_author question length link order_sign
    seconds_to_next seconds_since_previous nearest_other latest_named characters words rank_of_characters
    author_characters rarest_word lines_after_own author_before_own author_and_me_of_ten author_next
    author_next_names_me i_name_author_next author_said
""".split()
OF_LINE = """
    line_question line_length line_link line_order_sign line_names line_calls line_named_here own_distance
    own_seconds waiting_for_me seconds_of_ten people_of_ten people line_characters seen naming_in_group
    naming_by_me asked_by_others names_me_since_own seconds_since_last line_said
""".split()
NAMES = [*OF_PAIR, *OF_LINE]

PairCounts = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass
class Statistics:
    """What the features need to know about a whole conversation."""

    characters: sparse.csr_matrix  # [message, n-gram]: tf-idf
    words: sparse.csr_matrix  # [message, word]: tf-idf
    length: np.ndarray  # [message]: characters
    question: np.ndarray  # [message]: does it hold a question mark?
    link: np.ndarray  # [message]
    order_sign: np.ndarray  # [message]: does it begin as orders to bots do?
    calls: np.ndarray  # [message]: does it call somebody, known or not?
    names: PairCounts  # (one, other) -> how often one names the other
    follows: PairCounts  # (one, other) -> how often one writes right after the other
    messages_of: np.ndarray  # [user]
    naming_messages_of: np.ndarray  # [user]: messages that name somebody
    naming: float  # fraction of the messages that name somebody


def features(conversation: Conversation, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (rows, sizes, candidates) of the messages at `positions` of `conversation`.

    rows: float32, for each message one row per candidate (the WIDTH messages before it, the nearest first) and one for
    "replies to none", columns NAMES; sizes: rows of each message; candidates: the position of the candidate of each
    row, -1 for none.
    """
    statistics = statistics_of(conversation)
    chunks = [
        features_of_chunk(ContextWindow(conversation, positions[start : start + CHUNK]), statistics)
        for start in range(0, len(positions), CHUNK)
    ]
    rows, sizes, candidates = zip(*chunks, strict=True)
    return np.concatenate(rows), np.concatenate(sizes), np.concatenate(candidates)


def statistics_of(conversation: Conversation) -> Statistics:
    texts, users, people = conversation.texts, conversation.users, len(conversation.codes)
    naming = np.any(conversation.named >= 0, 1)
    return Statistics(
        characters=character_weights(texts),
        words=word_weights(texts),
        length=np.array([min(len(text), LONGEST) for text in texts], np.float32),
        question=np.array(["?" in text or "？" in text for text in texts]),
        link=np.array([LINK.search(text) is not None for text in texts]),
        order_sign=np.array([text[:1] in ("!", "/", ".", "！") for text in texts]),
        calls=np.array([CALL.match(text) is not None for text in texts]),
        names=pair_counts(np.repeat(users, NAMED), conversation.named.ravel(), people),
        follows=pair_counts(users[1:], users[:-1], people),
        messages_of=np.bincount(users, minlength=people),
        naming_messages_of=np.bincount(users, naming, minlength=people),
        naming=naming.mean() if len(naming) else 0,
    )


def pair_counts(left: np.ndarray, right: np.ndarray, people: int) -> PairCounts:
    """Return a function: (one, other) -> how often they stand at the same index of `left` and `right`.

    people: number of user codes; negative codes are nobody.
    """
    valid = (left >= 0) & (right >= 0)
    keys, counts = np.unique(left[valid] * people + right[valid], return_counts=True)
    keys, counts = np.append(keys, np.iinfo(np.int64).max), np.append(counts, 0)

    def count(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        key = one * people + other
        index = np.searchsorted(keys, key)
        return np.where(keys[index] == key, counts[index], 0)

    return count


def features_of_chunk(window: ContextWindow, statistics: Statistics) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `features` does, for the messages of `window`."""
    columns = {
        **speaker_features(window),
        **time_features(window),
        **naming_features(window),
        **dealing_features(window),
        **habit_features(window, statistics),
        **text_features(window, statistics),
        **following_features(window),
    }
    candidates = np.concatenate([window.index, np.full((len(window.index), 1), -1)], 1)
    return window.table(OF_PAIR, OF_LINE, columns, {"is_none": 1}), window.rows.sum(1), candidates[window.rows]


def speaker_features(window: ContextWindow) -> Columns:
    """Return who wrote, and in which order."""
    own, same, later, latest = window.own, window.same_author, window.later, window.latest
    own_position, column = window.own_position[:, None], np.arange(WIDTH)
    turns_taken = (own[:, None, :-1] & same[:, :, 1:]) | (same[:, :, :-1] & own[:, None, 1:])
    earlier_turns = window.conversation.earlier_turns
    return {
        "is_none": np.zeros(own.shape),
        "distance": np.broadcast_to(column + 1, own.shape),
        "own": own,
        "own_after": (own[:, None, :] & later).sum(2),
        "author_after": window.author_after,
        "author_before": (same & later.T).sum(2),
        "people_after": ((latest & ~own)[:, None, :] & later).sum(2),
        "latest_of_author": latest,
        "turns_taken": turns_taken.sum(2),
        "nearest_other": column == first_true(window.others)[:, None],
        "lines_after_own": own_position - column,
        "author_before_own": (same & (column > own_position)[:, None, :]).sum(2),
        "author_and_me_of_ten": (same | own[:, None, :])[..., :10].sum(2),
        "author_said": earlier_turns[window.index],
        "own_distance": window.own_position,
        "people_of_ten": latest[:, :10].sum(1),
        "people": latest.sum(1),
        "seen": window.exists.sum(1),
        "line_said": earlier_turns[window.positions],
    }


def time_features(window: ContextWindow) -> Columns:
    """Return when it was written, in seconds, FAR at most."""
    times, own_position = window.conversation.times, window.own_position
    now, then = times[window.positions][:, None], np.where(window.exists, times[window.index], -FAR)
    seconds = np.minimum(now - then, FAR)
    own_seconds = np.take_along_axis(seconds, np.minimum(own_position, WIDTH - 1)[:, None], 1)[:, 0]
    return {
        "seconds": seconds,
        "seconds_to_next": np.concatenate([now, then[:, :-1]], 1) - then,
        "seconds_since_previous": np.minimum(then - np.concatenate([then[:, 1:], then[:, -1:]], 1), FAR),
        "own_seconds": np.where(own_position < WIDTH, own_seconds, FAR),
        "seconds_of_ten": seconds[:, 9],
        "seconds_since_last": seconds[:, 0],
    }


def naming_features(window: ContextWindow) -> Columns:
    """Return whom the message names, and whom each candidate names."""
    named, names, users = window.named, window.names, window.users
    is_named, names_me, to_me = window.is_named, window.names_me, window.names_me & window.since_own
    same_name = (names[..., None] == named[:, None, None, :]) & (names[..., None] >= 0)
    return {
        "named_first": users == np.where(named[:, :1] >= 0, named[:, :1], -99),
        "named": is_named,
        "names_other": window.names_anybody & ~is_named,
        "names_me_first": names[..., 0] == window.me,
        "names_me": names_me,
        "names_somebody_else": window.names_somebody & ~names_me,
        "names_the_same": same_name.any((2, 3)),
        "latest_named": is_named & window.latest,
        "line_names": (named >= 0).sum(1),
        "line_named_here": is_named.any(1),
        "waiting_for_me": to_me.sum(1),
        "names_me_since_own": first_true(to_me),
    }


def dealing_features(window: ContextWindow) -> Columns:
    """Return how I and the candidate's author have named each other in the candidates, and been named."""
    own, same, names_me = window.own, window.same_author, window.names_me
    names_author = (window.names[:, None] == window.users[:, :, None, None]).any(3) & window.exists[:, :, None]
    my_naming = first_true(own & window.names_somebody)[:, None]
    my_names = np.take_along_axis(window.names, np.minimum(my_naming, WIDTH - 1)[..., None], 1)[:, 0]
    my_names = np.where(my_naming < WIDTH, my_names, -1)  # those in my latest message that names somebody
    author_naming = first_true(same & window.names_somebody[:, None, :])
    author_named_me = np.take_along_axis(names_me, np.minimum(author_naming, WIDTH - 1), 1)
    mine, authors = own[:, None, :] & names_author, same & names_me[:, None, :]
    return {
        "author_is_my_last": (my_names[:, None, :] == window.users[..., None]).any(2),
        "author_last_named_me": author_named_me & (author_naming < WIDTH),
        "named_after": (names_author & window.later & ~own[:, None, :]).sum(2),
        "i_named_author": mine.sum(2),
        "author_named_me": authors.sum(2),
        "since_dealings": first_true(mine | authors),
    }


def habit_features(window: ContextWindow, statistics: Statistics) -> Columns:
    """Return how often they name and follow each other in the whole conversation, this message not counted."""
    me, author = window.me, np.where(window.exists, window.users, 0)
    my_messages = np.maximum(statistics.messages_of[me] - 1, 1)
    author_messages = np.maximum(statistics.messages_of[author], 1)
    my_naming = statistics.naming_messages_of[me] - window.names_anybody
    return {
        "i_name_author_elsewhere": (statistics.names(me, author) - window.is_named) / my_messages,
        "author_names_me_elsewhere": statistics.names(author, me) / author_messages,
        "i_follow_author": (statistics.follows(me, author) - (np.arange(WIDTH) == 0)) / my_messages,
        "naming_in_group": np.full(len(me), statistics.naming),
        "naming_by_me": (my_naming / my_messages)[:, 0],
    }


def text_features(window: ContextWindow, statistics: Statistics) -> Columns:
    """Return what kind of texts they are, and how similar."""
    index, positions, exists, shape = window.index, window.positions, window.exists, window.index.shape
    this = np.broadcast_to(positions[:, None], shape)
    similarity = cosine(products(statistics.characters, this, index), shape) * exists
    words = products(statistics.words, this, index)
    question = statistics.question[index]
    return {
        "question": question,
        "length": statistics.length[index],
        "link": statistics.link[index],
        "order_sign": statistics.order_sign[index],
        "characters": similarity,
        "words": cosine(words, shape) * exists,
        "rarest_word": greatest_part(words, shape) * exists,
        "rank_of_characters": (-similarity).argsort(1, kind="stable").argsort(1, kind="stable"),
        "author_characters": np.where(window.same_author, similarity[:, None, :], 0).max(2),
        "line_question": statistics.question[positions],
        "line_length": statistics.length[positions],
        "line_link": statistics.link[positions],
        "line_order_sign": statistics.order_sign[positions],
        "line_calls": statistics.calls[positions],
        "line_characters": similarity.max(1),
        "asked_by_others": (question & window.others & window.since_own).sum(1),
    }


def following_features(window: ContextWindow) -> Columns:
    """Return who writes after the message, and whom they name."""
    is_next, users, me = window.is_next, window.users, window.me
    names = np.where(window.next_exists[..., None], window.conversation.named[window.next_index], -1)
    names_me = (names == me[..., None]).any(2)  # [message, following]
    names_author = (names[:, None] == users[:, :, None, None]).any(3)  # [message, candidate, following]
    return {
        "author_next": np.where(is_next.any(2), is_next.argmax(2), LOOKAHEAD),
        "author_next_names_me": (is_next & names_me[:, None, :]).any(2),
        "i_name_author_next": (names_author & (window.next_users == me)[:, None, :]).any(2),
    }
