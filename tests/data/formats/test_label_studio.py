"""Label Studio's exports as it writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segtune.data.config import DatasetConfig
from segtune.data.dataset import load_segmentation_dataset, open_dataset
from segtune.errors import DataError, UsageError
from segtune.imageio.read import read_mask

# The run lengths of [[0, 1, 1, 0]], four values of 0 or 255 for each pixel: see test_shapes.pack
BRUSH = [0, 0, 0, 16, 57, 27, 255, 0, 3, 0, 224, 0, 255, 252, 0, 12, 0]


def region(kind: str, value: dict[str, Any], label: str, size: tuple[int, int] = (4, 6)) -> dict[str, Any]:
    return {
        "original_width": size[1],
        "original_height": size[0],
        "image_rotation": 0,
        "value": {**value, kind: [label]},
        "id": "abc",
        "from_name": "label",
        "to_name": "image",
        "type": kind,
        "origin": "manual",
    }


POLYGON = region("polygonlabels", {"points": [[0, 0], [50, 0], [50, 100], [0, 100]], "closed": True}, "road")
RECTANGLE = region("rectanglelabels", {"x": 100 / 3, "y": 25, "width": 50, "height": 25, "rotation": 0}, "car")
ELLIPSE = region("ellipselabels", {"x": 75, "y": 62.5, "radiusX": 10, "radiusY": 30, "rotation": 0}, "car")


def task(number: int, image: str, *results: dict[str, Any], cancelled: bool = False) -> dict[str, Any]:
    annotation = {"id": 10 + number, "completed_by": 1, "result": list(results), "was_cancelled": cancelled}
    return {"id": number, "annotations": [annotation], "file_upload": "x", "data": {"image": image}, "meta": {}}


def write(root: Path, *names: str, size: tuple[int, int] = (4, 6)) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.zeros((*size, 3), np.uint8)).save(root / name)


def test_shapes_of_an_export(tmp_path: Path) -> None:
    write(tmp_path, "images/a.jpg")
    choice = {"value": {"choices": ["good"]}, "type": "choices", "from_name": "quality"}
    tasks = [task(1, "/data/upload/1/0a1b2c3d-a.jpg", POLYGON, RECTANGLE, ELLIPSE, choice)]
    (tmp_path / "project-1-at-2024-05-02-08-51-1234abcd.json").write_text(json.dumps(tasks))
    dataset, label_map = open_dataset(DatasetConfig(path=str(tmp_path)))
    assert label_map.names == ("background", "car", "road")
    assert list(dataset["train"]["id"]) == ["images/a"]
    assert read_mask(dataset["train"][0]["mask"]).tolist() == [
        [2, 2, 2, 0, 0, 0],
        [2, 2, 1, 1, 1, 0],
        [2, 2, 2, 0, 1, 0],
        [2, 2, 2, 0, 1, 0],
    ]


def test_brush_strokes(tmp_path: Path) -> None:
    write(tmp_path, "a.png", size=(2, 2))
    export = [
        task(
            1,
            "/data/local-files/?d=photos/a.png",
            region("brushlabels", {"format": "rle", "rle": BRUSH}, "car", (2, 2)),
        )
    ]
    (tmp_path / "export.json").write_text(json.dumps(export))
    assert read_mask(load_segmentation_dataset(tmp_path)["train"][0]["mask"]).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("/data/upload/3/0a1b2c3d-my_photo.jpg", "0a1b2c3d-my_photo.jpg"),
        ("/data/upload/3/0a1b2c3d-my_photo.jpg", "photos/my_photo.jpg"),
        ("/data/local-files/?d=set%201/my%20photo.jpg", "set 1/my photo.jpg"),
        ("s3://bucket/some/where/my_photo.jpg", "my_photo.jpg"),
        ("https://example.com/photos/my_photo.jpg?token=1", "photos/my_photo.jpg"),
    ],
)
def test_addresses_of_images(tmp_path: Path, address: str, file: str) -> None:
    write(tmp_path, file)
    (tmp_path / "export.json").write_text(json.dumps([task(1, address, POLYGON)]))
    assert list(load_segmentation_dataset(tmp_path)["train"]["id"]) == [file.removesuffix(".jpg")]


def test_tasks_that_nobody_finished_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    second = task(2, "b.jpg", POLYGON, cancelled=True)
    second["annotations"].append({"id": 99, "result": [RECTANGLE], "was_cancelled": False})
    tasks = [
        task(1, "a.jpg", POLYGON, cancelled=True),
        second,
        {"id": 3, "annotations": [], "data": {"image": "c.jpg"}},
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    dataset, label_map = open_dataset(DatasetConfig(path=str(tmp_path)))
    assert (list(dataset["train"]["id"]), label_map.names) == (["b"], ("background", "car"))


def test_export_without_levels(tmp_path: Path) -> None:
    """JSON-MIN."""
    write(tmp_path, "a.jpg")
    flat = {"points": POLYGON["value"]["points"], "polygonlabels": ["road"], "original_width": 6, "original_height": 4}
    export = [{"image": "/data/upload/1/0a1b2c3d-a.jpg", "id": 1, "label": [flat], "annotator": 1, "lead_time": 2.5}]
    (tmp_path / "export.json").write_text(json.dumps(export))
    dataset, label_map = open_dataset(DatasetConfig(path=str(tmp_path)))
    assert label_map.names == ("background", "road")
    assert read_mask(dataset["train"][0]["mask"]).tolist() == [[1, 1, 1, 0, 0, 0]] * 4


def test_faults_are_named(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    export = [task(1, "/data/upload/1/absent.jpg", POLYGON), task(2, "a.jpg", POLYGON | {"original_width": 7})]
    (tmp_path / "export.json").write_text(json.dumps(export))
    with pytest.raises(DataError) as error:
        load_segmentation_dataset(tmp_path)
    assert "annotated images that are not there (1): /data/upload/1/absent.jpg" in str(error.value)
    assert "a.jpg ((4, 6)), annotated as (4, 7)" in str(error.value)
    (tmp_path / "export.json").write_text(json.dumps([task(1, "a.jpg", POLYGON | {"image_rotation": 90})]))
    with pytest.raises(UsageError, match="an image is turned by 90 degrees"):
        load_segmentation_dataset(tmp_path)
    (tmp_path / "export.json").write_text('[{"data": 5}]')
    with pytest.raises(UsageError, match=r"export\.json: task \[0\] is none of Label Studio's"):
        load_segmentation_dataset(tmp_path, format="label_studio", masks="export.json")
