from __future__ import annotations

import numpy as np
import pytest

from segtune.doctor.alignment import (
    REACH,
    align,
    class_edges,
    image_edges,
    measure_alignment,
    reduction,
    without_rims,
)


def scene(seed: int = 0, size: tuple[int, int] = (97, 131)) -> tuple[np.ndarray, np.ndarray]:
    """A grey picture of rectangles, noisy and brightest to the left, and the mask (H, W) of them."""
    generator = np.random.default_rng(seed)
    mask = np.zeros(size, dtype=np.uint8)
    for value in range(1, 12):
        top, left = generator.integers(0, size[0] - 20), generator.integers(0, size[1] - 30)
        height, width = generator.integers(8, 40, 2)
        mask[top : top + height, left : left + width] = value
    grey = 90.0 + 13 * mask.astype(float) + np.linspace(40, 0, size[1]) + generator.normal(0, 4, size)
    return grey.clip(0, 255).astype(np.uint8), mask


def test_both_sides_of_a_change_are_edges() -> None:
    codes = np.array([[1, 1, 1, 1], [1, 1, 5, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(class_edges(codes), [[0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 1, 0]])


def test_ignored_rim_is_divided_among_its_neighbours() -> None:
    codes = np.array([[1, 1, 255, 255, 255, 255, 2, 2]] * 3)
    assert without_rims(codes, [255]).tolist() == [[1, 1, 1, 1, 2, 2, 2, 2]] * 3
    assert without_rims(codes, []) is codes
    seldom = np.array([[1, 2, 1, 2, 1, 255, 1, 2]] * 3)  # most classes touch
    assert without_rims(seldom, [255]) is seldom


def test_mask_whose_rims_are_ignored_fits() -> None:
    grey, mask = scene()
    edges = class_edges(mask) > 0
    for _ in range(2):  # a rim of 6 pixels
        edges[1:-1, 1:-1] = edges[1:-1, 1:-1] | edges[:-2, 1:-1] | edges[2:, 1:-1] | edges[1:-1, :-2] | edges[1:-1, 2:]
    pixels = np.dstack([grey] * 3)
    with_rims = np.where(edges, 255, mask)
    blind, _ = align(pixels, with_rims)
    seeing, _ = align(pixels, with_rims, [255])
    assert blind is not None and seeing is not None
    assert seeing.evidence_here > max(6.0, 2 * blind.evidence_here)


def test_gradient_is_the_root_of_its_length() -> None:
    grey = np.array([[0, 0, 16, 16], [0, 0, 16, 16], [9, 9, 25, 25]], dtype=np.uint8)
    edges = image_edges(grey)
    assert edges[0, 1] == 4  # 16 across
    assert edges[1, 1] == pytest.approx((16**2 + 9**2) ** 0.25)  # 16 across, 9 down
    assert edges[1, 0] == 3  # at the border, nothing is known across


def test_right_mask_fits_without_a_shift() -> None:
    grey, mask = scene()
    found = measure_alignment(class_edges(mask), image_edges(grey), 1)
    assert found is not None
    assert found.distance <= 1
    assert found.here == found.best > 0.3
    assert found.evidence_here > 10
    assert found.surface.shape == (2 * REACH + 1, 2 * REACH + 1)


@pytest.mark.parametrize(("down", "right"), [(3, 0), (0, -5), (-7, 4), (12, 12)])
def test_shift_of_a_mask_is_measured(down: int, right: int) -> None:
    grey, mask = scene()
    moved = np.roll(mask, (down, right), (0, 1))
    found = measure_alignment(class_edges(moved), image_edges(grey), 1)
    assert found is not None
    assert max(abs(found.shift[0] + down), abs(found.shift[1] + right)) <= 1  # it must move back
    assert found.here < 0.75 * found.best
    scaled = measure_alignment(class_edges(moved), image_edges(grey), 3)
    assert scaled is not None
    assert scaled.shift == (3 * found.shift[0], 3 * found.shift[1])
    assert scaled.distance == found.distance


def test_mask_of_another_image_does_not_fit() -> None:
    evidence = []
    for seed in range(8):
        found = measure_alignment(class_edges(scene(seed + 100)[1]), image_edges(scene(seed)[0]), 1)
        assert found is not None
        evidence.append(found.evidence_here)
    assert max(evidence) < 6
    assert np.median(evidence) < 2


def test_nothing_is_said_of_little() -> None:
    grey, mask = scene()
    assert measure_alignment(class_edges(np.zeros_like(mask)), image_edges(grey), 1) is None
    assert measure_alignment(class_edges(mask), image_edges(np.full_like(grey, 7)), 1) is None
    assert measure_alignment(class_edges(mask[:60, :60]), image_edges(grey[:60, :60]), 1) is None


@pytest.mark.parametrize(("size", "factor"), [((360, 480), 1), ((512, 300), 1), ((513, 300), 2), ((1024, 2048), 4)])
def test_long_side_is_reduced(size: tuple[int, int], factor: int) -> None:
    assert reduction(size) == factor
