"""The greedy k-center choice, by hand and against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from segtune.selection.core_set import k_center, most_uncertain


def test_the_farthest_comes_next() -> None:
    features = np.array([[0.0, 0], [1, 0], [10, 0], [9, 0], [5, 0]])
    picks = k_center(features, np.array([1, 0, 2, 3, 4]), 4)
    assert [pick.image for pick in picks] == [1, 2, 4, 0]  # of 0 and 3, both 1 away, the first candidate
    assert [pick.nearest for pick in picks] == [None, 1, 1, 1]
    assert [pick.distance for pick in picks] == [math.inf, 9, 4, 1]


def test_each_image_once_even_if_all_are_equal() -> None:
    picks = k_center(np.ones((3, 2)), np.array([2, 0, 1]), 9)
    assert [pick.image for pick in picks] == [2, 0, 1]
    assert [pick.distance for pick in picks] == [math.inf, 0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_every_choice_is_the_farthest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, candidates = rng.random((40, 6)).astype(np.float32), rng.permutation(40)[:25]
    picks = k_center(features, candidates, 8)
    for number in range(1, 8):
        chosen = features[[pick.image for pick in picks[:number]]].astype(float)
        distance = np.linalg.norm(features[candidates].astype(float)[:, None] - chosen, axis=2).min(axis=1)
        assert picks[number].image == candidates[distance.argmax()]
        assert picks[number].distance == pytest.approx(distance.max())
    assert {pick.image for pick in picks} <= set(candidates.tolist())


def test_the_first_of_equal_scores() -> None:
    assert most_uncertain(np.array([1.0, 3.0, 3.0, 2.0]), 3).tolist() == [1, 2, 3]
