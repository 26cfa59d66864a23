"""Supervisely's projects as Supervisely writes them."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segtune.data.config import DatasetConfig
from segtune.data.dataset import open_dataset
from segtune.errors import DataError, UsageError
from segtune.imageio.read import read_mask
from support.pairs import write_image


def polygon(label: str, exterior: list[list[float]], *interior: list[list[float]], kind: str = "polygon") -> Any:
    return {"classTitle": label, "geometryType": kind, "points": {"exterior": exterior, "interior": list(interior)}}


def bitmap(label: str, pixels: np.ndarray, origin: list[int], form: str = "P") -> dict[str, Any]:
    """Palette pictures whose first colour is transparent, as Supervisely writes them; RGBA, as its older ones are."""
    stream = io.BytesIO()
    if form == "P":
        picture = PIL.Image.fromarray(pixels)
        picture.putpalette([0, 0, 0, 255, 255, 255])
        picture.save(stream, "PNG", transparency=0)
    else:
        PIL.Image.fromarray(np.dstack([pixels * 0, pixels * 0, pixels * 0, pixels * 255])).save(stream, "PNG")
    data = base64.b64encode(zlib.compress(stream.getvalue())).decode()
    return {"classTitle": label, "geometryType": "bitmap", "bitmap": {"data": data, "origin": origin}}


RING = polygon("road", [[0, 0], [4, 0], [4, 4], [0, 4]], [[1, 1], [3, 1], [3, 3], [1, 3]])
BOX = polygon("car", [[3, 1], [6, 2]], kind="rectangle")
SPOTS = np.array([[1, 0, 1]], np.uint8)


def write(root: Path, *objects: Any, name: str = "ds/{}/a.jpg", classes: tuple[str, ...] = ("road", "car")) -> None:
    write_image(root / name.format("img"))
    file = root / f"{name.format('ann')}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"size": {"height": 4, "width": 6}, "tags": [], "objects": list(objects)}))
    listed = [{"title": title, "shape": "any"} for title in classes] + [{"title": "crack", "shape": "line"}]
    (root / "meta.json").write_text(json.dumps({"classes": listed, "tags": []}))


def opened(root: Path, **options: Any) -> tuple[tuple[str, ...], list[list[int]]]:
    dataset, label_map = open_dataset(DatasetConfig(path=str(root), **options))
    return label_map.names, read_mask(dataset["train"][0]["mask"]).tolist()


@pytest.mark.parametrize("form", ["P", "RGBA"])
def test_objects(tmp_path: Path, form: str) -> None:
    write(tmp_path, RING, BOX, bitmap("spot", SPOTS, [2, 2], form))
    names, mask = opened(tmp_path)
    assert names == ("background", "road", "car", "spot")
    assert mask == [[1, 1, 1, 1, 0, 0], [1, 0, 0, 2, 2, 2], [1, 0, 3, 1, 3, 0], [1, 1, 1, 1, 0, 0]]


def test_data_sets_as_splits(tmp_path: Path) -> None:
    write(tmp_path, RING, name="train/{}/a.jpg")
    write(tmp_path, BOX, name="val/{}/a.jpg")
    dataset, label_map = open_dataset(DatasetConfig(path=str(tmp_path)))
    assert label_map.names == ("background", "road", "car")
    assert {split: list(rows["id"]) for split, rows in dataset.items()} == {"train": ["train/a"], "val": ["val/a"]}


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([RING, {"classTitle": "x", "geometryType": "mesh"}], r"not known, all of x \(1\): ds/ann/a\.jpg\.j"),
        ([RING, polygon(" ", [[0, 0], [1, 0], [1, 1]])], r"without a class \(1\): ds/ann/a\.jpg\.json: objects\[1\]"),
        ([{"classTitle": "x", "geometryType": "polygon"}], r"objects\[0\]: no polygon of Supervisely: 'points'"),
        ([polygon("x", [[0, 0, 0]])], r"objects\[0\]: no polygon of Supervisely: too many values to unpack"),
        ([{"classTitle": "x", "geometryType": "bitmap", "bitmap": {"data": "eA==", "origin": [0, 0]}}],
         r"objects\[0\]: a bitmap is cut off"),
        ([{"classTitle": 5}], r"objects\[0\]: classTitle is 5; expected text"),
    ],
)  # fmt: skip
def test_faulty_objects_are_named(tmp_path: Path, objects: list[Any], message: str) -> None:
    write(tmp_path, *objects)
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


def test_a_bitmap_is_not_unpacked_without_end(tmp_path: Path) -> None:
    data = base64.b64encode(zlib.compress(bytes(2**26 + 1))).decode()
    write(tmp_path, {"classTitle": "x", "geometryType": "bitmap", "bitmap": {"data": data, "origin": [0, 0]}})
    with pytest.raises(DataError, match="a bitmap is unpacked to more than 67108864 bytes"):
        opened(tmp_path)


def test_lines_and_lost_images_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, RING, polygon("crack", [[0, 0], [1, 1]], kind="line"))
    assert opened(tmp_path)[0] == ("background", "road", "car")
    assert "nothing is drawn of crack: its annotations are lines" in caplog.text
    (tmp_path / "ds/img/a.jpg").rename(tmp_path / "ds/img/b.jpg")
    with pytest.raises(DataError, match=r"annotated images that are not there \(1\): ds/img/a\.jpg"):
        opened(tmp_path)
    with pytest.raises(UsageError, match="no project of Supervisely in it"):
        opened(tmp_path / "ds/img", format="supervisely")
