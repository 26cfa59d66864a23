"""Rare classes: which they are, crops around them, pasting them, and that no worker changes a sample."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader

from segtune.data.config import TransformConfig
from segtune.data.dataset import load_segmentation_dataset
from segtune.data.rare_classes import PasteSources, find_rare_ids, training_transform
from segtune.data.samples import SegmentationSamples, StepSampler, collate
from segtune.errors import UsageError
from segtune.labels.label_map import LabelMap

LABELS = LabelMap.from_names(["road", "pole", "sky", "sign"])
PLAIN: dict[str, Any] = {"crop_size": 16, "scale": (1, 1), "photometric": False, "max_class_share": 1}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """12 pictures of road and sky, of brightness 10 * number; four have 6 pixels of pole, one has a pixel of sign."""
    folder = tmp_path_factory.mktemp("rare")
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for number in range(12):
        mask = np.zeros((64, 64), np.uint8)
        mask[:30] = 2
        if number % 3 == 0:
            mask[40:46, 50] = 1
        if number == 7:
            mask[3, 3] = 3
        Image.fromarray(np.full((64, 64, 3), 10 * number, np.uint8)).save(folder / "images" / f"{number:02}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:02}.png")
    return load_segmentation_dataset(folder, val_fraction=0)["train"]


def samples(dataset: Dataset, **options: Any) -> SegmentationSamples:
    return SegmentationSamples(
        dataset, LABELS, training_transform(TransformConfig(**PLAIN | options), dataset, LABELS), 0
    )


# -- which ------------------------------------------------------------------------------------------------------------


def test_rare_classes_are_counted(dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert find_rare_ids(TransformConfig(), dataset, LABELS) == [1, 3]
    assert caplog.messages == ["rare classes, by pixels of 12 masks: pole (0.05%), sign (0.00%)"]


def test_where_no_class_is_rare_the_rarest_is(dataset: Dataset) -> None:
    assert find_rare_ids(TransformConfig(), dataset.select([1]), LABELS) == [2]


def test_rare_classes_are_named(dataset: Dataset) -> None:
    assert find_rare_ids(TransformConfig(rare_classes=("sign", "road")), dataset, LABELS) == [3, 0]
    with pytest.raises(UsageError, match=r"transforms.rare_classes names 'poles', .* did you mean 'pole'\?"):
        find_rare_ids(TransformConfig(rare_classes=("poles",)), dataset, LABELS)
    with pytest.raises(UsageError, match="'tree', which is no class; there are road, pole, sky, sign"):
        find_rare_ids(TransformConfig(rare_classes=("tree",)), dataset, LABELS)


def test_masks_without_labels_have_no_rare_class(tmp_path: Path) -> None:
    for kind, shape in (("images", (4, 4, 3)), ("masks", (4, 4))):
        (tmp_path / kind).mkdir()
        Image.fromarray(np.full(shape, 255, np.uint8)).save(tmp_path / kind / "a.png")
    rows = load_segmentation_dataset(tmp_path)["train"]
    with pytest.raises(UsageError, match="no labelled pixel in 1 masks"):
        training_transform(TransformConfig(rare_crop=0.5), rows, LABELS)


def test_streams_take_crops_around_named_classes_only(dataset: Dataset) -> None:
    stream = dataset.to_iterable_dataset()
    named = training_transform(TransformConfig(rare_crop=0.5, rare_classes=("pole",)), stream, LABELS)  # type: ignore[arg-type]
    assert named.crop.rare_ids == [1]
    for options in ({"copy_paste": 0.5, "rare_classes": ("pole",)}, {"rare_crop": 0.5}):
        with pytest.raises(UsageError, match=r"dataset\.streaming=false"):
            training_transform(TransformConfig(**options), stream, LABELS)  # type: ignore[arg-type]


# -- crops and paste sources ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("probability", "low", "high"), [(0, 0.0, 0.12), (0.5, 0.45, 0.65), (1, 1, 1)])
def test_crops_hold_a_rare_class_as_often_as_asked(
    dataset: Dataset, probability: float, low: float, high: float
) -> None:
    augmented = samples(dataset, rare_crop=probability, rare_classes=("pole",))
    held = [bool((augmented[epoch, 3]["labels"] == 1).any()) for epoch in range(150)]
    assert low <= np.mean(held) <= high


def test_images_without_rare_classes_are_cropped_as_ever(dataset: Dataset) -> None:
    augmented = samples(dataset, rare_crop=1, rare_classes=("pole",))
    assert {tuple(augmented[epoch, 1]["labels"].unique().tolist()) for epoch in range(40)} >= {(0,), (0, 2), (2,)}


def test_copy_paste_brings_pixels_and_labels_of_a_source(dataset: Dataset) -> None:
    """Image 1 has no pole: where its labels say pole, the brightness is that of an image that has."""
    augmented = samples(dataset, copy_paste=1, rare_classes=("pole",))
    brightness = set()
    for epoch in range(40):
        sample = augmented[epoch, 1]
        value = (sample["pixel_values"][0] * 0.229 + 0.485) * 25.5
        pasted = sample["labels"] == 1
        assert pasted.any()
        brightness |= set(value[pasted].round().int().tolist())
        assert set(value[~pasted].round().int().tolist()) == {1}
    assert brightness <= {0, 3, 6, 9} and len(brightness) >= 3


def test_probability_of_copy_paste(dataset: Dataset) -> None:
    augmented = samples(dataset, copy_paste=0.3, rare_classes=("pole",))
    pasted = [bool((augmented[epoch, 1]["labels"] == 1).any()) for epoch in range(200)]
    assert 0.2 < np.mean(pasted) < 0.4


def test_sources_hold_the_drawn_class_or_another_rare_one(dataset: Dataset) -> None:
    sources = PasteSources(dataset, LABELS, [1, 3])
    drawn = [sources(random.Random(seed)) for seed in range(100)]
    held = [set(np.unique(pair[1][:, :])) for pair in drawn if pair is not None]
    assert len(held) == 100 and all(found & {1, 3} for found in held)
    assert 0.3 < np.mean([3 in found for found in held]) < 0.6  # one image of twelve, half of the draws
    assert PasteSources(dataset.select([1, 2]), LABELS, [1, 3])(random.Random(0)) is None


def test_what_was_noted_changes_no_draw(dataset: Dataset) -> None:
    fresh, used = PasteSources(dataset, LABELS, [1, 3]), PasteSources(dataset, LABELS, [1, 3])
    for seed in range(20):
        used(random.Random(seed))
    for seed in (3, 99):
        for left, right in zip(fresh(random.Random(seed)) or (), used(random.Random(seed)) or (), strict=True):
            np.testing.assert_array_equal(left[:, :], right[:, :])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(dataset: Dataset, num_workers: int) -> None:
    def batches(workers: int) -> list[dict[str, Any]]:
        augmented = samples(dataset, rare_crop=0.5, copy_paste=0.7, preset="strong", extra=("RandomRotate90",))
        sampler = StepSampler(len(augmented), 3, seed=1, max_steps=5)
        return list(DataLoader(augmented, batch_sampler=sampler, collate_fn=collate, num_workers=workers))

    for left, right in zip(batches(0), batches(num_workers), strict=True):
        assert left["ids"] == right["ids"]
        assert torch.equal(left["pixel_values"], right["pixel_values"])
        assert torch.equal(left["labels"], right["labels"])
