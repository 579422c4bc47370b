"""What is known of a line and each of the lines before it, as numbers; nothing of it depends on the language.

All lines of a group at once, as arrays: the axes are [line, candidate], and where two candidates are compared
[line, candidate, candidate]. Candidate 0 is the line just before, 1 the one before that. A line is what one message
says (`lines.py`).
"""

import re
from itertools import chain

import numpy as np
from scipy import sparse

AHEAD = 8  # lines after each that are looked at: who goes on with whom
WIDTH = 15  # lines before each that are looked at
NAMED = 4  # people that a line names, at most; the one addressed comes first
AT_ONCE = 2_000  # lines worked on at a time
BUCKETS = 2**20  # of hashed n-grams
NGRAMS = (2, 3, 4)
REGULAR = 50  # turns from which on somebody is no newcomer
MINUTE, FAR = 60, 1e6  # seconds
WORD = re.compile(r"[^\W\u3040-\u30ff\u3400-\u9fff]+|[\u3040-\u30ff\u3400-\u9fff]")
LINK = re.compile("https?://|www[.]")
CALL = re.compile(r"\S{2,}[:：]\s")  # `name: text`, whoever that is

OF_PAIR = [
    "is_none",
    "distance",
    "seconds",
    "own",
    "own_after",
    "author_after",
    "author_before",
    "people_after",
    "latest_of_author",
    "named_first",
    "named",
    "names_other",
    "names_me_first",
    "names_me",
    "names_somebody_else",
    "names_the_same",
    "author_is_my_last",
    "author_last_named_me",
    "named_after",
    "i_named_author",
    "author_named_me",
    "since_dealings",
    "turns_taken",
    "i_name_author_elsewhere",
    "author_names_me_elsewhere",
    "i_follow_author",
    "question",
    "length",
    "link",
    "order_sign",
    "seconds_to_next",
    "seconds_since_previous",
    "nearest_other",
    "latest_named",
    "characters",
    "words",
    "rank_of_characters",
    "author_characters",
    "rarest_word",
    "lines_after_own",
    "author_before_own",
    "author_and_me_of_ten",
    "author_next",
    "author_next_names_me",
    "i_name_author_next",
    "author_said",
]
OF_LINE = [
    "line_question",
    "line_length",
    "line_link",
    "line_order_sign",
    "line_names",
    "line_calls",
    "line_named_here",
    "own_distance",
    "own_seconds",
    "waiting_for_me",
    "seconds_of_ten",
    "people_of_ten",
    "people",
    "line_characters",
    "seen",
    "naming_in_group",
    "naming_by_me",
    "asked_by_others",
    "names_me_since_own",
    "seconds_since_last",
    "line_said",
]
NAMES = [*OF_PAIR, *OF_LINE]


class Talk:
    """The lines of one group as arrays: users, seconds, who is named, texts."""

    def __init__(self, users, times, texts, named, said):
        """said: how many turns the user had said before each of them, newcomers being the ones who ask."""
        self.codes = {}
        self.users = np.array([self.code(user) for user in users])
        self.times = seconds(times)
        self.texts, self.said = texts, np.minimum(said, REGULAR)
        self.named = self.coded(named, users)

    def code(self, user):
        return self.codes.setdefault(user, len(self.codes))

    def coded(self, named, users):
        """Return the user ids `named` by each of `users` as an array [line, NAMED], -1 where there is none."""
        table = np.full((len(named), NAMED), -1)
        for row, some, me in zip(table, named, users, strict=True):
            some = [self.code(user) for user in some if user != me][:NAMED]
            row[: len(some)] = some
        return table


class Around:
    """The WIDTH lines before each of those at `places` of `talk`, its candidates, and the AHEAD after each."""

    def __init__(self, talk, places):
        before = places[:, None] - 1 - np.arange(WIDTH)
        self.there = before >= 0
        self.at = np.where(self.there, before, 0)
        self.me = talk.users[places][:, None]
        self.users = np.where(self.there, talk.users[self.at], -1 - np.arange(WIDTH))
        self.own = self.users == self.me
        self.later = np.tri(WIDTH, k=-1, dtype=bool)  # [candidate, other]: the other was said later
        self.same = self.users[:, :, None] == self.users[:, None, :]
        after = places[:, None] + 1 + np.arange(AHEAD)
        self.comes = after < len(talk.users)
        self.after = np.where(self.comes, after, 0)
        self.next_users = np.where(self.comes, talk.users[self.after], -1)
        self.is_next = self.next_users[:, None, :] == self.users[..., None]  # [candidate, line after]

    def table(self, of_pair, of_line, pair, line, of_none):
        """Return the rows of all lines, one after the other: of each its candidates and then the row for none.

        pair: {name: [line, candidate]}, line: {name: [line]}; of_none: those of `pair` that the row for none has, too,
        {name: [line] or a number}; columns: `of_pair`, `of_line`.
        """
        table = np.full((len(self.at), WIDTH + 1, len(of_pair) + len(of_line)), np.nan, np.float32)
        for number, name in enumerate(of_pair):
            table[:, :WIDTH, number] = pair[name]
            table[:, WIDTH, number] = of_none.get(name, np.nan)
        for number, name in enumerate(of_line, len(of_pair)):
            table[..., number] = line[name][:, None]
        return table[self.rows()]

    def rows(self):
        return np.concatenate([self.there, np.ones((len(self.at), 1), bool)], 1)


def seconds(times):
    """Return `times` (epoch seconds) as floats; where they are whole minutes, those of a minute are spread over it."""
    times = np.asarray(times, float)
    if len(times) and not (times % MINUTE).any():
        starts = np.flatnonzero(np.diff(times, prepend=times[0] - 1))
        counts = np.diff(np.append(starts, len(times)))
        place = np.arange(len(times)) - np.repeat(starts, counts)
        return times + MINUTE * (place + 0.5) / np.repeat(counts, counts)
    return times


def hashed(texts):
    """Return (document, bucket) of every character n-gram of `texts`, as two arrays."""
    joined = np.frombuffer("\0".join(texts).lower().encode("utf-32-le", "replace"), np.uint32).astype(np.uint64)
    document = np.cumsum(joined == 0)
    rows, buckets = [], []
    for size in NGRAMS:
        if len(joined) < size:
            continue
        many, ends = len(joined) - size + 1, joined == 0
        value, crosses = np.full(many, size, np.uint64), np.zeros(many, bool)
        for place in range(size):
            value = value * np.uint64(0x9E3779B97F4A7C15) + joined[place : place + many]
            value ^= value >> np.uint64(29)
            crosses |= ends[place : place + many]
        rows.append(document[:many][~crosses])
        buckets.append((value % np.uint64(BUCKETS)).astype(np.int64)[~crosses])
    return (np.concatenate(rows), np.concatenate(buckets)) if rows else (np.zeros(0, int), np.zeros(0, int))


def weighted(rows, columns, shape):
    """Return the sparse matrix of tf-idf weights, its rows of length 1."""
    counts = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape)
    counts.sum_duplicates()
    documents = np.bincount(counts.indices, minlength=shape[1])
    idf = np.log((shape[0] + 1) / (documents + 1)).astype(np.float32) + 1
    counts.data = (1 + np.log(counts.data)) * idf[counts.indices]
    lengths = np.sqrt(np.asarray(counts.multiply(counts).sum(1)).ravel())
    return sparse.diags(1 / np.maximum(lengths, 1e-9)) @ counts


def of_characters(texts):
    rows, buckets = hashed(texts)
    return weighted(rows, buckets, (len(texts), BUCKETS))


def of_words(texts):
    codes, found = {}, [WORD.findall(text.lower()) for text in texts]
    columns = [codes.setdefault(word, len(codes)) for word in chain.from_iterable(found)]
    rows = np.repeat(np.arange(len(texts)), [len(words) for words in found])
    return weighted(rows, np.array(columns, int), (len(texts), max(1, len(codes))))


def likeness(matrix, left, right):
    """Return the cosine of the rows `left` and `right` (arrays of one shape) of `matrix`, and its greatest part."""
    product = matrix[left.ravel()].multiply(matrix[right.ravel()]).tocsr()
    return (np.asarray(product.sum(1), np.float32).reshape(left.shape), product.max(1).toarray().reshape(left.shape))


def pair_counts(left, right, people):
    """Return a function: (one, other) -> how often they stand beside each other in the arrays `left`, `right`."""
    good = (left >= 0) & (right >= 0)
    keys, counts = np.unique(left[good] * people + right[good], return_counts=True)
    keys, counts = np.append(keys, np.iinfo(np.int64).max), np.append(counts, 0)

    def count(one, other):
        wanted = one * people + other
        place = np.searchsorted(keys, wanted)
        return np.where(keys[place] == wanted, counts[place], 0)

    return count


def features(talk, places):
    """Return (rows, sizes, candidates): what is known of the lines at `places` of `talk` and of each one before it.

    rows: float32, for each line one row a candidate (the WIDTH lines before it, the nearest first) and one for `none`,
    columns NAMES; sizes: rows of each line; candidates: the place of the candidate of each row, -1 for none.
    """
    places, texts = np.asarray(places, int), talk.texts
    known = {
        "characters": of_characters(texts),
        "words": of_words(texts),
        "length": np.array([min(len(text), 400) for text in texts], np.float32),
        "question": np.array(["?" in text or "？" in text for text in texts]),
        "link": np.array([LINK.search(text) is not None for text in texts]),
        "order_sign": np.array([text[:1] in ("!", "/", ".", "！") for text in texts]),
        "calls": np.array([CALL.match(text) is not None for text in texts]),
    }
    people = int(max(talk.users.max(), talk.named.max())) + 1
    naming = talk.named >= 0
    who = np.repeat(talk.users, NAMED)
    known["names"] = pair_counts(who, talk.named.ravel(), people)
    known["follows"] = pair_counts(talk.users[1:], talk.users[:-1], people)
    known["lines_of"] = np.bincount(talk.users, minlength=people)
    known["namings_of"] = np.bincount(talk.users, naming.any(1), minlength=people)
    known["naming"] = naming.any(1).mean() if len(naming) else 0
    parts = [part_of(talk, places[start : start + AT_ONCE], known) for start in range(0, len(places), AT_ONCE)]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def part_of(talk, places, known):
    """Return what `features` does, for a part of the lines."""
    named = talk.named[places]
    around = Around(talk, places)
    there, at, me, users, own = around.there, around.at, around.me, around.users, around.own
    later, same, is_next = around.later, around.same, around.is_next
    names = np.where(there[..., None], talk.named[at], -1)
    somebody = (names >= 0).any(2)
    own = users == me
    names_author = (names[:, None] == users[:, :, None, None]).any(3) & there[:, :, None]  # [candidate, other]
    names_me = (names == me[..., None]).any(2)
    column = np.arange(WIDTH)

    def nearest(mask):
        """The place of the first True along the last axis; the WIDTH where there is none."""
        return np.where(mask.any(-1), mask.argmax(-1), WIDTH)

    now, then = talk.times[places][:, None], np.where(there, talk.times[at], -FAR)
    own_place = nearest(own)
    my_naming = nearest(own & somebody)
    my_last = np.take_along_axis(names, np.minimum(my_naming, WIDTH - 1)[:, None, None], 1)[:, 0]
    my_last = np.where(my_naming[:, None] < WIDTH, my_last, -1)
    author_naming = nearest(same & somebody[:, None, :])
    dealings = (own[:, None, :] & names_author) | (same & names_me[:, None, :])
    author_after = (same & later).sum(2)
    latest = there & (author_after == 0)
    is_named = (named[:, None, :] == users[..., None]).any(2)
    any_named = (named >= 0).any(1)[:, None]
    taken = ((own[:, None, :-1] & same[:, :, 1:]) | (same[:, :, :-1] & own[:, None, 1:])).sum(2)
    own_text = np.broadcast_to(places[:, None], at.shape)
    cosine = likeness(known["characters"], own_text, at)[0] * there
    words, rarest = likeness(known["words"], own_text, at)
    next_names = np.where(around.comes[..., None], talk.named[around.after], -1)
    author_next = np.where(is_next.any(2), is_next.argmax(2), AHEAD)
    next_names_me = is_next & (next_names == me[..., None]).any(2)[:, None, :]
    mine_next = (around.next_users == me)[:, None, :]
    my_next_names = ((next_names[:, None] == users[:, :, None, None]).any(3) & mine_next).any(2)
    order = (-cosine).argsort(1, kind="stable").argsort(1, kind="stable")
    author = np.where(there, users, 0)
    mine = np.maximum(known["lines_of"][me] - 1, 1)
    others = there & ~own
    since_own = column < own_place[:, None]
    pair = {
        "is_none": np.zeros(at.shape),
        "distance": np.broadcast_to(column + 1, at.shape),
        "seconds": np.minimum(now - then, FAR),
        "own": own,
        "own_after": (own[:, None, :] & later).sum(2),
        "author_after": author_after,
        "author_before": (same & later.T).sum(2),
        "people_after": ((latest & ~own)[:, None, :] & later).sum(2),
        "latest_of_author": latest,
        "named_first": users == np.where(named[:, :1] >= 0, named[:, :1], -99),
        "named": is_named,
        "names_other": any_named & ~is_named,
        "names_me_first": names[..., 0] == me,
        "names_me": names_me,
        "names_somebody_else": somebody & ~names_me,
        "names_the_same": ((names[..., None] == named[:, None, None, :]) & (names[..., None] >= 0)).any((2, 3)),
        "author_is_my_last": (my_last[:, None, :] == users[..., None]).any(2),
        "author_last_named_me": np.take_along_axis(names_me, np.minimum(author_naming, WIDTH - 1), 1)
        & (author_naming < WIDTH),
        "named_after": (names_author & later & ~own[:, None, :]).sum(2),
        "i_named_author": (own[:, None, :] & names_author).sum(2),
        "author_named_me": (same & names_me[:, None, :]).sum(2),
        "since_dealings": nearest(dealings),
        "turns_taken": taken,
        "i_name_author_elsewhere": (known["names"](me, author) - is_named) / mine,
        "author_names_me_elsewhere": known["names"](author, me) / np.maximum(known["lines_of"][author], 1),
        "i_follow_author": (known["follows"](me, author) - (column == 0)) / mine,
        "question": known["question"][at],
        "length": known["length"][at],
        "link": known["link"][at],
        "order_sign": known["order_sign"][at],
        "seconds_to_next": np.concatenate([now, then[:, :-1]], 1) - then,
        "seconds_since_previous": np.minimum(then - np.concatenate([then[:, 1:], then[:, -1:]], 1), FAR),
        "nearest_other": column == nearest(others)[:, None],
        "latest_named": is_named & latest,
        "characters": cosine,
        "words": words * there,
        "rarest_word": rarest * there,
        "rank_of_characters": order,
        "author_characters": np.where(same, cosine[:, None, :], 0).max(2),
        "lines_after_own": own_place[:, None] - column,
        "author_before_own": (same & (column > own_place[:, None])[:, None, :]).sum(2),
        "author_and_me_of_ten": (same | own[:, None, :])[..., :10].sum(2),
        "author_next": author_next,
        "author_next_names_me": next_names_me.any(2),
        "i_name_author_next": my_next_names,
        "author_said": talk.said[at],
    }
    line = {
        "line_question": known["question"][places],
        "line_length": known["length"][places],
        "line_link": known["link"][places],
        "line_order_sign": known["order_sign"][places],
        "line_names": (named >= 0).sum(1),
        "line_calls": known["calls"][places],
        "line_named_here": is_named.any(1),
        "own_distance": own_place,
        "own_seconds": np.where(
            own_place < WIDTH, pair["seconds"][np.arange(len(at)), np.minimum(own_place, WIDTH - 1)], FAR
        ),
        "waiting_for_me": (names_me & since_own).sum(1),
        "seconds_of_ten": pair["seconds"][:, 9],
        "people_of_ten": latest[:, :10].sum(1),
        "people": latest.sum(1),
        "line_characters": cosine.max(1),
        "seen": there.sum(1),
        "naming_in_group": np.full(len(at), known["naming"]),
        "naming_by_me": ((known["namings_of"][me] - any_named) / mine)[:, 0],
        "asked_by_others": (pair["question"] & others & since_own).sum(1),
        "names_me_since_own": nearest(names_me & since_own),
        "seconds_since_last": pair["seconds"][:, 0],
        "line_said": talk.said[places],
    }
    used = around.rows()
    candidates = np.concatenate([at, np.full((len(at), 1), -1)], 1)
    return around.table(OF_PAIR, OF_LINE, pair, line, {"is_none": 1}), used.sum(1), candidates[used]
