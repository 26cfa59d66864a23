from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtune.data.config import TransformConfig


def many(noise: Any, mask: np.ndarray, number: int = 12) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(noise(), mask) for _ in range(number)]


def test_odd_size_is_named(find: Any, noise: Any, stripes: np.ndarray) -> None:
    large = noise((48, 48)), stripes.repeat(3, 0).repeat(3, 1)
    found = find("unusual-size", {"train": [*many(noise, stripes), large]})
    assert (found.severity, found.files) == ("warning", ("images/train/train12.png",))
    assert found.numbers["sizes"] == {"train12": [48, 48]}
    assert found.fix == ("transforms.short_side=16 brings all images to one scale before the crop",)


def test_sizes_that_vary_are_usual(find: Any, noise: Any) -> None:
    sizes = [(10 + 3 * i, 12 + 5 * i) for i in range(12)]
    assert find("unusual-size", {"train": [(noise(size), np.zeros(size, np.uint8)) for size in sizes]}) is None


@pytest.mark.parametrize(
    ("crop", "severity", "padded"),
    [(16, None, 0), (20, "info", 1 - 0.8 * 0.8), (32, "warning", 0.75), ((16, 64), "warning", 0.75)],
)
def test_padding_of_crops_is_told(
    find: Any, noise: Any, stripes: np.ndarray, crop: Any, severity: str | None, padded: float
) -> None:
    found = find("padded-crops", {"train": many(noise, stripes, 3)}, transforms=TransformConfig(crop_size=crop))
    assert (found.severity if found else None) == severity
    if found:
        assert found.numbers["padded_share"] == pytest.approx(padded)
        assert found.fix == ("transforms.crop_size=16",)


def test_short_side_counts_for_the_crop(find: Any, noise: Any, stripes: np.ndarray) -> None:
    transforms = TransformConfig(crop_size=64, short_side=64)
    assert find("padded-crops", {"train": many(noise, stripes, 3)}, transforms=transforms) is None


def test_values_of_a_smaller_range_are_told(diagnose: Any, noise: Any, stripes: np.ndarray) -> None:
    eight_in_sixteen = noise()[:, :, 0].astype(np.uint16)
    real_sixteen = eight_in_sixteen * 257
    zero_to_one = (noise() > 127).astype(np.uint8)
    dark_but_real = noise() // 8
    pairs = [(image, stripes) for image in (eight_in_sixteen, real_sixteen, zero_to_one, dark_but_real)]
    findings = diagnose({"train": pairs}).findings
    found = sorted((finding for finding in findings if finding.code == "value-range"), key=lambda f: f.files)
    assert [finding.files for finding in found] == [("images/train/train00.png",), ("images/train/train02.png",)]
    assert "where 65535 is white" in found[0].message and "up to 1 where 255 is white" in found[1].message


def test_twelve_bits_everywhere_get_their_range(diagnose: Any, noise: Any, stripes: np.ndarray) -> None:
    pairs = [(noise()[:, :, 0].astype(np.uint16) * 16, stripes) for _ in range(4)]
    (found,) = (finding for finding in diagnose({"train": pairs}).findings if finding.code == "value-range")
    assert found.fix == ("transforms.value_range=[0, 4095]",) and not found.drop
    fixed = TransformConfig(crop_size=16, value_range=(0, 4095))
    codes = [finding.code for finding in diagnose({"train": pairs}, transforms=fixed).findings]
    assert not {"value-range", "unreadable", "normalization"} & set(codes)


def test_blank_and_grey_images_are_told_apart(diagnose: Any, noise: Any, stripes: np.ndarray) -> None:
    grey = noise()[:, :, 0]
    pairs = [*many(noise, stripes, 20), (np.full((16, 16, 3), 114, np.uint8), stripes), (grey, stripes)]
    found = {finding.code: finding for finding in diagnose({"train": pairs}).findings}
    assert found["blank-image"].files == ("images/train/train20.png",)
    assert found["image-mode"].files == ("images/train/train21.png",)
    assert found["image-mode"].severity == "info" and not found["image-mode"].drop
    assert found["image-mode"].message == "most images are RGB, but 1 grey"


def test_half_of_another_kind_is_no_odd_one(find: Any, noise: Any, stripes: np.ndarray) -> None:
    grey = [(noise()[:, :, 0], stripes) for _ in range(6)]
    assert find("image-mode", {"train": [*many(noise, stripes, 6), *grey]}) is None


def test_palette_images_are_their_colours(find: Any, noise: Any, stripes: np.ndarray) -> None:
    """Their indices are small numbers, which are no dark values."""

    def save(path: Path) -> None:
        Image.fromarray(noise()).quantize(8).save(path)

    assert find("value-range", {"train": [(save, stripes) for _ in range(3)]}) is None
