"""Uncertainty of images, by hand: what is wide counts in full, what is thin by a quarter, whatever the strips are."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from segtune.selection.acquisition import (
    CELLS,
    LARGEST_WEIGHT,
    THIN,
    UncertaintyGrid,
    contributions,
    opened,
    rarity_weights,
)


def grid_of(labels: np.ndarray, confidence: np.ndarray, num_labels: int, step: int | None = None) -> UncertaintyGrid:
    grid = UncertaintyGrid(labels.shape, num_labels)
    for top in range(0, len(labels), step or len(labels)):
        part = slice(top, top + (step or len(labels)))
        grid.add(labels[part], confidence[part])
    return grid


def test_a_wide_place_counts_in_full_and_a_line_by_a_quarter() -> None:
    labels, confidence = np.zeros((80, 120), np.uint8), np.ones((80, 120), np.float32)  # cells of 4 x 4
    labels[8:32, 12:36], confidence[8:32, 12:36] = 1, 0.6
    confidence[:, 80:84] = 0.5  # a line of one cell
    found = grid_of(labels, confidence, 2).result()
    # of two classes, a doubt of 1/2 is all there can be: 1 - p is doubled
    assert found.sums == pytest.approx([THIN * 80 * 4 * 2 * 0.5, 24**2 * 2 * 0.4])
    assert found.pixels.tolist() == [80 * 120 - 24**2, 24**2]


@pytest.mark.parametrize("side", [1, 3, 5])
def test_opening_is_scipys(side: int) -> None:
    values = np.random.default_rng(0).random((17, 23))
    assert np.array_equal(opened(values, side), scipy.ndimage.grey_opening(values, size=side, mode="nearest"))


@pytest.mark.parametrize("step", [1, 7, 64, 256])
def test_strips_make_no_difference(step: int) -> None:
    rng = np.random.default_rng(1)
    size = (300, 5 * CELLS + 9)
    labels, confidence = rng.integers(0, 5, size).astype(np.uint8), rng.uniform(0.2, 1, size).astype(np.float32)
    grid = grid_of(labels, confidence, 5, step)
    assert grid.side == 6 and grid.shape == (50, 215)
    assert np.array_equal(grid.pixels, grid_of(labels, confidence, 5).pixels)
    assert np.allclose(grid.means(), grid_of(labels, confidence, 5).means(), rtol=1e-12)
    cell = (slice(18, 24), slice(60, 66))
    assert grid.means()[3, 10] == pytest.approx((1 - confidence[cell].astype(float)).mean() * 5 / 4)
    assert grid.pixels[3, 10].tolist() == np.bincount(labels[cell].ravel(), minlength=5).tolist()


def test_what_is_missing_does_not_count() -> None:
    labels, confidence = np.zeros((8, 8), np.uint8), np.full((8, 8), 0.5, np.float32)
    missing = np.zeros((8, 8), bool)
    missing[:4] = True
    grid = UncertaintyGrid((8, 8), 2)
    grid.add(labels, confidence, missing)
    found = grid.result()
    assert found.pixels.tolist() == [32, 0]
    assert found.sums == pytest.approx([32, 0])
    assert grid.means().tolist() == [[0, 0], [1, 1]]


def test_rare_classes_weigh_more() -> None:
    pixels = np.array([[60, 15, 0], [20, 5, 0]])  # 80, 20 and 0 of a hundred, in two images
    weights = rarity_weights(pixels)
    assert weights == pytest.approx([(1 / 3 / 0.8) ** 0.5, (1 / 3 / 0.2) ** 0.5, LARGEST_WEIGHT])
    sums = np.array([[6.0, 3.0, 0.0], [0.0, 1.0, 0.0]])
    parts = contributions(sums, pixels, weights)
    assert parts[0] == pytest.approx([6 * weights[0] / 75, 3 * weights[1] / 75, 0])
    assert parts[1].sum() == pytest.approx(weights[1] / 25)
