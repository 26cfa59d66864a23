"""Bootstrap confidence intervals and paired permutation tests: error bars by resampling images.

The scores are ratios of sums: the IoU of a class is a function of counts that are added over images. So a resample of
the images is a vector of multiplicities, many resamples are a matrix, and their counts one matrix product.

Sources: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapters 13 to 15 (percentile, BCa, permutation
tests); Benjamini and Hochberg 1995 (false discovery rate).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from segtune.bars import progress_bar

RESAMPLES = 10_000
LEVEL = 0.95

Statistic = Callable[[np.ndarray], np.ndarray]  # summed counts (…, C) -> scores (…, S), nan where undefined

_ELEMENTS = 1 << 21  # of the matrix of multiplicities of one step
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Intervals:
    """Bootstrap intervals of S scores; nan where there is none.

    Attributes:
        estimate: of all images, `(S,)`.
        percentile, bca: lower and upper end, `(S, 2)`.
        defined: share of the resamples in which a score was defined, `(S,)`. The others are left out of its interval,
            so that it is conditional on its class being there at all.
    """

    estimate: np.ndarray
    percentile: np.ndarray
    bca: np.ndarray
    defined: np.ndarray


def bootstrap(
    counts: np.ndarray, statistic: Statistic, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Intervals:
    """Intervals of scores under resampling of images (or of groups of images) with replacement.

    Args:
        counts: whole numbers of each image, float64 `(N, C)`.
        level: coverage that the intervals aim at.

    Returns:
        Percentile and bias-corrected, accelerated (BCa) intervals, the acceleration by the jackknife. A score that
        rests on a single image (without it, it is undefined) has no interval.
    """
    estimate = statistic(counts.sum(axis=0))  # (S,)
    drawn = [statistic(weights @ counts) for weights in _multiplicities(len(counts), resamples, seed)]
    scores = np.concatenate(drawn)  # (resamples, S)
    acceleration = _acceleration(counts, statistic, estimate)
    percentile, bca = np.full((2, len(estimate), 2), np.nan)
    defined = ~np.isnan(scores)
    outer = np.array([(1 - level) / 2, (1 + level) / 2])
    for index, value in enumerate(estimate):
        if np.isnan(value) or np.isnan(acceleration[index]):
            continue
        column = np.sort(scores[defined[:, index], index])
        percentile[index] = np.quantile(column, outer)
        bca[index] = np.quantile(column, _bca_levels(column, value, acceleration[index], outer))
    return Intervals(estimate, percentile, bca, defined.mean(axis=0))


def permutation_test(
    first: np.ndarray, second: np.ndarray, statistic: Statistic, *, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Two-sided p-values of the difference of scores of two runs on the same images, `(S,)`.

    Under the null hypothesis the runs could be exchanged in any image: in each resample they are, in half of the
    images, and p is the share of resamples whose difference is at least that of the runs (the runs themselves counted
    as one). nan where a score of one of them is undefined.

    Args:
        first, second: counts of the same N images, float64 `(N, C)`.
    """
    change, total = second - first, (first.sum(axis=0), second.sum(axis=0))
    observed = np.abs(statistic(total[1]) - statistic(total[0]))  # (S,)
    rng, reached = np.random.default_rng(seed), np.ones(observed.shape)
    for rows in _steps(resamples, len(first), "permutation test"):
        swapped = rng.integers(0, 2, (rows, len(first))).astype(np.float64)
        moved = swapped @ change  # (step, C)
        difference = np.abs(statistic(total[1] - moved) - statistic(total[0] + moved))
        reached += (~(difference < observed * (1 - 1e-12))).sum(axis=0)  # undefined ones count as reached
    return np.where(np.isnan(observed), np.nan, reached / (resamples + 1))


def false_discovery_rate(p_values: np.ndarray) -> np.ndarray:
    """The q-value of each p-value (Benjamini and Hochberg): the false discovery rate if it and all below it count.

    As SciPy's `false_discovery_control`, but nan stays nan, and `segtune compare` does not wait for all of scipy.stats.
    """
    q_values = np.full(p_values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(-p_values[known])]  # the largest first
    ranked = p_values[order] * len(order) / np.arange(len(order), 0, -1)
    q_values[order] = np.minimum.accumulate(ranked)
    return q_values


def _multiplicities(size: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image is drawn: float64 `(step, size)`, `resamples` rows in all."""
    rng = np.random.default_rng(seed)
    for rows in _steps(resamples, size, "bootstrap"):
        drawn = rng.integers(0, size, (rows, size))
        drawn += np.arange(0, rows * size, size)[:, None]
        yield np.bincount(drawn.reshape(-1), minlength=rows * size).reshape(rows, size).astype(np.float64)


def _steps(resamples: int, size: int, name: str) -> Iterator[int]:
    """How many resamples of `size` images to take at a time; where it takes long, a bar shows on stderr."""
    step = max(1, _ELEMENTS // size)
    with progress_bar(total=resamples, desc=name, delay=3, leave=False) as bar:
        for start in range(0, resamples, step):
            rows = min(step, resamples - start)
            yield rows
            bar.update(rows)


def _acceleration(counts: np.ndarray, statistic: Statistic, estimate: np.ndarray) -> np.ndarray:
    """Of the BCa interval of each score, by the jackknife; nan where a score is undefined without one of the images."""
    total = counts.sum(axis=0)
    sums, squares, cubes = np.zeros((3, len(estimate)))
    for start in range(0, len(counts), step := max(1, _ELEMENTS // counts.shape[1])):
        left_out = statistic(total - counts[start : start + step]) - estimate  # (step, S)
        for power, kept in enumerate((sums, squares, cubes), start=1):
            kept += (left_out**power).sum(axis=0)
    average = sums / len(counts)
    cubes = cubes - 3 * average * squares + 2 * len(counts) * average**3  # around the average
    spread = np.maximum(squares - len(counts) * average**2, 0) ** 1.5
    result = np.divide(-cubes, 6 * spread, out=np.zeros_like(spread), where=spread > 0)
    return np.where(np.isnan(sums), np.nan, result)


def _bca_levels(scores: np.ndarray, estimate: float, acceleration: float, outer: np.ndarray) -> list[float]:
    """Where the ends of the BCa interval lie in the sorted scores of the resamples: Efron and Tibshirani (14.10)."""
    below = np.searchsorted(scores, estimate, side="left") + np.searchsorted(scores, estimate, side="right")
    share = below / (2 * len(scores))  # those equal to the estimate count half
    bias = _NORMAL.inv_cdf(float(np.clip(share, 0.5 / len(scores), 1 - 0.5 / len(scores))))
    shifted = [bias + _NORMAL.inv_cdf(float(end)) for end in outer]
    return [_NORMAL.cdf(bias + shift / (1 - acceleration * shift)) for shift in shifted]
