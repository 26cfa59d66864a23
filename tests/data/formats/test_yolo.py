"""YOLO's segmentation data as Ultralytics, Roboflow and CVAT lay it out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import yaml

from segtune.data.config import DatasetConfig
from segtune.data.dataset import load_segmentation_dataset, open_dataset
from segtune.errors import DataError, UsageError
from segtune.imageio.read import read_mask

LEFT = "0 0 0 0.5 0 0.5 1 0 1"
CENTRE = "1 0.333333 0.25 0.666667 0.25 0.666667 0.75 0.333333 0.75"
NAMES = {0: "person", 1: "bicycle"}


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path)


def write_label(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_yaml(file: Path, **content: Any) -> None:
    file.write_text("# COCO8-seg dataset\n" + yaml.safe_dump(content))


def ids(dataset: Any) -> dict[str, list[str]]:
    return {split: list(rows["id"]) for split, rows in dataset.items()}


def test_layout_of_ultralytics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train/a", "train/b", "val/c"):
        write_image(tmp_path / "images" / f"{name}.jpg")
    write_label(tmp_path / "labels" / "train" / "a.txt", LEFT, CENTRE)
    write_label(tmp_path / "labels" / "val" / "c.txt", CENTRE, "")
    write_yaml(
        tmp_path / "coco8-seg.yaml", path="../datasets/coco8-seg", train="images/train", val="images/val", names=NAMES
    )
    with caplog.at_level(logging.INFO):
        dataset, label_map = open_dataset(DatasetConfig(path=str(tmp_path)))
    assert ids(dataset) == {"train": ["a", "b"], "val": ["c"]}
    assert label_map.names == ("background", "person", "bicycle")
    first, second = (read_mask(row["mask"]).tolist() for row in dataset["train"])
    assert first == [[1, 1, 1, 0, 0, 0], [1, 1, 2, 2, 0, 0], [1, 1, 2, 2, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert second == [[0] * 6] * 4
    assert "1 of 3 images have no label file" in caplog.text
    assert "read as yolo, since coco8-seg.yaml has names and splits" in caplog.text


def test_layout_of_roboflow(tmp_path: Path) -> None:
    """Its paths are written relative to a folder beside the data."""
    for split in ("train", "valid"):
        write_image(tmp_path / split / "images" / f"{split}_png.rf.1.jpg")
        write_label(tmp_path / split / "labels" / f"{split}_png.rf.1.txt", LEFT)
    write_yaml(
        tmp_path / "data.yaml", train="../train/images", val="../valid/images", nc=2, names=["person", "bicycle"]
    )
    assert ids(load_segmentation_dataset(tmp_path)) == {"train": ["train_png.rf.1"], "val": ["valid_png.rf.1"]}


def test_layout_of_cvat(tmp_path: Path) -> None:
    """Its splits are lists of paths."""
    for name in "ab":
        write_image(tmp_path / "images" / "train" / f"{name}.png")
        write_label(tmp_path / "labels" / "train" / f"{name}.txt", LEFT)
    (tmp_path / "train.txt").write_text("images/train/a.png\nimages/train/b.png\n")
    write_yaml(tmp_path / "data.yaml", path="./", train="train.txt", names=NAMES)
    assert ids(load_segmentation_dataset(tmp_path, val_fraction=0)) == {"train": ["a", "b"]}
    assert ids(load_segmentation_dataset(tmp_path / "data.yaml", val_fraction=0)) == {"train": ["a", "b"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2 0.2", r"a\.txt, line 2: a box \(class, centre and size\) has no outline"),
        ("0 0 0 1 1", r"line 2: a box"),
        ("0 0 0 1 1 0.5", "line 2: 5 numbers are no x y x y"),
        ("2 0 0 1 0 1 1", "line 2: class 2 is none of the 2 in data.yaml"),
        ("person 0 0 1 0 1 1", "line 2: expected a class and x y x y …, found 'person"),
    ],
)
def test_lines_that_are_no_polygons(tmp_path: Path, line: str, message: str) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    write_label(tmp_path / "labels" / "a.txt", LEFT, line)
    write_yaml(tmp_path / "data.yaml", train="images", names=NAMES)
    with pytest.raises(DataError, match=message):
        open_dataset(DatasetConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": "images"}, "is no data.yaml of YOLO: it needs names and train"),
        ({"train": "elsewhere", "names": NAMES}, "elsewhere is not there; looked at"),
        ({"names": NAMES, "train": None}, "none of its splits has images"),
    ],
)
def test_other_yaml_is_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    write_yaml(tmp_path / "data.yaml", **content)
    with pytest.raises(UsageError, match=message):
        load_segmentation_dataset(tmp_path, format="yolo")
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(UsageError, match=r"no data\.yaml"):
        load_segmentation_dataset(tmp_path, format="yolo")
