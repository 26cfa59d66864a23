"""Annotation files of wrong forms: every value in turn is replaced by others, and only our errors come of it."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import PIL.Image
import pytest

from segtune.data.checks import check_masks
from segtune.data.config import DatasetConfig
from segtune.data.dataset import open_dataset
from segtune.errors import DataError, SegtuneError

POLYGON = [1.0, 1.0, 6.0, 1.0, 6.0, 6.0]
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
    "categories": [{"id": 3, "name": "car"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [POLYGON], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 3, "segmentation": {"size": [8, 8], "counts": [60, 4]}, "iscrowd": 1},
    ],
}
PANOPTIC = COCO | {
    "annotations": [{"image_id": 1, "file_name": "p.png", "segments_info": [{"id": 7, "category_id": 3, "iscrowd": 0}]}]
}
LABELME = {
    "shapes": [
        {"label": "car", "shape_type": "polygon", "points": [[1, 1], [6, 1], [6, 6]]},
        {"label": "bus", "shape_type": "circle", "points": [[4, 4], [6, 4]]},
    ],
    "imagePath": "a.png",
    "imageHeight": 8,
    "imageWidth": 8,
}
SIZE = {"original_width": 8, "original_height": 8}
LABEL_STUDIO = [
    {
        "data": {"image": "a.png"},
        "annotations": [
            {
                "was_cancelled": False,
                "result": [
                    {**SIZE, "value": {"points": [[1, 1], [90, 1], [90, 90]], "polygonlabels": ["car"]}},
                    {**SIZE, "value": {"x": 1, "y": 1, "radiusX": 9, "radiusY": 9, "ellipselabels": ["car"]}},
                ],
            }
        ],
    }
]
CVAT = (
    '<annotations><version>1.1</version><image id="0" name="a.png" width="8" height="8">'
    '<polygon label="car" z_order="0" points="1,1;6,1;6,6"/><box label="car" xtl="1" ytl="1" xbr="4" ybr="4" '
    'rotation="5"/><ellipse label="car" cx="4" cy="4" rx="2" ry="2"/><mask label="car" rle="2,2" left="0" top="0" '
    'width="2" height="2"/></image></annotations>'
)
WRONG: tuple[Any, ...] = (
    None,
    77,
    -1,
    0.5,
    1e300,
    float("nan"),
    "x",
    "",
    True,
    [],
    [[]],
    {},
    {"a": 1},
    [None],
    10**400,
)
WRONG_TEXTS = ("", "x", "nan", "inf", "-1", "1e300", "9" * 400, "1,2;3", "../../a.png", "\u202e")


def pictures(root: Path) -> None:
    PIL.Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(root / "a.png")
    PIL.Image.fromarray(np.full((8, 8, 3), (7, 0, 0), np.uint8)).save(root / "p.png")


def replaced(data: Any, holder: Any = None, root: Any = None) -> Iterator[Any]:
    """The data with one value, each in turn, replaced by each wrong one, or missing."""
    root = [data] if root is None else root
    holder = root if holder is None else holder
    for key in range(len(holder)) if isinstance(holder, list) else list(holder):
        original = holder[key]
        for wrong in WRONG:
            holder[key] = wrong
            yield copy.deepcopy(root[0])
        holder[key] = original
        if isinstance(original, (dict, list)):
            yield from replaced(None, original, root)
        if isinstance(holder, dict):
            del holder[key]
            yield copy.deepcopy(root[0])
            holder[key] = original


def outcome(root: Path, file: Path, format: str) -> str:
    """How a data set ends: "fine", or with an error of ours that names the file; anything else is raised."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_masks(*open_dataset(DatasetConfig(path=str(root), format=format, val_fraction=0)))
    except SegtuneError as error:
        message = str(error)
    else:
        return "fine"
    of_all_masks = ("the only class in all", "every pixel of all")  # which no one file is to blame for
    assert file.name in message or str(root) in message or any(text in message for text in of_all_masks), message
    return "refused"


@pytest.mark.parametrize(
    ("format", "name", "data"),
    [
        ("coco", "train.json", COCO),
        ("coco", "train.json", PANOPTIC),
        ("labelme", "x.json", LABELME),
        ("label_studio", "export.json", LABEL_STUDIO),
    ],
)
def test_json_with_wrong_values_is_refused_by_name(tmp_path: Path, format: str, name: str, data: Any) -> None:
    pictures(tmp_path)
    file = tmp_path / name
    file.write_text(json.dumps(data), encoding="utf-8")
    assert outcome(tmp_path, file, format) == "fine"
    found = []
    for wrong in replaced(copy.deepcopy(data)):
        file.write_text(json.dumps(wrong), encoding="utf-8")
        found.append(outcome(tmp_path, file, format))
    assert len(found) > 100 and found.count("refused") > len(found) / 2


def test_cvat_with_wrong_values_is_refused_by_name(tmp_path: Path) -> None:
    pictures(tmp_path)
    file = tmp_path / "annotations.xml"
    found = []
    tree = ElementTree.fromstring(CVAT)
    for element in tree.iter():
        for key in list(element.attrib):
            original = element.attrib[key]
            for wrong in WRONG_TEXTS:
                element.attrib[key] = wrong
                file.write_bytes(ElementTree.tostring(tree, encoding="utf-8"))
                found.append(outcome(tmp_path, file, "cvat"))
            del element.attrib[key]
            file.write_bytes(ElementTree.tostring(tree, encoding="utf-8"))
            found.append(outcome(tmp_path, file, "cvat"))
            element.attrib[key] = original
    assert len(found) > 150 and found.count("refused") > len(found) / 2


@pytest.mark.parametrize(
    "text",
    [
        "names: 5\ntrain: .\n",
        "names: {a: car, 1: bus}\ntrain: .\n",
        "names: [[car], {a: b}]\ntrain: .\n",
        "names: [car]\ntrain: {a: b}\n",
        "names: [car]\ntrain: [[[x]]]\n",
        "names: [car]\ntrain: 5\n",
        "names: [car]\ntrain: " + "x" * 5000 + "\n",
        "- names\n- train\n",
        "names: [car\ntrain: .\n",
        "names: " + "[" * 5000 + "]" * 5000 + "\ntrain: .\n",
        "names: \x00\n",
    ],
)
def test_yolo_with_wrong_values_is_refused_by_name(tmp_path: Path, text: str) -> None:
    pictures(tmp_path)
    file = tmp_path / "data.yaml"
    file.write_text(text, encoding="utf-8")
    assert outcome(tmp_path, file, "yolo") == "refused"


@pytest.mark.parametrize("line", ["0 nan 0 0.5 0 0.5 0.5", "0 0 0 1e300 0 1e300 1e300", "0 0 0 0.5 0 0.5", "x", "\xff"])
def test_lines_of_yolo_survive(tmp_path: Path, line: str) -> None:
    pictures(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [car]\ntrain: .\n", encoding="utf-8")
    for name in "ap":
        (tmp_path / f"{name}.txt").write_text(line, encoding="latin-1")
    assert outcome(tmp_path, tmp_path / "a.txt", "yolo") == "refused"


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("format", "name", "text"),
    [
        ("coco", "train.json", f'{{"images": {DEEP}, "annotations": [], "categories": []}}'),
        ("labelme", "x.json", f'{{"shapes": {DEEP}}}'),
        ("label_studio", "export.json", f'[{{"annotations": {DEEP}, "data": 1, "original_width": 1}}]'),
        ("manifest", "metadata.jsonl", f'{{"image": "a.png", "mask": "p.png"}}\n{{"image": {DEEP}, "mask": 1}}'),
        ("manifest", "metadata.jsonl", '{"image": "a.png", "mask": "p.png"}\n[1, 2]'),
        ("manifest", "metadata.csv", "image,mask\n" + "a" * 5000 + ".png,p.png"),
        ("folder", "labels.json", DEEP),
    ],
)
def test_nesting_without_end_names_the_file(tmp_path: Path, format: str, name: str, text: str) -> None:
    pictures(tmp_path)
    for place, picture in (("images", "a.png"), ("masks", "p.png")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "1.png").write_bytes((tmp_path / picture).read_bytes())
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert outcome(tmp_path, tmp_path / name, format) == "refused"


def test_the_entry_is_named(tmp_path: Path) -> None:
    pictures(tmp_path)
    wrong = copy.deepcopy(COCO)
    wrong["annotations"][1]["category_id"] = 77  # type: ignore[index]
    (tmp_path / "train.json").write_text(json.dumps(wrong), encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.json: annotation 2: category_id 77 is none of the categories"):
        open_dataset(DatasetConfig(path=str(tmp_path)))
    wrong["annotations"][1] = {"image_id": 1}  # type: ignore[index]
    (tmp_path / "train.json").write_text(json.dumps(wrong), encoding="utf-8")
    with pytest.raises(DataError, match=r"annotations\[1\]: category_id is missing; expected a number or text"):
        open_dataset(DatasetConfig(path=str(tmp_path)))


def test_annotations_of_other_images_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures(tmp_path)
    wrong = copy.deepcopy(COCO)
    wrong["annotations"][0]["image_id"] = 5  # type: ignore[index]
    (tmp_path / "train.json").write_text(json.dumps(wrong), encoding="utf-8")
    with pytest.raises(DataError, match=r"of images that are not listed.*train\.json: annotation 1 \(image 5\)"):
        open_dataset(DatasetConfig(path=str(tmp_path)))
    open_dataset(DatasetConfig(path=str(tmp_path), on_error="skip", crowd="ignore"))
    assert "skipped annotations of images that are not listed" in caplog.text
