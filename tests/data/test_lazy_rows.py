"""Rows that read their files when they are asked for: several files in one mask, channels, and their faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from datasets import Image
from torch.utils.data import DataLoader

from segtune.data.checks import check_masks
from segtune.data.config import DatasetConfig
from segtune.data.dataset import open_dataset
from segtune.data.index import Sample
from segtune.data.lazy_rows import Reader, sample_ids, to_dataset
from segtune.errors import DataError
from segtune.imageio.read import read_mask
from segtune.labels.label_map import LabelMap


def save(path: Path, array: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(array)
    np.save(path, array) if path.suffix == ".npy" else PIL.Image.fromarray(array).save(path)
    return path


def test_plain_pictures_stay_pictures_of_datasets(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{i}.png", np.full((2, 3), i, np.uint8)) for i in range(2)]
    sample = Sample("a", "train", paths[0], paths[1])
    dataset = to_dataset([sample], Reader())
    assert isinstance(dataset.features["image"], Image) and isinstance(dataset.features["mask"], Image)
    mixed = to_dataset([sample, sample._replace(image=save(tmp_path / "b.npy", np.zeros((2, 3))))], Reader())
    assert [type(feature).__name__ for feature in mixed.features.values()] == ["Value", "dict", "Image"]
    assert [type(row["image"]).__name__ for row in mixed][1:] == ["ndarray"]
    assert np.asarray(mixed[0]["image"]).tolist() == [[0] * 3] * 2
    assert list(mixed["id"]) == ["a", "a"]


def test_nothing_is_read_before_a_row_is(tmp_path: Path) -> None:
    sample = Sample("a", "train", tmp_path / "absent.npy", tmp_path / "absent.json", mask_part='{"size": [2, 3]}')
    dataset = to_dataset([sample] * 3, Reader({"x": 1}))
    assert (len(dataset), sample_ids(dataset)) == (3, ["a"] * 3)
    with pytest.raises(DataError, match=r"absent\.npy"):
        dataset[0]


def test_workers_read_rows(tmp_path: Path) -> None:
    shapes = [{"value": 1, "polygons": [[0, 0, 2, 0, 2, 2, 0, 2]]}]
    image = save(tmp_path / "a.npy", np.zeros((9, 8, 5)))
    part = json.dumps({"shapes": shapes, "size": [9, 8]})
    dataset = to_dataset([Sample("a", "train", image, tmp_path / "x.json", mask_part=part)] * 2, Reader())
    (first, second) = DataLoader(dataset, batch_size=None, num_workers=1)
    for row in (first, second):
        assert np.asarray(row["image"]).shape == (9, 8, 5)
        assert np.asarray(row["mask"])[:3, :3].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


# -- a mask for each class --------------------------------------------------------------------------------------------


def class_masks(root: Path, **masks: Any) -> tuple[Any, LabelMap]:
    save(root / "images/a.png", np.zeros((2, 3, 3), np.uint8))
    for name, mask in masks.items():
        save(root / f"masks/a_{name}.png", mask)
    config = DatasetConfig(path=str(root), images="images/*.png", masks="masks/*_{class}.png")
    return open_dataset(config)


def test_classes_without_labels_are_in_alphabetical_order_and_the_last_is_on_top(tmp_path: Path) -> None:
    road, car = np.array([[[0] * 3, [255] * 3, [255] * 3]] * 2, np.uint8), np.array([[0, 0, 1]] * 2, np.uint8)
    dataset, label_map = class_masks(tmp_path, road=road, car=car)
    assert label_map.names == ("background", "car", "road")
    assert read_mask(dataset["train"][0]["mask"]).tolist() == [[0, 2, 2]] * 2


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.array([[0, 128, 255]] * 2, np.uint8),
            r"a_road\.png: the mask of one class holds 0 and one other value, not 3",
        ),
        (np.zeros((2, 4), np.uint8), r"a_road\.png is \(2, 4\) \(height, width\), others are \(2, 3\)"),
    ],
)
def test_faults_of_class_masks(tmp_path: Path, mask: np.ndarray, message: str) -> None:
    dataset, label_map = class_masks(tmp_path, car=np.zeros((2, 3), np.uint8), road=mask)
    with pytest.raises(DataError, match=message):
        check_masks(dataset, label_map)


# -- a channel for each class -----------------------------------------------------------------------------------------


def one_hot(root: Path, mask: Any) -> Any:
    save(root / "images/a.png", np.zeros((4, 4, 3), np.uint8))
    save(root / "masks/a.npy", mask)
    return open_dataset(DatasetConfig(path=str(root), labels=["sky", "road", "car"], one_hot=True))


def test_pixels_of_no_channel_are_ignored(tmp_path: Path) -> None:
    mask = np.zeros((3, 4, 4), np.float32)
    mask[0, 0, 0] = mask[1, 0, 1:] = mask[2, 1] = 1
    dataset, label_map = one_hot(tmp_path, mask)
    assert label_map.encode(read_mask(dataset["train"][0]["mask"])).tolist() == [
        [0, 1, 1, 1],
        [2] * 4,
        [255] * 4,
        [255] * 4,
    ]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((4, 4, 3)), r"an array \(4, 4, 3\) is no one-hot mask: 16 pixels have several channels set"),
        (np.ones((4, 4)), r"an array \(4, 4\) is no one-hot mask"),
    ],
)
def test_faults_of_one_hot_masks(tmp_path: Path, mask: np.ndarray, message: str) -> None:
    dataset, label_map = one_hot(tmp_path, mask)
    with pytest.raises(DataError, match=message):
        check_masks(dataset, label_map)
