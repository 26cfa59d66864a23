"""LabelMe's files as LabelMe writes them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segtune.data.config import DatasetConfig
from segtune.data.dataset import load_segmentation_dataset, open_dataset
from segtune.errors import DataError, UsageError
from segtune.imageio.read import read_image, read_mask

GREY = np.arange(24, dtype=np.uint8).reshape(4, 6)


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(GREY).save(path)


def as_base64(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def shape(label: str, points: list[list[float]], shape_type: str = "polygon", **more: Any) -> dict[str, Any]:
    rest = {"group_id": None, "description": "", "shape_type": shape_type, "flags": {}, "mask": None}
    return {"label": label, "points": points} | rest | more


def write_json(path: Path, *shapes: dict[str, Any], **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": f"{path.stem}.jpg", "imageData": None}
    path.write_text(json.dumps(data | {"imageHeight": 4, "imageWidth": 6} | more, indent=2))


ROAD = shape("road", [[0, 0], [6, 0], [6, 1], [0, 1]])
CAR = shape("car", [[4, 2], [1, 0]], "rectangle")  # LabelMe keeps the corners in the order of the clicks


def masks(dataset: Any, split: str = "train") -> list[Any]:
    return [np.ma.filled(read_mask(row["mask"]), 9).tolist() for row in dataset[split]]


def test_json_beside_the_images(tmp_path: Path) -> None:
    for name in "ab":
        write_image(tmp_path / f"{name}.jpg")
    write_json(tmp_path / "a.json", ROAD, CAR)
    write_json(tmp_path / "b.json", shape("car", [[1, 1], [1, 0]], "circle"), ROAD)
    dataset, label_map = open_dataset(DatasetConfig(path=str(tmp_path), val_fraction=0))
    assert label_map.names == ("background", "car", "road")
    assert list(dataset["train"]["id"]) == ["a", "b"]
    first, second = masks(dataset)
    assert first == [[2, 1, 1, 1, 2, 2], [0, 1, 1, 1, 0, 0], [0] * 6, [0] * 6]
    assert second == [[2] * 6, [1, 1, 0, 0, 0, 0], [0] * 6, [0] * 6]


def test_folders_of_splits(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("val", "b")):
        write_image(tmp_path / split / "images" / f"{name}.jpg")
        write_json(tmp_path / split / "json" / f"{name}.json", ROAD, imagePath=f"..\\images\\{name}.jpg")
    dataset = load_segmentation_dataset(tmp_path)
    assert {split: list(rows["id"]) for split, rows in dataset.items()} == {"train": ["json/a"], "val": ["json/b"]}


def test_image_inside_the_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", ROAD, imageData=as_base64(GREY))
    row = load_segmentation_dataset(tmp_path)["train"][0]
    np.testing.assert_array_equal(read_image(row["image"])[:, :, 0], GREY)


def test_image_of_another_name(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "DSC 1.JPG")
    write_json(tmp_path / "json" / "one.json", ROAD, imagePath="../photos/DSC 1.JPG")
    assert load_segmentation_dataset(tmp_path)["train"][0]["image"].size == (6, 4)


def test_bitmaps_ignored_regions_and_shapes_without_area(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    covered = np.array([[1, 0, 1], [0, 1, 0]], np.uint8) * 255
    write_json(
        tmp_path / "a.json",
        ROAD,
        shape("car", [[2, 1], [4, 2]], "mask", mask=as_base64(covered)),
        shape("__ignore__", [[5, 0], [6, 0], [6, 4], [5, 4]]),
        shape("_background_", [[0, 0], [1, 0], [1, 1], [0, 1]]),
        shape("edge", [[0, 0], [6, 4]], "line"),
        shape("centre", [[3, 2]], "point"),
    )
    dataset, label_map = open_dataset(DatasetConfig(path=str(tmp_path)))
    assert label_map.names == ("background", "car", "road")
    assert masks(dataset)[0] == [[0, 2, 2, 2, 2, 9], [0, 0, 1, 0, 1, 9], [0, 0, 0, 1, 0, 9], [0, 0, 0, 0, 0, 9]]


def test_listed_labels_must_be_all(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    write_json(tmp_path / "a.json", ROAD, CAR)
    labels = {"background": None, "road": "street", "car": "car"}
    dataset, label_map = open_dataset(DatasetConfig(path=str(tmp_path), labels=labels))
    assert label_map.names == ("street", "car")
    assert label_map.encode(read_mask(dataset["train"][0]["mask"]))[0].tolist() == [0, 1, 1, 1, 0, 0]
    write_json(tmp_path / "a.json", ROAD, CAR, shape("tree", ROAD["points"]))
    with pytest.raises(
        DataError, match=r"a\.json: the label 'tree' is none of __ignore__, _background_, background, road"
    ):
        open_dataset(DatasetConfig(path=str(tmp_path), labels=labels))


def test_classes_of_a_file_of_names(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    write_json(tmp_path / "a.json", ROAD, CAR)
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nroad\ncar\n")
    _, label_map = open_dataset(DatasetConfig(path=str(tmp_path)))
    assert label_map.names == ("background", "road", "car")


def test_faults_are_named(tmp_path: Path) -> None:
    for name in "acd":
        write_image(tmp_path / f"{name}.jpg")
    write_json(tmp_path / "a.json", ROAD, imageHeight=6, imageWidth=4)
    write_json(tmp_path / "b.json", ROAD)
    (tmp_path / "c.json").write_text("{")
    write_json(tmp_path / "d.json", ROAD)
    with pytest.raises(DataError) as error:
        load_segmentation_dataset(tmp_path, format="labelme")
    assert f"files that are none of LabelMe's (1): {tmp_path}/c.json is no LabelMe file:" in str(error.value)
    assert f"annotated images that are not there (1): {tmp_path}/b.json" in str(error.value)
    assert "another (height, width) than annotated (1): a.jpg ((4, 6)), annotated as (6, 4)" in str(error.value)
    assert list(load_segmentation_dataset(tmp_path, format="labelme", on_error="skip")["train"]["id"]) == ["d"]
    with pytest.raises(UsageError, match="no LabelMe files"):
        load_segmentation_dataset(tmp_path, format="labelme", masks="absent")


def test_unknown_kinds_of_shapes(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    write_json(tmp_path / "a.json", shape("road", [[0, 0], [1, 1]], "spline"))
    with pytest.raises(DataError, match=r"of a kind that is not known, all of road \(1\): a\.json: shapes\[0\]"):
        load_segmentation_dataset(tmp_path)
    write_json(tmp_path / "a.json", ROAD, shape(" ", [[0, 0], [1, 1]], "rectangle"))
    with pytest.raises(DataError, match=r"annotations without a class \(1\): a\.json: shapes\[1\]\. Give them"):
        load_segmentation_dataset(tmp_path)


def test_shapes_of_x_anylabeling(tmp_path: Path) -> None:
    """It writes the four corners of a rectangle, and of a turned one ("rotation"); labelme's rectangles have two."""
    write_image(tmp_path / "a.jpg")
    corners = [[1, 0], [4, 0], [4, 2], [1, 2]]
    turned = shape("road", [[5, 3], [3, 3], [3, 1], [5, 1]], "rotation", direction=3.14)
    write_json(tmp_path / "a.json", turned, shape("car", corners, "rectangle", difficult=False, attributes={}))
    (mask,) = masks(load_segmentation_dataset(tmp_path))
    assert mask == [[0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 2, 0], [0, 0, 0, 2, 2, 0], [0] * 6]


def test_a_class_of_lines_only_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image(tmp_path / "a.jpg")
    write_json(tmp_path / "a.json", ROAD, shape("crack", [[0, 0], [6, 4]], "linestrip"))
    _, label_map = open_dataset(DatasetConfig(path=str(tmp_path)))
    assert label_map.names == ("background", "road")
    assert "nothing is drawn of crack: its annotations are lines" in caplog.text


def test_images_without_a_file_and_names_alike_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in "abc":
        write_image(tmp_path / f"{name}.jpg")
    write_json(tmp_path / "a.json", ROAD, shape("Road ", ROAD["points"]))
    assert len(load_segmentation_dataset(tmp_path)["train"]) == 1
    assert "images without annotations are left out (2): b.jpg, c.jpg" in caplog.text
    assert "classes of nearly the same name, which dataset.labels can make one: 'Road ' and 'road'" in caplog.text


def test_labels_that_are_no_text(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    write_json(tmp_path / "a.json", ROAD, shape(1, ROAD["points"]))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"a\.json: shapes\[1\]: label is 1; expected text"):
        load_segmentation_dataset(tmp_path, format="labelme")
