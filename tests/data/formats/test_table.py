"""Tables of paths."""

from __future__ import annotations

import json
import logging
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segtune.data.dataset import load_segmentation_dataset
from segtune.errors import DataError, UsageError
from support.pairs import write_image, write_mask, write_pairs


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
        ("a.txt", "one\n", r"a\.txt is no table of images and masks: line 1 holds 1 words, not the path of an image"),
        ("a.txt", "a 1.jpg a.png\n", "line 1 holds 3 words, .*where names have blanks, set a tab between the two"),
        ("a.csv", "image,mask\na,1.jpg,a.png\n", "line 2 has 3 cells, the heading 2: what holds ',' stands in quotes"),
        ("a.csv", "image,mask,mask\na,b,c\n", "two of its columns have one name: image, mask, mask"),
        ("a.csv", "\x00", r"a\.csv is no table of images and masks"),
        ("a.csv", b"image,mask\n\x81,b\n", r"a\.csv is no table of images and masks: 'charmap' codec can't decode"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=message):
        load_segmentation_dataset(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le"])
def test_tables_as_windows_writes_them(tmp_path: Path, encoding: str, caplog: pytest.LogCaptureFixture) -> None:
    """Excel writes cp1252 with semicolons ("CSV") and UTF-16 with tabs ("Unicode text"); Python on Windows UTF-16 LE
    without a mark. Paths have backslashes, and one name holds what stands between the cells."""
    write_image(tmp_path / "bilder/größe; 1.png")
    write_mask(tmp_path / "masken/größe; 1.png")
    rows = 'Image;Mask\r\n"bilder\\größe; 1.png";"masken\\größe; 1.png"\r\n'
    (tmp_path / "train.csv").write_bytes(rows.encode(encoding))
    assert ids(tmp_path) == {"train": ["bilder/größe; 1"]}
    assert ("is no UTF-8: read as cp1252" in caplog.text) == (encoding == "cp1252")


def test_a_table_of_another_encoding_is_none_of_the_folder(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["a"])
    (tmp_path / "train.csv").write_bytes("größe,Länge\n1,2\n".encode("cp1252"))
    assert ids(tmp_path) == {"train": ["a"]}


def test_what_excel_says_of_its_separator(files: Path) -> None:
    (files / "train.csv").write_text("sep=|\nimage|mask\nphotos/b.jpg|truth/b.png\n")
    assert ids(files) == {"train": ["photos/b"]}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_composed_otherwise(tmp_path: Path, form: str) -> None:
    """Unpacked on a Mac, the files have other names than in the table."""
    write_image(tmp_path / unicodedata.normalize("NFD", "straße_größe.png"))
    write_mask(tmp_path / "m" / unicodedata.normalize("NFC", "straße_größe.png"))
    name = unicodedata.normalize(form, "straße_größe.png")
    (tmp_path / "data.csv").write_text(f"image,mask\n{name},m/{name}\n", encoding="utf-8")
    assert [len(found) for found in ids(tmp_path).values()] == [1]


@pytest.mark.parametrize("columns", ["file_name,mask_file_name", "file_name,segmentation_map_file_name"])
def test_columns_of_an_image_folder(files: Path, columns: str) -> None:
    """https://huggingface.co/docs/datasets/image_dataset: metadata.csv beside the pictures, also in split folders."""
    (files / "metadata.csv").write_text(f"{columns}\nphotos/a 1.jpg,truth/a.png\nphotos/b.jpg,truth/b.png\n")
    assert ids(files) == {"train": ["photos/a 1", "photos/b"]}


def test_tables_in_the_folders_of_splits(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("validation", "b")):
        write_pairs(tmp_path / split, [name])
        row = {"file_name": f"images/{name}.jpg", "mask_file_name": f"masks/{name}.png"}
        (tmp_path / split / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    assert ids(tmp_path) == {"train": ["train/images/a"], "val": ["validation/images/b"]}
    shutil.copy(tmp_path / "train/metadata.jsonl", tmp_path / "train/index.jsonl")
    with pytest.raises(UsageError, match=r"index\.jsonl and .*metadata\.jsonl are tables of train: keep one"):
        ids(tmp_path)


def test_rows_without_a_path(files: Path) -> None:
    (files / "train.csv").write_text("image,mask\nphotos/b.jpg,truth/b.png\nphotos/a 1.jpg\n")
    with pytest.raises(DataError, match=r"rows of the table without a path \(1\): row 2 \(mask is empty\)"):
        ids(files)
    assert ids(files, on_error="skip") == {"train": ["photos/b"]}


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no table \(\.csv, .*\) with a column of images and one of masks in it"):
        load_segmentation_dataset(tmp_path, format="manifest")
