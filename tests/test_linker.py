"""The linker: when it may decide alone, its features, and unusual histories."""

import json
import re
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

import huiyin.linking.linker
from case_folders import START, cases, compare, ledger_of, read_lines, turns
from helpers import run_script
from huiyin.linking.calibration import calibrated_threshold, held_out_quotes
from huiyin.linking.cases import Case, History
from huiyin.linking.conversation import WIDTH, Conversation
from huiyin.linking.features import NAMES, OF_LINE, OF_PAIR, features
from huiyin.linking.linker import HORIZON, Linker, decide
from huiyin.linking.messages import messages_of, probabilities_of_turns
from huiyin.linking.similarity import character_weights
from huiyin.linking.threads import NAMES as NAMES_OF_THREADS
from huiyin.linking.threads import roots_and_depths, thread_features
from llm_folder import arguments, prompt_of, succeeded
from scripts import pair


@cases("pair_with_a_model")
def test_the_linker_decides_alone_only_where_it_finds_the_quotes(case, folder):
    """answers.json: {reply: what the model answers}; for held-out quotes it answers none."""
    turns(read_lines(case / "turns.jsonl")).write_parquet(folder.path / "turns.parquet")
    answers = json.loads((case / "answers.json").read_text(encoding="utf-8"))

    def answer(k, body):
        shown = (number for reply, number in answers.items() if f"<发言>\n名me：{reply}\n" in prompt_of(body))
        return json.dumps({"answers": next(shown, "none")})

    folder.ollama.before_chat = answer
    folder.settings("pair", (case / "pair.yaml").read_text(encoding="utf-8"))
    done = succeeded(folder.pair())
    printed = [line for line in done.stdout.splitlines() if "linker decides" in line or "within" in line]
    linker = json.dumps(folder.json("paired/receipt.json")["linker"], indent=1) + "\n"
    lines = {name: (folder.path / "paired" / name).read_text("utf-8") for name in ("pairs.jsonl", "unpaired.jsonl")}
    # the confidence of the tiny model in an answer that it was given means nothing
    lines["pairs.jsonl"] = re.sub(r'("llm", "confidence": )[^,]+', r"\1null", lines["pairs.jsonl"])
    ledger = ledger_of(folder.path / "paired")
    compare(case, {"ledger.json": ledger, "linker.json": linker, **lines, "said.txt": "\n".join(printed) + "\n"})


def sent(minute, user, *texts, mentions=(), seconds=0):
    """A turn sent at `minute`: its messages `minute` * 10 and the next, `seconds` apart; `mentions` of the last one."""
    row = {
        "turn_id": minute,
        "user_id": user,
        "text": "，".join(texts),
        "texts": texts,
        "times": [START + timedelta(minutes=minute, seconds=seconds * number) for number in range(len(texts))],
        "mentioned": [*([] for _ in texts[1:]), mentions],
        "message_ids": [minute * 10 + number for number in range(len(texts))],
        "mentions": mentions,
        "time": 60 * minute,
    }
    return turns([row]).to_dicts()[0] | {"earlier_turns": 0}


@pytest.mark.parametrize("at_once", [1, 100])
def test_what_a_held_out_quote_mentions_is_seen_by_nobody(monkeypatch, at_once):
    """Not in the quote itself, not in the habits of its author, not by those who write before and after."""
    monkeypatch.setattr(huiyin.linking.linker, "CASES_AT_ONCE", at_once)
    plain = [sent(minute, user, f"text {minute % 4}") for minute, user in enumerate("abcabcabca")]
    quoting = [*plain[:8], sent(8, "c", "text 0", mentions=["a"]), *plain[9:]]
    cases = [Case(plain[turn_id], [], []) for turn_id in (5, 8, 9)]
    linker = Linker()
    history, without = (History(pl.DataFrame(rows).drop("earlier_turns"), 10, False) for rows in (quoting, plain))
    assert linker.decide_cases(cases, history) == linker.decide_cases(cases, without)
    assert linker.decide_cases([Case(quoting[8], [], [])], history) != linker.decide_cases(cases[1:2], history)


def test_a_held_out_quote_mentions_the_author_of_the_quote_in_none_of_its_messages():
    quoting = {**sent(1, "b", "so", "oh", mentions=["a", "c"]), "reply_to_turn": 0, "mentioned": [["a"], ["a", "c"]]}
    history = pl.DataFrame([sent(0, "a", "hm"), quoting]).drop("earlier_turns")
    [case] = held_out_quotes(History(history, 10, False), ["g"])
    assert (case.turn["mentions"], case.turn["mentioned"]) == (["c"], [[], ["c"]])


def test_messages_are_as_they_were_sent_and_in_that_order():
    history = [
        sent(0, "a", "one，one", "two", "three", mentions=["b"], seconds=20),
        {**sent(0, "b", "between"), "message_ids": [0.5]},
        {**sent(1, "c", "x", "y，z", seconds=7), "message_ids": [9, 7]},
    ]
    conversation, turn_of, message_ids = messages_of(history, lambda turn: turn["mentions"])
    assert conversation.texts == ("one，one", "between", "two", "three", "x", "y，z")
    assert (turn_of.tolist(), message_ids) == ([0, 1, 0, 0, 2, 2], (0, 0.5, 1, 2, 9, 7))
    assert np.diff(conversation.times).tolist() == [0, 20, 20, 20, 7]
    assert (conversation.named[:, 0] >= 0).tolist() == [False, False, False, True, False, False]


def test_a_turn_replies_to_what_its_most_confident_message_replies_to():
    turn_of = np.array([0, 1, 0, 2, 2])
    probabilities = np.zeros((5, 4))
    # turn 2, first message: two messages of turn 0 are one turn, two turns back; second: goes on with its own turn
    probabilities[3, :3], probabilities[4, :2] = [0.3, 0.2, 0.4], [0.9, 0.1]
    np.testing.assert_allclose(probabilities_of_turns(probabilities, turn_of, 3, 10)[2, :3], [0.2, 0.7, 0])


def test_features_do_not_depend_on_what_else_is_asked():
    generator = np.random.default_rng(1)
    users = [str(number) for number in generator.integers(0, 5, 60)]
    named = [[str(number)] if number < 3 else [] for number in generator.integers(0, 9, 60)]
    conversation = Conversation(users, np.arange(60.0) * 7 + 0.5, ["same"] * 60, named, range(60))
    everything = np.arange(60)
    rows, sizes, candidates = features(conversation, everything)
    assert sizes.tolist() == [1 + min(position, WIDTH) for position in range(60)]
    first_pass = generator.random((60, WIDTH)), generator.random(60)
    of_threads = thread_features(conversation, everything, *first_pass)
    for position in (0, 1, 7, 30, 59):
        alone, part = np.array([position]), slice(sizes[:position].sum(), sizes[: position + 1].sum())
        rows_alone, _, candidates_alone = features(conversation, alone)
        np.testing.assert_allclose(rows[part], rows_alone, rtol=1e-5)
        np.testing.assert_array_equal(of_threads[part], thread_features(conversation, alone, *first_pass))
        assert candidates[part].tolist() == candidates_alone.tolist()


def test_a_null_character_in_a_text_moves_no_other_text():
    weights = character_weights(["null\0null\0", "same words", "same words"])
    assert (weights @ weights.T).toarray()[1:, 1:].ravel().tolist() == pytest.approx([1] * 4)


def by_name(rows, names):
    """{feature: its values, nearest candidate first, the row for "replies to none" last}"""
    return {name: rows[:, number].tolist() for number, name in enumerate(names)}


def test_the_features_of_a_message_and_its_candidates():
    """The candidates of message 4, by a: message 3 by b, 2 by c, 1 by a, 0 by b."""
    messages = [  # author, seconds, text, who is named, earlier turns of the author
        ("b", 0.5, "how are you?", ["a"], 3),
        ("a", 10.5, "fine", ["b"], 60),
        ("c", 30.5, "what? www.x.org", ["d", "a"], 0),
        ("b", 60.5, "!list", ["d"], 4),
        ("a", 100.5, "How are you", ["c", "b"], 61),
        ("b", 110.5, "ok", ["a"], 5),
        ("a", 120.5, "yes", ["c"], 62),
        ("c", 130.5, "no", [], 1),
    ]
    rows, sizes, candidates = features(Conversation(*zip(*messages, strict=True)), np.array([1, 4]))
    assert (sizes.tolist(), candidates.tolist()) == ([2, 5], [0, -1, 3, 2, 1, 0, -1])
    found = by_name(rows[2:], NAMES)
    similar = found["characters"][3]  # message 0
    of_pair = {
        "is_none": [0, 0, 0, 0],
        "distance": [1, 2, 3, 4],
        "seconds": [40, 70, 90, 100],
        "own": [0, 0, 1, 0],
        "own_after": [0, 0, 0, 1],
        "author_after": [0, 0, 0, 1],
        "author_before": [1, 0, 0, 0],
        "people_after": [0, 1, 2, 2],
        "latest_of_author": [1, 1, 1, 0],
        "named_first": [0, 1, 0, 0],
        "named": [1, 1, 0, 1],
        "names_other": [0, 0, 1, 0],
        "names_me_first": [0, 0, 0, 1],
        "names_me": [0, 1, 0, 1],
        "names_somebody_else": [1, 0, 1, 0],
        "names_the_same": [0, 0, 1, 0],
        "author_is_my_last": [1, 0, 0, 1],
        "author_last_named_me": [0, 1, 0, 0],
        "named_after": [0, 0, 1, 0],
        "i_named_author": [1, 0, 0, 1],
        "author_named_me": [1, 1, 0, 1],
        "since_dealings": [2, 1, WIDTH, 2],
        "turns_taken": [1, 1, 0, 1],
        "i_name_author_elsewhere": [1 / 2, 1 / 2, 0, 1 / 2],
        "author_names_me_elsewhere": [2 / 3, 1 / 2, 0, 2 / 3],
        "i_follow_author": [1, 0, 0, 3 / 2],
        "question": [0, 1, 0, 1],
        "length": [5, 15, 4, 12],
        "link": [0, 1, 0, 0],
        "order_sign": [1, 0, 0, 0],
        "seconds_to_next": [40, 30, 20, 10],
        "seconds_since_previous": [30, 20, 10, 1e6],
        "nearest_other": [1, 0, 0, 0],
        "latest_named": [1, 1, 0, 0],
        "characters": [0, 0, 0, similar],
        "words": [0, 0, 0, 1],
        "rank_of_characters": [1, 2, 3, 0],
        "author_characters": [similar, 0, 0, similar],
        "rarest_word": [0, 0, 0, 1 / 3],
        "lines_after_own": [2, 1, 0, -1],
        "author_before_own": [1, 0, 0, 1],
        "author_and_me_of_ten": [3, 2, 1, 3],
        "author_next": [0, 2, 1, 0],
        "author_next_names_me": [1, 0, 0, 1],
        "i_name_author_next": [0, 1, 0, 0],
        "author_said": [4, 0, 50, 3],
    }
    of_line = {
        "line_question": 0,
        "line_length": 11,
        "line_link": 0,
        "line_order_sign": 0,
        "line_names": 2,
        "line_calls": 0,
        "line_named_here": 1,
        "own_distance": 2,
        "own_seconds": 90,
        "waiting_for_me": 1,
        "seconds_of_ten": 1e6,
        "people_of_ten": 3,
        "people": 3,
        "line_characters": similar,
        "seen": 4,
        "naming_in_group": 7 / 8,
        "naming_by_me": 1,
        "asked_by_others": 1,
        "names_me_since_own": 1,
        "seconds_since_last": 40,
        "line_said": 50,
    }
    assert (list(of_pair), list(of_line), 0.5 < similar < 1) == (OF_PAIR, OF_LINE, True)
    for name, values in of_pair.items():
        none = 1 if name == "is_none" else np.nan
        assert found[name] == pytest.approx([*values, none], nan_ok=True), name
    for name, value in of_line.items():
        assert found[name] == pytest.approx([value] * 5), name
    # message 1 has one candidate, and its author has written nothing before
    without_own = {"own_distance": WIDTH, "own_seconds": 1e6, "lines_after_own": WIDTH, "waiting_for_me": 1}
    without_own |= {"author_last_named_me": 1, "author_is_my_last": 0, "since_dealings": 0, "seconds_of_ten": 1e6}
    assert {name: by_name(rows[:2], NAMES)[name][0] for name in without_own} == without_own


def test_each_message_has_the_root_of_its_thread_and_its_depth():
    roots, depths = roots_and_depths(np.array([-1, 0, -1, 1, 2, 3]))
    assert (roots.tolist(), depths.tolist()) == ([0, 0, 2, 0, 2, 0], [0, 1, 0, 2, 1, 3])


def test_the_features_of_the_second_pass():
    """Message 5, by c: before it b replied to a, c to b, d to c; message 0 is another thread; later b replies to it."""
    conversation = Conversation(list("babcdcbc"), range(8), ["x"] * 8, [[]] * 8, [0] * 8)
    probabilities, none = np.zeros((8, WIDTH)), np.zeros(8)
    none[:2], probabilities[2, 0], probabilities[3, 0], probabilities[4, [0, 2]] = 1, 0.9, 0.8, [0.7, 0.1]
    none[5], probabilities[5, :2] = 0.5, [0.2, 0.3]
    probabilities[6, [0, 2, 3]], probabilities[7, [1, 2]] = [0.6, 0.3, 0.1], [0.2, 0.5]
    rows = thread_features(conversation, np.array([5]), probabilities, none)
    found = by_name(rows, NAMES_OF_THREADS)  # of messages 4 by d, 3 by c, 2 by b, 1 by a, 0 by b, and none
    expected = {
        "first_share": [0.2, 0.3, 0, 0, 0, 0.5],
        "first_rank": [1, 0, 2, 3, 4],
        "first_lead": [-0.3, -0.2, -0.5, -0.5, -0.5, 0],
        "answers": [0, 1, 1, 1, 0],
        "my_answers": [0, 0, 1, 0, 0],
        "answers_share": [0, 0.7, 0.8, 1.0, 0],
        "my_answers_share": [0, 0, 0.8, 0, 0],
        "starts": [0, 0, 0, 1, 1],
        "answers_me": [0.7, 0, 0, 0, 0],
        "answers_somebody": [0.8, 0.8, 0.9, 0, 0],
        "in_thread_of_my_last": [1, 1, 1, 1, 0],
        "i_am_in_thread": [1, 1, 1, 1, 0],
        "newest_of_thread": [1, 0, 0, 0, 1],
        "size_of_thread": [4, 4, 4, 4, 1],
        "unanswered": [1, 0, 0, 0, 1],
        "answers_mine": [1, 0, 0, 0, 0],
        "depth": [3, 2, 1, 0, 0],
        "people_of_thread": [4, 4, 4, 4, 0],  # b counts where they wrote last
        "author_answers_me_next": [0, 0.2, 0.6, 0, 0.6],
        "my_next_answer_it": [0.5, 0, 0, 0, 0],
        "next_of_others_answer_it": [0, 0.3, 0, 0, 0],
        "author_goes_on_next": [0, 0, 0.1, 0, 0],
        "first_none": [0.5] * 6,
        "next_answer_me": [0.8] * 6,
        "my_next_go_on": [0.2] * 6,
    }
    assert list(expected) == NAMES_OF_THREADS
    for name, values in expected.items():
        assert found[name][: len(values)] == pytest.approx(values), name


@pytest.mark.parametrize(
    ("candidates", "stop_at_own_turn", "replied_to", "confidences"),
    [
        (10, False, [1, 0, 3], [0.6, 0.5, 0.4]),
        (10, True, [1, -1, 3], [0.6, 0.9, 0.4]),
        (1, False, [1, -1, -1], [0.6, 0.9, 0.6]),
    ],
)
def test_only_candidates_can_be_replied_to(candidates, stop_at_own_turn, replied_to, confidences):
    """Candidates are turns of others; replies to anything else count as replies to none."""
    probabilities = np.zeros((5, HORIZON))
    probabilities[2, :2] = 0.6, 0.3
    probabilities[3, :3] = 0.1, 0.4, 0.5  # whose own turn is the second before it
    probabilities[4, :4] = 0.4, 0.1, 0.3, 0.1
    decided = decide(probabilities, np.array(list("abcbd")), np.array([2, 3, 4]), candidates, stop_at_own_turn)
    assert (decided[0].tolist(), decided[1].tolist()) == (replied_to, pytest.approx(confidences))


@pytest.mark.parametrize(
    ("tested", "threshold", "reason"),
    [
        ([(0.9, True)] * 49, None, "nothing alone: 49 held-out quotes, 50 are needed"),
        (
            [(0.9, True)] * 45 + [(0.9, False)] * 5,
            0.8,
            "alone from confidence 0.8 on: 90% of its decisions on 50 of 50 held-out quotes are right",
        ),
        (
            [(0.95, True)] * 30 + [(0.85, False)] * 30,
            0.86,
            "alone from confidence 0.86 on: 100% of its decisions on 30 of 60 held-out quotes are right",
        ),
        (
            [(0.95, True)] * 19 + [(0.9, False)] * 31,
            None,
            "nothing alone: 38% of its decisions on the 50 most confident of 50 held-out quotes are right",
        ),
        (
            [(0.79, True)] * 60,
            None,
            "nothing alone: it is confident (from 0.8 on) about fewer than 20 of 60 held-out quotes",
        ),
    ],
)
def test_the_threshold_is_raised_until_nine_in_ten_are_right(tested, threshold, reason):
    result, why = calibrated_threshold(tested, 0.8)
    assert (result["threshold"], result["quotes"], why) == (threshold, len(tested), reason)


@pytest.mark.parametrize(
    ("wrong", "before", "threshold"), [(6, 0.8, 0.8), (7, 0.8, 0.86), (6, None, 0.86), (5, 0.9, 0.8)]
)
def test_the_threshold_of_the_last_time_stays_while_it_is_nearly_as_good(wrong, before, threshold):
    tested = [(0.95, True)] * (50 - wrong) + [(0.85, False)] * wrong
    assert calibrated_threshold(tested, 0.8, before)[0]["threshold"] == threshold


def test_pair_knows_the_threshold_of_the_last_time(folder, monkeypatch):
    seen = []

    def thresholds(groups, quotes, decisions, settings, earlier):
        seen.append(earlier)
        return {group: {"threshold": 0.83} for group in groups}

    monkeypatch.setattr(pair, "calibrated_thresholds", thresholds)
    folder.ollama.before_chat = lambda k, body: '{"answers": "none"}'
    for shown in (10, 20):
        folder.settings("pair", f"characters_shown: {shown}\n")
        succeeded(run_script("pair", *arguments("pair", folder.path)))
    assert seen[0] == {} and [*seen[1].values()] == [{"threshold": 0.83}]
