"""VIA's files as VIA 1 and 2 write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segtune.data.config import DatasetConfig
from segtune.data.dataset import open_dataset
from segtune.errors import DataError, UsageError
from segtune.imageio.read import read_mask
from support.pairs import write_image


def region(label: Any, name: str = "polygon", **shape: Any) -> dict[str, Any]:
    attributes = {} if label is None else label if isinstance(label, dict) else {"class": label}
    return {"shape_attributes": {"name": name, **shape}, "region_attributes": attributes}


ROAD = region("road", all_points_x=[0, 6, 6, 0], all_points_y=[0, 0, 2, 2])
CAR = region("car", "rect", x=1, y=1, width=3, height=2)
BALL = region("ball", "circle", cx=4.5, cy=2.5, r=0.6)
EGG = region("ball", "ellipse", cx=4.5, cy=2.5, rx=1.6, ry=0.6, theta=1.5707963)
MASK = [[3] * 6, [3, 2, 2, 2, 3, 3], [0, 2, 2, 2, 1, 0], [0] * 6]


def entry(name: str, *regions: dict[str, Any], as_dict: bool = False) -> dict[str, Any]:
    found = {str(i): region for i, region in enumerate(regions)} if as_dict else list(regions)
    return {"filename": name, "size": 12, "regions": found, "file_attributes": {}}


def write(root: Path, *regions: dict[str, Any], as_dict: bool = False, project: bool = False) -> None:
    write_image(root / "train/a.jpg")
    data: dict[str, Any] = {"a.jpg12": entry("a.jpg", *regions, as_dict=as_dict)}
    data = {"_via_settings": {}, "_via_img_metadata": data, "_via_attributes": {}} if project else data
    (root / "train/via_region_data.json").write_text(json.dumps(data))


def opened(root: Path, **options: Any) -> tuple[tuple[str, ...], list[list[int]]]:
    dataset, label_map = open_dataset(DatasetConfig(path=str(root), **options))
    return label_map.names, read_mask(dataset["train"][0]["mask"]).tolist()


@pytest.mark.parametrize("options", [{}, {"as_dict": True}, {"project": True}])
def test_regions(tmp_path: Path, options: dict[str, bool]) -> None:
    """VIA 1 numbers regions in an object, VIA 2 lists them; a project holds them below _via_img_metadata."""
    write(tmp_path, ROAD, CAR, BALL, **options)
    assert opened(tmp_path) == (("background", "ball", "car", "road"), MASK)
    assert opened(tmp_path / "train/via_region_data.json")[1] == MASK


def test_a_turned_ellipse(tmp_path: Path) -> None:
    write(tmp_path, EGG)
    assert opened(tmp_path)[1] == [[0] * 6, [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 0]]


def test_csv(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    lines = ["#filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"]
    for number, found in enumerate((ROAD, CAR, BALL)):
        cells = [json.dumps(found[key]).replace('"', '""') for key in ("shape_attributes", "region_attributes")]
        lines.append(f'a.jpg,12,"{{}}",3,{number},"{cells[0]}","{cells[1]}"')
    for heading in (lines[0], lines[0].removeprefix("#")):
        (tmp_path / "via_region_data.csv").write_text("\n".join([heading, *lines[1:]]))
        assert opened(tmp_path) == (("background", "ball", "car", "road"), MASK)


def test_splits_and_images_without_regions(tmp_path: Path) -> None:
    write(tmp_path, ROAD)
    write_image(tmp_path / "val/a.jpg")
    write_image(tmp_path / "val/b.jpg")
    data = {"a.jpg9": entry("a.jpg", CAR), "b.jpg9": entry("https://example.org/x/b.jpg?w=9")}
    (tmp_path / "val/via_region_data.json").write_text(json.dumps(data))
    dataset, label_map = open_dataset(DatasetConfig(path=str(tmp_path)))
    assert label_map.names == ("background", "car", "road")
    assert {split: list(rows["id"]) for split, rows in dataset.items()} == {
        "train": ["train/a"], "val": ["val/a", "val/b"]
    }  # fmt: skip
    assert not read_mask(dataset["val"][1]["mask"]).any()


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["road", {"class": "car", "colour": "red"}], ("car", "road")),
        ([{"kind": "road"}, {"kind": "car"}], ("car", "road")),
        ([{"parts": {"road": True, "car": False}}, {"parts": {"car": True}}], ("car", "road")),
        ([None, None], ("object",)),
    ],
)
def test_which_attribute_is_the_class(tmp_path: Path, labels: list[Any], names: tuple[str, ...]) -> None:
    """None in the balloons of Matterport's Mask R-CNN."""
    write(tmp_path, *(region(label, "rect", x=i, y=0, width=1, height=1) for i, label in enumerate(labels)))
    assert opened(tmp_path)[0] == ("background", *names)


@pytest.mark.parametrize(
    ("regions", "error", "message"),
    [
        ([region({"a": "x", "b": "y"}, "rect", x=0, y=0, width=1, height=1)], UsageError,
         "the regions have the attributes a, b: which of them is the class"),
        ([ROAD, region("car", "spline", x=1)], DataError, r"kind that is not known, all of car \(1\): via_region"),
        ([ROAD, region("", "rect", x=0, y=0, width=1, height=1)], DataError, r"annotations without a class \(1\)"),
        ([region({"class": {"a": True, "b": True}}, "rect", x=0, y=0, width=1, height=1)], DataError,
         r"'a\.jpg12', region 0: class is a, b: a pixel has one class"),
        ([region("a", "rect", x="0", y=0, width=1, height=1)], DataError, "region 0: x is '0'; expected a number"),
        ([region("a", all_points_x=[1, 2], all_points_y=[1])], DataError, "all_points_x has 2 numbers, all_points_y 1"),
        ([region(7, "rect", x=0, y=0, width=1, height=1)], DataError, "class is 7; expected text"),
    ],
)  # fmt: skip
def test_faulty_regions_are_named(
    tmp_path: Path, regions: list[dict[str, Any]], error: type[Exception], message: str
) -> None:
    write(tmp_path, *regions)
    with pytest.raises(error, match=message):
        opened(tmp_path)


def test_lines_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, ROAD, region("crack", "polyline", all_points_x=[0, 1], all_points_y=[0, 1]))
    assert opened(tmp_path)[0] == ("background", "road")
    assert "nothing is drawn of crack: its annotations are lines" in caplog.text


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no files of VIA in it; name one in dataset\.masks"):
        opened(tmp_path, format="via")
