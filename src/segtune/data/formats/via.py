"""VGG Image Annotator (VIA 1 and 2): a JSON file, a project or a CSV file with the regions of many images."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from segtune.data.annotations.find_images import AnnotatedImages, sample_id
from segtune.data.annotations.json_fields import LIST, NUMBER, TEXT, Fields, check_entry, read_object
from segtune.data.annotations.shapes import Shape, rectangle
from segtune.data.annotations.tally import LINE, UNKNOWN, Fate, Tally
from segtune.data.class_names import drawn_names, number_classes, value_of
from segtune.data.config import DatasetConfig
from segtune.data.formats.sniff import files_of_splits, json_kind
from segtune.data.formats.table import columns_of, read_rows
from segtune.data.index import DatasetIndex, Sample
from segtune.data.splits import split_names
from segtune.errors import DataError, UsageError, listed, naming
from segtune.files import parse_json
from segtune.imageio.walk import walk_files

logger = logging.getLogger(__name__)

REGION_COLUMNS = ("region_shape_attributes", "region_attributes")
WITHOUT_AREA = ("point", "polyline")
CLASS_ATTRIBUTES = ("class", "label", "name", "category", "type", "object", "class_name", "label_name")
ONLY_CLASS = "object"
IMAGE: Fields = {"filename": TEXT}
SHAPES: dict[str, Fields] = {
    "polygon": {"all_points_x": LIST, "all_points_y": LIST},
    "rect": {"x": NUMBER, "y": NUMBER, "width": NUMBER, "height": NUMBER},
    "circle": {"cx": NUMBER, "cy": NUMBER, "r": NUMBER},
    "ellipse": {"cx": NUMBER, "cy": NUMBER, "rx": NUMBER, "ry": NUMBER, "theta?": NUMBER},
}


class Region(NamedTuple):
    """A region: its file and place there, its shape, and what is said of it."""

    file: Path
    entry: str
    shape: Mapping[str, Any]
    attributes: Mapping[str, Any]


def find_files(root: Path) -> list[Path]:
    """VIA's files in a folder and in those of its splits."""
    found = [path for path in walk_files(root, ".json", depth=1) if json_kind(path) == "via"]
    return found or [path for path in walk_files(root, ".csv", depth=1) if is_via_table(path)]


def is_via_table(path: Path) -> bool:
    """Whether a CSV file has VIA's columns."""
    return {"filename", *REGION_COLUMNS} <= {column.lstrip("#") for column in columns_of(path)}


def scan_via(root: Path, config: DatasetConfig) -> DatasetIndex:
    """The images of VIA's files; classes are the values of one attribute of the regions in alphabetical order.

    The attribute is the only one that regions have, or the first of the usual names; where no region has any, all are
    of one class. The split of a file is that of its folder, or a word of its name.

    Raises:
        UsageError: no such file, several for one split, or it cannot be told which attribute is the class.
        DataError: an entry of another form.
    """
    names = split_names(config.splits)
    files = files_of_splits(root, config.masks, names, find_files(root), "files of VIA")
    content = {path: list(_read(path)) for path in files.values()}
    index = DatasetIndex(root)
    every = [region for entries in content.values() for _, regions in entries for region in regions]
    attribute = _class_attribute(index, every)
    images = AnnotatedImages(index, config)
    images.tally.give(len(every))
    shapes = {
        id(regions): list(_shapes(regions, attribute, images.tally))
        for entries in content.values()
        for _, regions in entries
    }
    used = sorted({label for found in shapes.values() for label, _ in found})
    index.classes = number_classes(drawn_names(used), config, root)
    values = {str(name): value for value, name in index.classes.items()}
    for split, path in files.items():
        for name, regions in content[path]:
            part = {"shapes": [{"value": value_of(label, values), **outline} for label, outline in shapes[id(regions)]]}
            if image := images.only(name, images.find(_path_of(name), path)):
                images.add(Sample(sample_id(index.below(image)), split, image, path), part)
            else:
                images.lose(name, part)
    images.finish()
    return index


def _read(path: Path) -> Iterator[tuple[str, list[Region]]]:
    """The images of a file, each with its regions."""
    if path.suffix.lower() == ".csv":
        yield from _read_table(path)
        return
    data = read_object(path, "VIA file")
    entries = data.get("_via_img_metadata", data)
    if not isinstance(entries, dict):
        raise DataError(f"{path}: _via_img_metadata is no object")
    for key, entry in entries.items():
        where = f"{key[:60]!r}"
        check_entry(path, where, entry, IMAGE)
        regions = entry.get("regions") or []
        listed = list(regions.values()) if isinstance(regions, dict) else regions  # VIA 1 numbers them
        if not isinstance(listed, list):
            raise DataError(f"{path}: {where}: regions are no list")
        yield entry["filename"], [_region(path, f"{where}, region {i}", region) for i, region in enumerate(listed)]


def _region(path: Path, where: str, region: Any) -> Region:
    if not isinstance(region, dict):
        raise DataError(f"{path}: {where} is no object")
    shape, attributes = region.get("shape_attributes"), region.get("region_attributes") or {}
    if not isinstance(shape, dict) or not isinstance(attributes, dict):
        raise DataError(f"{path}: {where}: shape_attributes and region_attributes are objects")
    return Region(path, where, shape, attributes)


def _read_table(path: Path) -> Iterator[tuple[str, list[Region]]]:
    """A row for each region, its attributes as JSON; an image without regions has one row without."""
    images: dict[str, list[Region]] = {}
    for number, cells in enumerate(read_rows(path), start=1):
        row = {column.lstrip("#"): cell for column, cell in cells.items()}  # VIA 1 writes #filename
        mine = images.setdefault(row["filename"], [])
        try:
            shape, attributes = (parse_json(row[name] or "{}") for name in REGION_COLUMNS)
        except ValueError as error:
            raise DataError(f"{path}: row {number} holds no JSON: {error}") from error
        if shape:
            region = {"shape_attributes": shape, "region_attributes": attributes}
            mine.append(_region(path, f"row {number}", region))
    yield from images.items()


def _class_attribute(index: DatasetIndex, regions: Sequence[Region]) -> str | None:
    """The attribute that is the class; None where regions have none.

    Raises:
        UsageError: it cannot be told.
    """
    counts = Counter(name for region in regions for name, value in region.attributes.items() if value not in ("", None))
    if not counts:
        if regions:
            index.remarks.append(f"no region has an attribute: all are of one class, {ONLY_CLASS!r}")
            logger.warning("%s: %s", index.root, index.remarks[-1])
        return None
    usual = next((name for known in CLASS_ATTRIBUTES for name in counts if name.lower() == known), None)
    if usual or len(counts) == 1:
        return usual or next(iter(counts))
    raise UsageError(
        f"{index.root}: the regions have the attributes {', '.join(counts)}: which of them is the class? Call it "
        "'class' in VIA (Attributes), and export again"
    )


def _shapes(regions: Sequence[Region], attribute: str | None, tally: Tally) -> Iterator[tuple[str, Shape]]:
    """The class and the outline of each region that is drawn; where the others end is counted."""
    for region in regions:
        with naming(f"{region.file}: {region.entry}"):
            try:
                label, outline = _label(region, attribute), _outline(region)
            except OverflowError as error:
                raise DataError(f"a coordinate is no place in a picture: {error}") from error
        if shape := tally.take(outline, label, region.file.name, region.entry):
            yield label, shape


def _label(region: Region, attribute: str | None) -> str:
    """The class of a region, "" where it has none: text, or the one box that is checked.

    Raises:
        DataError: several boxes are checked, or it is no text.
    """
    if attribute is None:
        return ONLY_CLASS
    value = region.attributes.get(attribute) or ""
    if isinstance(value, dict):
        chosen = [str(name) for name, is_set in value.items() if is_set]
        if len(chosen) > 1:
            raise DataError(f"{attribute} is {listed(chosen)}: a pixel has one class")
        return "".join(chosen)
    if not isinstance(value, str):
        raise DataError(f"{attribute} is {value!r}; expected text")
    return value if value.strip() else ""


def _outline(region: Region) -> Shape | Fate:
    """A region as a shape, or where it ends, if it is none."""
    shape, kind = region.shape, region.shape.get("name")
    if kind in WITHOUT_AREA:
        return LINE
    if not isinstance(kind, str) or kind not in SHAPES:
        return UNKNOWN
    check_entry(region.file, region.entry, dict(shape), SHAPES[kind])
    if kind == "polygon":
        across, down = shape["all_points_x"], shape["all_points_y"]
        if len(across) != len(down):
            raise DataError(f"all_points_x has {len(across)} numbers, all_points_y {len(down)}")
        return {"polygons": [[number for point in zip(across, down, strict=True) for number in point]]}
    if kind == "rect":
        left, top = shape["x"], shape["y"]
        return {"polygons": [rectangle(left, top, left + shape["width"], top + shape["height"])]}
    if kind == "circle":
        return {"ellipse": [shape["cx"], shape["cy"], shape["r"], shape["r"], 0]}
    return {"ellipse": [shape["cx"], shape["cy"], shape["rx"], shape["ry"], math.degrees(shape.get("theta") or 0)]}


def _path_of(name: str) -> str:
    """The path of an image in an address, without what follows "?"."""
    return unquote(urlsplit(name).path) if "://" in name else name
