from __future__ import annotations

import math

import numpy as np
import pytest

from segtune.labels.distance_maps import distance_maps, signed_distance


def test_signed_distance_by_brute_force() -> None:
    labels = np.array(
        [
            [0, 0, 0, 0, 0, -1],
            [0, 1, 1, 1, 0, -1],
            [0, 1, 1, 1, 0, 2],
            [0, 1, 1, 1, 0, 2],
            [0, 0, 0, 0, 0, 2],
        ]
    )
    points = [(y, x) for y in range(5) for x in range(6)]
    for label in (0, 1, 2):
        found = signed_distance(labels, label)
        for y, x in points:
            if labels[y, x] == label:
                others = [math.dist((y, x), other) for other in points if labels[other] not in (label, -1)]
                assert found[y, x] == pytest.approx(1 - min(others))
            else:
                inside = [math.dist((y, x), other) for other in points if labels[other] == label]
                assert found[y, x] == pytest.approx(min(inside))
    assert signed_distance(np.array([[1, -1], [1, 1]]), 1).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_a_batch_has_a_map_of_every_class_that_an_image_shows(dtype: type) -> None:
    labels = np.array([[[0, 0, 2, 255]], [[255, 255, 255, 255]], [[1, 1, 1, 0]]], dtype=dtype)
    of, maps = distance_maps(labels, 255)
    assert of.tolist() == [[0, 0], [0, 2], [2, 0], [2, 1]] and maps.dtype == np.float32
    assert maps[:, 0].tolist() == [[-1, 0, 1, 2], [2, 1, 0, 1], [3, 2, 1, 0], [-2, -1, 0, 1]]
    assert distance_maps(labels, 255, first=1)[0].tolist() == [[0, 2], [2, 1]]
    assert labels.max() == 255  # the caller's stay as they are
    of, maps = distance_maps(labels[1:2], 255)
    assert of.shape == (0, 2) and maps.shape == (0, 1, 4)
