"""Tables of paths."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segtune.data.dataset import load_segmentation_dataset
from segtune.errors import DataError, UsageError


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("photos/a 1.jpg", "photos/b.jpg", "truth/a.png", "truth/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / name)
    return tmp_path


def ids(path: Path, **options: Any) -> dict[str, list[str]]:
    dataset = load_segmentation_dataset(path, **{"val_fraction": 0} | options)
    assert all(row["image"].size == row["mask"].size == (6, 4) for rows in dataset.values() for row in rows)
    return {split: list(rows["id"]) for split, rows in dataset.items()}


BOTH = {"train": ["photos/a 1"], "val": ["photos/b"]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "image,mask,split\nphotos/a 1.jpg,truth/a.png,train\nphotos/b.jpg,truth/b.png,validation\n"),
        (
            "manifest.tsv",
            "split\timg_path\tlabel_path\ntrain\tphotos/a 1.jpg\ttruth/a.png\nVal\tphotos/b.jpg\ttruth/b.png\n",
        ),
        (
            "data.csv",
            'image_path;mask_path;subset\n"photos/a 1.jpg";truth/a.png;training\nphotos/b.jpg;truth/b.png;valid\n',
        ),
        (
            "metadata.jsonl",
            '{"file_name": "photos/a 1.jpg", "annotation": "truth/a.png", "split": "train"}\n\n'
            '{"file_name": "photos/b.jpg", "annotation": "truth/b.png", "split": "val"}\n',
        ),
    ],
)
def test_tables_in_the_folder(files: Path, name: str, text: str) -> None:
    (files / name).write_text(text, encoding="utf-8-sig")
    assert ids(files) == BOTH
    assert ids(files / name) == BOTH


def test_a_table_for_each_split(files: Path) -> None:
    (files / "train.csv").write_text("image,mask\nphotos/a 1.jpg,truth/a.png\n")
    (files / "val.csv").write_text("image,mask\nphotos/b.jpg,truth/b.png\n")
    assert ids(files) == BOTH


def test_given_columns_ids_and_paths_from_elsewhere(files: Path) -> None:
    (files / "lists").mkdir()
    rows = [{"id": 7, "photo": str(files / "photos/b.jpg"), "truth": "../truth/b.png"}]
    (files / "lists/all.jsonl").write_text(json.dumps(rows[0]))
    options = {"images": "photo", "masks": "truth"}
    with pytest.raises(DataError, match=r"outside the data set's folder are named \(2\)"):
        ids(files / "lists/all.jsonl", **options)
    assert ids(files / "lists/all.jsonl", allow_outside=True, **options) == {"train": ["7"]}


def test_two_paths_in_each_line(files: Path) -> None:
    """As mmseg's and DeepLab's lists are."""
    (files / "train.txt").write_text("photos/b.jpg truth/b.png\n")
    assert ids(files / "train.txt") == {"train": ["photos/b"]}


def test_rows_of_other_splits_are_left_out(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "image,mask,split\nphotos/a 1.jpg,truth/a.png,train\nphotos/b.jpg,truth/b.png,fold 3\n"
    (files / "metadata.csv").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert ids(files) == {"train": ["photos/a 1"]}
    assert "rows of other splits are left out: {'fold 3': 1}" in caplog.text
    assert ids(files, splits={"train": "fold 3"}) == {"train": ["photos/b"]}


def test_faults_are_named(files: Path) -> None:
    (files / "metadata.csv").write_text("image,mask\nphotos/absent.jpg,truth/a.png\nphotos/b.jpg,truth/b.png\n")
    with pytest.raises(
        DataError, match=r"files of the table that are not there \(1\): photos/absent\.jpg\. Paths are rel"
    ):
        ids(files)
    assert ids(files, on_error="skip") == {"train": ["photos/b"]}
    (files / "metadata.csv").write_text("image,mask\nphotos/b.jpg,truth/b.png\nphotos/b.jpg,truth/a.png\n")
    with pytest.raises(DataError, match=r"several samples have one id \(1\): photos/b\. Rename them"):
        ids(files)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "picture,truth\nx,y\n", r"has no column of images; name one in dataset\.images: picture, truth"),
        ("a.csv", "image,truth\nx,y\n", r"has no column of masks; name one in dataset\.masks: image, truth"),
        ("a.csv", "", r"a\.csv is no table of images and masks"),
        ("a.jsonl", "{", r"a\.jsonl is no table of images and masks"),
        ("a.txt", "one\n", r"a\.txt is no table of images and masks"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        load_segmentation_dataset(tmp_path / name)


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no table \(\.csv, .*\) with a column of images and one of masks in it"):
        load_segmentation_dataset(tmp_path, format="manifest")
