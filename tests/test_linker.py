"""The linker: when it may decide alone, and what it makes of odd histories."""

import json
import re
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

import huiyin.linking.linker
from huiyin.linking.calibration import calibrated_threshold
from huiyin.linking.cases import Case, History
from huiyin.linking.features import WIDTH, Talk, features
from huiyin.linking.lines import lines_of, shares_of_turns
from huiyin.linking.linker import REACH, Linker, choose
from huiyin.linking.threads import NAMES as NAMES_OF_THREADS
from huiyin.linking.threads import thread_features, threads
from llm_folder import prompt_of, succeeded
from test_cases import START, cases, compare, ledger_of, read_lines, turns


@cases("pair_with_a_model")
def test_pair_with_a_model(case, folder):
    """answers.json: {reply: what the model answers}; of held-out quotes it says none."""
    turns(read_lines(case / "turns.jsonl")).write_parquet(folder.path / "turns.parquet")
    answers = json.loads((case / "answers.json").read_text(encoding="utf-8"))

    def answer(k, body):
        return json.dumps(
            {
                "answers": next(
                    (number for reply, number in answers.items() if f"<发言>\n名me：{reply}\n" in prompt_of(body)),
                    "none",
                )
            }
        )

    folder.ollama.before_chat = answer
    folder.settings("pair", (case / "pair.yaml").read_text(encoding="utf-8"))
    done = succeeded(folder.pair())
    said = [line for line in done.stdout.splitlines() if "quotes" in line]
    linker = json.dumps(folder.json("paired/receipt.json")["linker"], indent=1) + "\n"
    lines = {
        name: (folder.path / "paired" / name).read_text(encoding="utf-8") for name in ("pairs.jsonl", "unpaired.jsonl")
    }
    # how sure the tiny model is of an answer it was given says nothing
    lines["pairs.jsonl"] = re.sub(r'("llm", "confidence": )[^,]+', r"\1null", lines["pairs.jsonl"])
    compare(
        case,
        {
            "ledger.json": ledger_of(folder.path / "paired"),
            "linker.json": linker,
            **lines,
            "said.txt": "\n".join(said) + "\n",
        },
    )


def said(place, user, text, messages=1, mentions=(), seconds=0):
    """A turn said at minute `place`, its messages `place` * 10 and the next; the last `seconds` after the first."""
    first = START + timedelta(minutes=place)
    return {
        "turn_id": place,
        "group_id": "g",
        "user_id": user,
        "nickname": user,
        "text": text,
        "said": 0,
        "message_ids": [place * 10 + number for number in range(messages)],
        "mentions": list(mentions),
        "time": first,
        "first_time": first,
        "last_time": first + timedelta(seconds=seconds),
        "reply_to_turn": None,
    }


def mentions(turn):
    return turn["mentions"]


@pytest.mark.parametrize("at_once", [1, 100])
def test_what_a_held_out_quote_mentions_is_seen_by_nobody(monkeypatch, at_once):
    """Not in the quote itself, not in the habits of its author, not by those who speak before and after."""
    monkeypatch.setattr(huiyin.linking.linker, "CASES_AT_ONCE", at_once)
    users = "abcabcabca"
    plain = [said(place, user, f"text {place % 4}") for place, user in enumerate(users)]
    quoting = [*plain[:8], said(8, "c", "text 0", mentions=["a"]), *plain[9:]]
    cases = [Case(plain[place], [], []) for place in (5, 8, 9)]
    linker = Linker()
    history, without = (History(pl.DataFrame(rows).drop("said"), 10, False) for rows in (quoting, plain))
    assert linker.decide(cases, history) == linker.decide(cases, without)
    assert linker.decide([Case(quoting[8], [], [])], history) != linker.decide(cases[1:2], history)


def test_lines_are_in_the_order_in_which_they_were_said():
    turns = [
        said(0, "a", "one，two", 2, mentions=["b"]),
        {**said(0, "b", "between"), "message_ids": [0.5]},
        said(1, "c", "x，y，z", 2, seconds=30),
    ]
    talk, turn_of, messages = lines_of(turns, mentions)
    assert (talk.texts, turn_of.tolist()) == (("one", "between", "two", "x", "y，z"), [0, 1, 0, 2, 2])
    assert messages == (0, 0.5, 1, 10, 11)
    assert np.diff(talk.times)[3] == pytest.approx(30)
    assert (talk.named[:, 0] >= 0).tolist() == [True, False, False, False, False]


def test_a_turn_answers_what_the_surest_of_its_lines_answers():
    turn_of = np.array([0, 1, 0, 2, 2])
    shares = np.zeros((5, 4))
    shares[3, :3] = 0.3, 0.2, 0.4  # of turn 2, its first line: two lines of turn 0 are one turn, two turns back
    shares[4, :2] = 0.9, 0.1  # goes on with its own turn
    np.testing.assert_allclose(shares_of_turns(shares, turn_of, 3, 10)[2, :3], [0.2, 0.7, 0])


def test_features_are_those_of_each_line_alone():
    """Whatever else is asked about at the same time."""
    generator = np.random.default_rng(1)
    users = [str(number) for number in generator.integers(0, 5, 60)]
    talk = Talk(
        users,
        np.arange(60.0) * 7 + 0.5,
        ["same"] * 60,
        [[str(number)] if number < 3 else [] for number in generator.integers(0, 9, 60)],
        range(60),
    )
    rows, sizes, candidates = features(talk, range(60))
    assert sizes.tolist() == [1 + min(place, WIDTH) for place in range(60)]
    shares, none = generator.random((60, WIDTH)), generator.random(60)
    of_threads = thread_features(talk, range(60), shares, none)
    for place in (0, 1, 7, 30, 59):
        start = sizes[:place].sum()
        part, alone = slice(start, start + sizes[place]), features(talk, [place])
        np.testing.assert_allclose(rows[part], alone[0], rtol=1e-5)
        np.testing.assert_array_equal(of_threads[part], thread_features(talk, [place], shares, none))
        assert candidates[part].tolist() == alone[2].tolist()


def test_threads():
    assert [array.tolist() for array in threads(np.array([-1, 0, -1, 1, 2, 3]))] == [
        [0, 0, 2, 0, 2, 0],
        [0, 1, 0, 2, 1, 3],
    ]


def test_what_the_first_pass_found_stands_beside_the_candidates():
    """c speaks at last; a asks, b answers, c answers b, d goes on with a, and nobody knows whom c answers now."""
    talk = Talk(list("abcdcb"), range(6), ["x"] * 6, [[]] * 6, [0] * 6)
    shares, none = np.zeros((6, WIDTH)), np.zeros(6)
    none[0], shares[1, 0], shares[2, 0], shares[3, 2], shares[5, 0] = 1, 0.9, 0.8, 0.7, 0.6
    none[4], shares[4, :2] = 0.5, [0.2, 0.3]
    rows = thread_features(talk, [4], shares, none)
    found = {name: rows[:, place].tolist() for place, name in enumerate(NAMES_OF_THREADS)}  # of d, c, b, a and none
    expected = {
        "first_share": [0.2, 0.3, 0, 0, 0.5],
        "first_lead": [-0.3, -0.2, -0.5, -0.5, 0],
        "first_rank": [1, 0, 2, 3],
        "answers": [0, 0, 1, 2],
        "my_answers": [0, 0, 1, 0],
        "answers_share": [0, 0, 0.8, 1.6],
        "my_answers_share": [0, 0, 0.8, 0],
        "starts": [0, 0, 0, 1],
        "answers_somebody": [0.7, 0.8, 0.9, 0],
        "answers_me": [0, 0, 0, 0],
        "in_thread_of_my_last": [1, 1, 1, 1],
        "newest_of_thread": [1, 0, 0, 0],
        "size_of_thread": [4, 4, 4, 4],
        "unanswered": [1, 1, 0, 0],
        "depth": [1, 2, 1, 0],
        "people_of_thread": [4] * 4,
        "author_answers_me_next": [0, 0, 0.6, 0],
        "next_answer_me": [0.6] * 5,
        "my_next_go_on": [0] * 5,
    }
    for name, values in expected.items():
        assert found[name][: len(values)] == pytest.approx(values), name


@pytest.mark.parametrize(
    ("most", "stop_at_own_turn", "places", "sure"),
    [
        (10, False, [1, 0, 3], [0.6, 0.5, 0.4]),
        (10, True, [1, -1, 3], [0.6, 0.9, 0.4]),
        (1, False, [1, -1, -1], [0.6, 0.9, 0.6]),
    ],
)
def test_candidates_are_turns_of_others_and_what_is_out_of_view_counts_as_none(most, stop_at_own_turn, places, sure):
    shares = np.zeros((5, REACH))
    shares[2, :2] = 0.6, 0.3
    shares[3, :3] = 0.1, 0.4, 0.5  # whose own turn is the second before it
    shares[4, :4] = 0.4, 0.1, 0.3, 0.1
    found = choose(shares, np.array(list("abcbd")), np.array([2, 3, 4]), most, stop_at_own_turn)
    assert (found[0].tolist(), found[1].tolist()) == (places, pytest.approx(sure))


@pytest.mark.parametrize(
    ("tried", "threshold", "reason"),
    [
        ([(0.9, True)] * 49, None, "nothing alone: 49 quotes to test it on, 50 are needed"),
        (
            [(0.9, True)] * 45 + [(0.9, False)] * 5,
            0.8,
            "alone from 0.8 on: there it decides 50 of 50 quotes asked blind, 90% of them rightly",
        ),
        (
            [(0.95, True)] * 30 + [(0.85, False)] * 30,
            0.86,
            "alone from 0.86 on: there it decides 30 of 60 quotes asked blind, 100% of them rightly",
        ),
        (
            [(0.95, True)] * 19 + [(0.9, False)] * 31,
            None,
            "nothing alone: of 50 quotes asked blind it is surest of 50, and there right in 38%",
        ),
        (
            [(0.79, True)] * 60,
            None,
            "nothing alone: of 60 quotes asked blind it is sure (from 0.8 on) of fewer than 20",
        ),
    ],
)
def test_the_threshold_is_raised_until_nine_in_ten_are_right(tried, threshold, reason):
    earned, why = calibrated_threshold(tried, 0.8)
    assert (earned["threshold"], earned["quotes"], why) == (threshold, len(tried), reason)
