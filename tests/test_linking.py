"""Who is named in a text, which turns are candidates, and what the rule decides."""

import pytest

from huiyin.linking.cases import window
from huiyin.linking.names import Names
from huiyin.linking.rule import link

TALK = ["今天吃什么", "好的", "ok then"] * 10


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("老陈，你来吗", ["1"]),
        ("我问了老陈", ["1"]),
        ("@老陈 在吗", ["1"]),
        ("没有谁", []),
        ("Al: hi", ["2"]),
        ("also, hi", []),
        ("hi al", ["2"]),
        ("al，老陈，走", ["2", "1"]),
        ("hi |trey|", ["3"]),
        ("trey, hi", ["3"]),
        ("好的，al: 你呢", ["2"]),
    ],
)
def test_names_are_found_in_a_text_but_not_within_words(text, ids):
    names = Names([("老陈", "1"), ("Al", "2"), ("|trey|", "3")], TALK)
    assert sorted(names.named(text)) == sorted(ids)


def test_the_person_addressed_comes_first():
    names = Names([("老陈", "1"), ("小雨", "2")], TALK)
    assert names.named("小雨：老陈呢") == ["2", "1"]
    assert names.named("老陈 呢，小雨：在吗") == ["2", "1"]


def test_a_name_that_is_a_common_word_counts_only_where_it_addresses_somebody():
    names = Names([("好的", "1")], ["那好的"] * 20)
    assert names.named("那好的") == []
    assert names.named("好的：在吗") == ["1"]


def test_the_longest_name_wins_and_of_two_equal_names_the_later():
    names = Names([("小雨", "1"), ("小雨点", "2"), ("小雨", "3")], TALK)
    assert names.named("小雨点，在吗") == ["2"]
    assert names.named("小雨，在吗") == ["3"]


def turn(user, *named):
    return {"user_id": user, "named": list(named)}


A, NAMING_ME, C, OWN = turn("a"), turn("b", "me"), turn("c"), turn("me", "b")


@pytest.mark.parametrize(
    ("this", "before", "prompt"),
    [
        (turn("me", "a"), [A, NAMING_ME, C], A),  # the person named
        (turn("me", "x", "a"), [A, NAMING_ME, C], A),  # the first person named who has written anything
        (turn("me"), [A, NAMING_ME, C], NAMING_ME),  # whoever named the author
        (turn("me"), [A, NAMING_ME, OWN, C], None),  # but not before the author's own last turn
        (turn("me", "me"), [A, C], None),
        (turn("me", "b"), [NAMING_ME, OWN, C], NAMING_ME),  # a name counts beyond it
    ],
)
def test_the_rule_finds_the_person_named_or_whoever_named_the_author(this, before, prompt):
    assert link(this, before, lambda turn: turn["named"])[0] is prompt


@pytest.mark.parametrize(
    ("size", "stop_at_own_turn", "start"), [(10, False, 0), (2, False, 2), (10, True, 2), (0, True, 4)]
)
def test_the_window_is_the_last_turns_and_may_stop_at_the_own_turn(size, stop_at_own_turn, start):
    turns = [A, OWN, NAMING_ME, C]
    assert window(turns, "me", size, stop_at_own_turn) == turns[start:]
