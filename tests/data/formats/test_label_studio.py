"""Label Studio's exports as it writes them."""

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
from segtune.errors import DataError
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
    with pytest.raises(DataError, match=r"export\.json: task 1: region abc: an image is turned by 90 degrees"):
        load_segmentation_dataset(tmp_path)
    (tmp_path / "export.json").write_text('[{"data": 5}]')
    with pytest.raises(DataError, match=r"export\.json: task \[0\]: data is 5"):
        load_segmentation_dataset(tmp_path, format="label_studio", masks="export.json")


def export(root: Path, *tasks: dict[str, Any]) -> None:
    (root / "export.json").write_text(json.dumps(list(tasks)))


FILEURI = base64.urlsafe_b64encode(b"s3://bucket/deep/my_photo.jpg").decode().rstrip("=")


@pytest.mark.parametrize(
    "data",
    [
        {"image": "https://cdn.example.org/media/my_photo"},
        {"image": "https://cdn.example.org/media/0a1b2c3d-my_photo"},
        {"image": "/image2", "file_upload": "0a1b2c3d-my_photo.jpg"},
        {"image": f"/tasks/7/resolve/?fileuri={FILEURI}"},
        {"note": "a/b", "photo": "/data/local-files/?d=other%2Fmy_photo.jpg"},
        {"thumb": "https://example.org/small/other.jpg", "image": "https://example.org/my_photo.jpg"},
    ],
)
def test_addresses_without_a_suffix(tmp_path: Path, data: dict[str, str]) -> None:
    """Behind a proxy or a store of files, an address may end in anything; no task may get lost for it."""
    write(tmp_path, "my_photo.jpg", "b.jpg", "other.jpg")
    odd = task(2, "x", POLYGON)
    odd["data"], odd["file_upload"] = {k: v for k, v in data.items() if k != "file_upload"}, data.get("file_upload")
    export(tmp_path, odd, task(1, "b.jpg", POLYGON))
    assert sorted(load_segmentation_dataset(tmp_path, val_fraction=0)["train"]["id"]) == ["b", "my_photo"]


def test_tasks_whose_image_is_unknown_are_named(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    export(tmp_path, task(1, "a.jpg", POLYGON), task(2, "https://cdn.example.org/media/b", POLYGON))
    with pytest.raises(DataError, match=r"images that are not there \(1\): https://cdn\.example\.org/media/b\."):
        load_segmentation_dataset(tmp_path)
    pages = task(3, "a.jpg", POLYGON)
    pages["data"] = {"image": ["a.jpg", "b.jpg"]}
    export(tmp_path, pages)
    with pytest.raises(DataError, match=r"task 3: its image is a list of pages: export a task for each page"):
        load_segmentation_dataset(tmp_path)


def bitmask(pixels: np.ndarray, label: str) -> dict[str, Any]:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    text = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return region("bitmasklabels", {"imageDataURL": text}, label, pixels.shape[:2])


@pytest.mark.parametrize("form", ["black on transparent", "white on black"])
def test_bitmasks(tmp_path: Path, form: str) -> None:
    """https://labelstud.io/tags/bitmasklabels: "black pixels on transparent background"; scripts write greys."""
    write(tmp_path, "a.jpg")
    covered = np.zeros((4, 6), np.uint8)
    covered[1:3, 2:5] = 255
    black = np.dstack([np.zeros((4, 6, 3), np.uint8), covered])
    export(tmp_path, task(1, "a.jpg", POLYGON, bitmask(black if form.startswith("black") else covered, "car")))
    mask = read_mask(load_segmentation_dataset(tmp_path)["train"][0]["mask"])
    assert mask.tolist() == [[2, 2, 2, 0, 0, 0], [2, 2, 1, 1, 1, 0], [2, 2, 1, 1, 1, 0], [2, 2, 2, 0, 0, 0]]


def test_bitmasks_of_another_size_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    small = bitmask(np.full((2, 3), 255, np.uint8), "car")
    export(tmp_path, task(1, "a.jpg", small | {"original_width": 6, "original_height": 4}))
    with pytest.raises(
        DataError, match=r"task 1, region abc: .*a bitmap of \(2, 3\) \(height, width\) for a picture of"
    ):
        load_segmentation_dataset(tmp_path)


def test_an_outline_and_its_label_in_two_results(tmp_path: Path) -> None:
    """<Polygon> beside <Labels>; what is said of each region repeats its outline."""
    write(tmp_path, "a.jpg")
    bare = {**POLYGON, "type": "polygon", "value": {"points": POLYGON["value"]["points"], "closed": True}}
    named = {**POLYGON, "type": "labels", "value": {**bare["value"], "labels": ["road"]}}
    choice = {**POLYGON, "type": "choices", "value": {"choices": ["wet"]}}
    export(tmp_path, task(1, "a.jpg", bare, named, choice))
    dataset, label_map = open_dataset(DatasetConfig(path=str(tmp_path)))
    assert label_map.names == ("background", "road")
    assert read_mask(dataset["train"][0]["mask"]).tolist() == [[1, 1, 1, 0, 0, 0]] * 4


VECTOR = region("vectorlabels", {"vertices": [{"x": 1, "y": 2}], "closed": True}, "lane")
POINT = region("keypointlabels", {"x": 50, "y": 50, "width": 1}, "nose")


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([POLYGON, VECTOR], r"of a kind that is not known, all of lane \(1\): export\.json: task 1, region abc"),
        ([{**POLYGON, "value": {"points": [[0, 0], [1, 0], [1, 1]]}}], r"without a class \(1\): export\.json: task 1"),
        ([{**POLYGON, "value": {**POLYGON["value"], "polygonlabels": ["road", "car"]}}],
         r"task 1, region abc: it has the labels road, car: a pixel has one class"),
        ([{**POLYGON, "value": {**POLYGON["value"], "points": [["x", 1]]}}], r"points are no list of \[x, y\]"),
        ([RECTANGLE | {"value": {**RECTANGLE["value"], "width": "5"}}], r"region abc: width is '5'; expected a number"),
        ([{k: v for k, v in POLYGON.items() if k != "original_width"}], r"original_width is None; expected"),
        ([region("bitmasklabels", {"imageDataURL": "x"}, "car")], r"region abc: imageDataURL is no PNG in base64"),
    ],
)  # fmt: skip
def test_no_region_is_dropped_in_silence(tmp_path: Path, regions: list[dict[str, Any]], message: str) -> None:
    write(tmp_path, "a.jpg")
    export(tmp_path, task(1, "a.jpg", *regions))
    with pytest.raises(DataError, match=message):
        load_segmentation_dataset(tmp_path)


def test_points_and_tasks_without_annotation_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    export(
        tmp_path, task(1, "a.jpg", POLYGON, POINT), task(2, "b.jpg", cancelled=True), task(3, "c.jpg", cancelled=True)
    )
    assert len(load_segmentation_dataset(tmp_path)["train"]) == 1
    assert "nothing is drawn of nose: its annotations are lines, points" in caplog.text
    assert "2 of 3 tasks have no annotation: their images are left out" in caplog.text
    export(tmp_path, task(2, "b.jpg", cancelled=True) | {"predictions": [{"result": [POLYGON]}]})
    with pytest.raises(DataError, match="none of its 1 tasks has an annotation that was submitted"):
        load_segmentation_dataset(tmp_path)


def by(annotator: Any, *results: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"completed_by": annotator, "result": list(results), "was_cancelled": False} | more


@pytest.mark.parametrize(
    ("annotations", "annotator", "names", "reason"),
    [
        ([by(1), by(2, POLYGON)], None, ("road",), "the one with regions"),
        ([by(1, POLYGON), by(2, {**POLYGON, "id": "xyz"})], None, ("road",), "the first of several that agree"),
        ([by(1, POLYGON), by(2, RECTANGLE, ground_truth=True)], None, ("car",), "the ground truth"),
        ([by(1, POLYGON), by(2, RECTANGLE)], "first", ("road",), "the first"),
        ([by(1, POLYGON), by(2, RECTANGLE)], "last", ("car",), "the last"),
        ([by(1, POLYGON), by(2, RECTANGLE)], 2, ("car",), "that of 2"),
        ([by(1, POLYGON), by({"id": 2, "email": "b@c.de"}, RECTANGLE)], "b@c.de", ("car",), "that of b@c.de"),
    ],
)
def test_which_of_several_annotators_counts(
    tmp_path: Path,
    annotations: list[dict[str, Any]],
    annotator: Any,
    names: tuple[str, ...],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write(tmp_path, "a.jpg")
    export(tmp_path, {"id": 7, "data": {"image": "a.jpg"}, "annotations": annotations})
    _, label_map = open_dataset(DatasetConfig(path=str(tmp_path), annotator=annotator))
    assert label_map.names == ("background", *names)
    assert f"1 tasks have several annotations: {reason} counts" in caplog.text


def test_annotators_that_differ_are_a_question(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b.jpg")
    tasks = [
        task(1, "b.jpg", POLYGON),
        {"id": 7, "data": {"image": "a.jpg"}, "annotations": [by(3, POLYGON), by(4, POLYGON, RECTANGLE)]},
    ]
    export(tmp_path, *tasks)
    with pytest.raises(
        DataError, match=r"tasks whose annotators differ \(1\): task 7 \(3, 4\)\. Set dataset\.annotator to"
    ):
        load_segmentation_dataset(tmp_path)
    flat = {"points": POLYGON["value"]["points"], "polygonlabels": ["road"], "original_width": 6, "original_height": 4}
    entries = [
        {"image": "a.jpg", "id": 1, "label": [flat | {"polygonlabels": [name]}], "annotator": i}
        for i, name in enumerate(["a", "b"])
    ]
    export(tmp_path, *entries)
    with pytest.raises(DataError, match=r"task 1 \(0, 1\)"):
        load_segmentation_dataset(tmp_path)
    assert len(load_segmentation_dataset(tmp_path, annotator="last")["train"]) == 1
