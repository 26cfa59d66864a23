"""Intervals against scipy's bootstrap and by simulation; permutation tests and q-values against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from segtune.evaluation.bootstrap import bootstrap, false_discovery_rate, permutation_test
from segtune.evaluation.scores import ratio


def ratios(sums):
    """(…, 2 S) -> (…, S)."""
    return ratio(*np.split(sums, 2, axis=-1))


def images(seed: int, number: int, of: np.ndarray | None = None):
    """Intersection and union of one class in each image; with `of`, those of another run on the images of that one."""
    rng = np.random.default_rng(seed)
    union = rng.gamma(1.0, 1000, number).round() + 1 if of is None else of[:, 1]
    return np.stack([np.floor(union * rng.beta(5, 1, number)), union], axis=1)


@pytest.mark.parametrize(("number", "level"), [(12, 0.95), (60, 0.8)])
def test_equals_scipy(number, level):
    counts = images(number, number)
    found = bootstrap(counts, ratios, level=level, resamples=999, seed=5)
    for method, own in (("percentile", found.percentile), ("BCa", found.bca)):
        theirs = scipy.stats.bootstrap(
            tuple(counts.T),
            lambda part, whole, axis: part.sum(axis) / whole.sum(axis),
            paired=True,
            vectorized=True,
            n_resamples=999,
            confidence_level=level,
            method=method,
            rng=np.random.default_rng(5),  # draws the same resamples
        ).confidence_interval
        np.testing.assert_allclose(own[0], [theirs.low, theirs.high], rtol=1e-9)
    assert found.estimate[0] == counts[:, 0].sum() / counts[:, 1].sum() and found.defined[0] == 1


def test_steps_do_not_show(monkeypatch):
    counts = images(0, 50)
    at_once = bootstrap(counts, ratios, resamples=500)
    p_at_once = permutation_test(counts, images(1, 50), ratios, resamples=500)
    monkeypatch.setattr("segtune.evaluation.bootstrap._ELEMENTS", 50 * 7)
    np.testing.assert_allclose(bootstrap(counts, ratios, resamples=500).bca, at_once.bca, rtol=1e-12)
    p_in_steps = permutation_test(counts, images(1, 50), ratios, resamples=500)
    assert p_in_steps[0] == pytest.approx(p_at_once[0], abs=0.05)


def test_absent_scores_and_those_of_one_image_have_no_interval():
    counts = np.zeros((9, 8))  # part and whole of four classes
    counts[:, [0, 4]] = images(2, 9)
    counts[3, [1, 5]] = (5, 10)  # in one image
    counts[[2, 6], 2], counts[[2, 6], 6] = (5, 1), (10, 10)  # in two
    found = bootstrap(counts, ratios, resamples=400)
    assert np.isnan(found.bca).any(axis=1).tolist() == [False, True, False, True]
    assert np.isnan(found.percentile).any(axis=1).tolist() == [False, True, False, True]
    assert found.defined[0] == 1 and found.defined[3] == 0
    assert found.defined[2] == pytest.approx(1 - (7 / 9) ** 9, abs=0.05)
    assert (found.percentile[2] == [0.1, 0.5]).all()  # only resamples with one of the two images count
    assert np.isnan(bootstrap(counts[:1], ratios, resamples=10).bca).all()


def test_perfect_scores_have_an_interval_without_width():
    counts = np.repeat(images(3, 20)[:, 1:], 2, axis=1)
    assert bootstrap(counts, ratios, resamples=100).bca.tolist() == [[1, 1]]


def test_permutation_test_is_that_of_scipy():
    first = images(4, 25)
    second = images(5, 25, of=first)
    found = permutation_test(first, second, ratios, resamples=20_000)
    whole = first[:, 1].sum()
    theirs = scipy.stats.permutation_test(
        (first[:, 0], second[:, 0]),
        lambda a, b, axis: (b.sum(axis) - a.sum(axis)) / whole,
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    )
    assert 0.02 < theirs.pvalue < 0.9
    assert found[0] == pytest.approx(theirs.pvalue, abs=0.015)


def test_permutation_test_of_a_run_with_itself_and_of_different_runs():
    counts = images(6, 30)
    assert permutation_test(counts, counts.copy(), ratios, resamples=99).tolist() == [1.0]
    worse = counts * [0.9, 1]
    assert permutation_test(counts, worse, ratios, resamples=999).tolist() == [1 / 1000]
    absent = np.hstack([counts, np.zeros((30, 2))])[:, [0, 2, 1, 3]]
    assert math.isnan(permutation_test(absent, absent, ratios, resamples=9)[1])


def test_p_values_are_uniform_where_nothing_differs():
    p_values = []
    for seed in range(400):
        first = images(seed, 40)
        second = images(seed + 5000, 40, of=first)
        p_values.append(permutation_test(first, second, ratios, resamples=199, seed=seed)[0])
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.01


def test_false_discovery_rate_is_that_of_scipy():
    p_values = np.random.default_rng(0).uniform(0, 1, 30) ** 3
    np.testing.assert_allclose(false_discovery_rate(p_values), scipy.stats.false_discovery_control(p_values))
    with_gap = false_discovery_rate(np.append(p_values, np.nan))
    assert math.isnan(with_gap[-1])
    np.testing.assert_allclose(with_gap[:-1], false_discovery_rate(p_values))
    assert false_discovery_rate(np.array([np.nan])).shape == (1,)
