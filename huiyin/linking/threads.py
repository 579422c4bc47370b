"""What the first pass found, as numbers for the second: which threads there are, and who has answered whom.

As in `features`, the axes are [line, candidate]; where two candidates are compared, [line, candidate, candidate].
"""

import numpy as np

from huiyin.linking.features import AT_ONCE, WIDTH, Around

OF_PAIR = [
    "first_share",
    "first_rank",
    "first_lead",
    "answers",
    "my_answers",
    "answers_share",
    "my_answers_share",
    "starts",
    "answers_me",
    "answers_somebody",
    "in_thread_of_my_last",
    "i_am_in_thread",
    "newest_of_thread",
    "size_of_thread",
    "unanswered",
    "answers_mine",
    "depth",
    "people_of_thread",
    "author_answers_me_next",
    "my_next_answer_it",
    "next_of_others_answer_it",
    "author_goes_on_next",
]
OF_LINE = ["first_none", "next_answer_me", "my_next_go_on"]
NAMES = [*OF_PAIR, *OF_LINE]
LONGEST = 8  # depth of a thread is counted up to that


def threads(parents):
    """Return (root, depth) of each line; parents: the line that each answers, -1 for none."""
    root, depth, above = np.where(parents >= 0, parents, np.arange(len(parents))), np.zeros(len(parents), int), parents
    for _ in range(int(np.log2(max(len(parents), 2))) + 1):
        root = root[root]
    for _ in range(LONGEST):
        depth += above >= 0
        above = np.where(above >= 0, parents[above], -1)
    return root, depth


def thread_features(talk, places, shares, none):
    """Return the rows that go beside those of `features` for `places`, columns NAMES.

    shares: [line of `talk`, distance], none: [line]: what the first pass says; -1 in `none` where it was not asked.
    """
    best = shares.argmax(1)
    answering = (none >= 0) & (shares.max(1) > none)
    parents = np.where(answering, np.arange(len(none)) - 1 - best, -1)
    known = parents, *threads(parents)
    places = np.asarray(places, int)
    return np.concatenate(
        [
            part_of(talk, places[start : start + AT_ONCE], shares, none, *known)
            for start in range(0, len(places), AT_ONCE)
        ]
    )


def part_of(talk, places, shares, none, parents, roots, depths):
    around, column = Around(talk, places), np.arange(WIDTH)
    there, at, me, own, later = around.there, around.at, around.me, around.own, around.later
    first = shares[places]
    nobody = none[places][:, None]
    surest = np.maximum(first.max(1), nobody[:, 0])[:, None]
    parent = np.where(there, parents[at], -2)
    answers = (parent[:, None, :] == at[:, :, None]) & later & there[:, :, None]
    back = np.maximum(column[:, None] - column - 1, 0)
    answers_share = np.where(later & there[:, :, None], shares[at[:, None, :], back], 0)
    root = np.where(there, roots[at], -1 - column)
    my_last = np.take_along_axis(root, own.argmax(1)[:, None], 1)
    same = root[:, :, None] == root[:, None, :]
    repeated = (around.same & later).any(2)  # somebody has a later line here
    two_before = at[:, :, None] - 1 - column
    answered_users = np.where(two_before >= 0, talk.users[np.maximum(two_before, 0)], -1)
    distance = around.after - places[:, None] - 1
    to_me = np.where(around.comes & (distance < WIDTH), shares[around.after, np.clip(distance, 0, WIDTH - 1)], 0)
    distance = around.after[:, :, None] - at[:, None, :] - 1  # [line, line after, candidate]
    to_it = np.where(
        around.comes[:, :, None] & there[:, None, :] & (distance < WIDTH),
        shares[around.after[:, :, None], np.clip(distance, 0, WIDTH - 1)],
        0,
    )
    mine, authors = (around.next_users == me)[:, :, None], around.is_next.transpose(0, 2, 1)
    pair = {
        "first_share": first,
        "first_rank": (-first).argsort(1, kind="stable").argsort(1, kind="stable"),
        "first_lead": first - surest,
        "answers": answers.sum(2),
        "my_answers": (answers & own[:, None, :]).sum(2),
        "answers_share": answers_share.sum(2),
        "my_answers_share": (answers_share * own[:, None, :]).sum(2),
        "starts": none[at],
        "answers_me": (shares[at] * (answered_users == me[:, :, None])).sum(2),
        "answers_somebody": shares[at].sum(2),
        "in_thread_of_my_last": own.any(1)[:, None] & (root == my_last),
        "i_am_in_thread": (same & own[:, None, :]).any(2),
        "newest_of_thread": ~(same & later).any(2),
        "size_of_thread": same.sum(2),
        "unanswered": ~answers.any(2),
        "answers_mine": (parent >= 0) & (talk.users[np.maximum(parent, 0)] == me),
        "depth": depths[at],
        "people_of_thread": (same & ~repeated[:, None, :]).sum(2),
        "author_answers_me_next": (authors * to_me[:, :, None]).sum(1),
        "my_next_answer_it": (to_it * mine).sum(1),
        "next_of_others_answer_it": (to_it * ~mine * ~authors).sum(1),
        "author_goes_on_next": (to_it * authors).sum(1),
    }
    line = {"first_none": nobody[:, 0], "next_answer_me": to_me.sum(1), "my_next_go_on": (to_me * mine[..., 0]).sum(1)}
    of_none = {"first_share": nobody[:, 0], "first_lead": (nobody - surest)[:, 0]}
    return around.table(OF_PAIR, OF_LINE, pair, line, of_none)
