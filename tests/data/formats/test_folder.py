"""Pascal VOC's layout, as its own and as tools export it. Folders of images and masks: see test_sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from segtune.data.checks import check_masks
from segtune.data.config import DatasetConfig
from segtune.data.dataset import load_segmentation_dataset, open_dataset
from segtune.data.samples import read_pair
from segtune.errors import DataError, UsageError

# id, colour: the first of VOC's 21 and its border
PALETTE = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 255: (224, 224, 192)}


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (4, 2)).save(path)


def mask(path: Path, row: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = PIL.Image.fromarray(np.array([row] * 2, np.uint8))
    colors = np.zeros((256, 3), np.uint8)
    for value, color in PALETTE.items():
        colors[value] = color
    image.putpalette(colors.ravel().tolist())
    image.save(path)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """VOC2012: more images than masks, lists of the segmentation task, boxes of the detection task."""
    for name in ("2007_000032", "2007_000033", "2007_000039", "2008_000001", "2012_000001"):
        picture(tmp_path / f"JPEGImages/{name}.jpg")
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / f"Annotations/{name}.xml").write_text("<annotation></annotation>")
    for name in ("2007_000032", "2007_000033", "2007_000039"):
        mask(tmp_path / f"SegmentationClass/{name}.png", [0, 255, 1, 2])
        mask(tmp_path / f"SegmentationObject/{name}.png", [0, 255, 1, 2])
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n2007_000039\n")
    (lists / "val.txt").write_text("2007_000033\n")
    (lists / "trainval.txt").write_text("2007_000032\n2007_000033\n2007_000039\n")
    (lists / "test.txt").write_text("2012_000001\n")
    return tmp_path


def ids(path: Path, **options: object) -> dict[str, list[str]]:
    return {split: list(rows["id"]) for split, rows in load_segmentation_dataset(path, **options).items()}


def test_voc_2012(voc: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert ids(voc) == {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]}
    assert "no masks for the 1 samples of test: it is left out" in caplog.text
    dataset, label_map = open_dataset(DatasetConfig(path=str(voc), labels=["background", "aeroplane", "bicycle"]))
    _, labels = read_pair(dataset["train"][0], label_map)
    assert labels.tolist() == [[0, 255, 1, 2]] * 2
    check_masks(dataset, label_map)
    assert ids(voc, splits={"train": "trainval"}, val_fraction=0) == {
        "train": ["2007_000032", "2007_000033", "2007_000039"]
    }


def test_masks_in_colors_as_cvat_exports_them(tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages/a.jpg")
    colors = np.array([[PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[2]]] * 2, np.uint8)
    (tmp_path / "SegmentationClass").mkdir()
    PIL.Image.fromarray(colors).save(tmp_path / "SegmentationClass/a.png")
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/default.txt").write_text("a\n")
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:128,0,0::\nsky:0,128,0::\n"
    )
    dataset, label_map = open_dataset(DatasetConfig(path=str(tmp_path)))
    assert label_map.names == ("background", "car", "sky")
    assert read_pair(dataset["train"][0], label_map)[1].tolist() == [[0, 1, 2, 2]] * 2


def test_export_of_labelme(tmp_path: Path) -> None:
    """labelme2voc: pictures and arrays of the masks, names in a file."""
    picture(tmp_path / "JPEGImages/a.jpg")
    mask(tmp_path / "SegmentationClassPNG/a.png", [0, 1, 2, 255])
    (tmp_path / "SegmentationClass").mkdir()
    np.save(tmp_path / "SegmentationClass/a.npy", np.array([[0, 1, 2, -1]] * 2))
    (tmp_path / "class_names.txt").write_text("_background_\ncar\nsky\n")
    dataset, label_map = open_dataset(DatasetConfig(path=str(tmp_path)))
    assert label_map.names == ("background", "car", "sky")
    assert read_pair(dataset["train"][0], label_map)[1].tolist() == [[0, 1, 2, 255]] * 2


def test_faults(voc: Path) -> None:
    (voc / "SegmentationClass/2007_000033.png").unlink()
    with pytest.raises(DataError, match=r"images without a mask \(1\): JPEGImages/2007_000033\.jpg"):
        load_segmentation_dataset(voc)
    with pytest.raises(UsageError, match="Pascal VOC has the folders JPEGImages and SegmentationClassPNG or Segm"):
        load_segmentation_dataset(voc / "ImageSets", format="voc")
