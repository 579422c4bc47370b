"""Which samples are one conversation: quotes first, then the partner, then the time alone."""

from datetime import UTC, datetime, timedelta

import polars as pl

from huiyin.questions.conversations import conversations, with_threads

START = datetime(2024, 5, 4, 8, tzinfo=UTC)
MINUTES = 10
USERS = ["mia", "noa", "mia", "noa", "80000000", "80000000"]  # of the turns 0 to 5


def sample(turn_id, minute, prompt=None, group="1"):
    """Return the line of the member's turn, that many minutes after the start, in reply to the turn `prompt`."""
    time = (START + timedelta(minutes=minute)).strftime("%Y-%m-%dT%H:%M:%SZ")
    line = {"turn_id": turn_id, "turn_ids": [turn_id], "group_id": group, "time": time}
    return line if prompt is None else {**line, "prompt_turn_id": prompt}


def found(samples, quotes=None, most=4, minutes=MINUTES):
    """Return the conversations as turn ids. quotes: {turn: the turn it quotes}."""
    quoted = [(quotes or {}).get(turn_id) for turn_id in range(len(USERS))]
    turns = pl.DataFrame({"turn_id": range(len(USERS)), "user_id": USERS, "reply_to_turn": quoted}, strict=False)
    turns = turns.with_columns(pl.col("turn_id", "reply_to_turn").cast(pl.Int64))
    parts = conversations(with_threads(samples, turns), most, minutes)
    return [[sample["turn_id"] for sample in part] for part in parts]


def test_two_partners_at_once_are_two_conversations():
    samples = [sample(10, 0, 0), sample(11, 1, 1), sample(12, 2, 2), sample(13, 3, 3)]
    assert found(samples) == [[10, 12], [11, 13]]


def test_a_quote_leads_back_to_a_conversation_with_another_partner():
    samples = [sample(10, 0, 0), sample(11, 1, 2), sample(12, 2, 3)]
    assert found(samples[:2]) == [[10, 11]]
    # noa quotes a turn in which mia quoted the first reply
    assert found([sample(10, 0, 0), sample(14, 1, 1), sample(12, 2, 3)], {3: 2, 2: 10}) == [[14], [10, 12]]
    # two replies to the same turn
    assert found([sample(10, 0, 0), sample(14, 1, 1), sample(12, 2, 0)]) == [[14], [10, 12]]


def test_what_has_no_partner_follows_by_time_alone():
    assert found([sample(10, 0, 0), sample(11, 1), sample(12, 2)]) == [[10, 11, 12]]
    assert found([sample(10, 0, 4), sample(11, 1, 1), sample(12, 2, 5)]) == [[10, 11, 12]]


def test_two_partners_one_after_the_other_are_two_conversations():
    assert found([sample(10, 0, 0), sample(11, 1, 1), sample(12, 2)]) == [[10], [11, 12]]


def test_whole_conversations_are_joined_by_time_not_torn():
    samples = [sample(10, 0, 0), sample(11, 1, 1), sample(12, 2, 2), sample(13, 4)]
    assert found(samples) == [[11], [10, 12, 13]]
    assert found(samples, most=2) == [[10, 12], [11, 13]]


def test_a_gap_or_another_group_ends_a_conversation():
    assert found([sample(10, 0, 0), sample(11, MINUTES, 2)]) == [[10], [11]]
    assert found([sample(10, 0, 0), sample(11, 1, 2, group="2")]) == [[10], [11]]
    assert found([sample(10, 0, 0), sample(11, 0, 2)], minutes=0) == [[10], [11]]


def test_each_sample_is_in_one_conversation_of_at_most_so_many():
    samples = [sample(10 + number, number // 3, [0, 1, None, 4][number % 4]) for number in range(200)]
    for most in (1, 2, 4, None):
        parts = found(samples, most=most)
        assert sorted(turn_id for part in parts for turn_id in part) == list(range(10, 210))
        assert max(map(len, parts)) <= (most or 200)
        assert all(part == sorted(part) for part in parts)
        assert [part[-1] for part in parts] == sorted(part[-1] for part in parts)


def test_quotes_in_a_circle_end():
    assert found([sample(10, 0, 0), sample(11, 1, 2)], {0: 2, 2: 0}) == [[10, 11]]
