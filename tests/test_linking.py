"""Who is named, whom the rule finds, and that the benchmark's road gives one prediction a message."""

import gzip
import json
import subprocess
import sys

import pytest

from helpers import ROOT
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
def test_who_is_named(text, ids):
    names = Names([("老陈", "1"), ("Al", "2"), ("|trey|", "3")], TALK)
    assert sorted(names.named(text)) == sorted(ids)


def test_who_is_addressed_comes_first():
    names = Names([("老陈", "1"), ("小雨", "2")], TALK)
    assert names.named("小雨：老陈呢") == ["2", "1"]
    assert names.named("老陈 呢，小雨：在吗") == ["2", "1"]


def test_a_name_that_is_a_word_of_everyday_talk_counts_only_where_it_addresses_somebody():
    names = Names([("好的", "1")], ["那好的"] * 20)
    assert names.named("那好的") == []
    assert names.named("好的：在吗") == ["1"]


def test_the_longest_name_wins_and_of_two_equal_names_the_later():
    names = Names([("小雨", "1"), ("小雨点", "2"), ("小雨", "3")], TALK)
    assert names.named("小雨点，在吗") == ["2"]
    assert names.named("小雨，在吗") == ["3"]


def turn(user, *named):
    return {"user_id": user, "named": list(named)}


def test_the_rule():
    a, b, c = turn("a"), turn("b", "me"), turn("c")
    own = turn("me", "b")

    def prompt(this, *before):
        return link(this, list(before), lambda of: of["named"])[0]

    assert prompt(turn("me", "a"), a, b, c) is a  # the person named
    assert prompt(turn("me", "x", "a"), a, b, c) is a  # the first of them who has said anything
    assert prompt(turn("me"), a, b, c) is b  # who named me
    assert prompt(turn("me"), a, b, own, c) is None  # not before my own last turn
    assert prompt(turn("me", "me"), a, c) is None
    assert prompt(turn("me", "b"), b, own, c) is b  # a name counts beyond it


def test_the_window():
    turns = [turn("a"), turn("me"), turn("b"), turn("c")]
    assert window(turns, "me", 10, stop_at_own_turn=False) == turns
    assert window(turns, "me", 2, stop_at_own_turn=False) == turns[2:]
    assert window(turns, "me", 10, stop_at_own_turn=True) == turns[2:]
    assert window(turns, "me", 0, stop_at_own_turn=True) == []


def test_the_benchmark_predicts_every_message_of_a_person(tmp_path):
    said = [
        ("ann", "hi all"),
        ("ben", "ann: hello"),
        ("ben", "how are you"),
        (None, "cat has joined"),
        ("ann", "ben: fine"),
        ("cat", "what"),
        ("", ""),
    ]
    lines = [
        {
            "log_id": "x",
            "line_no": place,
            "time": 1_000_000 + 60 * ((place + 1) // 2),
            "user": user,
            "text": text,
            **({} if user else {"is_system": True}),
        }
        for place, (user, text) in enumerate(said)
    ]
    with gzip.open(tmp_path / "in.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    subprocess.run(
        [sys.executable, ROOT / "bench/predict_replies.py", tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl"],
        check=True,
    )
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(line["log_id"], line["line_no"], line["parent"]) for line in found] == [
        ("x", 0, None),
        ("x", 1, 0),
        ("x", 2, 1),
        ("x", 4, 2),
        ("x", 5, None),
    ]
    assert found[0]["conf"] == 1 and all(0 < line["conf"] < 1 for line in found[1:])  # the first has no candidate
