"""Boundary IoU and boundary F1 against brute force by distance and hand-computed cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.ndimage

from segtune.evaluation.boundary import TOLERANCE, boundary_counts, boundary_scores, margin, pixels_of


def blocks(seed: int, num_labels: int, shape: tuple[int, int], cell: int = 6, ignored: float = 0.1):
    """A reference of blocks with holes that are ignored, and a prediction that is shifted and speckled."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, num_labels, (shape[0] // cell + 1, shape[1] // cell + 1))
    truth = np.kron(small, np.ones((cell, cell), int))[: shape[0], : shape[1]]
    ids = np.roll(truth, rng.integers(-2, 3, 2), (0, 1))
    speckled = rng.random(shape) < 0.02
    ids = np.where(speckled, rng.integers(0, num_labels, shape), ids)
    holes = np.kron(rng.random((shape[0] // 3 + 1, shape[1] // 3 + 1)) < ignored, np.ones((3, 3)))
    truth[holes[: shape[0], : shape[1]] > 0] = 255
    return ids.astype(np.uint8), truth.astype(np.uint8)


def distance_to(places: np.ndarray) -> np.ndarray:
    """Chessboard distance of every pixel to the nearest of `places` (H, W)."""
    if not places.any():
        return np.full(places.shape, np.inf)
    return scipy.ndimage.distance_transform_cdt(~places, "chessboard")


def brute_force(ids: np.ndarray, truth: np.ndarray, num_labels: int, width: float, ignore: int = 255):
    """The seven counts of each class by the definitions, one class at a time."""
    valid, counts = truth != ignore, []
    distance, reach = (max(1, round(share * math.hypot(*truth.shape))) for share in (width, TOLERANCE))
    frame = np.ones(np.add(truth.shape, 2), bool)
    frame[1:-1, 1:-1] = False
    near_frame = distance_to(frame)[1:-1, 1:-1] <= distance
    for k in range(num_labels):
        margins, contours = [], []
        for values in (truth, ids):
            mask, outside = valid & (values == k), valid & (values != k)
            margins.append(mask & ((distance_to(outside) <= distance) | near_frame))
            padded = np.pad(outside, 1)
            touching = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
            contours.append(mask & touching)
        found = [own & (distance_to(other) <= reach) for own, other in itertools.permutations(contours)]
        maps = [margins[0] & margins[1], *margins, contours[0], found[0], contours[1], found[1]]
        counts.append([int(values.sum()) for values in maps])
    return np.array(counts)


@pytest.mark.parametrize(("shape", "num_labels", "width"), [
    ((31, 43), 3, 0.02),
    ((43, 31), 5, 0.1),
    ((17, 60), 9, 0.3),
    ((1, 20), 2, 0.02),
    ((5, 4), 2, 2.0),
    ((150, 160), 4, 0.02),  # a tolerance of 2 pixels
])  # fmt: skip
@pytest.mark.parametrize("pixels", [1, 1 << 17])  # of a strip
def test_equals_brute_force_by_distance(shape, num_labels, width, pixels, monkeypatch):
    monkeypatch.setattr("segtune.evaluation.boundary._STRIP", pixels)
    ids, truth = blocks(num_labels, num_labels, shape)
    counts = boundary_counts(ids, truth, num_labels, width=width)
    np.testing.assert_array_equal(counts, brute_force(ids, truth, num_labels, width))


def test_by_hand():
    truth = np.zeros((12, 12), np.uint8)
    truth[:, 6:] = 1
    ids = np.zeros((12, 12), np.uint8)
    ids[:, 7:] = 1
    correct, reference, prediction, *contour = boundary_counts(ids, truth, 2, width=0.05)[1]  # one pixel wide
    assert (reference, prediction) == (2 * 12 + 2 * 4, 2 * 12 + 2 * 3)  # two columns and the rows at the frame
    assert correct == 12 + 2 * 4  # column 11 and, at the frame, columns 7 to 10
    assert contour == [12, 12, 12, 12]  # shifted by one pixel: within the tolerance
    scores = boundary_scores(boundary_counts(ids, truth, 2, width=0.05))
    assert scores["boundary_iou"][1] == pytest.approx(20 / (32 + 30 - 20))
    assert scores["mean_boundary_f1"] == 1


def test_perfect_missing_and_absent_classes():
    truth = np.zeros((20, 20), np.uint8)
    truth[5:10, 5:10] = 1
    perfect = boundary_scores(boundary_counts(truth, truth, 3))
    np.testing.assert_array_equal(perfect["boundary_iou"], [1, 1, np.nan])
    np.testing.assert_array_equal(perfect["boundary_f1"], [1, 1, np.nan])
    assert perfect["mean_boundary_iou"] == perfect["mean_boundary_f1"] == 1
    missed = boundary_scores(boundary_counts(truth * 0, truth, 3))
    assert missed["boundary_iou"][1] == 0
    np.testing.assert_array_equal(missed["boundary_f1"], [0, 0, np.nan])  # no contour is predicted
    wrong = boundary_scores(boundary_counts(truth * 2, truth, 3))
    np.testing.assert_array_equal(wrong["boundary_f1"][1:], [0, 0])


def test_ignored_pixels_make_no_boundary_and_hide_what_is_predicted_there():
    truth = np.full((30, 30), 255, np.uint8)
    truth[5:25, 5:25] = 1
    ids = np.ones((30, 30), np.uint8)
    ids[:5] = 0
    counts = boundary_counts(ids, truth, 2)
    assert counts.sum() == 0  # one class, and it ends at ignored pixels only
    assert (boundary_counts(np.where(truth == 255, 77, ids), truth, 2) == counts).all()


@pytest.mark.parametrize("num_labels", [70, 300])
def test_many_classes(num_labels):
    rng = np.random.default_rng(0)
    truth = rng.permutation(num_labels * 4).reshape(-1, 20).astype(np.int64) % num_labels
    ids = np.roll(truth, 1, axis=0)
    expected = brute_force(ids, truth, num_labels, 0.02, ignore=-100)
    np.testing.assert_array_equal(boundary_counts(ids, truth, num_labels, ignore_index=-100), expected)


def test_margin_and_width():
    ids = np.array([[1, 1, 1, 2, 0, 3]], np.uint8)
    assert margin(ids, 1).tolist() == [[False, False, True, True, False, False]]
    assert margin(ids, 2).tolist() == [[False, True, True, True, False, True]]
    assert margin(ids, 1, frame=True).tolist() == [[True, True, True, True, False, True]]
    corner = np.array([[1, 1], [1, 2]], np.uint8)
    assert margin(corner, 1)[0, 0] and not margin(corner, 1, corners=False)[0, 0]
    assert pixels_of(0.02, (1024, 2048)) == 46 and pixels_of(0.001, (10, 10)) == 1
