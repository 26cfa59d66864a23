"""IoU by object size: objects are connected components of one class, eight neighbours a pixel.

An object is small below 32² pixels, medium below 96², else large: the limits of COCO (Lin et al. 2014, arXiv
1405.0312), in pixels of the mask. A pixel of the reference belongs to the size of the reference's object that it is
in; a false positive, which is in none, to the size of the predicted object. So the pixels of the three sizes add up to
those of the class: `correct` and `reference` go by the reference's objects, and `prediction` is `correct` plus false
positives.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from segtune.evaluation.scores import class_scores, mean

SIZES = {"small": 32**2, "medium": 96**2, "large": None}  # the area below which an object has this size
COLUMNS = tuple(f"{size}_{count}" for size in SIZES for count in ("correct", "reference", "prediction"))


def size_counts(prediction: np.ndarray, labels: np.ndarray, num_labels: int, ignore_index: int = 255) -> np.ndarray:
    """Pixel counts by object size, for one image.

    Args:
        prediction: ids `(H, W)`.
        labels: ids or `ignore_index` `(H, W)`; ignored pixels belong to no object of either map.

    Returns:
        int64 `(K, 9)`: correct, reference and prediction of each size, in the order of `COLUMNS`.
    """
    valid = labels != ignore_index
    truth_size, predicted_size = (object_sizes(ids, valid)[valid] for ids in (labels, prediction))
    truth, ids = labels[valid].astype(np.intp), prediction[valid].astype(np.intp)
    correct = truth == ids

    def count(classes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        codes = classes * len(SIZES) + sizes
        return np.bincount(codes, minlength=num_labels * len(SIZES)).reshape(num_labels, len(SIZES))  # (K, sizes)

    hits = count(truth[correct], truth_size[correct])
    false = count(ids[~correct], predicted_size[~correct])
    return np.stack([hits, count(truth, truth_size), hits + false], axis=-1).reshape(num_labels, -1)  # (K, 9)


def size_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """`iou_small`, `iou_medium`, `iou_large` of each class `(K,)`, nan where absent, and their means; from `(K, 9)`."""
    scores: dict[str, np.ndarray] = {}
    for index, size in enumerate(SIZES):
        iou = class_scores(*counts[:, 3 * index : 3 * index + 3].T)["iou"]
        scores |= {f"mean_iou_{size}": mean(iou), f"iou_{size}": iou}
    return scores


def object_sizes(ids: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The size of the object that each pixel is in, as an index into `SIZES`, uint8 `(H, W)`; 0 where not valid."""
    starts, lengths, of_pixel = _runs(ids, valid)
    objects = _joined(ids.reshape(-1)[starts], starts, lengths, ids.shape[1], valid.reshape(-1)[starts])
    areas = np.bincount(objects, weights=lengths)  # (objects,)
    limits = [limit for limit in SIZES.values() if limit is not None]
    sizes = np.searchsorted(limits, areas, side="right").astype(np.uint8)
    return np.where(valid, sizes[objects][of_pixel].reshape(ids.shape), np.uint8(0))


def object_areas(ids: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class and number of pixels of every object of a map `(H, W)`, both `(objects,)`; none where it is not valid."""
    starts, lengths, _ = _runs(ids, valid)
    known = valid.reshape(-1)[starts]
    objects = _joined(ids.reshape(-1)[starts], starts, lengths, ids.shape[1], known)
    first = np.unique(objects, return_index=True)[1]  # the first run of each
    areas = np.bincount(objects, weights=lengths).astype(np.int64)
    return ids.reshape(-1)[starts[first]][known[first]], areas[known[first]]


def _runs(ids: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The horizontal runs of one class: where each starts in the flat map, its length, and the run of every pixel."""
    first = np.ones(ids.shape, dtype=bool)
    first[:, 1:] = (ids[:, 1:] != ids[:, :-1]) | (valid[:, 1:] != valid[:, :-1])
    starts = np.flatnonzero(first)
    lengths = np.diff(starts, append=ids.size)
    return starts, lengths, np.repeat(np.arange(len(starts)), lengths)


def _joined(classes: np.ndarray, starts: np.ndarray, lengths: np.ndarray, width: int, valid: np.ndarray) -> np.ndarray:
    """The object of each run: runs of one class that touch, at a corner or more, in rows below each other are one."""
    ends = starts + lengths - 1
    # The runs of the row above that reach from one column left of a run to one right of it, within that row.
    left = np.maximum(starts - 1, starts // width * width) - width
    right = np.minimum(ends + 1, starts // width * width + width - 1) - width
    first, last = np.searchsorted(ends, left), np.searchsorted(starts, right, side="right")
    first, last = np.where(right < 0, 0, first), np.where(right < 0, 0, last)
    count = last - first
    below = np.repeat(np.arange(len(starts)), count)
    above = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    like = (classes[below] == classes[above]) & valid[below] & valid[above]
    edges = (np.ones(int(like.sum()), dtype=bool), (below[like], above[like]))
    return connected_components(coo_array(edges, shape=(len(starts),) * 2), directed=False)[1]
