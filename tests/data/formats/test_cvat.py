"""CVAT's XML as CVAT writes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from segtune.data.config import DatasetConfig
from segtune.data.dataset import load_segmentation_dataset, open_dataset
from segtune.errors import DataError, UsageError
from segtune.imageio.read import read_mask

TASK = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <job><id>12</id><size>2</size><mode>annotation</mode>
      <labels>
        <label><name>road</name><color>#fa3253</color><type>any</type><attributes></attributes></label>
        <label><name>car</name><color>#34d1b7</color><type>any</type><attributes></attributes></label>
        <label><name>never used</name><color>#ffcc33</color><type>any</type><attributes></attributes></label>
      </labels>
    </job>
    <dumped>2024-05-02 08:51:20.404540+00:00</dumped>
  </meta>
  <image id="0" name="frame_000000.PNG" width="6" height="4">
    <polygon label="car" source="manual" occluded="0" points="0.00,0.00;3.00,0.00;3.00,2.00;0.00,2.00" z_order="1">
      <attribute name="colour">red</attribute>
    </polygon>
    <box label="road" source="manual" occluded="0" xtl="0.00" ytl="1.00" xbr="6.00" ybr="3.00" z_order="0"></box>
    <mask label="car" source="semi-auto" occluded="0" rle="1, 1, 2" left="4" top="2" width="2" height="2" z_order="2">
    </mask>
    <polyline label="road" source="manual" occluded="0" points="0,0;5,3" z_order="5"></polyline>
  </image>
  <image id="1" name="second/frame_000001.PNG" subset="Validation" task_id="3" width="6" height="4">
    <ellipse label="car" source="manual" occluded="0" cx="2.5" cy="1.5" rx="1.6" ry="0.6" rotation="90.0" z_order="0">
    </ellipse>
    <box label="road" occluded="0" xtl="4.00" ytl="0.00" xbr="6.00" ybr="4.00" rotation="90.0" z_order="0"></box>
  </image>
</annotations>
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    for name in ("images/frame_000000.PNG", "images/Validation/second/frame_000001.PNG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "annotations.xml").write_text(TASK)
    return tmp_path


def test_shapes_of_a_task(task: Path) -> None:
    dataset, label_map = open_dataset(DatasetConfig(path=str(task)))
    assert label_map.names == ("background", "road", "car", "never used")
    assert {split: list(rows["id"]) for split, rows in dataset.items()} == {
        "train": ["frame_000000"],
        "val": ["second/frame_000001"],
    }
    assert read_mask(dataset["train"][0]["mask"]).tolist() == [
        [2, 2, 2, 0, 0, 0],
        [2, 2, 2, 1, 1, 1],
        [1, 1, 1, 1, 1, 2],
        [0, 0, 0, 0, 0, 0],
    ]
    assert read_mask(dataset["val"][0]["mask"]).tolist() == [
        [0, 0, 2, 0, 0, 0],
        [0, 0, 2, 1, 1, 1],
        [0, 0, 2, 1, 1, 1],
        [0, 0, 0, 0, 0, 0],
    ]


def test_file_of_another_name(task: Path) -> None:
    (task / "annotations.xml").rename(task / "job 12.xml")
    assert set(load_segmentation_dataset(task)) == {"train", "val"}
    assert set(load_segmentation_dataset(task / "job 12.xml")) == {"train", "val"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("<image id=", "<track id="), "it holds tracks; export as 'CVAT for images' instead"),
        (("</annotations>", ""), "is no file of CVAT for images 1.1: no element found"),
        (('<polygon label="car"', '<cube label="car"'), "is no file of CVAT|mismatched tag"),
        (("annotations>", "annotation>"), "its root is <annotation>"),
    ],
)
def test_other_xml_is_refused(task: Path, change: tuple[str, str], message: str) -> None:
    text = (task / "annotations.xml").read_text().replace(*change)
    (task / "annotations.xml").write_text(text.replace("</image>", "</track>") if "track" in change[1] else text)
    with pytest.raises(UsageError, match=message):
        load_segmentation_dataset(task, format="cvat", masks="annotations.xml")


def test_faults_are_named(task: Path) -> None:
    (task / "images" / "frame_000000.PNG").unlink()
    with pytest.raises(DataError, match=r"annotated images that are not there \(1\): frame_000000\.PNG"):
        load_segmentation_dataset(task)
    (task / "annotations.xml").unlink()
    with pytest.raises(UsageError, match=r"no annotations\.xml of CVAT"):
        load_segmentation_dataset(task, format="cvat")


def test_unknown_kinds_of_shapes(task: Path) -> None:
    text = (task / "annotations.xml").read_text().replace("<box ", "<blob ").replace("</box>", "</blob>")
    (task / "annotations.xml").write_text(text)
    with pytest.raises(
        DataError, match=r"of a kind that is not known, all of road \(2\): annotations\.xml: image frame"
    ):
        load_segmentation_dataset(task)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('points="0.00,0.00;', 'points="0.00;'), "7 numbers|pairs|x, y"),
        (('points="0.00,0.00;', 'points="a,0.00;'), r"<polygon> 0: points: could not convert string to float: 'a'"),
        (('xtl="0.00" ', ""), r"xml: image frame_000000.PNG: <box> 1: xtl is missing; expected a number"),
        (('xtl="0.00"', 'xtl="nan"'), r"<box> 1: xtl is 'nan'; expected a number"),
        (('rle="1, 1, 2"', 'rle="1, 1.5, 2"'), r"<mask> 2: rle: invalid literal"),
        (('z_order="5"', 'z_order="5"><tag/></polyline><box label="" xtl="0" ytl="0" xbr="1" ybr="1"></box><polyline'),
         r"annotations without a class \(1\): annotations\.xml: image frame_000000\.PNG: <box> 4"),
        (('height="4"', 'height="x"'), "height is 'x'; expected a number"),
    ],
)  # fmt: skip
def test_faulty_entries_are_named(task: Path, change: tuple[str, str], message: str) -> None:
    (task / "annotations.xml").write_text((task / "annotations.xml").read_text().replace(*change, 1))
    with pytest.raises((DataError, UsageError), match=message):
        load_segmentation_dataset(task)


def test_labels_that_have_no_area_are_no_classes(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of tags, skeletons and the points of skeletons."""
    kinds = "".join(
        f"<label><name>{name}</name><type>{kind}</type></label>"
        for name, kind in (("person", "skeleton"), ("1", "points"), ("blurry", "tag"), ("roof", "polygon"))
    )
    text = (task / "annotations.xml").read_text().replace("</labels>", f"{kinds}</labels>")
    skeleton = '<skeleton label="person"><points label="1" points="3,3"/></skeleton><tag label="blurry"/>'
    (task / "annotations.xml").write_text(text.replace("</image>", f"{skeleton}</image>", 1))
    _, label_map = open_dataset(DatasetConfig(path=str(task)))
    assert label_map.names == ("background", "road", "car", "never used", "roof")
    assert "nothing is drawn of blurry, person: its annotations are lines, points, tags or skeletons" in caplog.text
