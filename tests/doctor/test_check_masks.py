"""Masks that say little, or something odd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from support.faults import faults


def test_sound_masks_have_no_fault(one_odd: Any, stripes: np.ndarray) -> None:
    assert one_odd(stripes) == {}


def test_palette_numbered_anew(one_odd: Any, stripes: np.ndarray) -> None:
    colors = [[70, 130, 180], [128, 64, 128], [0, 0, 142]]
    labels = {"classes": ["sky", "road", "car"], "colors": colors}

    def save(order: list[int]) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            picture = Image.fromarray(np.argsort(order).astype(np.uint8)[stripes])
            picture.putpalette([value for index in order for value in colors[index]])
            picture.save(path)

        return write

    assert one_odd(save([0, 1, 2]), labels) == {}
    assert one_odd(save([2, 0, 1]), labels)["palette-order"].severity == "error"


def test_ignored_and_empty_masks(diagnose: Any, noise: Any, stripes: np.ndarray) -> None:
    half = stripes.copy()
    half[:8] = 255
    masks = [*[stripes] * 60, np.full((16, 16), 255, np.uint8), half, np.zeros((16, 16), np.uint8)]
    found = faults(diagnose({"train": [(noise(), mask) for mask in masks]}))
    assert {code: f.files for code, f in found.items()} == {
        "all-ignored": ("masks/train/train60.png",),
        "much-ignored": ("masks/train/train61.png",),
        "one-class": ("masks/train/train62.png",),
    }
    assert found["much-ignored"].numbers["shares"] == {"train61": 0.5}
    assert "(sky: 1), where the median mask has 3" in found["one-class"].message


def test_masks_of_one_class_are_usual_in_other_sets(diagnose: Any, noise: Any, stripes: np.ndarray) -> None:
    masks = [np.full((16, 16), i % 2, np.uint8) for i in range(12)] + [stripes] * 12
    diagnosis = diagnose({"train": [(noise(), mask) for mask in masks], "val": [(noise(), stripes)]})
    assert faults(diagnosis) == {}
    assert "one-class" in [finding.code for finding in diagnosis.findings]


def test_everything_ignored_is_an_error(all_like: Any) -> None:
    assert all_like(np.full((16, 16), 255, np.uint8))["all-ignored"].severity == "error"


def test_specks(one_odd: Any, stripes: np.ndarray) -> None:
    mask = stripes.copy()
    mask[1:15:3, 1:15:3] = (mask[1:15:3, 1:15:3] + 1) % 3
    found = one_odd(mask)["specks"]
    assert (found.severity, found.files) == ("warning", ("masks/train/train11.png",))
