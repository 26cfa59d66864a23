"""Transforms named in a recipe: every usable class of Albumentations on images and masks, and what is refused."""

from __future__ import annotations

import random
from typing import Any

import albumentations as A
import numpy as np
import pytest

from segtune.data.augmentations import (
    PRESETS,
    Named,
    Stream,
    apply,
    make_transforms,
    of_colors,
    resize_image,
    resize_mask,
    usable_transforms,
)
from segtune.errors import UsageError

HEIGHT, WIDTH = 60, 48
# what a class cannot be made or does nothing without
ARGUMENTS: dict[str, dict[str, Any]] = {
    "Affine": {"rotate": [-30, 30], "shear": [-10, 10]},
    "CenterCrop": {"height": 40, "width": 30},
    "ConstrainedCoarseDropout": {"mask_indices": [1, 2]},
    "Crop": {"x_max": 40, "y_max": 30},
    "CropAndPad": {"px": [-5, 9]},
    "CropNonEmptyMaskIfExists": {"height": 40, "width": 30},
    "LongestMaxSize": {"max_size": 40},
    "OneOf": {"transforms": ["HorizontalFlip", {"Rotate": {"limit": [20, 30], "p": 1}}]},
    "OneOrOther": {"transforms": ["HorizontalFlip", "Transpose"]},
    "Pad": {"padding": 7},
    "PadIfNeeded": {"min_height": 70, "min_width": 90},
    "RandomCrop": {"height": 80, "width": 30, "pad_if_needed": True},
    "RandomOrder": {"transforms": ["HorizontalFlip", "Transpose"]},
    "RandomResizedCrop": {"size": [40, 30]},
    "RandomSizedCrop": {"min_max_height": [20, 40], "size": [40, 30]},
    "Resize": {"height": 80, "width": 90},
    "SelectiveChannelTransform": {"transforms": ["GaussNoise"], "channels": [0, 1]},
    "Sequential": {"transforms": ["HorizontalFlip", "Transpose"]},
    "SmallestMaxSize": {"max_size": 40},
    "SomeOf": {"transforms": ["HorizontalFlip", "Transpose"], "n": 1},
    "XYMasking": {"num_masks_x": 2, "num_masks_y": 2, "mask_x_length": 9, "mask_y_length": 9},
}
COMPOSITIONS = {"OneOf", "OneOrOther", "RandomOrder", "SelectiveChannelTransform", "Sequential", "SomeOf"}


def is_geometric(name: str) -> bool:
    kind = getattr(A, name)
    return issubclass(kind, A.DualTransform) and "Drop" not in name and "Masking" not in name and name != "Erasing"


def named(name: str) -> Named:
    return {name: ARGUMENTS.get(name, {}) | {"p": 1}}


def sample(dtype: type, seed: int = 0) -> dict[str, np.ndarray]:
    """Blocks of classes 1 to 3 (none of class 0) and an image that shows them by its brightness."""
    blocks = np.random.default_rng(seed).integers(1, 4, (HEIGHT // 12, WIDTH // 12))
    mask = np.kron(blocks, np.ones((12, 12))).astype(dtype)  # (H, W)
    image = np.dstack([mask * 60, mask * 50, mask * 40]).astype(np.uint8)  # (H, W, 3)
    return {"image": image, "mask": mask}


def stream(seed: int) -> Stream:
    return Stream.several((seed,), 1)[0]


def test_collector_found_albumentations() -> None:
    names = usable_transforms()
    assert len(names) >= 95
    assert sum(map(is_geometric, names)) >= 30
    assert set(ARGUMENTS) <= set(names) and set(names) >= COMPOSITIONS


@pytest.mark.parametrize(("dtype", "fill_mask"), [(np.uint8, 255), (np.int16, -1)])
@pytest.mark.parametrize("name", usable_transforms())
def test_every_transform_keeps_ids_and_types(name: str, dtype: type, fill_mask: int) -> None:
    """Masks hold no other values than before and the ignore id; and the same numbers give the same sample."""
    transforms = make_transforms([named(name)], fill_mask, 255)
    agreement = []
    for seed in range(4):
        given = sample(dtype, seed)
        given["image"].setflags(write=False)
        before = np.random.get_state()[1][:5].tolist(), random.getstate()  # type: ignore[index]
        found = apply(transforms, dict(given), stream(seed))
        again = apply(transforms, sample(dtype, seed), stream(seed))
        assert (np.random.get_state()[1][:5].tolist(), random.getstate()) == before  # type: ignore[index]
        image, mask = found["image"], found["mask"]
        assert set(np.unique(mask)) <= {1, 2, 3, fill_mask}
        assert (image.dtype, mask.dtype, image.shape) == (np.uint8, dtype, (*mask.shape, 3))
        for key in ("image", "mask"):
            np.testing.assert_array_equal(found[key], again[key])
        shown = np.rint(image[:, :, 0] / 60)
        agreement.append(np.mean(shown[mask != fill_mask] == mask[mask != fill_mask]))
    if is_geometric(name):
        assert np.mean(agreement) > 0.75, "image and mask were not changed alike"
    elif name not in COMPOSITIONS and not issubclass(getattr(A, name), A.DualTransform):
        np.testing.assert_array_equal(mask, given["mask"])


@pytest.mark.parametrize("name", list(filter(is_geometric, usable_transforms())))
def test_geometric_transforms_take_other_numbers_and_channels(name: str) -> None:
    """float32 far above 1, in six channels: nothing is clipped."""
    transforms = make_transforms([named(name)], 255, 255)
    agreement = []
    for seed in range(3):
        given = sample(np.uint8, seed)
        given["image"] = np.repeat(given["image"][:, :, :1], 6, axis=2) * np.float32(50)
        found = apply(transforms, given, stream(seed))
        labelled = found["mask"] != 255
        assert (found["image"].dtype, found["image"].shape) == (np.float32, (*labelled.shape, 6))
        agreement.append(np.mean(np.rint(found["image"] / 3000)[labelled][:, 5] == found["mask"][labelled]))
    assert np.mean(agreement) > 0.75
    assert of_colors(transforms) == []


def test_transforms_of_colors_are_told_apart() -> None:
    assert of_colors(make_transforms(PRESETS["medium"])) == ["RandomGamma", "GaussianBlur", "GaussNoise"]


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_presets_take_any_number_of_channels(preset: Any, channels: int) -> None:
    transforms = make_transforms(PRESETS[preset], 255, 255)
    changed = []
    for seed in range(30):
        given = sample(np.uint8)
        given["image"] = np.repeat(given["image"][:, :, :1], channels, axis=2)
        found = apply(transforms, given, stream(seed))
        assert found["image"].shape == (HEIGHT, WIDTH, channels)
        assert set(np.unique(found["mask"])) <= {1, 2, 3, 255}
        changed.append(not np.array_equal(found["image"], given["image"]))
    assert {"light": 0.2, "medium": 0.3, "strong": 0.6}[preset] < np.mean(changed) < 1


def test_arguments_and_short_forms() -> None:
    flip, noise, turn = make_transforms(
        ["HorizontalFlip", {"GaussNoise": {"std_range": [0.01, 0.05], "p": 0.2}}, {"RandomRotate90": None}]
    )
    assert (type(flip), flip.p, noise.std_range, noise.p) == (A.HorizontalFlip, 0.5, (0.01, 0.05), 0.2)
    assert isinstance(turn, A.RandomRotate90)


def test_labels_under_a_hole_stay_unless_they_are_to_be_ignored() -> None:
    hole = {"num_holes_range": [3, 3], "p": 1}
    for arguments, expected in (
        ({}, {1, 2, 3}),
        ({"fill_mask": None}, {1, 2, 3}),
        ({"fill_mask": -100}, {1, 2, 3, -1}),
    ):
        transforms = make_transforms([{"CoarseDropout": hole | arguments}], fill_mask=-1, ignore_index=-100)
        assert set(np.unique(apply(transforms, sample(np.int16), stream(0))["mask"])) == expected


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("GausNoise", r"GausNoise: albumentations has no such transform; did you mean GaussNoise\?"),
        ("os.system", r"os.system: albumentations has no such transform; see https"),
        ("DualTransform", "DualTransform: albumentations has no such transform"),
        ("version", "no such transform"),
        ({"Rotate": {"limt": 3}}, r"Rotate has no argument limt; did you mean limit\?"),
        (
            {"GaussNoise": {"var_limit": [10, 50]}},
            "GaussNoise has no argument var_limit; it takes std_range, mean_range",
        ),
        ({"PadIfNeeded": {"value": 0}}, "PadIfNeeded has no argument value; it takes min_height"),
        ({"GaussNoise": {"strict": True}}, "GaussNoise has no argument strict"),
        ({"GaussNoise": {"std_range": [2, 3]}}, r"GaussNoise: std_range: All values in \(2.0, 3.0\) must be >= 0"),
        ({"GaussNoise": {"p": 2}}, "GaussNoise: p: Input should be less than or equal to 1"),
        ({"RandomCrop": {}}, "RandomCrop: height: Field required; width: Field required"),
        ({"OneOf": {"transforms": [{"Rotate": {"p": 7}}]}}, "Rotate: p: Input should be less"),
        ({"OneOf": {"p": 1}}, "OneOf.transforms: give a list of transforms"),
        (
            {"OneOf": {"transforms": ["Blur"], "probability": 1}},
            "OneOf has no argument probability; it takes transforms",
        ),
        ({"Affine": {"mask_interpolation": 1}}, r"Affine.mask_interpolation = 1: only 0 \(nearest\)"),
        ({"Affine": {"fill_mask": 3}}, r"Affine.fill_mask = 3: give 255 \(ignored\)"),
        ({"PixelDropout": {"mask_drop_value": 0}}, "PixelDropout.mask_drop_value = 0: give 255"),
        ({"Blur": {}, "Rotate": {}}, "write HorizontalFlip or GaussNoise"),
        (3, "3: write HorizontalFlip"),
        ({"Blur": 3}, "write HorizontalFlip"),
        ("Mosaic", "Mosaic cannot be used here: it needs more than an image and its mask"),
        ("BBoxSafeRandomCrop", "BBoxSafeRandomCrop cannot be used here: it needs more"),
        ("RandomCrop3D", "RandomCrop3D cannot be used here: it is for volumes"),
        ("Normalize", "Normalize cannot be used here: images are normalised"),
        ("Lambda", "Lambda cannot be used here: a recipe holds no code"),
        ("Morphological", "Morphological cannot be used here: it takes the ids"),
        ("Compose", "Compose cannot be used here: name Sequential"),
    ],
)
def test_what_is_refused(entry: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_transforms([entry], 255, 255)


@pytest.mark.parametrize("size", [(30, 24), (59, 47), (61, 90), (120, 96)])
def test_enlarging_and_shrinking_to_half_are_bilinear(size: tuple[int, int]) -> None:
    """Against the formula: pixel centres, no antialiasing, borders repeated (OpenCV rounds to 1/2048 of a pixel)."""
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    weights = []
    for new, old in zip(size, (HEIGHT, WIDTH), strict=True):
        at = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
        low = np.floor(at).astype(int).clip(max=old - 2)
        matrix = np.zeros((new, old))
        matrix[np.arange(new), low] = 1 - (at - low)
        matrix[np.arange(new), low + 1] = at - low
        weights.append(matrix)
    expected = np.einsum("ih,jw,hwc->ijc", *weights, image.astype(float))
    assert np.abs(resize_image(image, size) - expected).max() < 1.5


def test_shrinking_further_takes_means() -> None:
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    expected = image.reshape(10, 6, 12, 4, 3).mean(axis=(1, 3))
    assert np.abs(resize_image(image, (10, 12)) - expected).max() <= 0.5


def test_masks_take_the_nearest_pixel() -> None:
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(resize_mask(mask, (4, 6)), mask.repeat(2, axis=0).repeat(2, axis=1))
    np.testing.assert_array_equal(resize_mask(mask.repeat(3, axis=0).repeat(3, axis=1), (2, 3)), mask)
