"""CVAT annotations: one XML file ("CVAT for images 1.1") with polygons, boxes, ellipses and masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from segtune.data.annotations.find_images import AnnotatedImages, sample_id
from segtune.data.annotations.shapes import Shape, rectangle
from segtune.data.class_names import number_classes
from segtune.data.config import DatasetConfig
from segtune.data.formats.sniff import is_cvat
from segtune.data.index import DatasetIndex, Sample
from segtune.data.splits import split_names, split_of
from segtune.errors import UsageError
from segtune.imageio.walk import walk_files

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

    The split of an image is its subset; train where that is none of ours. Points and lines have no area.

    Raises:
        UsageError: no such file, or one of another form.
    """
    file = find_file(root, config.masks)
    if file is None or not file.is_file():
        raise UsageError(f"{root}: no annotations.xml of CVAT in it; name one in dataset.masks")
    names = split_names(config.splits)
    try:
        labels, images = _read(file)
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise UsageError(f"{file} is no file of CVAT for images 1.1: {error}") from error
    used = [shape.get("label", "") for image in images for shape in image if shape.tag not in WITHOUT_AREA]
    classes = number_classes(dict.fromkeys([*labels, *sorted(set(used))]), config, root)
    values = {str(name): value for value, name in classes.items()}
    index = DatasetIndex(root, classes=classes)
    files = AnnotatedImages(index, config)
    for image in images:
        name, subset = image.get("name", ""), image.get("subset", "")
        if found := files.only(name, files.find(name, file, {subset.lower()})):
            size, shapes = _content(file, image, values)
            sample = Sample(sample_id(name), split_of(subset, names) or "train", found, file, size)
            files.tally.give(len(shapes))
            files.add(sample, {"shapes": shapes})
    files.finish()
    return index


def _read(file: Path) -> tuple[list[str], list[ElementTree.Element]]:
    """The labels of the task or project, and the images."""
    root = ElementTree.parse(file).getroot()
    if root.find("track") is not None:
        raise ValueError("it holds tracks; export as 'CVAT for images' instead")
    if root.tag != "annotations":
        raise ValueError(f"its root is <{root.tag}>, not <annotations>")
    meta = root.find("meta")
    labels = [label.findtext("name", "") for label in meta.iter("label")] if meta is not None else []
    return [label for label in labels if label], root.findall("image")


def _content(file: Path, image: ElementTree.Element, values: Mapping[str, int]) -> tuple[tuple[int, int], list[Shape]]:
    """The (height, width) of an image, and its shapes that have an area, the upper z_order later."""
    try:
        entries = [entry for entry in image if entry.tag not in WITHOUT_AREA]
        entries.sort(key=lambda entry: int(entry.get("z_order", "0")))
        size = int(image.attrib["height"]), int(image.attrib["width"])
        return size, [{"value": values[entry.attrib["label"]], **_outline(entry)} for entry in entries]
    except (KeyError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UsageError(f"{file}, image {image.get('name')}: {what}") from error


def _outline(entry: ElementTree.Element) -> Shape:
    def numbers(*names: str) -> list[float]:
        return [float(entry.attrib[name]) for name in names]

    degrees = float(entry.get("rotation", "0"))
    if entry.tag == "polygon":
        return {
            "polygons": [[float(number) for pair in entry.attrib["points"].split(";") for number in pair.split(",")]]
        }
    if entry.tag == "box":
        left, top, right, bottom = numbers("xtl", "ytl", "xbr", "ybr")
        return {"polygons": [rectangle(left, top, right, bottom, degrees)]}
    if entry.tag == "ellipse":
        return {"ellipse": [*numbers("cx", "cy", "rx", "ry"), degrees]}
    if entry.tag == "mask":
        box = [int(entry.attrib[name]) for name in ("left", "top", "width", "height")]
        return {"runs": [int(number) for number in entry.attrib["rle"].split(",")], "box": box}
    raise ValueError(f"shapes of the kind {entry.tag!r} are not known")
