from __future__ import annotations

import math

import numpy as np
import pytest

from segtune.evaluation.evaluation import Evaluation
from segtune.report.mistakes import most_confused, regions


def test_confusions_are_ranked_by_the_share_of_the_true_class() -> None:
    counts = np.array([[90, 9, 1], [40, 50, 10], [0, 0, 0]])
    found = most_confused(counts, 3)
    assert [(pair.truth, pair.predicted, pair.share, pair.pixels) for pair in found] == [
        (1, 0, 0.4, 40),
        (1, 2, 0.1, 10),
        (0, 1, 0.09, 9),
    ]
    assert most_confused(counts, 1) == found[:1]


def test_confusions_of_a_handful_of_pixels_are_not_named() -> None:
    counts = np.array([[99_900, 100, 0], [3, 7, 0], [995, 0, 99_005]])  # 3 of 200,010 pixels; 0.1 %; 0.995 %
    assert most_confused(counts, 8) == []
    assert most_confused(np.zeros((2, 2), int), 8) == []


def test_pixels_near_boundaries_are_told_from_the_interior() -> None:
    labels = np.zeros((10, 20), np.int64)
    labels[:, 10:] = 1  # one boundary, in the middle
    prediction = labels.copy()
    prediction[:5, 9] = 1  # 5 mistakes beside it
    prediction[0, 0] = 1  # and one far away
    evaluation = Evaluation(["a", "b"], detailed=True, boundary_width=0.05)  # 0.05 * sqrt(10² + 20²): 1 pixel
    evaluation.add("x", labels, prediction, np.full(labels.shape, 0.9, np.float32))
    found = regions(evaluation)
    assert found["boundary"] == pytest.approx((20 / 200, 15 / 20, 5 / 6))
    assert found["interior"] == pytest.approx((180 / 200, 179 / 180, 1 / 6))
    perfect = Evaluation(["a", "b"], detailed=True, boundary_width=0.05)
    perfect.add("x", labels, labels, np.full(labels.shape, 0.9, np.float32))
    assert math.isnan(regions(perfect)["boundary"].mistakes)
