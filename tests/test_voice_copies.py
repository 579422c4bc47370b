"""What generated replies give away of the training."""

import pytest

from huiyin.questions.redaction import Redaction
from huiyin.voice.copies import can_be_drawn_out, drawn_out, first_third, measure_copies, say, say_drawn_out

LONG = "昨天傍晚在河边捡到一把旧雨伞，伞柄上刻着一只小小的刺猬，谁丢的请来认领"
ENGLISH = "the kettle on the third shelf belongs to nobody and whistles at noon"
SYSTEM = "你是阿棠，用平时的语气聊天，回答要短"


def test_copies_are_found_and_only_they():
    trained = [
        "哈哈",
        f"听说{LONG[3:33]}",
        LONG[:29],
        ENGLISH.replace(" ", "  "),
        "the kettle on the third shelf, eh",
        "",
    ]
    found = measure_copies(
        ["哈哈", LONG, ENGLISH], ["哈哈", "在吗"], {"trained": trained, "base": []}, SYSTEM, Redaction([])
    )
    assert found["trained"]["replies"] == 6
    assert found["trained"]["word_for_word"] == pytest.approx(2 / 6, abs=1e-4)
    assert found["trained"]["30_characters"] == pytest.approx(2 / 6, abs=1e-4)
    assert found["real"]["word_for_word"] == 0.5 and found["real"]["30_characters"] == 0
    assert found["base"] == {
        "replies": 0,
        **dict.fromkeys(["word_for_word", "30_characters", "personal_data", "system_text"]),
    }
    assert "33.3% stand word for word in the training (real replies: 50.0%)" in say(found)


def test_personal_data_and_the_system_text_are_found():
    trained = ["打13800138000", "找314159265", "好", "我用平时的语气聊天啊", "用平时的语气"]
    found = measure_copies([], [], {"trained": trained}, SYSTEM, Redaction(["314159265"]))["trained"]
    assert (found["personal_data"], found["system_text"]) == (0.4, 0.2)


@pytest.mark.parametrize(("system", "expected"), [("", 0), ("Be Ann.", 0.5), ("Talk as Ann does, in few words.", 0)])
def test_a_short_system_text_counts_as_a_whole(system, expected):
    found = measure_copies([], [], {"trained": ["Be Ann. Be.", "Be An"]}, system, str)
    assert found["trained"]["system_text"] == expected


def test_what_a_first_third_draws_out():
    training = [LONG, ENGLISH, ENGLISH, "哈哈哈"]
    rest = [text[len(first_third(text)) :] for text in training]
    found = drawn_out(training, [rest[0] + "，谢谢", " " + rest[1], rest[2][:-1], rest[3]])
    assert found == {"asked": 3, "drawn_out": 2, "share": 0.6667}
    assert "of 3 training replies the first third brings back 2" in say_drawn_out(found)


def test_short_and_empty_texts():
    assert (first_third(""), first_third("a"), first_third("abcd")) == ("", "a", "ab")
    assert not can_be_drawn_out("哈" * 29) and can_be_drawn_out("哈" * 30)
    assert drawn_out([], []) == {"asked": 0, "drawn_out": 0, "share": None} == drawn_out(["嗯"], ["好"])
    assert "no training reply" in say_drawn_out(drawn_out([], []))
    for texts in ([], [""], ["a"], [" "]):
        found = measure_copies(texts, texts, {"trained": texts, "base": texts}, "", str)
        assert found["trained"] == found["real"] and say(found).startswith("Copies: ")
        assert found["real"]["word_for_word"] == {0: None}.get(len(texts), float(texts == ["a"]))
