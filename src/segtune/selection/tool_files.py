"""Files of annotation tools: the regions of images as CVAT's XML and as tasks of Label Studio.

Their polygons have no holes: regions are written in painter's order, the one whose outline encloses most first, so that
what lies in a hole lies upon what surrounds it. Coordinates are those of pixels' edges, as in `inference.polygons`.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from segtune.inference.polygons import Region, outermost_first, outline_points
from segtune.labels.label_map import LabelMap

DOCUMENT = "/data/local-files/?d="  # how Label Studio names a file of its local storage
FROM, TO = "label", "image"  # the names of the control and of the picture in Label Studio's configuration


class CvatFile:
    """A file of "CVAT for images 1.1", of images as they come."""

    def __init__(self, label_map: LabelMap) -> None:
        self.names = label_map.names
        self.root = ElementTree.Element("annotations")
        ElementTree.SubElement(self.root, "version").text = "1.1"
        task = ElementTree.SubElement(ElementTree.SubElement(self.root, "meta"), "task")
        labels = ElementTree.SubElement(task, "labels")
        for name, color in zip(label_map.names, label_map.colors, strict=True):
            label = ElementTree.SubElement(labels, "label")
            for tag, text in (("name", name), ("color", hexadecimal(color)), ("attributes", "")):
                ElementTree.SubElement(label, tag).text = text
        self.images = 0

    def add(self, name: str, size: tuple[int, int], regions: Sequence[Region]) -> None:
        """An image of `size` (height, width), its regions one above the other."""
        height, width = map(str, size)
        image = ElementTree.SubElement(self.root, "image", id=str(self.images), name=name, width=width, height=height)
        self.images += 1
        for order, (label, polygon) in enumerate(outermost_first(regions)):
            points = ";".join(f"{x:.2f},{y:.2f}" for x, y in outline_points(polygon.exterior))
            ElementTree.SubElement(
                image,
                "polygon",
                {"label": self.names[label], "source": "auto", "occluded": "0"},
                points=points,
                z_order=str(order),
            )

    def text(self) -> bytes:
        """The file's content."""
        ElementTree.indent(self.root)
        content: bytes = ElementTree.tostring(self.root, encoding="utf-8", xml_declaration=True)
        return content


def cvat_labels(label_map: LabelMap) -> list[dict[str, Any]]:
    """What CVAT takes as the labels of a new task, in the field "Raw"."""
    pairs = zip(label_map.names, label_map.colors, strict=True)
    return [{"name": name, "color": hexadecimal(color), "type": "polygon", "attributes": []} for name, color in pairs]


def label_studio_task(
    name: str, size: tuple[int, int], regions: Sequence[Region], label_map: LabelMap, model: str, score: float
) -> dict[str, Any]:
    """A task of Label Studio with a prediction, whose points are hundredths of the sides.

    Args:
        name: the image's path below the root of Label Studio's local storage.
        model: what made the regions.
        score: how sure it was, 0 to 1.
    """
    height, width = size
    results = []
    for number, (label, polygon) in enumerate(outermost_first(regions)):
        points = [[100 * x / width, 100 * y / height] for x, y in outline_points(polygon.exterior)]
        results.append(
            {
                "id": uuid.uuid5(uuid.NAMESPACE_URL, f"{name}#{number}").hex[:10],
                "type": "polygonlabels",
                "from_name": FROM,
                "to_name": TO,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {"points": points, "closed": True, "polygonlabels": [label_map.names[label]]},
            }
        )
    prediction = {"model_version": model, "score": score, "result": results}
    return {"data": {TO: DOCUMENT + quote(PurePosixPath(name).as_posix())}, "predictions": [prediction]}


def label_studio_config(label_map: LabelMap) -> bytes:
    """The labelling interface of a project, as XML."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=TO, value=f"${TO}", zoom="true", zoomControl="true")
    control = ElementTree.SubElement(view, "PolygonLabels", name=FROM, toName=TO, opacity="0.4", strokeWidth="2")
    for name, color in zip(label_map.names, label_map.colors, strict=True):
        ElementTree.SubElement(control, "Label", value=name, background=hexadecimal(color))
    ElementTree.indent(view)
    content: bytes = ElementTree.tostring(view, encoding="utf-8")
    return content


def hexadecimal(color: tuple[int, int, int]) -> str:
    """A colour as "#804080"."""
    return "#{:02x}{:02x}{:02x}".format(*color)
