"""Patterns of file names, and the layouts of known data sets that they describe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from segtune.data.config import DatasetConfig
from segtune.data.dataset import load_segmentation_dataset, open_dataset
from segtune.data.formats.folder import is_pattern, match_files
from segtune.errors import DataError, UsageError


def write(root: Path, *names: str, value: int = 0) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.full((2, 3), value, np.uint8)).save(path)


def found(root: Path, pattern: str, classes: tuple[str, ...] = ()) -> list[tuple[str, str | None, str | None]]:
    return [(match.id, match.split, match.kind) for match in match_files(root, pattern, classes)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*_rgb.png", [("1", None, None), ("x/1", None, None), ("x/y/2", None, None)]),
        ("*/*_rgb.png", [("x/1", None, None)]),
        ("x/y/*.*", [("2_label", None, None), ("2_rgb", None, None), ("3.b", None, None)]),
        ("x/?_rgb.png", [("1", None, None)]),
        ("x/?????.png", [("1_rgb", None, None)]),
        ("{split}/*_{split}.png", [("a", "train", None), ("b", "VAL", None)]),
        ("{class}/*_rgb.*", [("1", None, "x")]),
        ("absent/*.png", []),
    ],
)
def test_matches(tmp_path: Path, pattern: str, expected: list[tuple[str, str | None, str | None]]) -> None:
    write(tmp_path, "1_rgb.png", "x/1_rgb.png", "x/y/2_rgb.png", "x/y/2_label.png", "x/y/3.b.tif")
    write(tmp_path, "train/a_train.png", "VAL/b_val.png", "train/c_val.png", ".x/4_rgb.png", "x/._1_rgb.png")
    (tmp_path / "x/y/4_rgb.txt").touch()
    assert sorted(found(tmp_path, pattern), key=str) == sorted(expected, key=str)


def test_classes_that_hold_the_sign_before_them(tmp_path: Path) -> None:
    write(tmp_path, "00000_skin.png", "00000_l_brow.png", "00000_hair_net.png")
    assert found(tmp_path, "*_{class}.png", ("brow", "l_brow", "skin")) == [
        ("00000", None, "l_brow"),
        ("00000", None, "skin"),
    ]


@pytest.mark.parametrize("pattern", ["/a/*.png", "../*.png", "{name}/*.png", "*.{jpg,png}"])
def test_other_patterns_are_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(UsageError, match=r"a pattern is a path below dataset\.path"):
        list(match_files(tmp_path, pattern))


def test_what_is_a_pattern() -> None:
    assert [is_pattern(text) for text in ("images", None, "a/*.png", "{split}/a", "a?b", "x.y")] == [
        False, False, True, True, True, False
    ]  # fmt: skip


# -- data sets as they are laid out -----------------------------------------------------------------------------------


def ids(root: Path, **options: object) -> dict[str, list[str]]:
    dataset = load_segmentation_dataset(root, val_fraction=0, **options)
    return {split: list(rows["id"]) for split, rows in dataset.items()}


def test_cityscapes(tmp_path: Path) -> None:
    for split, name in (("train", "aachen/aachen_000000_000019"), ("val", "frankfurt/frankfurt_000000_000294")):
        write(tmp_path, f"leftImg8bit/{split}/{name}_leftImg8bit.png", f"gtFine/{split}/{name}_gtFine_labelIds.png")
        write(tmp_path, f"gtFine/{split}/{name}_gtFine_color.png", f"gtFine/{split}/{name}_gtFine_instanceIds.png")
        (tmp_path / f"gtFine/{split}/{name}_gtFine_polygons.json").write_text('{"imgHeight": 2, "objects": []}')
    options = {
        "images": "leftImg8bit/{split}/**/*_leftImg8bit.png",
        "masks": "gtFine/{split}/**/*_gtFine_labelIds.png",
    }
    assert ids(tmp_path, **options) == {
        "train": ["aachen/aachen_000000_000019"],
        "val": ["frankfurt/frankfurt_000000_000294"],
    }


def test_loveda_and_other_capitals(tmp_path: Path) -> None:
    for split, number in (("Train", 0), ("Val", 2522)):
        for area in ("Rural", "Urban"):
            write(tmp_path, f"{split}/{area}/images_png/{number}.png", f"{split}/{area}/masks_png/{number}.png")
    options = {"images": "{split}/*/images_png/*.png", "masks": "{split}/*/masks_png/*.png"}
    assert ids(tmp_path, **options) == {"train": ["Rural/0", "Urban/0"], "val": ["Rural/2522", "Urban/2522"]}


def test_drive(tmp_path: Path) -> None:
    for split, number in (("training", 21), ("test", 1)):
        write(tmp_path, f"{split}/images/{number:02}_{split}.tif", f"{split}/1st_manual/{number:02}_manual1.gif")
        write(tmp_path, f"{split}/mask/{number:02}_{split}_mask.gif")
    options = {"images": "{split}/images/*_{split}.tif", "masks": "{split}/1st_manual/*_manual1.gif"}
    assert ids(tmp_path, **options) == {"train": ["21"], "test": ["01"]}


def test_names_of_splits(tmp_path: Path) -> None:
    for split in ("train2017", "val2017", "test2017"):
        write(tmp_path, f"images/{split}/1.jpg", f"stuffthingmaps/{split}/1.png")
    options = {
        "images": "images/{split}/*.jpg",
        "masks": "stuffthingmaps/{split}/*.png",
        "splits": {"train": "train2017", "val": "val2017", "test": None},
    }
    assert ids(tmp_path, **options) == {"train": ["1"], "val": ["1"]}


def test_split_lists_beside_patterns(tmp_path: Path) -> None:
    """The Oxford-IIIT Pet data set: flat folders, lists with more columns, files of another system among them."""
    for name in ("Abyssinian_1", "Abyssinian_2", "beagle_1"):
        write(tmp_path, f"images/{name}.jpg", f"annotations/trimaps/{name}.png", f"annotations/trimaps/._{name}.png")
    (tmp_path / "annotations/trainval.txt").write_text("Abyssinian_1 1 1 1\nbeagle_1 2 2 1\n")
    (tmp_path / "annotations/test.txt").write_text("Abyssinian_2 1 1 1\n")
    options = {
        "masks": "annotations/trimaps",
        "split_file": "annotations/{split}.txt",
        "splits": {"train": "trainval", "test": "test"},
    }
    assert ids(tmp_path, **options) == {"train": ["Abyssinian_1", "beagle_1"], "test": ["Abyssinian_2"]}
    with pytest.raises(UsageError, match=r"no list of a split: none of lists/trainval\.txt, lists/test\.txt"):
        ids(tmp_path, **options | {"split_file": "lists/{split}.txt"})


def test_numbers_with_and_without_zeros_and_a_mask_for_each_class(tmp_path: Path) -> None:
    """CelebAMask-HQ: 0.jpg, and 00000_hair.png, 00000_l_brow.png, … as far as there are any."""
    write(tmp_path, "CelebA-HQ-img/0.jpg", "CelebA-HQ-img/12.jpg")
    write(tmp_path, "anno/0/00000_skin.png", "anno/0/00000_l_brow.png", "anno/0/00012_skin.png", value=255)
    dataset, label_map = open_dataset(
        DatasetConfig(
            path=str(tmp_path),
            images="CelebA-HQ-img/*.jpg",
            masks="anno/?/*_{class}.png",
            labels=["background", "skin", "l_brow"],
            val_fraction=0,
        )
    )
    assert list(dataset["train"]["id"]) == ["0", "12"]
    assert label_map.names == ("background", "skin", "l_brow")
    assert [row["mask"].max() for row in dataset["train"]] == [2, 1]


def test_patterns_come_in_pairs_and_match_something(tmp_path: Path) -> None:
    write(tmp_path, "a_rgb.png", "labels/a.png")
    assert ids(tmp_path, images="*_rgb.png", masks="labels") == {"train": ["a"]}
    with pytest.raises(UsageError, match="patterns come in pairs"):
        ids(tmp_path, images="*_rgb.png")
    with pytest.raises(UsageError, match=r"no pictures match dataset\.masks='\*_label\.png'"):
        ids(tmp_path, images="*_rgb.png", masks="*_label.png")
    write(tmp_path, "b_rgb.png")
    with pytest.raises(DataError, match=r"images without a mask \(1\): b_rgb\.png"):
        ids(tmp_path, images="*_rgb.png", masks="labels")
