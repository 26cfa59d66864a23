"""YOLO's segmentation data as Ultralytics, Roboflow and CVAT lay it out."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import yaml

from segtune.data.config import DatasetConfig
from segtune.data.dataset import load_segmentation_dataset, open_dataset
from segtune.data.formats.yolo import numbers_of, read_each, read_shapes
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


@pytest.mark.parametrize("train", ["/home/x/set/images/train", r"C:\sets\images\train", "../../elsewhere/images/train"])
def test_paths_of_another_machine_end_below_the_folder(tmp_path: Path, train: str) -> None:
    write_image(tmp_path / "images" / "train" / "a.jpg")
    write_label(tmp_path / "labels" / "train" / "a.txt", LEFT)
    write_yaml(tmp_path / "data.yaml", path="/home/x/set", train=train, names=NAMES)
    assert ids(load_segmentation_dataset(tmp_path)) == {"train": ["a"]}


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
        ("2 0 0 1 0 1 1", "line 2: class 2 is none of those in data.yaml: 0, 1"),
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


BOXES = ("0 0.166667 0.25 0.5 0.25 0.5 0.75 0.166667 0.75", "1 0.5 0.5 1 0.5 1 1 0.5 1")  # 4 and 6 pixels of 4 x 6


def yolo(root: Path, lines: tuple[str, ...] = BOXES, labels: str = "labels/train", **content: Any) -> None:
    for name in ("im0", "im1"):
        write_image(root / "images" / "train" / f"{name}.png")
        write_label(root / labels / f"{name}.txt", *lines)
    write_yaml(root / "data.yaml", **{"path": ".", "train": "images/train", "names": NAMES, **content})


def pixels(root: Path, **options: Any) -> list[dict[str, int]]:
    dataset, label_map = open_dataset(DatasetConfig(path=str(root), **{"val_fraction": 0, **options}))
    masks = [label_map.encode(read_mask(row["mask"])) for row in dataset["train"]]
    return [dict(zip(label_map.names, label_map.count_pixels(mask).tolist(), strict=False)) for mask in masks]


RIGHT = {"background": 14, "person": 4, "bicycle": 6}


@pytest.mark.parametrize(
    "names",
    [
        ["person", "bicycle"],
        {"0": "person", "1": "bicycle"},
        {1: "bicycle", 0: "person"},
        {0: "person", 1: "bicycle", 7: "car"},
    ],
)
def test_names_and_their_numbers(tmp_path: Path, names: Any) -> None:
    yolo(tmp_path, names=names)
    assert [{name: n for name, n in found.items() if n} for found in pixels(tmp_path)] == [RIGHT] * 2


def test_names_that_begin_with_one(tmp_path: Path) -> None:
    lines = (BOXES[0].replace("0 ", "1 ", 1), BOXES[1].replace("1 ", "2 ", 1))
    yolo(tmp_path, lines, names={1: "person", 2: "bicycle", 3: "car"})
    assert pixels(tmp_path) == [RIGHT | {"car": 0}] * 2
    yolo(tmp_path, names={1: "person", 2: "bicycle", 3: "car"})
    with pytest.raises(DataError, match=r"im0\.txt, line 1: class 0 is none of those in data\.yaml: 1, 2, 3"):
        pixels(tmp_path)


def test_two_numbers_of_one_name_are_one_class(tmp_path: Path) -> None:
    yolo(tmp_path, names=["person", "person"])
    assert pixels(tmp_path) == [{"background": 14, "person": 10}] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"names": [True, "b"]}, "YAML reads the name of class 0 as True: put it in quotes"),
        ({"names": ["a", None]}, "YAML reads the name of class 1 as None"),
        ({"names": {"x": "a"}}, "'x' is no number of a class"),
        ({"names": {-1: "a"}}, "'-1' is no number of a class"),
        ({"names": {10**9: "a"}}, "'1000000000' is no number of a class"),
        ({"names": {0: "a", "0": "b"}}, "'0' is no number of a class"),
        ({"names": [["a"], "b"]}, "the name of class 0 is a list"),
        ({"names": "ab"}, "names are a list"),
        ({"nc": 3}, "nc is 3, but there are 2 names"),
    ],
)
def test_names_that_are_none(tmp_path: Path, content: Any, message: str) -> None:
    yolo(tmp_path, **content)
    with pytest.raises(UsageError, match=rf"data\.yaml is no data.yaml of YOLO.*{message}"):
        pixels(tmp_path, format="yolo")


def test_class_numbers_as_numpy_writes_them(tmp_path: Path) -> None:
    for first in ("0.000000000000000000e+00", "0.0", "-0"):
        yolo(tmp_path, (BOXES[0].replace("0 ", f"{first} ", 1), BOXES[1]))
        assert pixels(tmp_path) == [RIGHT] * 2
    yolo(tmp_path, (BOXES[0].replace("0 ", "0.5 ", 1),))
    with pytest.raises(DataError, match=r"line 1: class 0\.5 is none"):
        pixels(tmp_path)


@pytest.mark.parametrize("labels", ["Labels/train", "images/labels/train", "labels/trian"])
def test_label_files_elsewhere(tmp_path: Path, labels: str) -> None:
    yolo(tmp_path, labels=labels)
    if (tmp_path / "labels" / "train").is_dir():
        pytest.skip("this file system does not tell Labels from labels")
    with pytest.raises(DataError, match=rf"without a label file \(2\).*looked for as labels.train.im0\.txt.*{labels}"):
        pixels(tmp_path)


def test_label_files_without_an_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    yolo(tmp_path)
    write_label(tmp_path / "labels" / "train" / "im0.png.txt", *BOXES)
    write_label(tmp_path / "labels" / "train" / "classes.txt", "person", "bicycle")
    with pytest.raises(DataError, match=r"of images that are not listed \(1\): labels.train.im0\.png\.txt"):
        pixels(tmp_path)
    assert pixels(tmp_path, on_error="skip") == [RIGHT] * 2


def test_empty_label_files_alone_are_an_error(tmp_path: Path) -> None:
    yolo(tmp_path, ("",))
    with pytest.raises(DataError, match="none has an annotation"):
        pixels(tmp_path)


def test_polygons_in_pixels_are_outside(tmp_path: Path) -> None:
    yolo(tmp_path, ("0 2 2 5 2 5 3 2 3", BOXES[1]))
    with pytest.raises(DataError, match=r"outside of their picture.* (2): .*im0\.txt: line 1".replace("(2)", r"\(2\)")):
        pixels(tmp_path)


@pytest.mark.parametrize("notes", [None, {"categories": [{"id": 1, "name": "bicycle"}, {"id": 0, "name": "person"}]}])
def test_a_list_of_classes_in_place_of_data_yaml(tmp_path: Path, notes: Any) -> None:
    """As Label Studio exports it: images/, labels/, classes.txt and notes.json."""
    write_image(tmp_path / "images" / "a.jpg")
    write_label(tmp_path / "labels" / "a.txt", LEFT.replace("0", "1", 1))
    (tmp_path / "classes.txt").write_text("person\nbicycle\n")
    if notes:
        (tmp_path / "notes.json").write_text(json.dumps(notes))
    for path in (tmp_path, tmp_path / "classes.txt"):
        dataset, label_map = open_dataset(DatasetConfig(path=str(path)))
        assert label_map.names == ("background", "person", "bicycle")
        assert set(np.unique(read_mask(dataset["train"][0]["mask"])).tolist()) == {0, 2}


def test_lists_of_classes_and_folders_of_splits(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_image(tmp_path / "images" / split / f"{split}.jpg")
        write_label(tmp_path / "labels" / split / f"{split}.txt", LEFT)
    (tmp_path / "classes.txt").write_text("person\n")
    assert ids(open_dataset(DatasetConfig(path=str(tmp_path)))[0]) == {"train": ["train"], "val": ["val"]}


@pytest.mark.parametrize(
    ("names", "notes", "message"),
    [
        (
            "person\nbicycle\n",
            [{"id": 0, "name": "bicycle"}, {"id": 1, "name": "person"}],
            "lists bicycle, person",
        ),
        ("person\n\nbicycle\n", [], "a line is empty"),
    ],
)
def test_lists_of_classes_that_are_contradicted(tmp_path: Path, names: str, notes: Any, message: str) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    write_label(tmp_path / "labels" / "a.txt", LEFT)
    (tmp_path / "classes.txt").write_text(names)
    (tmp_path / "notes.json").write_text(json.dumps({"categories": notes}))
    with pytest.raises(UsageError, match=message):
        open_dataset(DatasetConfig(path=str(tmp_path), format="yolo"))


@pytest.mark.parametrize(
    "odd",
    [
        "",
        " 1\t0 0  0.5 0 0.5 1 ",
        "1e0 .1 +0.1 1e-1 5. 0.3 0.7",
        "1 0 0 0_1 0 0.5 1",
        "1 0 0 1e308 0 0.5 1",
        "\u0661 0 0 1 0 1 1",
    ],
)
def test_files_that_are_read_together_are_read_as_each_alone(tmp_path: Path, odd: str) -> None:
    values = numbers_of({0: "background", 1: "a", 2: "b"})
    contents = ([LEFT, "", CENTRE], [odd], [], [CENTRE])
    paths = [tmp_path / f"{number}.txt" for number in range(len(contents))]
    sizes = [(4, 6), (5, 7), (8, 8), (9, 11)]
    for path, lines in zip(paths, contents, strict=True):
        write_label(path, *lines)
    for path, size, shapes in zip(paths, sizes, read_each(paths, sizes, values), strict=True):
        assert not isinstance(shapes, DataError)
        found = [{**shape, "polygons": [list(outline) for outline in shape["polygons"]]} for shape in shapes]
        assert found == read_shapes(path, size, values)


@pytest.mark.parametrize(
    "bad", ["2 0 0 1 0 1 1", "nan 0 0 1 0 1 1", "0 0 0 1 0 1", "0 0.5 0.5 1 1", "0 0 0 x 0 1 1", "0"]
)
def test_a_bad_file_among_those_that_are_read_together_is_named(tmp_path: Path, bad: str) -> None:
    values = numbers_of({0: "background", 1: "a", 2: "b"})
    for name, lines in (("a", [LEFT]), ("b", [LEFT, bad]), ("c", [CENTRE])):
        write_label(tmp_path / f"{name}.txt", *lines)
    first, second, third = read_each([tmp_path / f"{name}.txt" for name in "abc"], [(4, 6)] * 3, values)
    assert [isinstance(found, list) and len(found) for found in (first, third)] == [1, 1]
    assert isinstance(second, DataError) and f"{tmp_path / 'b.txt'}, line 2: " in str(second)
