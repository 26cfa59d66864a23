from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from segtune.data.config import TransformConfig


def scene(seed: int, mask: np.ndarray) -> np.ndarray:
    """A blue sky, a grey road, a red car, with noise."""
    table = np.array([[90, 140, 220], [110, 110, 110], [190, 40, 50]])
    noise = np.random.default_rng(seed).normal(0, 25, (*mask.shape, 3))
    return (table[mask] + noise).clip(0, 255).astype(np.uint8)


def test_exchanged_channels_are_found(find: Any, stripes: np.ndarray) -> None:
    pairs = [(scene(i, stripes), stripes) for i in range(24)]
    assert find("channel-order", {"train": pairs}) is None
    pairs[5] = pairs[5][0][:, :, ::-1], stripes
    found = find("channel-order", {"train": pairs})
    assert (found.severity, found.files) == ("warning", ("images/train/train05.png",))
    assert found.numbers["scores"]["train05"] < -0.6


def test_exchanged_classes_are_no_exchanged_channels(find: Any, stripes: np.ndarray) -> None:
    pairs = [(scene(i, stripes), stripes) for i in range(24)]
    pairs[5] = pairs[5][0], np.array([2, 0, 1], np.uint8)[stripes]  # the sky is called a car, and so on
    assert find("channel-order", {"train": pairs}) is None


def test_grey_images_say_nothing_of_channels(find: Any, noise: Any, stripes: np.ndarray) -> None:
    grey = [(np.repeat(noise()[:, :, :1], 3, axis=2), stripes) for _ in range(24)]
    assert find("channel-order", {"train": grey}) is None


@pytest.mark.parametrize(
    ("mean", "std", "is_far"),
    [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), False),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), False),
        ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), True),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), True),
    ],
)
def test_normalization_is_compared_with_the_images(
    find: Any, noise: Any, stripes: np.ndarray, mean: Any, std: Any, is_far: bool
) -> None:
    images = [noise() for _ in range(8)]
    transforms = TransformConfig(crop_size=16, mean=mean, std=std)
    found = find(
        "normalization", {"train": [(image, stripes) for image in images]}, transforms=transforms, val_fraction=0
    )
    assert (found is not None) == is_far
    if found:
        pixels = np.stack(images).reshape(-1, 3) / 255
        np.testing.assert_allclose(found.numbers["mean"], pixels.mean(0), atol=6e-4)
        np.testing.assert_allclose(found.numbers["std"], pixels.std(0), atol=6e-4)
        assert found.fix[0] == f"transforms.mean={found.numbers['mean']} transforms.std={found.numbers['std']}"
