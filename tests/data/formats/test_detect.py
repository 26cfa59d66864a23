"""Which format a folder has, and what happens where several would fit. Each format's tests cover its own detection."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from segtune.data.config import DatasetConfig
from segtune.data.dataset import find_format, load_segmentation_dataset
from segtune.data.formats.detect import format_of_file, format_of_folder, is_hub
from segtune.errors import UsageError


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.zeros((2, 3), np.uint8)).save(root / name)


def text(root: Path, name: str, content: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content)


COCO = json.dumps({"images": [], "annotations": [], "categories": []})


def folder(root: Path) -> None:
    write(root, "images/train/a.jpg", "masks/train/a.png")


def voc(root: Path) -> None:
    write(root, "JPEGImages/a.jpg", "SegmentationClass/a.png")
    text(root, "Annotations/a.xml", "<annotation><filename>a.jpg</filename></annotation>")


def coco(root: Path) -> None:
    text(root, "annotations/instances_train.json", COCO)


def yolo(root: Path) -> None:
    write(root, "images/train/a.jpg")
    text(root, "labels/train/a.txt", "0 0 0 1 0 1 1\n")
    text(root, "data.yaml", "train: images/train\nnames: [a]\n")


def other_files(root: Path) -> None:
    """What lies about and speaks for nothing."""
    folder(root)
    text(root, "package.json", '{"name": "x", "images": []}')
    text(root, "mkdocs.yaml", "site: x\n")
    text(root, "results.csv", "epoch,loss\n1,2\n")
    text(root, "labels.json", '["a"]')
    text(root, "train.csv", "id,rle_mask\n1,2\n")


@pytest.mark.parametrize(
    ("build", "name", "reason"),
    [
        (folder, "folder", "pictures in images/train/ and masks/train/"),
        (voc, "voc", "it has JPEGImages and SegmentationClass"),
        (coco, "coco", "annotations/instances_train.json looks like it"),
        (yolo, "yolo", "data.yaml has names and splits"),
        (other_files, "folder", "pictures in images/train/ and masks/train/"),
        (lambda root: None, "folder", "nothing speaks for another format"),
    ],
)
def test_folders(tmp_path: Path, build: Callable[[Path], None], name: str, reason: str) -> None:
    build(tmp_path)
    assert format_of_folder(tmp_path, DatasetConfig(path=str(tmp_path))) == (name, reason)


def test_several_are_a_question(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path)
    coco(tmp_path)
    with pytest.raises(UsageError) as error:
        load_segmentation_dataset(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} could be read as coco (annotations/instances_train.json looks like it); folder (pictures in "
        "images/train/ and masks/train/): choose one with dataset.format"
    )
    with caplog.at_level(logging.INFO):
        assert set(load_segmentation_dataset(tmp_path, format="folder")) == {"train"}
    assert "read as" not in caplog.text


def test_what_the_recipe_names_decides(tmp_path: Path) -> None:
    folder(tmp_path)
    coco(tmp_path)
    chosen = DatasetConfig(path=str(tmp_path), masks="annotations/instances_{split}.json")
    assert find_format(chosen) == (tmp_path, "coco")
    assert find_format(DatasetConfig(path=str(tmp_path), masks="masks")) == (tmp_path, "folder")
    chosen = DatasetConfig(path=str(tmp_path), images="images/**/*.*", masks="masks/**/*.*")
    assert find_format(chosen) == (tmp_path, "folder")


def test_the_reason_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path)
    with caplog.at_level(logging.INFO):
        find_format(DatasetConfig(path=str(tmp_path)))
    assert f"{tmp_path}: read as folder, since pictures in images/train/ and masks/train/" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "", "manifest"),
        ("a.parquet", "", "parquet"),
        ("a.yaml", "", "yolo"),
        ("a.json", COCO, "coco"),
        ("a.json", '{"version": "5", "shapes": [], "imagePath": "a.jpg"}', "labelme"),
        ("a.json", '[{"id": 1, "annotations": [], "data": {"image": "a.jpg"}}]', "label_studio"),
        ("a.json", '{"licenses": [], "info": {}, "categories": [], "images": []}', "coco"),
        ("a.json", '{"imgHeight": 5, "objects": []}', None),
        ("a.xml", '<?xml version="1.0"?>\n<annotations>\n  <version>1.1</version>', "cvat"),
        ("a.xml", "<annotation><object/></annotation>", None),
        ("a.csv", "ImageId,EncodedPixels\na.jpg,1 2\n", "rle"),
        ("a.csv", "filename,region_shape_attributes,region_attributes\na.jpg,{},{}\n", "via"),
        ("a.json", '{"a.jpg9": {"filename": "a.jpg", "size": 9, "regions": [], "file_attributes": {}}}', "via"),
        ("a.json", '{"size": {"height": 1, "width": 1}, "tags": [], "objects": []}', "supervisely"),
        ("a.bin", "", None),
    ],
)
def test_files(tmp_path: Path, name: str, content: str, expected: str | None) -> None:
    (tmp_path / name).write_text(content)
    found = format_of_file(tmp_path / name)
    assert (found and found[0]) == expected
    if expected is None:
        with pytest.raises(UsageError, match="is a file, not a folder"):
            find_format(DatasetConfig(path=str(tmp_path / name)))


def test_keys_at_the_end_of_a_long_file(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(9000)]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    assert (tmp_path / "a.json").stat().st_size > 2**18
    assert format_of_file(tmp_path / "a.json") == ("coco", "a.json looks like it")


def test_only_what_says_so_is_of_the_hub() -> None:
    """data/camvid of a recipe whose data is not there yet is no repository of the user "data"."""
    names = ["hub://user/name", "user/name", "data/camvid", "/user/name", "../name", "name"]
    assert [is_hub(name) for name in names] == [True, False, False, False, False, False]


@pytest.mark.parametrize("names", [None, "labels.json", "classes.txt"])
def test_folders_of_pictures_that_are_called_as_those_of_yolo(tmp_path: Path, names: str | None) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").touch()
    if names:
        (tmp_path / names).write_text('["road"]' if names.endswith("json") else "road\n")
    assert format_of_folder(tmp_path, DatasetConfig(path=str(tmp_path)))[0] == "folder"
