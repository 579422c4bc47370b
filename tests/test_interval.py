"""Intervals by the bootstrap."""

import numpy as np

from huiyin.voice.interval import difference_interval, ratio_interval


def test_an_interval_holds_the_true_mean_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    found = [ratio_interval(random.exponential(2.0, 60), np.ones(60), seed=1) for _ in range(200)]
    assert 0.88 <= np.mean([one.low <= 2.0 <= one.high for one in found]) <= 0.98


def test_of_paired_differences_the_interval_is_as_narrow_as_they_are():
    random = np.random.default_rng(2)
    base = random.normal(4.0, 1.0, 80)
    trained = base - 0.3 + random.normal(0.0, 0.05, 80)
    one = ratio_interval(trained - base, np.ones(80), seed=1)
    assert one.low < -0.28 and one.high > -0.32 and one.high - one.low < 0.05


def test_long_rows_count_by_their_weight():
    assert ratio_interval([10.0, 1.0], [10.0, 1.0], seed=1).mean == 1.0
    assert ratio_interval([30.0, 0.0], [10.0, 20.0], seed=1).mean == 1.0


def test_the_interval_of_a_difference_holds_the_true_one_about_as_often_as_it_says():
    random, hits = np.random.default_rng(3), []
    for _ in range(200):
        gains = [(random.normal(mean, 1.0, size) * 10, np.full(size, 10)) for mean, size in ((1.5, 50), (1.0, 120))]
        one = difference_interval(*gains, seed=1)
        hits.append(one.low <= 0.5 <= one.high)
    assert 0.88 <= np.mean(hits) <= 0.98
