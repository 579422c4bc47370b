"""Who wrote a text: the classifier that compares the replies with the member's."""

import numpy as np
import pytest

from huiyin.voice.authorship import auc_interval, matched_weights, measure_authorship, say
from huiyin.voice.sampling import size_class
from speakers import formal, lively, loud, quiet, says


def measured(member, other, trained, base):
    replies = {"trained": trained, "base": base}
    return measure_authorship(
        says(member, 150, 1), says(other, 300, 1), says(member, 40, 2), says(other, 80, 2), replies, 1
    )


@pytest.mark.parametrize(("member", "other"), [(lively, formal), (loud, quiet)])
def test_replies_like_the_members_are_taken_for_his_and_the_others_are_not(member, other):
    found = measured(member, other, trained=says(member, 40, 2), base=says(other, 40, 3))
    assert found["usable"] and found["auc"]["low"] > 0.9
    assert found["trained"] == found["real"]  # a model that repeats the real replies reaches the ceiling
    assert found["trained"]["share"]["mean"] > 0.9 > 0.1 > found["base"]["share"]["mean"]
    assert found["trained"]["log_odds"]["low"] > 0 > found["others"]["log_odds"]["high"]
    assert f"{found['trained']['share']['mean']:.0%} of the trained model's" in say(found)


def test_of_a_member_whom_nobody_can_tell_nothing_is_claimed():
    found = measure_authorship(
        *(says(quiet, count, seed) for count, seed in ((150, 1), (300, 2), (60, 3), (100, 4))),
        {"trained": says(quiet, 60, 5), "base": says(loud, 60, 6)},
        seed=1,
    )
    assert 0.35 < found["auc"]["mean"] < 0.65
    assert set(found) == {"usable", "auc", "texts"} and found["usable"] is False
    assert "cannot tell" in say(found) and "nothing is claimed" in say(found)


def test_a_length_alone_tells_nothing():
    member, others = [["x" * (10 + place % width) for place in range(200)] for width in (10, 40)]
    assert measure_authorship(member, others, member, others, {}, 1)["usable"] is False
    weights = matched_weights(member, others)
    assert weights[0].sum() == pytest.approx(weights[1].sum())
    for length in {size_class(len(text)) for text in others}:
        of_class = [
            weight[[size_class(len(text)) == length for text in texts]].sum()
            for weight, texts in zip(weights, (member, others), strict=True)
        ]
        assert of_class[0] == pytest.approx(of_class[1])


@pytest.mark.parametrize("texts", [[], [""], ["嗯"], ["hello there"], ["嗯"] * 50, [" "] * 50, ["a\ud800b"] * 20])
def test_texts_that_tell_nothing(texts):
    many = says(lively, 30, 1)
    for member, others in ((texts, many), (many, texts), (texts, texts)):
        found = measure_authorship(member, others, member, others, {"trained": texts, "base": texts}, 1)
        assert found["usable"] in (True, False) and say(found).startswith("Authorship")
    assert measure_authorship(texts, texts, texts, texts, {}, 1)["usable"] is False


def test_empty_replies_are_never_taken_for_the_members():
    found = measured(lively, formal, trained=[""] * 20, base=[])
    assert found["trained"]["share"]["mean"] == 0 and found["base"] is None and "none of the base model's" in say(found)


def test_the_interval_of_the_auc_is_as_wide_as_samples_differ():
    random = np.random.default_rng(1)
    first, second = random.normal(0.8, 1.0, (1000, 40)), random.normal(0.0, 1.0, (1000, 90))
    means = (first[:, :, None] > second[:, None, :]).mean((1, 2))
    found = [
        auc_interval(*scores, np.ones(40), np.ones(90), seed=1) for scores in zip(first[:40], second, strict=False)
    ]
    assert [one.mean for one in found] == pytest.approx(means[:40])
    assert np.mean([one.high - one.low for one in found]) == pytest.approx(2 * 1.96 * means.std(), rel=0.15)


def test_the_interval_of_a_share_is_as_wide_as_samples_differ():
    draws = [measured(quiet, loud, says(quiet, 30, seed) + says(loud, 30, seed), [])["trained"] for seed in range(2)]
    width = np.mean([draw["share"]["high"] - draw["share"]["low"] for draw in draws])
    assert width == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 60), rel=0.15)
