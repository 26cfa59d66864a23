"""CVAT annotations: one XML file ("CVAT for images 1.1") with polygons, boxes, ellipses and masks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from segtune.data.annotations.find_images import AnnotatedImages, sample_id
from segtune.data.annotations.shapes import Shape, rectangle
from segtune.data.annotations.tally import LINE, UNKNOWN, Fate, Tally
from segtune.data.class_names import drawn_names, number_classes, value_of
from segtune.data.config import DatasetConfig
from segtune.data.formats.sniff import is_cvat
from segtune.data.index import DatasetIndex, Sample
from segtune.data.splits import split_names, split_of
from segtune.errors import DataError, UsageError, naming
from segtune.imageio.walk import walk_files

FARTHEST = 1e12
WITHOUT_AREA = ("polyline", "points", "tag", "skeleton", "cuboid")


def find_file(root: Path, given: str | None) -> Path | None:
    """The annotation file: the one that is named, annotations.xml, or the only export of CVAT in the folder."""
    if given:
        return root / given
    usual = root / "annotations.xml"
    found = [usual] if usual.is_file() else list(walk_files(root, ".xml", depth=0))
    exports = [path for path in found if is_cvat(path)]
    return exports[0] if len(exports) == 1 else None


def scan_cvat(root: Path, config: DatasetConfig) -> DatasetIndex:
    """The images of a file, whose classes are the labels of the task in its order; the upper `z_order` is on top.

    Labels that can have no area (of skeletons, points, lines and tags) are classes only where a shape with an area has
    them. The split of an image is its subset; train where that is none of ours.

    Raises:
        UsageError: no such file, or one of another form.
    """
    file = find_file(root, config.masks)
    if file is None or not file.is_file():
        raise UsageError(f"{root}: no annotations.xml of CVAT in it; name one in dataset.masks")
    names = split_names(config.splits)
    try:
        labels, entries = _read(file)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UsageError(f"{file} is no file of CVAT for images 1.1: {error}") from error
    index = DatasetIndex(root)
    images = AnnotatedImages(index, config)
    content = [_content(file, number, image, images.tally) for number, image in enumerate(entries)]
    used = {label for _, shapes in content for label, _ in shapes}
    index.classes = number_classes(drawn_names(dict.fromkeys([*labels, *sorted(used)])), config, root)
    values = {str(name): value for value, name in index.classes.items()}
    for image, (size, shapes) in zip(entries, content, strict=True):
        name, subset = image.get("name", ""), image.get("subset", "")
        part = {"shapes": [{"value": value_of(label, values), **outline} for label, outline in shapes]}
        if found := images.only(name, images.find(name, file, {subset.lower()})):
            images.add(Sample(sample_id(name), split_of(subset, names) or "train", found, file, size), part)
        else:
            images.lose(name, part)
    images.finish()
    return index


def _read(file: Path) -> tuple[list[str], list[ElementTree.Element]]:
    """The labels of the task or project that may have an area, and the images."""
    root = ElementTree.parse(file).getroot()
    if root.find("track") is not None:
        raise ValueError("it holds tracks; export as 'CVAT for images' instead")
    if root.tag != "annotations":
        raise ValueError(f"its root is <{root.tag}>, not <annotations>")
    meta = root.find("meta")
    labels = list(meta.iter("label")) if meta is not None else []
    drawn = [label.findtext("name", "") for label in labels if label.findtext("type") not in WITHOUT_AREA]
    return [name for name in drawn if name], root.findall("image")


def _content(
    file: Path, number: int, image: ElementTree.Element, tally: Tally
) -> tuple[tuple[int, int], list[tuple[str, Shape]]]:
    """The (height, width) of an image, and the label and outline of its shapes that have an area, the upper later."""
    where = f"image {image.get('name') or number}"
    shapes: list[tuple[int, str, Shape]] = []
    with naming(f"{file}: {where}"):
        height, width = _numbers(image, "height", "width")
        for i, entry in enumerate(image):
            name, label = f"{where}: <{entry.tag}> {i}", entry.get("label", "")
            tally.give()
            with naming(f"{file}: {name}"):
                shape = tally.take(_outline(entry), label, file.name, name)
                if shape is not None:
                    (order,) = _numbers(entry, "z_order") if "z_order" in entry.attrib else (0,)
                    shapes.append((int(order), label, shape))
    shapes.sort(key=lambda shape: shape[0])
    return (int(height), int(width)), [(label, outline) for _, label, outline in shapes]


def _outline(entry: ElementTree.Element) -> Shape | Fate:
    """A shape, or where it ends, if it is none."""
    if entry.tag in WITHOUT_AREA:
        return LINE
    if entry.tag not in ("polygon", "box", "ellipse", "mask"):
        return UNKNOWN
    (degrees,) = _numbers(entry, "rotation") if "rotation" in entry.attrib else (0.0,)
    if entry.tag == "polygon":
        return {"polygons": [_split(entry, "points", "[,;]", float)]}
    if entry.tag == "box":
        left, top, right, bottom = _numbers(entry, "xtl", "ytl", "xbr", "ybr")
        return {"polygons": [rectangle(left, top, right, bottom, degrees)]}
    if entry.tag == "ellipse":
        return {"ellipse": [*_numbers(entry, "cx", "cy", "rx", "ry"), degrees]}
    box = [int(number) for number in _numbers(entry, "left", "top", "width", "height")]
    return {"runs": _split(entry, "rle", ",", int), "box": box}


def _numbers(entry: ElementTree.Element, *names: str) -> list[float]:
    """The finite numbers of these attributes.

    Raises:
        DataError: one is missing or no number.
    """
    found = []
    for name in names:
        try:
            number = float(entry.attrib[name])
        except (KeyError, ValueError):
            number = math.inf
        if not abs(number) < FARTHEST:
            what = f"{name} is {entry.get(name)!r}" if name in entry.attrib else f"{name} is missing"
            raise DataError(f"{what}; expected a number")
        found.append(number)
    return found


def _split(entry: ElementTree.Element, name: str, sign: str, kind: Callable[[str], Any]) -> list[Any]:
    """The numbers of an attribute.

    Raises:
        DataError: it is missing, or holds something else.
    """
    try:
        return [kind(text) for text in re.split(sign, entry.attrib[name])]
    except KeyError:
        raise DataError(f"{name} is missing") from None
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
