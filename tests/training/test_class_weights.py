from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from segtune.errors import UsageError
from segtune.training.class_weights import counted_weights, named_weights

PIXELS = np.array([[60, 40, 0, 0], [80, 0, 20, 0], [100, 0, 0, 0]])  # three images, four classes: 240, 40, 20, none
NAMES = ("road", "car", "sky", "tree")


def test_inverse_frequency_by_hand() -> None:
    raw = np.array([1 / 240, 1 / 40, 1 / 20])
    expected = [*(raw / raw.mean()), 1.0]
    assert counted_weights("inverse", PIXELS) == pytest.approx(expected)
    assert expected[2] == pytest.approx(12 * expected[0])


def test_median_frequency_counts_only_images_that_show_the_class() -> None:
    shares = [240 / 300, 40 / 100, 20 / 100]  # car is in one image of 100 valid pixels, sky in another
    assert counted_weights("median_frequency", PIXELS) == pytest.approx([0.4 / shares[0], 1.0, 0.4 / shares[2], 1.0])


def test_a_class_of_one_pixel_is_counted() -> None:
    assert counted_weights("inverse", np.array([[1, 3]])) == pytest.approx([1.5, 0.5])


def test_effective_number_by_hand() -> None:
    effective = np.array([(1 - 0.9**n) / (1 - 0.9) for n in (240, 40, 20)])
    raw = 1 / effective
    expected = [*(raw / raw.mean()), 1.0]
    assert counted_weights("effective_number", PIXELS, beta=0.9) == pytest.approx(expected)
    beta = 39 / 40  # the median class has 40 pixels
    raw = np.array([(1 - beta) / (1 - beta**n) for n in (240, 40, 20)])
    assert counted_weights("effective_number", PIXELS)[:3] == pytest.approx(raw / raw.mean())


def test_effective_number_of_millions_of_pixels() -> None:
    """Rare classes weigh as their inverse frequency, frequent ones alike; a beta for thousands tells none apart."""
    counts = np.array([[10**3, 10**4, 10**7, 10**9, 10**10]])
    weights = counted_weights("effective_number", counts)
    assert weights[0] / weights[1] == pytest.approx(10, rel=1e-3)
    assert weights[3] == pytest.approx(weights[4])
    assert counted_weights("effective_number", counts, beta=0.99) == pytest.approx(np.ones(5), rel=1e-3)


@pytest.mark.parametrize("kind", ["inverse", "median_frequency", "effective_number"])
def test_classes_and_images_without_pixels(kind: Any) -> None:
    present = np.array([[3, 5], [2, 0]])
    expected = counted_weights(kind, present)
    padded = np.array([[3, 0, 5], [0, 0, 0], [2, 0, 0]])  # an absent class and a wholly ignored image
    assert counted_weights(kind, padded) == pytest.approx([expected[0], 1.0, expected[1]])
    assert np.array_equal(counted_weights(kind, np.zeros((2, 3), dtype=np.int64)), np.ones(3))
    assert counted_weights(kind, np.array([[1, 0]])) == pytest.approx([1.0, 1.0])


def test_weights_by_name_and_as_a_list() -> None:
    assert named_weights({"car": 5, "tree": 0}, NAMES) == [1.0, 5.0, 1.0, 0.0]
    assert named_weights([1, 2, 0.5, 4], NAMES) == [1.0, 2.0, 0.5, 4.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cars": 2}, "names 'cars', which is no class: did you mean 'car'"),
        ({"zebra": 2}, "names 'zebra', which is no class: the classes are road, car, sky, tree"),
        ([1, 2], "has 2 numbers for 4 classes: road, car, sky, tree"),
        ([0, 0, 0, 0], "are all 0"),
        (dict.fromkeys(NAMES, 0.0), "are all 0"),
    ],
)
def test_weights_that_do_not_fit(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        named_weights(given, NAMES)
