"""Boundary IoU and boundary F1: quality along the boundaries of classes.

Distances are those of the chessboard: a pixel is within d of another when neither row nor column differ by more than
d. Ignored pixels say nothing: they belong to no class, count nowhere, and a class that ends at them has no boundary
there; the prediction is ignored where the reference is.

Sources: Cheng et al. 2021, "Boundary IoU" (arXiv 2103.16562); Csurka et al. 2013, "What is a good evaluation measure
for semantic segmentation?" (boundary F1).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from segtune.evaluation.scores import class_scores, mean, ratio

WIDTH = 0.02  # of the margin of boundary IoU, as a share of the image's diagonal (Cheng et al.; 0.005 for Cityscapes)
TOLERANCE = 0.0075  # of boundary F1, as a share of the image's diagonal (Csurka et al.)
_STRIP = 1 << 17  # pixels that are looked at together, so that they stay in the cache
COLUMNS = (
    "boundary_correct",
    "boundary_reference",
    "boundary_prediction",
    "contour_reference",
    "contour_reference_found",
    "contour_prediction",
    "contour_prediction_found",
)


def pixels_of(share: float, shape: tuple[int, ...]) -> int:
    """A share of the diagonal of an image `(height, width)` in whole pixels, at least 1."""
    return max(1, round(share * math.hypot(*shape)))


def boundary_counts(
    prediction: np.ndarray, labels: np.ndarray, num_labels: int, ignore_index: int = 255, width: float = WIDTH
) -> np.ndarray:
    """What boundary IoU and boundary F1 are made of, for one image.

    Args:
        prediction: ids `(H, W)`.
        labels: ids or `ignore_index` `(H, W)`.
        width: of the margin inside each class along its boundary, as a share of the diagonal.

    Returns:
        int64 `(K, 7)`, in the order of `COLUMNS`: pixels that are in the margin of both maps and of one class there, of
        the reference's margin, of the prediction's; contour pixels of the reference, those of them within `TOLERANCE`
        of a contour pixel of the same class of the prediction, and the same the other way round. The image's frame
        counts as a boundary for the margin, as in Cheng et al.'s code, but not as a contour.
    """
    ignored = labels == ignore_index
    ids, truth = (from_one(values, ignored, num_labels) for values in (prediction, labels))
    in_truth, in_ids = (margin(values, pixels_of(width, ids.shape), frame=True) for values in (truth, ids))
    picked = [truth[in_truth & in_ids & (truth == ids)], truth[in_truth], ids[in_ids]]
    contours = [np.where(margin(values, 1, corners=False), values, 0) for values in (truth, ids)]
    for own, other in (contours, reversed(contours)):
        picked += [own[own > 0], own[_has_like_within(own, other, pixels_of(TOLERANCE, ids.shape))]]
    counts = [np.bincount(values, minlength=num_labels + 1)[1:] for values in picked]
    return np.stack(counts, axis=1)  # (K, 7)


def boundary_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """`boundary_iou` and `boundary_f1` of each class `(K,)`, nan where absent, and their means; from `(K, 7)`."""
    correct, reference, prediction, *contour = counts.T
    of_reference, reference_found, of_prediction, prediction_found = contour
    recall, precision = ratio(reference_found, of_reference), ratio(prediction_found, of_prediction)
    both = np.nan_to_num(precision) + np.nan_to_num(recall)
    f1 = np.where(both > 0, ratio(2 * precision * recall, both), 0.0)
    f1 = np.where(of_reference + of_prediction > 0, f1, np.nan)  # one side alone: nothing of it is found
    iou = class_scores(correct, reference, prediction)["iou"]
    means = {"mean_boundary_iou": mean(iou), "mean_boundary_f1": mean(f1)}
    return means | {"boundary_iou": iou, "boundary_f1": f1}


def margin(ids: np.ndarray, distance: int, frame: bool = False, corners: bool = True) -> np.ndarray:
    """The margin along boundaries: where a pixel of another class is within `distance`, bool `(H, W)`.

    Args:
        ids: classes from 1; 0 is ignored, `(H, W)`.
        frame: the image ends in another class on all sides.
        corners: False: only pixels in the same row or column are looked at.
    """
    top = np.iinfo(ids.dtype).max
    low_ids = np.where(ids == 0, top, ids)  # never the lowest
    if corners:
        low = _running(_running(low_ids, distance, 0, np.minimum), distance, 1, np.minimum)
        high = _running(_running(ids, distance, 0, np.maximum), distance, 1, np.maximum)
        found = low != high
    else:
        found = np.zeros(ids.shape, dtype=bool)
        for axis in (0, 1):
            found |= _running(low_ids, distance, axis, np.minimum) != _running(ids, distance, axis, np.maximum)
    if frame:
        for view in (found, found.T):
            view[:distance] = view[-distance:] = True
    found &= ids != 0
    return found


def from_one(ids: np.ndarray, ignored: np.ndarray, num_labels: int) -> np.ndarray:
    """The map with classes from 1 and 0 for ignored pixels, of the smallest type that holds them."""
    dtype: Any = np.uint8 if num_labels < 255 else np.uint16
    return np.where(ignored, dtype(0), ids.astype(dtype) + dtype(1))


def _running(values: np.ndarray, distance: int, axis: int, function: np.ufunc) -> np.ndarray:
    """`function` over the window of `2 distance + 1` pixels around each one along an axis, in log2(distance) passes."""
    values = np.moveaxis(values, axis, 0)
    size = len(values)
    padded = np.pad(values, ((distance, distance), (0, 0)), mode="edge")  # the nearest pixel's value changes nothing
    reached, length = 1, 2 * distance + 1
    while reached < length:
        step = min(reached, length - reached)
        padded = function(padded[:-step], padded[step:])
        reached += step
    return np.moveaxis(padded[:size], 0, axis)


def _has_like_within(own: np.ndarray, other: np.ndarray, distance: int) -> np.ndarray:
    """Where `own` has a class that `other` has within `distance`, bool `(H, W)`; 0 is no class.

    One bit a class, so that up to 64 classes are looked for at once; in strips of rows that stay in the cache.
    """
    found = np.zeros(own.shape, dtype=bool)
    number = int(max(own.max(), other.max())) + 1
    present = [np.bincount(ids[ids > 0], minlength=number) for ids in (own, other)]
    shared = np.flatnonzero(np.minimum(*present))
    step = max(4 * distance, _STRIP // own.shape[1])
    for start in range(0, len(shared), 64):
        group = shared[start : start + 64]
        dtype = np.dtype(next(f"u{size}" for size in (1, 2, 4, 8) if len(group) <= 8 * size))
        bits = np.zeros(number, dtype=dtype)
        bits[group] = dtype.type(1) << np.arange(len(group), dtype=dtype)
        for top in range(0, len(own), step):
            above = max(0, top - distance)
            near = bits[other[above : top + step + distance]]
            for axis in (0, 1):
                near = _running(near, distance, axis, np.bitwise_or)
            mine = bits[own[top : top + step]]
            found[top : top + step] |= (near[top - above :][: len(mine)] & mine) != 0
    return found
