"""The order of the rows in an epoch: of like length together, and otherwise as they were shuffled."""

import random

import pytest

from huiyin.training.order import computed, together

ROWS = 1003


def shuffled(seed):
    return random.Random(seed).sample(range(ROWS), ROWS)


@pytest.fixture(scope="module")
def lengths():
    """Of rows that are mostly short, with a system text of 40 tokens each."""
    source = random.Random(7)
    return [40 + round(source.lognormvariate(5, 0.6)) for _ in range(ROWS)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_each_row_comes_once_and_little_padding_is_computed(lengths, size):
    order = together(shuffled(1), lengths, size)
    assert sorted(order) == list(range(ROWS))
    assert computed(order, lengths, size) <= 1.05 * sum(lengths)
    assert computed(shuffled(1), lengths, 8) > 1.5 * sum(lengths)


def test_single_rows_stay_as_they_were_shuffled(lengths):
    assert together(shuffled(1), lengths, 1) == shuffled(1)


def test_a_part_of_a_group_is_of_like_length_too(lengths):
    """After an out-of-memory error, micro-batches are smaller."""
    order = together(shuffled(1), lengths, 8)
    assert computed(order, lengths, 2) <= computed(order, lengths, 4) <= computed(order, lengths, 8)


def test_a_step_has_rows_of_any_length(lengths):
    """Steps of eight pairs: their mean lengths are as near to each other as those of rows that were only shuffled."""

    def spread(order):
        means = sorted(sum(lengths[row] for row in order[start : start + 16]) / 16 for start in range(0, 992, 16))
        return means[-6] / means[5]

    assert spread(sorted(shuffled(1), key=lambda row: lengths[row])) > 3
    assert spread(together(shuffled(1), lengths, 2)) < 1.5 * spread(shuffled(1))


def test_another_epoch_has_other_groups(lengths):
    pairs = [
        {frozenset(order[start : start + 2]) for start in range(0, 1002, 2)}
        for order in (together(shuffled(seed), lengths, 2) for seed in (1, 2))
    ]
    assert len(pairs[0] & pairs[1]) < 0.25 * len(pairs[0])
