from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from segtune.labels.label_map import LabelMap
from segtune.viz.layers import LONGEST_SIDE, SURELY_WRONG, WRONG, layers

LABELS = LabelMap.from_names(["sky", "road", "car"], colors=[(10, 20, 30), (200, 0, 0), (0, 0, 200)])


def decode(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGBA"))


def test_each_pixel_has_its_color() -> None:
    labels = np.array([[0, 1, 1, 255], [0, 1, 1, 0]])
    prediction = np.array([[0, 1, 0, 0], [0, 1, 0, 0]])
    confidence = np.array([[1, 1, 0.95, 1], [1, 1, 0.5, 1]])
    found = layers(np.full((2, 4, 3), 128, np.uint8), labels, prediction, confidence, LABELS)
    assert found.size == (2, 4) and found.classes == {0, 1} and found.has_ignored
    truth, errors = decode(found.truth), decode(found.errors)
    assert truth[0, 0].tolist() == [10, 20, 30, 255] and truth[1, 1].tolist() == [200, 0, 0, 255]
    assert len({tuple(truth[0, 3, :3]), (10, 20, 30), (200, 0, 0), (0, 0, 200)}) == 4  # ignored: a colour of no class
    assert decode(found.prediction)[0, 2].tolist() == [10, 20, 30, 255]
    assert errors[0, 2].tolist() == [*SURELY_WRONG, 255] and errors[1, 2].tolist() == [*WRONG, 255]
    assert errors[0, 0].tolist() == [0, 0, 0, 150]  # right: the photograph, darkened
    assert errors[0, 3].tolist() == truth[0, 3].tolist()  # ignored: neither right nor wrong
    assert np.abs(decode(found.photo)[:, :, :3].astype(int) - 128).max() <= 2


def test_large_images_are_made_smaller_alike() -> None:
    height, width = 300, 2 * LONGEST_SIDE
    labels = np.zeros((height, width), np.int64)
    labels[:, width // 2 :] = 2
    found = layers(np.zeros((height, width, 3), np.uint8), labels, labels, np.ones(labels.shape), LABELS)
    assert found.size == (150, LONGEST_SIDE) and not found.has_ignored
    assert decode(found.photo).shape[:2] == decode(found.truth).shape[:2] == found.size
    column = decode(found.truth)[75, :, 2]
    assert (column[: LONGEST_SIDE // 2] == 30).all() and (column[LONGEST_SIDE // 2 :] == 200).all()


def test_more_colors_than_a_palette_holds() -> None:
    label_map = LabelMap.from_names([f"c{index}" for index in range(300)], ignore_index=-100)
    labels = np.arange(300).reshape(10, 30)
    found = layers(np.zeros((10, 30, 3), np.uint8), labels, labels, np.ones(labels.shape), label_map)
    assert decode(found.truth)[9, 29, :3].tolist() == list(label_map.colors[299])
