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


Sums = tuple[Sequence[float], Sequence[float]]  # (amounts, weights) of the rows, whose ratio of sums is measured


def ratio_interval(amounts: Sequence[float], weights: Sequence[float], seed: int) -> Interval:
    """Return sum(amounts) / sum(weights) with its percentile bootstrap interval (Efron 1979) over rows, drawn in pairs:
    for a mean over characters or tokens the rows are the independent units, not the characters. With weights of 1 it is
    the interval of a mean; with differences as amounts it is the paired one. At least one row with a weight above 0."""
    return percentiles(ratio(amounts, weights), resampled(amounts, weights, np.random.default_rng(seed)))


def difference_interval(first: Sums, second: Sums, seed: int) -> Interval:
    """Return the ratio of `first` minus that of `second`, of other rows, with its interval: each is drawn by itself."""
    random = np.random.default_rng(seed)
    return percentiles(ratio(*first) - ratio(*second), resampled(*first, random) - resampled(*second, random))


def ratio(amounts: Sequence[float], weights: Sequence[float]) -> float:
    return float(np.sum(amounts) / np.sum(weights))


def resampled(amounts: Sequence[float], weights: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """Return the ratio in each of `RESAMPLES` samples of the rows; NaN for one without weight."""
    rows = np.array([amounts, weights], dtype=float)
    sums = rows[:, random.integers(rows.shape[1], size=(RESAMPLES, rows.shape[1]))].sum(axis=2)
    return np.divide(sums[0], sums[1], out=np.full(RESAMPLES, np.nan), where=sums[1] > 0)


def percentiles(mean: float, drawn: np.ndarray) -> Interval:
    low, high = np.nanquantile(drawn, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return Interval(mean, float(low), float(high))
