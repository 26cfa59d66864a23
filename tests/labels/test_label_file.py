"""Lists of names and colours as tools and data sets write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtune.errors import UsageError
from segtune.labels.label_file import canonical, read_label_file
from segtune.labels.label_map import LabelMap

CAMVID = "64 128 64\tAnimal\n192 0 128\tArchway\n0 128 192\tBicyclist\n"
CVAT = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\ntraffic light:250,170,30::\n"
CLASS_DICT = "name,r,g,b\nAnimal,64,128,64\nRoadShoulder,128,128,192\n"
LABELME = "__ignore__\n_background_\naeroplane\ndining table\n"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("label_colors.txt", CAMVID, {(64, 128, 64): "Animal", (192, 0, 128): "Archway", (0, 128, 192): "Bicyclist"}),
        ("labelmap.txt", CVAT, {(0, 0, 0): "background", (128, 64, 128): "road", (250, 170, 30): "traffic light"}),
        ("class_dict.csv", CLASS_DICT, {(64, 128, 64): "Animal", (128, 128, 192): "RoadShoulder"}),
        ("class_names.txt", LABELME, ["background", "aeroplane", "dining table"]),
        ("codes.txt", "Animal\nSign Symbol\n", ["Animal", "Sign Symbol"]),
        ("labels.txt", "1: accessory\n2: bag\n59: traffic sign\n", {1: "accessory", 2: "bag", 59: "traffic sign"}),
        ("labels.csv", "id,name\n0,sky\n1,road\n", {0: "sky", 1: "road"}),
        ("palette.txt", "0 128 64 128 road\n1 70 70 70 building\n", {(128, 64, 128): "road", (70, 70, 70): "building"}),
        (
            "colors.txt",
            "road 128 64 128\nsign symbol 192 128 128\n",
            {(128, 64, 128): "road", (192, 128, 128): "sign symbol"},
        ),
        ("names.txt", "background\n2nd class\nB-1\n", ["background", "2nd class", "B-1"]),
        ("one.csv", "r;g;b;name\n1;2;3;class 7\n", {(1, 2, 3): "class 7"}),
    ],
)
def test_lines(tmp_path: Path, name: str, text: str, expected: Any) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8-sig")
    found = read_label_file(path)
    assert found == expected
    assert LabelMap.from_file(path).num_labels == len(expected)


@pytest.mark.parametrize("text", ["", "# nothing\n", "1 2\n3 4\n", "road 1 2 3\n1 2 3 road\n", "a\n7 road\nb\n"])
def test_other_lines_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"labels\.txt(: it is empty|, line \d: what is '.*'\?)\.? A line names a"):
        read_label_file(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.txt: cannot read the class names"):
        read_label_file(tmp_path / "absent.txt")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UsageError, match=r"bad\.json is no JSON file: "):
        LabelMap.from_file(tmp_path / "bad.json")


SUPERVISELY = {
    "classes": [{"title": "road", "shape": "bitmap", "color": "#804080"}, {"title": "sky", "color": "#4682b4"}]
}
COCO = [
    {"id": 7, "name": "sky", "color": [70, 130, 180], "isthing": 0},
    {"id": 2, "name": "road", "color": [128, 64, 128]},
]


@pytest.mark.parametrize(
    ("data", "names", "table"),
    [
        (SUPERVISELY, ("road", "sky"), {(128, 64, 128): 0, (70, 130, 180): 1}),
        (COCO, ("road", "sky"), {2: 0, 7: 1}),
        ({"categories": COCO}, ("road", "sky"), {2: 0, 7: 1}),
        ([{"name": "road"}, {"name": "sky"}], ("road", "sky"), {0: 0, 1: 1, 255: None}),
        ({"road": [128, 64, 128], "sky": [70, 130, 180]}, ("road", "sky"), {(128, 64, 128): 0, (70, 130, 180): 1}),
        ({"road": "#804080"}, ("road",), {(128, 64, 128): 0}),
    ],
)
def test_forms_of_json(tmp_path: Path, data: Any, names: tuple[str, ...], table: dict[Any, Any]) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(data))
    label_map = LabelMap.from_file(tmp_path / "labels.json")
    assert label_map.names == names
    assert (label_map.mask_colors or label_map.ids) == table
    if data is COCO:
        assert label_map.colors == ((128, 64, 128), (70, 130, 180))


def test_two_classes_of_one_color_are_refused() -> None:
    with pytest.raises(UsageError, match="two classes have one colour"):
        canonical({"road": [1, 2, 3], "sky": [1, 2, 3]})


def test_ranges_of_ids() -> None:
    """A grey picture that was compressed: everything from 128 on is the object."""
    label_map = LabelMap.from_dict({"0-127": "background", "128-255": "polyp"})
    assert label_map.names == ("background", "polyp")
    mask = np.array([[0, 3, 127, 128, 250, 255]], np.uint8)
    assert label_map.encode(mask).tolist() == [[0, 0, 0, 1, 1, 1]]
    assert LabelMap.from_dict(label_map.to_dict()) == label_map
    with pytest.raises(UsageError, match="a mask id is named twice in 0-5, 5"):
        LabelMap.from_dict({"0-5": "sky", "5": "road"})


def test_the_odd_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("# ours\n0 sky\n\n1 road\ncar\n")
    with pytest.raises(UsageError, match=r"labels\.txt, line 5: what is 'car'\?"):
        read_label_file(path)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"sky": 0, "road": 7}, {0: "sky", 7: "road"}),
        ({"label2id": {"sky": "0", "road": "7"}}, {"0": "sky", "7": "road"}),
        ({"label_map": {"0": "sky", "7": "road"}, "background_label": "0"}, {"0": "sky", "7": "road"}),
    ],
)
def test_files_of_other_tools(data: Any, expected: Any) -> None:
    assert canonical(data)["classes"] == expected
    assert LabelMap.from_dict(data) == LabelMap.from_ids({0: "sky", 7: "road"})


def test_colours_of_datumaro_are_shown() -> None:
    data = {"label_map": {"0": "sky", "7": "road"}, "segmentation_colors": [[1, 2, 3], [4, 5, 6]]}
    assert LabelMap.from_dict(data).colors == ((1, 2, 3), (4, 5, 6))


def test_two_names_of_one_id_are_a_question() -> None:
    with pytest.raises(UsageError, match=r"'street' have one id, 7: to merge them, write \{\"7\": \"road\"\}"):
        canonical({"road": 7, "street": 7})
