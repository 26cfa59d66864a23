"""Names that differ by what all images, or all masks, have in common."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from segtune.data.dataset import load_segmentation_dataset
from segtune.data.formats.pairing import match_affixes
from segtune.errors import DataError


def write(root: Path, *names: str, size: tuple[int, int] = (2, 3)) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.zeros(size, np.uint8)).save(root / name)


@pytest.mark.parametrize(
    ("images", "masks", "expected", "pairs"),
    [
        (["a_rgb", "b_rgb"], ["a_label", "b_label"], ["a", "b"], 2),
        (["x/aachen_0_19_leftImg8bit", "x/ulm_1_19_leftImg8bit"],
         ["x/aachen_0_19_gtFine_labelTrainIds", "x/ulm_1_19_gtFine_labelTrainIds"], ["x/aachen_0", "x/ulm_1"], 2),
        (["ISIC_01", "ISIC_02"], ["ISIC_01_segmentation", "ISIC_02_segmentation"], ["ISIC_01", "ISIC_02"], 2),
        (["image_1", "image_12"], ["mask_1", "mask_12"], ["1", "12"], 2),
        (["img_1_a", "img_2_a"], ["seg_1_b", "seg_2_b"], ["1", "2"], 2),
        (["1", "12"], ["0001", "0012"], ["1", "12"], 2),
        (["one_rgb"], ["one_label"], ["one"], 1),
        (["scene 1/rgb", "scene 2/rgb"], ["scene 1/label", "scene 2/label"], ["scene 1", "scene 2"], 2),
        (["a", "b"], ["a", "c"], ["a", "b"], 1),
        (["a", "b"], ["x", "y"], ["a", "b"], 0),
        (["10", "20"], ["10_color", "10_ids", "20_color", "20_ids"], ["10", "20"], 0),
    ],
)  # fmt: skip
def test_affixes(images: list[str], masks: list[str], expected: list[str], pairs: int) -> None:
    files = {"train": ({i: [Path(i)] for i in images}, {i: [Path(i)] for i in masks})}
    paired = match_affixes(files)["train"]
    assert list(paired[0]) == expected
    assert [path for paths in paired[0].values() for path in paths] == [Path(i) for i in images]
    assert len(set(paired[0]) & set(paired[1])) == pairs


def test_loaded_with_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A few without partner do not keep the others from being paired."""
    write(tmp_path, *(f"images/train/{i}_sat.jpg" for i in range(6)), *(f"masks/train/{i}_mask.png" for i in range(5)))
    write(tmp_path, "images/val/7_sat.jpg", "masks/val/7_mask.png")
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(DataError, match=r"without a mask \(1\): images/train/5_sat\.jpg"),
    ):
        load_segmentation_dataset(tmp_path)
    assert "paired by the part of their names that differs: 0_sat with 0_mask" in caplog.text
    (tmp_path / "images/train/5_sat.jpg").unlink()
    dataset = load_segmentation_dataset(tmp_path)
    assert list(dataset["val"]["id"]) == ["7"]
    assert list(dataset["train"]["id"]) == ["0", "1", "2", "3", "4"]


def test_nothing_in_common_says_how_to_name_the_pairs(tmp_path: Path) -> None:
    write(tmp_path, "images/a.jpg", "masks/a_color.png", "masks/a_ids.png")
    with pytest.raises(
        DataError, match=r"No image and mask share a name: give dataset\.images and dataset\.masks as patt"
    ):
        load_segmentation_dataset(tmp_path)


@pytest.mark.parametrize("tile", [None, 32])
def test_images_are_given_the_size_of_their_masks(tmp_path: Path, tile: int | None) -> None:
    """Of twice the size; masks hold the greys of the picture, so that both agree wherever a tile is cut."""
    small = np.add.outer(np.arange(40), np.arange(64)).astype(np.uint8)
    for folder, pixels in {"masks": small, "images": small.repeat(2, 0).repeat(2, 1)}.items():
        (tmp_path / folder).mkdir()
        PIL.Image.fromarray(pixels).save(tmp_path / folder / "a.png")
    options = {"labels": {"0-255": "x"}, "val_fraction": 0, "tile": tile}
    with pytest.raises(DataError, match=r"\(80, 128\)"):
        load_segmentation_dataset(tmp_path, **options)
    rows = load_segmentation_dataset(tmp_path, resize_images=True, **options)["train"]
    assert len(rows) == (4 if tile else 1)
    for row in rows:
        image, mask = np.asarray(row["image"]).astype(int), np.asarray(row["mask"]).astype(int)
        assert image.shape == mask.shape == ((32, 32) if tile else (40, 64))
        assert np.abs(image - mask).max() <= 1  # rounding, and the rim


def test_images_of_another_shape_are_no_copies_in_another_size(tmp_path: Path) -> None:
    write(tmp_path, "masks/a.png", size=(4, 8))
    write(tmp_path, "images/a.png", size=(8, 8))
    with pytest.raises(DataError, match=r"\(8, 8\)"):
        load_segmentation_dataset(tmp_path, labels=["x"], val_fraction=0, resize_images=True)
