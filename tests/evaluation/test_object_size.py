"""IoU by object size against SciPy's components and hand-computed cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage

from segtune.evaluation.object_size import COLUMNS, SIZES, object_areas, object_sizes, size_counts, size_scores

LIMITS = [limit for limit in SIZES.values() if limit]


def blocks(seed: int, num_labels: int, shape: tuple[int, int], cell: int):
    """A reference of blocks with ignored speckles, and a prediction that is shifted."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, num_labels, (shape[0] // cell + 1, shape[1] // cell + 1))
    truth = np.kron(small, np.ones((cell, cell), int))[: shape[0], : shape[1]]
    ids = np.roll(truth, (1, 2), (0, 1))
    return ids, np.where(rng.random(shape) < 0.05, 255, truth)


def sizes_by_scipy(ids: np.ndarray, valid: np.ndarray) -> np.ndarray:
    found = np.zeros(ids.shape, np.uint8)
    for k in np.unique(ids):
        components, number = scipy.ndimage.label((ids == k) & valid, np.ones((3, 3)))
        areas = np.bincount(components.ravel(), minlength=number + 1)
        sizes = np.searchsorted(LIMITS, areas, side="right")
        found = np.where(components > 0, sizes[components], found)
    return found


@pytest.mark.parametrize(
    ("shape", "cell"), [((120, 130), 40), ((257, 300), 90), ((64, 1), 3), ((1, 64), 3), ((90, 77), 2)]
)
def test_sizes_equal_those_of_scipy(shape, cell):
    _, ids = blocks(cell, 3, shape, cell)
    found = object_sizes(ids, ids != 255)
    np.testing.assert_array_equal(found, sizes_by_scipy(ids, ids != 255))
    if min(shape) > 100:
        assert len(np.unique(found)) > 1


def test_areas_equal_those_of_scipy():
    _, ids = blocks(1, 3, (90, 77), 9)
    classes, areas = object_areas(ids, ids != 255)
    for k in range(3):
        components, _ = scipy.ndimage.label(ids == k, np.ones((3, 3)))
        assert sorted(areas[classes == k]) == sorted(np.bincount(components.ravel())[1:])
    assert set(classes) == {0, 1, 2} and areas.sum() == (ids != 255).sum()


def test_objects_touch_at_corners_and_not_around_the_edge():
    ids = np.zeros((40, 64), np.uint8)
    ids[:, :32][np.add.outer(np.arange(40), np.arange(32)) % 2 == 0] = 1  # a chessboard: 640 pixels of one object
    ids[20:, 60:] = 1
    sizes = object_sizes(ids, np.ones(ids.shape, bool))
    assert sizes[0, 0] == sizes[20, 60] == 0
    wide = np.zeros((2, 1200), np.uint8)
    wide[0, 600:], wide[1, :600] = 1, 1  # the end of one row is no neighbour of the start of the next
    assert object_sizes(wide, np.ones(wide.shape, bool))[0, 1199] == 1  # joined at the corner: 1200 pixels, medium
    wide[1, 500:600] = 0
    assert object_sizes(wide, np.ones(wide.shape, bool))[0, 1199] == 0


def test_by_hand():
    truth = np.zeros((100, 120), np.uint8)
    truth[:10, :10], truth[40:80, 40:80] = 1, 1  # small, medium
    truth[90:, 100:] = 255
    ids = truth.copy()
    ids[:10, 8:10] = 0  # 20 pixels of the small one missed
    ids[40:80, 80:85] = 1  # 200 false pixels, part of a medium object
    ids[99, :7] = 1  # and 7 that are an object of their own
    ids[truth == 255] = 1
    counts = dict(zip(COLUMNS, size_counts(ids, truth, 2)[1].tolist(), strict=True))
    assert counts == {
        "small_correct": 80, "small_reference": 100, "small_prediction": 87,
        "medium_correct": 1600, "medium_reference": 1600, "medium_prediction": 1800,
        "large_correct": 0, "large_reference": 0, "large_prediction": 0,
    }  # fmt: skip
    scores = size_scores(size_counts(ids, truth, 2))
    assert scores["iou_small"][1] == pytest.approx(80 / 107)
    assert scores["iou_medium"][1] == pytest.approx(1600 / 1800)
    assert math.isnan(scores["iou_large"][1]) and scores["mean_iou_large"] == scores["iou_large"][0]


def test_sizes_add_up_to_the_class():
    ids, truth = blocks(3, 4, (200, 210), 45)
    counts = size_counts(ids, truth, 4).reshape(4, 3, 3).sum(axis=1)
    valid = truth != 255
    for k in range(4):
        expected = [(valid & (truth == k) & (ids == k)).sum(), (valid & (truth == k)).sum(), (valid & (ids == k)).sum()]
        assert counts[k].tolist() == expected


def test_nothing_but_ignored_pixels():
    assert size_counts(np.zeros((4, 5), int), np.full((4, 5), -100), 2, ignore_index=-100).sum() == 0
