"""Where crops lie, how much of an image they read, and what is pasted into them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from segtune.data import crops
from segtune.data.config import TransformConfig
from segtune.data.crops import RandomCrop, paste
from segtune.data.transforms import TrainTransform


def crop(**options: Any) -> RandomCrop:
    defaults: dict[str, Any] = {
        "size": (8, 8),
        "scale": (1, 1),
        "short_side": None,
        "rotate90": False,
        "max_class_share": 1,
        "ignore_index": 255,
    }
    return RandomCrop(**defaults | options)


class Recorder:
    """An array that notes how many of its pixels are asked for."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape = array, array.shape
        self.read = 0

    def __getitem__(self, area: tuple[slice, slice]) -> np.ndarray:
        part = self.array[area]
        self.read += part.shape[0] * part.shape[1]
        return part


# -- how much is read and resized -------------------------------------------------------------------------------------


def test_only_the_window_of_a_large_image_is_read_and_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 x 512 out of 1024 x 2048: a window of (512 / scale) squared, once for the image and once for its mask."""
    resized = []

    def counting(function: Any) -> Any:
        def run(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
            resized.append(array.shape[0] * array.shape[1])
            return function(array, size)

        return run

    monkeypatch.setattr(crops, "resize_image", counting(crops.resize_image))
    monkeypatch.setattr(crops, "resize_mask", counting(crops.resize_mask))
    labels = np.random.default_rng(0).integers(0, 5, (1024, 2048), dtype=np.uint8)
    for scale in (0.5, 0.75, 1.0, 1.5, 2.0):
        image, mask = Recorder(np.zeros((1024, 2048, 3), np.uint8)), Recorder(labels)
        transform = TrainTransform(TransformConfig(crop_size=512, scale=(scale, scale)), 255)
        transform(image, mask, (0,))
        window = round(512 / scale) ** 2
        assert image.read == window
        assert window <= mask.read <= window + (2 * 64) ** 2  # and a grid of it, to count the classes
        assert resized == [window, window] and window <= 1024 * 2048 / 2
        resized.clear()


# -- where the window lies --------------------------------------------------------------------------------------------


def test_windows_around_a_rare_class_hold_it_and_reach_everywhere() -> None:
    labels = np.zeros((40, 50), np.uint8)
    labels[20, 30] = 3
    drawn = [crop(rare_ids=[3]).draw(labels, random.Random(i), around_rare=True) for i in range(600)]
    starts = {(view.area[0].start, view.area[1].start) for view in drawn}
    assert starts == {(top, left) for top in range(13, 21) for left in range(23, 31)}
    plain = [crop(rare_ids=[3]).draw(labels, random.Random(i)).area for i in range(600)]
    assert 0 < np.mean([(labels[area] == 3).any() for area in plain]) < 0.1


@pytest.mark.parametrize("scale", [0.5, 1.7])
@pytest.mark.parametrize("place", [(0, 0), (0, 49), (39, 0), (39, 49), (7, 33)])
def test_rare_pixels_at_the_border_are_held_at_any_scale(place: tuple[int, int], scale: float) -> None:
    labels = np.zeros((40, 50), np.uint8)
    labels[place] = 3
    for seed in range(50):
        view = crop(rare_ids=[3], scale=(scale, scale)).draw(labels, random.Random(seed), around_rare=True)
        assert (labels[view.area] == 3).any()
        assert labels[view.area].shape == (round(8 / scale),) * 2


def test_rare_classes_are_equally_likely_whatever_their_size() -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[:20, :20], labels[30, 50] = 1, 2
    views = [crop(rare_ids=[1, 2, 5]).draw(labels, random.Random(i), around_rare=True) for i in range(400)]
    counts = [np.sum([(labels[view.area] == i).any() for view in views]) for i in (1, 2)]
    assert min(counts) > 160 and sum(counts) == 400


def test_without_a_rare_class_windows_are_drawn_as_ever() -> None:
    labels = np.zeros((40, 50), np.uint8)
    starts = {crop(rare_ids=[3]).draw(labels, random.Random(i), around_rare=True).area[0].start for i in range(300)}
    assert starts == set(range(33))


def test_quarter_turns_of_a_crop_that_is_no_square() -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for seed in range(20):
        view = crop(size=(2, 3), rotate90=True).draw(labels, random.Random(seed))
        window = labels[view.area]
        assert view.of_mask(window).shape == (2, 3)
        np.testing.assert_array_equal(view.of_mask(window), np.rot90(window, view.turns))


# -- pasting ----------------------------------------------------------------------------------------------------------


def pictures(shape: tuple[int, int], value: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((*shape, 3), value, np.uint8), np.zeros(shape, np.uint8)


def test_regions_of_the_source_are_pasted_where_they_are() -> None:
    (image, mask), (source, source_mask) = pictures((4, 5), 10), pictures((6, 3), 99)
    source_mask[1:6, 1:3] = 2
    mask[0, 0] = 255
    found, ids = paste(image, mask, source, source_mask, [2, 7], random.Random(0))
    expected = np.zeros((4, 5), np.uint8)
    expected[1:4, 1:3], expected[0, 0] = 2, 255
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(found[:, :, 1], np.where(expected == 2, 99, 10))
    assert (image == 10).all() and not (mask == 2).any()  # as they were


def test_any_part_of_the_classes_is_taken_but_never_none() -> None:
    (image, mask), (source, source_mask) = pictures((2, 3), 10), pictures((2, 3), 99)
    source_mask[0] = [1, 2, 3]
    taken = {frozenset(paste(image, mask, source, source_mask, [1, 2], random.Random(i))[1].ravel()) for i in range(60)}
    assert taken == {frozenset({0, 1}), frozenset({0, 2}), frozenset({0, 1, 2})}


def test_a_source_without_the_classes_changes_nothing() -> None:
    (image, mask), (source, source_mask) = pictures((2, 3), 10), pictures((2, 3), 99)
    found, ids = paste(image, mask, source, source_mask, [1], random.Random(0))
    assert (found == 10).all() and not ids.any()
