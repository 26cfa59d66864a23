"""Files for CVAT and Label Studio, by hand."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from segtune.inference.polygons import trace
from segtune.labels.label_map import LabelMap
from segtune.selection.tool_files import CvatFile, cvat_labels, label_studio_config, label_studio_task

LABELS = LabelMap.from_names(["sky", "road & <path>"], [(0, 128, 255), (9, 9, 9)])
HOLE = np.zeros((10, 20), np.uint8)
HOLE[2:8, 5:10] = 1


def test_cvat_has_what_lies_in_a_hole_above() -> None:
    file = CvatFile(LABELS)
    file.add("a b.jpg", HOLE.shape, trace(HOLE, LABELS))
    file.add("c.jpg", (10, 20), [])
    root = ElementTree.fromstring(file.text())
    assert root.findtext("version") == "1.1"
    assert [label.findtext("name") for label in root.iter("label")] == list(LABELS.names)
    assert [label.findtext("color") for label in root.iter("label")] == ["#0080ff", "#090909"]
    first, second = root.findall("image")
    assert first.attrib == {"id": "0", "name": "a b.jpg", "width": "20", "height": "10"}
    assert second.attrib["id"] == "1" and len(second) == 0
    below, above = first
    assert [shape.attrib["z_order"] for shape in first] == ["0", "1"]
    assert (below.attrib["label"], above.attrib["label"]) == LABELS.names
    corners = {tuple(map(float, point.split(","))) for point in above.attrib["points"].split(";")}
    assert corners == {(5, 2), (10, 2), (10, 8), (5, 8)}
    assert [entry["color"] for entry in cvat_labels(LABELS)] == ["#0080ff", "#090909"]


def test_a_task_of_label_studio() -> None:
    task = label_studio_task("images/a b.jpg", HOLE.shape, trace(HOLE, LABELS), LABELS, "runs/x", 0.75)
    assert task["data"] == {"image": "/data/local-files/?d=images/a%20b.jpg"}
    (prediction,) = task["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("runs/x", 0.75)
    below, above = prediction["result"]
    assert above["value"]["polygonlabels"] == ["road & <path>"] and below["value"]["polygonlabels"] == ["sky"]
    assert sorted(above["value"]["points"]) == [[25, 20], [25, 80], [50, 20], [50, 80]]
    assert (above["original_width"], above["original_height"]) == (20, 10)
    again = label_studio_task("images/a b.jpg", HOLE.shape, trace(HOLE, LABELS), LABELS, "runs/x", 0.75)
    assert again == task and above["id"] != below["id"]
    view = ElementTree.fromstring(label_studio_config(LABELS))
    assert [label.attrib["value"] for label in view.iter("Label")] == list(LABELS.names)
    names = {above["from_name"], above["to_name"]}
    assert names == {view.find("PolygonLabels").attrib["name"], view.find("Image").attrib["name"]}


@pytest.mark.parametrize("name", ["ü/x.png", "a?b#c.png"])
def test_addresses_are_escaped(name: str) -> None:
    task = label_studio_task(f"images/{name}", (4, 4), [], LABELS, "m", 1)
    assert task["data"]["image"].isascii() and "#" not in task["data"]["image"]
