"""What the checks look at: labels of masks, and label maps that are proposed."""

from __future__ import annotations

from typing import Any

import numpy as np


def test_labels_are_proposed_where_there_are_none(diagnose: Any, noise: Any, stripes: np.ndarray) -> None:
    diagnosis = diagnose({"train": [(noise(), stripes * 2) for _ in range(6)]}, labels=None)
    (found,) = (finding for finding in diagnosis.findings if finding.severity == "error")
    assert found.code == "labels" and "does not say which classes its masks hold" in found.message
    assert found.fix[0].startswith('dataset.labels={"0": "class 0", "2": "class 2", "4": "class 4"}')
    assert not diagnosis.case.named


def test_colors_are_proposed_where_most_masks_hold_them(diagnose: Any, noise: Any, stripes: np.ndarray) -> None:
    """A mask of ids among them stands for grey colours."""
    colored = np.array([(128, 64, 128), (70, 130, 180), (0, 0, 0)], np.uint8)[stripes]
    masks = [colored, colored, np.full_like(stripes, 9)]
    proposed = diagnose({"train": [(noise(), mask) for mask in masks]}, labels=None).case.label_map
    colors = [(0, 0, 0), (9, 9, 9), (70, 130, 180), (128, 64, 128)]
    assert proposed.mask_colors == {color: number for number, color in enumerate(colors)}
    few = [stripes, stripes, colored]
    proposed = diagnose({"train": [(noise(), mask) for mask in few]}, labels=None).case.label_map
    assert proposed.ids is not None and set(proposed.ids) == {0, 1, 2}


def test_labels_of_masks_that_hold_what_they_should_not(diagnose: Any, noise: Any, stripes: np.ndarray) -> None:
    """-1 is ignored, the number of classes is not named."""
    ids = diagnose({"train": [(noise(), stripes)]}, {"0": "sky", "1": None, "2": "road"}).case
    hidden = np.ma.masked_array(np.array([[0, 1, 2, 9]]), [[False, False, False, False]])
    assert ids.labels(np.array([[0, 1, 2, 9, 255]])).tolist() == [[0, -1, 1, 2, -1]]
    hidden[0, 0] = np.ma.masked
    assert ids.labels(hidden).tolist() == [[-1, -1, 1, 2]]
    assert ids.labels(np.array([[[1, 1, 1], [1, 2, 3]]], np.uint8)).tolist() == [[2, 2]]  # colours, one of them grey
    colors = diagnose({"train": [(noise(), stripes)]}, {"#000000": "sky", "#010203": "road", "#ffffff": None}).case
    mask = np.array([[[0, 0, 0], [1, 2, 3], [255, 255, 255], [3, 2, 1]]], np.uint8)
    assert colors.labels(mask).tolist() == [[0, 1, -1, 2]]
    assert colors.labels(np.array([[0, 255, 7]], np.uint8)).tolist() == [[0, -1, 2]]  # ids stand for greys
