"""How far generated replies are from the member's habits of writing."""

import pytest

from huiyin.voice import habits
from huiyin.voice.habits import measure_habits, say, split, typical_words
from speakers import formal, lively, loud, quiet, says


@pytest.mark.parametrize(("member", "other"), [(lively, formal), (quiet, loud)])
def test_a_model_like_the_member_is_as_near_as_two_halves_and_another_is_not(member, other):
    replies = {"trained": says(member, 120, 3), "base": says(other, 120, 3)}
    found = measure_habits(says(member, 120, 2), replies, says(member, 300, 1), says(other, 300, 1), "，", seed=1)
    assert set(found) == {*habits.NUMBERS, *habits.LABELS, "typical_words"}
    for row in found.values():
        assert row["distance_trained"] == pytest.approx(row["distance_of_halves"], abs=0.09)
        assert 0 <= row["distance_trained"] <= 1 and 0 <= row["distance_base"] <= 1
    assert found["typical_words"]["real"] > 0.8 and found["typical_words"]["distance_base"] > 0.8
    means = [sum(row[f"distance_{name}"] for row in found.values()) for name in ("of_halves", "trained", "base")]
    assert means[2] > 3 * means[1]
    shown = sum(any(row.values()) for row in found.values())
    assert 5 < shown < len(found) and f"{means[0] / shown:.2f} between two halves" in say(found)


def test_the_same_replies_are_no_farther_than_halves_and_sizes_do_not_matter():
    real = says(lively, 80, 2)
    found = measure_habits(real, {"same": real, "few": says(lively, 12, 3)}, [], [], "，", seed=1)
    assert all(row["distance_same"] <= row["distance_of_halves"] + 0.02 for row in found.values())
    differences = [row["distance_few"] - row["distance_of_halves"] for row in found.values()]
    assert sum(differences) / len(found) == pytest.approx(0, abs=0.04)


@pytest.mark.parametrize(
    ("habit", "text", "labels"),
    [
        ("punctuation", "好啊，走！看https://a.example/b?c=d", ["，", "！"]),
        ("punctuation", "[捂脸]行", []),
        ("punctuation_at_the_end", "走吧！ ", ["！"]),
        ("punctuation_at_the_end", "走吧[捂脸]", [""]),
        ("punctuation_at_the_end", "see https://a.example/", [""]),
        ("faces", "[捂脸]笑死/呲牙了🎈", ["[捂脸]", "/呲牙", "🎈"]),
        ("faces", "打[电话]给我 http://a.example/：", []),
        ("faces", "fine :) XD, not x:Dy", [":)", "XD"]),
        ("faces", "👍🏽❤️", ["👍", "❤️"]),
        ("particles", "走吧！！[捂脸]", ["吧"]),
        ("particles", "吧台在哪", [""]),
        ("repeated_letters", "Hahaha 哈哈哈哈~~~ 好好", ["ah", "哈", "~"]),
        ("repeated_letters", "ahahah", ["ah"]),
        ("repeated_letters", "www.example.org", []),
        ("links", "看 https://a.example", ["link"]),
        ("links", "见第3页", []),
        ("small_first_letter", " well", ["small"]),
        ("small_first_letter", "Well", [""]),
        ("small_first_letter", "好", [""]),
    ],
)
def test_what_counts(habit, text, labels):
    assert habits.LABELS[habit]([text]) == labels


def test_messages_are_parted_by_the_separator_alone():
    assert split("走，去哪，", "，") == ["走", "去哪"]
    assert split("a b", "") == ["a b"] and split(" ", "，") == [""]
    found = measure_habits(["走，去哪"] * 4, {"trained": ["走", "走，好"] * 2, "base": []}, [], [], "，", seed=1)
    assert say(found).endswith(" Messages in a reply: 2.00 (real), 1.50 (trained), unknown (base).")
    found = measure_habits(["走，去哪"] * 4, {"trained": ["走"] * 4}, [], [], "，", seed=1)
    assert (found["messages"]["real"], found["messages"]["trained"]) == (2, 1)
    assert (found["characters"]["real"], found["characters"]["distance_trained"]) == (3, 1)
    assert found["punctuation"]["real"] == 0


def test_typical_words_are_those_of_the_member_alone():
    words = typical_words(["咱俩 okay then"] * 30 + ["一般"] * 30, ["一般 then"] * 60)
    assert {"咱", "俩", "咱俩", "okay"} == words
    assert typical_words(["一般"] * 50, ["一般"] * 90) == typical_words(["一般"] * 50, []) == set()


@pytest.mark.parametrize("texts", [[], [""], ["嗯"], ["!"], ["\ud800"], [" ", "嗯"], ["，"] * 3])
def test_few_or_empty_texts(texts):
    for real in (texts, ["嗯嗯", "好"]):
        found = measure_habits(real, {"trained": texts, "base": []}, texts, texts, "，", seed=1)
        assert all(row["base"] is None and row["distance_base"] is None for row in found.values())
        assert "unknown (base)" in say(found)
