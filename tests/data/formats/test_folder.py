"""Patterns of file names, and Pascal VOC's layout. Folders of images and masks: see test_dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from segtune.data.checks import check_masks
from segtune.data.config import DatasetConfig
from segtune.data.dataset import load_segmentation_dataset, open_dataset
from segtune.data.formats.folder import is_pattern, match_files
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


# -- patterns ---------------------------------------------------------------------------------------------------------


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


def ids_of(root: Path, **options: object) -> dict[str, list[str]]:
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
    assert ids_of(tmp_path, **options) == {
        "train": ["aachen/aachen_000000_000019"],
        "val": ["frankfurt/frankfurt_000000_000294"],
    }


def test_loveda_and_other_capitals(tmp_path: Path) -> None:
    for split, number in (("Train", 0), ("Val", 2522)):
        for area in ("Rural", "Urban"):
            write(tmp_path, f"{split}/{area}/images_png/{number}.png", f"{split}/{area}/masks_png/{number}.png")
    options = {"images": "{split}/*/images_png/*.png", "masks": "{split}/*/masks_png/*.png"}
    assert ids_of(tmp_path, **options) == {"train": ["Rural/0", "Urban/0"], "val": ["Rural/2522", "Urban/2522"]}


def test_drive(tmp_path: Path) -> None:
    for split, number in (("training", 21), ("test", 1)):
        write(tmp_path, f"{split}/images/{number:02}_{split}.tif", f"{split}/1st_manual/{number:02}_manual1.gif")
        write(tmp_path, f"{split}/mask/{number:02}_{split}_mask.gif")
    options = {"images": "{split}/images/*_{split}.tif", "masks": "{split}/1st_manual/*_manual1.gif"}
    assert ids_of(tmp_path, **options) == {"train": ["21"], "test": ["01"]}


def test_names_of_splits(tmp_path: Path) -> None:
    for split in ("train2017", "val2017", "test2017"):
        write(tmp_path, f"images/{split}/1.jpg", f"stuffthingmaps/{split}/1.png")
    options = {
        "images": "images/{split}/*.jpg",
        "masks": "stuffthingmaps/{split}/*.png",
        "splits": {"train": "train2017", "val": "val2017", "test": None},
    }
    assert ids_of(tmp_path, **options) == {"train": ["1"], "val": ["1"]}


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
    assert ids_of(tmp_path, **options) == {"train": ["Abyssinian_1", "beagle_1"], "test": ["Abyssinian_2"]}
    with pytest.raises(UsageError, match=r"no list of a split: none of lists/trainval\.txt, lists/test\.txt"):
        ids_of(tmp_path, **options | {"split_file": "lists/{split}.txt"})


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
    assert ids_of(tmp_path, images="*_rgb.png", masks="labels") == {"train": ["a"]}
    with pytest.raises(UsageError, match="patterns come in pairs"):
        ids_of(tmp_path, images="*_rgb.png")
    with pytest.raises(UsageError, match=r"no pictures match dataset\.masks='\*_label\.png'"):
        ids_of(tmp_path, images="*_rgb.png", masks="*_label.png")
    write(tmp_path, "b_rgb.png")
    with pytest.raises(DataError, match=r"images without a mask \(1\): b_rgb\.png"):
        ids_of(tmp_path, images="*_rgb.png", masks="labels")
