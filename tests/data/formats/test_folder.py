"""Masks found by patterns, beside their images, and in layouts of Pascal VOC and Roboflow; of folders: test_dataset."""

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


def write(root: Path, *names: str, value: int = 0) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.full((2, 3), value, np.uint8)).save(path)


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
        "train": ["aachen/aachen_000000_000019_leftImg8bit"],
        "val": ["frankfurt/frankfurt_000000_000294_leftImg8bit"],
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
    assert ids_of(tmp_path, **options) == {"train": ["21_training"], "test": ["01_test"]}


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


def test_a_split_file_divides_folders_of_splits_anew(tmp_path: Path) -> None:
    """Of an id that two splits have, each takes its own; others come from wherever they lie."""
    for split, names in (("train", "abx"), ("val", "cx"), ("test", "d")):
        write(tmp_path, *(f"images/{split}/{name}.png" for name in names))
        write(tmp_path, *(f"masks/{split}/{name}.png" for name in names))
    (tmp_path / "split.json").write_text('{"train": ["a", "c", "x"], "val": ["b", "d", "x"]}')
    options = {"val_fraction": 0, "split_file": "split.json"}
    dataset = load_segmentation_dataset(tmp_path, **options)
    found = {split: [Path(row["image"].filename) for row in rows] for split, rows in dataset.items()}
    below = {
        split: [path.relative_to(tmp_path / "images").as_posix() for path in paths] for split, paths in found.items()
    }
    assert below == {
        "train": ["train/a.png", "val/c.png", "train/x.png"],
        "val": ["train/b.png", "test/d.png", "val/x.png"],
    }
    (tmp_path / "split.json").write_text('{"train": ["a"], "val": ["e"]}')
    with pytest.raises(DataError, match=r"ids of the split file without files \(1\): e"):
        load_segmentation_dataset(tmp_path, **options)


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
    assert ids_of(tmp_path, images="*_rgb.png", masks="labels") == {"train": ["a_rgb"]}
    with pytest.raises(UsageError, match="patterns come in pairs"):
        ids_of(tmp_path, images="*_rgb.png")
    with pytest.raises(UsageError, match=r"no pictures match dataset\.masks='\*_label\.png'"):
        ids_of(tmp_path, images="*_rgb.png", masks="*_label.png")
    write(tmp_path, "b_rgb.png")
    with pytest.raises(DataError, match=r"images without a mask \(1\): b_rgb\.png"):
        ids_of(tmp_path, images="*_rgb.png", masks="labels")


# -- masks beside their images ----------------------------------------------------------------------------------------


def test_masks_beside_their_images(tmp_path: Path) -> None:
    """As LGG's brain scans and many others: a_mask.tif beside a.tif."""
    for name in ("x/x_1", "x/x_2", "y/y_1"):
        write(tmp_path, f"{name}.tif", f"{name}_mask.tif")
    expected = {"train": ["x/x_1", "x/x_2", "y/y_1"]}
    assert ids_of(tmp_path) == expected
    assert ids_of(tmp_path, images="**/*.tif", masks="**/*_mask.tif") == expected
    (tmp_path / "y/y_1_mask.tif").unlink()
    with pytest.raises(DataError, match=r"images without a mask \(1\): y/y_1\.tif"):
        ids_of(tmp_path)


def test_masks_beside_their_images_in_folders_of_splits(tmp_path: Path) -> None:
    write(tmp_path, "train/a.jpg", "train/a-label.png", "valid/b.jpg", "valid/b-label.png")
    assert ids_of(tmp_path) == {"train": ["a"], "val": ["b"]}


@pytest.mark.parametrize(
    "options",
    [{}, {"images": "**/*.png", "masks": "**/*_mask.png"}, {"images": "**/*).png", "masks": "**/*)_mask*.png"}],
)
def test_several_masks_of_an_image_are_joined(
    tmp_path: Path, options: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """BUSI: "benign (2)_mask.png" and, for a second lesion, "benign (2)_mask_1.png"."""
    write(tmp_path, "benign/benign (1).png", "benign/benign (1)_mask.png", "benign/benign (2).png")
    for number, column in (("", 0), ("_1", 2)):
        pixels = np.zeros((2, 3), np.uint8)
        pixels[:, column] = 255
        PIL.Image.fromarray(pixels).save(tmp_path / f"benign/benign (2)_mask{number}.png")
    rows = load_segmentation_dataset(tmp_path, val_fraction=0, **options)["train"]
    assert list(rows["id"]) == [f"benign/benign ({number})" for number in (1, 2)]
    assert np.asarray(rows[1]["mask"]).tolist() == [[255, 0, 255]] * 2
    assert "several masks of one image are joined (1 images): benign (2)_mask.png + benign (2)_mask_1" in caplog.text


def test_several_masks_of_an_image_that_contradict_each_other(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    write(tmp_path, "a_mask.png", value=1)
    write(tmp_path, "a_mask_1.png", value=2)
    rows = load_segmentation_dataset(tmp_path)["train"]
    with pytest.raises(DataError, match=r"a_mask_1\.png gives 6 pixels another value than a_mask\.png: make one mask"):
        rows[0]


def test_further_masks_that_no_pattern_matches_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "a).png", "a)_mask.png", "a)_mask_1.png")
    assert ids_of(tmp_path, images="*).png", masks="*_mask.png") == {"train": ["a)"]}
    assert r"left out (1): a)_mask_1.png; masks='**/*_mask*.png' would join them" in caplog.text


def test_masks_that_are_numbered_like_their_images_are_not_joined(tmp_path: Path) -> None:
    write(tmp_path, "images/img.png", "images/img_1.png", "masks/img.png", "masks/img_1.png")
    write(tmp_path, "images/mask.png", "images/mask_1.png", "masks/mask.png", "masks/mask_1.png")
    assert ids_of(tmp_path) == {"train": ["img", "img_1", "mask", "mask_1"]}


def test_patterns_of_the_same_files_are_a_question(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png")
    with pytest.raises(
        UsageError, match=r"both match 2 files, such as a\.png: name what only the masks have in common"
    ):
        ids_of(tmp_path, images="*.png", masks="?.png")


# -- Roboflow ---------------------------------------------------------------------------------------------------------


def roboflow(root: Path, split: str, names: str) -> None:
    write(root, f"{split}/a_jpg.rf.0a1b.jpg", value=7)
    write(root, f"{split}/a_jpg.rf.0a1b_mask.png", value=2)
    (root / split / "_classes.csv").write_text(f"Pixel Value, Class\n{names}")


def test_roboflow(tmp_path: Path) -> None:
    roboflow(tmp_path, "train", "0, background\n1, cat\n2, dog\n")
    roboflow(tmp_path, "valid", "0, background\n2, dog\n")
    dataset, label_map = open_dataset(DatasetConfig(path=str(tmp_path)))
    assert label_map.names == ("background", "cat", "dog")
    assert {split: list(rows["id"]) for split, rows in dataset.items()} == {
        "train": ["a_jpg.rf.0a1b"], "val": ["a_jpg.rf.0a1b"]
    }  # fmt: skip
    assert read_pair(dataset["val"][0], label_map)[1].tolist() == [[2] * 3] * 2


def test_roboflow_whose_splits_differ(tmp_path: Path) -> None:
    roboflow(tmp_path, "train", "0, background\n1, cat\n2, dog\n")
    roboflow(tmp_path, "valid", "0, background\n1, dog\n2, cat\n")
    with pytest.raises(DataError, match=r"valid/_classes\.csv: 1 is 'dog', in .*train/_classes\.csv it is 'cat'"):
        open_dataset(DatasetConfig(path=str(tmp_path)))
    (tmp_path / "valid/_classes.csv").write_text("Pixel Value, Class\nx, dog\n")
    with pytest.raises(UsageError, match=r"_classes\.csv: 'x, dog' is no mask value with the name of its class"):
        open_dataset(DatasetConfig(path=str(tmp_path)))
    with pytest.raises(UsageError, match="no export of Roboflow in it"):
        open_dataset(DatasetConfig(path=str(tmp_path / "train/.."), format="roboflow", splits={"train": "x"}))
