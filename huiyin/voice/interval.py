"""Intervals by the bootstrap: how far a mean of a few rows can be trusted."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

RESAMPLES, SHARE = 2_000, 0.95


@dataclass(frozen=True)
class Interval:
    """A mean, and the bounds that hold the true one in 95 % of samples."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items()}


def ratio_interval(amounts: Sequence[float], weights: Sequence[float], seed: int) -> Interval:
    """Return sum(amounts) / sum(weights) with its percentile bootstrap interval (Efron 1979) over rows, drawn in pairs:
    for a mean over characters or tokens the rows are the independent units, not the characters. With weights of 1 it is
    the interval of a mean; with differences as amounts it is the paired one. At least one row with a weight above 0."""
    rows = np.array([amounts, weights], dtype=float)
    drawn = np.random.default_rng(seed).integers(rows.shape[1], size=(RESAMPLES, rows.shape[1]))
    sums = rows[:, drawn].sum(axis=2)
    means = sums[0][sums[1] > 0] / sums[1][sums[1] > 0]
    low, high = np.quantile(means, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return Interval(float(rows[0].sum() / rows[1].sum()), float(low), float(high))
