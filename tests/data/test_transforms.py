"""The training augmentation: sizes, values, alignment of image and labels, and where its random numbers come from."""

from __future__ import annotations

import os
import pickle
import random
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from segtune.data.config import TransformConfig
from segtune.data.transforms import TrainTransform
from segtune.errors import DataError, UsageError

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
PLAIN: dict[str, Any] = {"scale": (1, 1), "horizontal_flip": 0, "photometric": False, "max_class_share": 1}


def transform(ignore_index: int = 255, **options: Any) -> TrainTransform:
    return TrainTransform(TransformConfig(**options), ignore_index)


def image_and_labels(height: int, width: int, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image of 20 x 20 blocks, and labels that can be read off its first channel."""
    blocks = np.random.default_rng(0).integers(0, 5, (height // 20 + 1, width // 20 + 1))
    labels = np.kron(blocks, np.ones((20, 20), dtype=int))[:height, :width].astype(np.uint8)
    image = np.random.default_rng(1).integers(0, 256, (height, width, channels), dtype=np.uint8)
    image[:, :, 0] = labels * 50
    return image, labels


def denormalised(pixel_values: np.ndarray) -> np.ndarray:
    return (pixel_values.transpose(1, 2, 0) * STD + MEAN) * 255


# -- output -----------------------------------------------------------------------------------------------------------


def test_without_augmentation_values_are_normalised_and_padded() -> None:
    image, labels = image_and_labels(30, 40)
    pixel_values, target = transform(**PLAIN, crop_size=(50, 64))(image, labels, (0,))
    assert (pixel_values.dtype, pixel_values.shape) == (np.float32, (3, 50, 64))
    assert pixel_values.flags.c_contiguous
    assert (target.dtype, target.shape) == (np.int64, (50, 64))
    expected = ((image / 255 - MEAN) / STD).transpose(2, 0, 1)
    np.testing.assert_allclose(pixel_values[:, :30, :40], expected, atol=1e-6)
    np.testing.assert_array_equal(target[:30, :40], labels)
    assert (pixel_values[:, 30:].any(), pixel_values[:, :, 40:].any()) == (False, False)
    assert (set(target[30:].ravel()), set(target[:, 40:].ravel())) == ({255}, {255})


def test_caller_arrays_are_left_alone() -> None:
    image, labels = image_and_labels(64, 64)
    before = image.copy(), labels.copy()
    for array in (image, labels):
        array.setflags(write=False)  # as arrays of a picture file are
    for index in range(20):
        transform(crop_size=64, vertical_flip=0.5, rotate90=True)(image, labels, (index,))
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(labels, before[1])


@pytest.mark.parametrize("size", [(480, 360), (31, 33), (1, 1), (1, 700), (2000, 16)])
@pytest.mark.parametrize("crop", [(64, 96), (1, 1), (33, 31)])
def test_any_size_gives_the_crop_size(size: tuple[int, int], crop: tuple[int, int]) -> None:
    image, labels = image_and_labels(*size)
    augment = transform(crop_size=crop, rotate90=True, vertical_flip=0.5, short_side=100)
    for index in range(5):
        pixel_values, target = augment(image, labels, (index,))
        assert (pixel_values.shape, target.shape) == ((3, *crop), crop)
        assert set(np.unique(target)) <= {0, 1, 2, 3, 4, 255}


@pytest.mark.parametrize(
    ("dtype", "ignore_index"), [("int64", -100), ("int32", 65535), ("uint16", 999), ("uint8", 254)]
)
def test_label_types_and_ignore_indices(dtype: str, ignore_index: int) -> None:
    image, labels = image_and_labels(40, 40)
    labels = labels.astype(dtype)
    if dtype != "uint8":
        labels[:5] = np.array(ignore_index).astype(dtype)
    _, target = transform(ignore_index, crop_size=80, scale=(1, 1))(image, labels, (0,))
    assert set(np.unique(target)) == set(np.unique(labels).tolist()) | {ignore_index}


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_numbers_of_channels(channels: int) -> None:
    image, labels = image_and_labels(50, 60, channels)
    augment = transform(crop_size=32, mean=[0.5] * channels, std=[0.25] * channels)
    pixel_values, target = augment(image, labels, (3,))
    assert pixel_values.shape == (channels, 32, 32)
    known = target != 255
    assert known.any()
    assert pixel_values.min() >= -2 and pixel_values.max() <= 2


# -- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [(1, 1), (0.3, 0.9), (1.1, 2.5)])
@pytest.mark.parametrize("axis", [0, 1])
def test_image_and_labels_stay_together(scale: tuple[float, float], axis: int) -> None:
    """Image and labels both hold the row (or column) of the source: they agree to less than a pixel, without bias."""
    labels = np.indices((150, 200))[axis].astype(np.uint8)
    image = np.dstack([labels] * 3)
    options = PLAIN | {"scale": scale, "horizontal_flip": 0.5, "vertical_flip": 0.5, "rotate90": True}
    augment = transform(**options, crop_size=(64, 90))
    errors = []
    for index in range(30):
        pixel_values, target = augment(image, labels, (index,))
        errors.append((denormalised(pixel_values)[:, :, 0] - target)[target != 255])
    assert np.abs(np.concatenate(errors)).max() < (0.01 if scale == (1, 1) else 1.01)
    assert abs(np.mean([error.mean() for error in errors])) < 0.15


def test_shrinking_averages_all_pixels() -> None:
    """Stripes of period 4, a quarter of the size: sampling two pixels of four would give black or white."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 1::4], image[:, 2::4] = 255, 255
    pixel_values, _ = transform(**PLAIN | {"scale": (0.25, 0.25)}, crop_size=16)(image, image[:, :, 0], (0,))
    np.testing.assert_allclose(denormalised(pixel_values), 128, atol=1)


def test_scale_is_uniform_in_its_range() -> None:
    """An image that stays smaller than the crop shows its scale: by the rows that are not padding."""
    image, labels = np.zeros((100, 100, 3), np.uint8), np.zeros((100, 100), np.uint8)
    augment = transform(crop_size=300, scale=(0.5, 2.0))
    heights = np.array([(augment(image, labels, (i,))[1][:, 0] != 255).sum() for i in range(400)])
    assert 50 <= heights.min() < 53 < 197 < heights.max() <= 200
    assert abs(heights.mean() - 125) < 8


def test_short_side_sets_what_scale_one_means() -> None:
    image, labels = image_and_labels(60, 90)
    _, target = transform(**PLAIN, crop_size=100, short_side=30)(image, labels, (0,))
    assert (np.sum(target[:, 0] != 255), np.sum(target[0] != 255)) == (30, 45)


def test_crops_reach_every_border() -> None:
    image, labels = np.zeros((8, 10, 3), np.uint8), np.arange(80).reshape(8, 10)
    firsts = {transform(**PLAIN, crop_size=(6, 7))(image, labels, (i,))[1][0, 0] for i in range(200)}
    assert firsts == {row * 10 + column for row in range(3) for column in range(4)}


@pytest.mark.parametrize(
    ("option", "turned"),
    [
        ({"horizontal_flip": 1}, lambda labels: labels[:, ::-1]),
        ({"vertical_flip": 1}, lambda labels: labels[::-1]),
        ({"horizontal_flip": 1, "vertical_flip": 1}, lambda labels: labels[::-1, ::-1]),
    ],
)
def test_flips(option: dict[str, float], turned: Any) -> None:
    image, labels = image_and_labels(30, 40)
    pixel_values, target = transform(**PLAIN | option, crop_size=(30, 40))(image, labels, (0,))
    np.testing.assert_array_equal(target, turned(labels))
    np.testing.assert_allclose(denormalised(pixel_values), turned(image), atol=1e-3)


def test_rotations_come_in_four_and_fit_a_crop_that_is_no_square() -> None:
    labels = np.array([[0, 1], [2, 3]], np.uint8)
    image = np.dstack([labels] * 3)
    corners = {transform(**PLAIN, crop_size=(2, 3), rotate90=True)(image, labels, (i,))[1][0, 0] for i in range(40)}
    assert corners == {0, 1, 2, 3}


def test_crops_of_one_class_are_drawn_anew() -> None:
    """One column in five is of class 1: of crops with at most 75 % of one class there are few, but they are found."""
    labels = np.zeros((40, 200), np.uint8)
    labels[:, 80:120] = 1
    image = np.zeros((40, 200, 3), np.uint8)

    def shares(limit: float) -> np.ndarray:
        augment = transform(**PLAIN | {"max_class_share": limit}, crop_size=(40, 40))
        means = np.array([augment(image, labels, (i,))[1].mean() for i in range(200)])
        return np.maximum(means, 1 - means)

    assert np.mean(shares(1.0) <= 0.75) < 0.3
    assert np.mean(shares(0.75) <= 0.75) > 0.8


def test_ignored_pixels_do_not_count_as_a_class() -> None:
    """Left, one class and much ignored; right, the only half-and-half place."""
    labels = np.full((10, 100), 255, np.uint8)
    labels[:3, :90], labels[:2, 90:], labels[2:4, 90:] = 0, 0, 1
    image = np.zeros((10, 100, 3), np.uint8)
    augment = transform(**PLAIN | {"max_class_share": 0.6}, crop_size=(10, 10))
    taken = [set(augment(image, labels, (i,))[1].ravel()) for i in range(200)]
    assert np.mean([1 in found for found in taken]) > 0.25  # a single draw finds class 1 in 11 of 91 places


def test_images_of_one_class_end_after_ten_tries() -> None:
    image = np.zeros((50, 50, 3), np.uint8)
    for labels in (np.zeros((50, 50), np.uint8), np.full((50, 50), 255, np.uint8)):
        assert transform(crop_size=20)(image, labels, (0,))[1].shape == (20, 20)


# -- colours ----------------------------------------------------------------------------------------------------------


def test_colors_change_as_stated() -> None:
    """A grey image: brightness adds up to 32, contrast multiplies by 0.5 to 1.5, the others leave grey as it is."""
    image, labels = np.full((4, 4, 3), 100, np.uint8), np.zeros((4, 4), np.uint8)
    augment = transform(**PLAIN | {"photometric": True}, crop_size=4)
    values = np.array([denormalised(augment(image, labels, (i,))[0])[0, 0] for i in range(600)])
    assert np.ptp(values, axis=1).max() < 3  # grey stays grey
    changed = values[:, 1].round()
    assert np.mean(np.abs(changed - 100) <= 1) == pytest.approx(0.25, abs=0.08)  # neither brightness nor contrast
    assert changed.min() >= 34 - 1 and changed.max() <= 198 + 1
    assert changed.min() < 50 and changed.max() > 170


def test_hue_and_saturation_change_colored_images() -> None:
    image, labels = np.full((4, 4, 3), (200, 100, 100), np.uint8), np.zeros((4, 4), np.uint8)
    augment = transform(**PLAIN | {"photometric": True}, crop_size=4)
    values = np.array([denormalised(augment(image, labels, (i,))[0])[0, 0] for i in range(300)])
    hue = values[:, 1] - values[:, 2]
    assert hue.min() < -20 and hue.max() > 20
    assert np.mean(np.abs(hue) < 2) == pytest.approx(0.5, abs=0.12)
    assert np.all(values[:, 0] >= values[:, 1:].max(axis=1) - 2)  # within a tenth of the circle, red stays red


def test_labels_do_not_depend_on_colors() -> None:
    """Geometry is drawn first, so that switching the colour changes off keeps the crops."""
    image, labels = image_and_labels(90, 120)
    with_colors, without = transform(crop_size=50), transform(crop_size=50, photometric=False)
    for index in range(10):
        np.testing.assert_array_equal(with_colors(image, labels, (index,))[1], without(image, labels, (index,))[1])


# -- named transforms -------------------------------------------------------------------------------------------------


def test_named_transforms_come_last_and_see_the_crop() -> None:
    """Turned upside down after the crop, and what a rotation leaves empty is ignored."""
    image, labels = image_and_labels(30, 40)
    _, plain = transform(**PLAIN, crop_size=(30, 40))(image, labels, (0,))
    _, turned = transform(**PLAIN, crop_size=(30, 40), extra=[{"VerticalFlip": {"p": 1}}])(image, labels, (0,))
    np.testing.assert_array_equal(turned, plain[::-1])
    labels[:] = 3
    for ignore_index in (255, 254, -100, 65535):
        rotation = {"Rotate": {"limit": [30, 31], "p": 1}}
        pixel_values, target = transform(ignore_index, **PLAIN, crop_size=40, extra=[rotation])(image, labels, (0,))
        assert set(np.unique(target)) == {3, ignore_index}
        assert 0.05 < np.mean(target[:30] == ignore_index) < 0.6
        assert (denormalised(pixel_values)[:30][target[:30] == ignore_index] < 200).all()  # black, or mixed with it


def test_presets_add_to_the_recipe_of_the_authors() -> None:
    image, labels = image_and_labels(64, 64)
    plain, strong = transform(crop_size=48), transform(crop_size=48, preset="strong")
    assert [type(one).__name__ for one in plain.others] == ["HorizontalFlip", "VerticalFlip"]
    changed = [not np.array_equal(plain(image, labels, (i,))[0], strong(image, labels, (i,))[0]) for i in range(40)]
    assert 0.7 < np.mean(changed) < 1


@pytest.mark.parametrize(
    ("size", "rows"), [((40, 60), slice(0, 40)), ((90, 60), slice(20, 70)), ((91, 60), slice(20, 70))]
)
def test_other_sizes_are_padded_or_cut_evenly(size: tuple[int, int], rows: slice) -> None:
    labels = np.tile(np.arange(50, dtype=np.uint8)[:, None], (1, 50))
    image = np.dstack([labels] * 3)
    resize = {"Resize": {"height": size[0], "width": size[1], "interpolation": 0, "p": 1}}
    pixel_values, target = transform(**PLAIN, crop_size=50, extra=[resize])(image, labels, (0,))
    assert (pixel_values.shape, target.shape) == ((3, 50, 50), (50, 50))
    kept = target[: rows.stop - rows.start, 0]
    np.testing.assert_array_equal(kept, (np.arange(size[0]) * 50 // size[0])[rows])
    assert (target[len(kept) :] == 255).all()
    shown = denormalised(pixel_values)[: len(kept), :, 0]
    np.testing.assert_allclose(shown, target[: len(kept)], atol=0.01)


def test_transforms_that_change_the_channels_are_refused() -> None:
    image, labels = image_and_labels(30, 40)
    extra = [{"ToGray": {"num_output_channels": 1, "p": 1}}]
    with pytest.raises(UsageError, match=r"transforms.extra made uint8 \(30, 40.*3 channels"):
        transform(**PLAIN, crop_size=50, extra=extra)(image, labels, (0,))


def test_images_with_a_range_of_values_take_geometric_transforms_only() -> None:
    options: dict[str, Any] = PLAIN | {"crop_size": (30, 40), "value_range": (0, 1000), "mean": (0.5,), "std": (0.5,)}
    labels = image_and_labels(30, 40)[1]
    image = labels[:, :, None] * np.float32(200)
    pixel_values, target = transform(**options, extra=["Transpose", {"VerticalFlip": {"p": 1}}])(image, labels, (0,))
    np.testing.assert_allclose((pixel_values[0] * 0.5 + 0.5)[target != 255], target[target != 255] * 0.2, atol=1e-6)
    for wrong in ({"preset": "light"}, {"extra": [{"OneOf": {"transforms": ["Blur"]}}]}):
        with pytest.raises(UsageError, match=r"transforms.value_range: \w+ is for 8-bit images"):
            transform(**options | wrong)


def test_extra_is_checked_with_the_recipe() -> None:
    with pytest.raises(ValidationError, match=r"Rotate has no argument limt; did you mean limit\?"):
        TransformConfig(extra=({"Rotate": {"limt": 3}},))
    assert TransformConfig(extra=["Blur", {"Rotate": None}]).extra == ("Blur", {"Rotate": None})  # type: ignore[arg-type]


def test_rare_classes_need_the_data_set() -> None:
    for options in ({"rare_crop": 0.5}, {"copy_paste": 0.5}):
        with pytest.raises(UsageError, match="training_transform"):
            transform(**options)


# -- random numbers ---------------------------------------------------------------------------------------------------


def test_same_seed_same_sample_whatever_came_before() -> None:
    image, labels = image_and_labels(80, 100)
    augment = transform(crop_size=50, rotate90=True)
    first = augment(image, labels, (7, 3, 1))
    random.seed(5)
    np.random.seed(5)
    augment(image, labels, (7, 3, 2))
    for again in (augment, transform(crop_size=50, rotate90=True), pickle.loads(pickle.dumps(augment))):
        for left, right in zip(first, again(image, labels, (7, 3, 1)), strict=True):
            np.testing.assert_array_equal(left, right)


def test_global_generators_are_left_alone() -> None:
    image, labels = image_and_labels(80, 100)
    random.seed(0)
    np.random.seed(0)
    expected = random.random(), np.random.random()
    random.seed(0)
    np.random.seed(0)
    transform(crop_size=50)(image, labels, (1,))
    assert (random.random(), np.random.random()) == expected


@pytest.mark.parametrize("other", [(8, 3, 1), (7, 4, 1), (7, 3, 2), (1, 3, 7)])
def test_every_part_of_the_seed_counts(other: tuple[int, ...]) -> None:
    image, labels = image_and_labels(80, 100)
    augment = transform(crop_size=50)
    assert not np.array_equal(augment(image, labels, (7, 3, 1))[0], augment(image, labels, other)[0])


def test_decisions_are_independent_of_each_other() -> None:
    """Albumentations' own seeding gives every transform the same numbers: all flips would come together."""
    labels = np.array([[0, 1], [2, 3]], np.uint8)
    image = np.full((2, 2, 3), 100, np.uint8)
    augment = transform(**PLAIN | {"horizontal_flip": 0.5, "vertical_flip": 0.5, "photometric": True}, crop_size=2)
    corners, brighter = [], []
    for index in range(400):
        pixel_values, target = augment(image, labels, (index,))
        corners.append(int(target[0, 0]))
        brighter.append(bool(np.abs(denormalised(pixel_values) - 100).max() > 1.5))
    counts = np.bincount(corners, minlength=4)
    assert counts.min() > 70  # each of the four flips about 100 times
    for corner in range(4):
        share = np.mean(np.array(brighter)[np.array(corners) == corner])
        assert 0.55 < share < 0.95  # 3 in 4, whatever the flip


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        (
            np.zeros((4, 4, 4), np.uint8),
            np.zeros((4, 4), np.uint8),
            r"uint8 \(4, 4, 4\), but transforms.mean and std have 3",
        ),
        (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), "the image is float32"),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), r"the image is uint8 \(4, 4\)"),
        (
            np.zeros((4, 4, 3), np.uint8),
            np.zeros((4, 5), np.uint8),
            r"image has \(height, width\) \(4, 4\), the labels have",
        ),
    ],
)
def test_unsuitable_samples(image: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        transform(crop_size=4)(image, labels, (0,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 0}, "crop_size"),
        ({"crop_size": (512, -1)}, "crop_size"),
        ({"scale": (2.0, 0.5)}, "smallest and the largest factor"),
        ({"scale": (0, 1)}, "both above 0"),
        ({"mean": (0.5,)}, "mean has 1 and std 3 numbers"),
        ({"std": (0.2, 0.2, 0)}, "above 0"),
        ({"horizontal_flip": 1.5}, "horizontal_flip"),
        ({"max_class_share": 0}, "max_class_share"),
        ({"preset": "extreme"}, "preset"),
        ({"copy_paste": 2}, "copy_paste"),
        ({"rare_classes": "pole"}, "rare_classes"),
        ({"crop": 3}, "crop"),
    ],
)
def test_config_is_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TransformConfig(**options)


def test_config_from_yaml_types() -> None:
    config = TransformConfig(crop_size=[256, 320], scale=[1, 2])  # type: ignore[arg-type]
    assert (config.crop_size, config.scale) == ((256, 320), (1.0, 2.0))


def test_albumentations_asks_no_network() -> None:
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"
