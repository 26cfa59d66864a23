"""Distances to the outlines of classes, which the boundary loss multiplies with their probabilities."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt


def signed_distance(ids: np.ndarray, label: int) -> np.ndarray:
    """Distance in pixels to the outline of a class: positive outside, 0 or negative inside, (H, W) float64.

    The map of the boundary loss (Kervadec et al. 2019, arXiv 1812.07032), whose loss is the mean of `p` times this.
    Negative ids are neither inside nor outside. A class that fills all of the image has no outline: zeros.
    """
    inside, outside = ids == label, (ids != label) & (ids >= 0)
    if not outside.any():
        return np.zeros(ids.shape)
    # distance_transform_edt measures to the nearest False. A pixel inside that touches the outline is 1 away from the
    # outside and should be at 0, hence 1 - d; so there is no jump from 1 to -1 across the outline.
    distance: np.ndarray = np.where(inside, 1 - distance_transform_edt(~outside), distance_transform_edt(~inside))
    return distance


def distance_maps(labels: np.ndarray, ignore_index: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The maps of every class that a batch of labels shows.

    Args:
        labels: training ids (B, H, W), of any integer type.
        ignore_index: the label of pixels that are neither inside nor outside.
        first: classes below it get none: 1 for the foreground of two classes only.

    Returns:
        The image in the batch and the class of each map, (M, 2) int64, image after image; and `signed_distance` of
        these, (M, H, W) float32.
    """
    labels = labels.astype(np.int64)
    labels[labels == ignore_index] = -1
    shown = [(i, label) for i, ids in enumerate(labels) for label in np.unique(ids) if label >= first]
    maps = np.empty((len(shown), *labels.shape[1:]), dtype=np.float32)
    for place, (i, label) in zip(maps, shown, strict=True):
        place[:] = signed_distance(labels[i], label)
    return np.array(shown, dtype=np.int64).reshape(-1, 2), maps
