"""LabelMe annotations: one JSON file beside each image, with polygons, rectangles, circles and bitmaps."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageOps

from segtune.data.annotations.find_images import AnnotatedImages, attempt
from segtune.data.annotations.json_fields import LIST, NUMBER, TEXT, Fields, check_entries, check_entry, read_object
from segtune.data.annotations.shapes import Shape, rectangle
from segtune.data.annotations.tally import LINE, NAMELESS, UNKNOWN, Fate, Tally
from segtune.data.class_names import LABEL_FILES, listed_classes, number_classes
from segtune.data.config import DatasetConfig
from segtune.data.index import DatasetIndex, Sample, in_threads
from segtune.data.splits import Names, split_names, split_of
from segtune.errors import DataError, UsageError
from segtune.imageio.read import open_picture
from segtune.imageio.walk import walk_files
from segtune.labels.label_file import BACKGROUND, IGNORED

FILE: Fields = {"shapes": LIST, "imagePath?": TEXT, "imageData?": TEXT, "imageHeight?": NUMBER, "imageWidth?": NUMBER}
SHAPE: Fields = {"label": TEXT, "shape_type?": TEXT, "points?": LIST, "mask?": TEXT}
WITHOUT_AREA = ("line", "linestrip", "point", "points")
OUTLINES = ("polygon", "oriented_rectangle", "rotation", "quadrilateral")  # the last two are X-AnyLabeling's
KINDS = (*OUTLINES, "rectangle", "circle", "mask")


def scan_labelme(root: Path, config: DatasetConfig) -> DatasetIndex:
    """The LabelMe files below a folder, with the images of the same names or those that they name or hold.

    Classes are the labels in alphabetical order, unless `dataset.labels` lists them. A folder named train, val or test
    above a file gives its split.

    Raises:
        UsageError: there are no such files.
    """
    index, names = DatasetIndex(root), split_names(config.splits)
    place = root / (config.masks or "")
    every = walk_files(place, ".json") if place.is_dir() else ()
    files = sorted(path for path in every if path.name not in LABEL_FILES)
    if not files:
        raise UsageError(f"{place}: no LabelMe files (JSON with shapes) in it")
    read = in_threads(_try_json, files, "reading annotations")
    content = {path: data for path, data in zip(files, read, strict=True) if isinstance(data, dict)}
    faults = {index.below(path): str(error) for path, error in zip(files, read, strict=True) if path not in content}
    index.report("annotation_unreadable", "files that are none of LabelMe's", faults, "Repair or remove them")
    listed = listed_classes(config, root)
    index.classes = number_classes(listed or class_names(list(content.values())), config, root)
    values = {str(name): value for value, name in index.classes.items()}
    images = AnnotatedImages(index, config)
    for path, data in content.items():
        part = {"shapes": _count(index.below(path), data, images.tally)}
        if image := _find_image(path, data, images):
            folders = path.relative_to(root).parts[:-1]
            split = next((found for part in folders if (found := split_of(part, names))), "train")
            images.add(Sample(_id(path, root, split, names), split, image, path, annotated_size(data)), {})
        else:
            images.tally.give(len(part["shapes"]))
            images.lose(str(path), part)
    images.finish(lambda asked, sizes: [attempt(_shapes_of, *each, values) for each in zip(asked, sizes, strict=True)])
    return index


def _count(name: str, data: Mapping[str, Any], tally: Tally) -> list[dict[str, Any]]:
    """The shapes of a file that will be drawn; where the others end is counted."""
    drawn = []
    for number, entry in enumerate(data["shapes"]):
        if fate := _fate(entry):
            tally.give()
            tally.end(fate, f"{name}: shapes[{number}]", entry["label"].strip())
        else:
            drawn.append(entry)
    return drawn


def _fate(entry: Mapping[str, Any]) -> Fate | None:
    """Where a shape ends that is not drawn."""
    kind = entry.get("shape_type") or "polygon"
    if kind in WITHOUT_AREA:
        return LINE
    if kind not in KINDS:
        return UNKNOWN
    return None if entry["label"].strip() else NAMELESS


def _find_image(path: Path, data: Mapping[str, Any], images: AnnotatedImages) -> Path | None:
    """The image of a file: of the same name, else the one it names; the file itself, where it holds the image."""
    found = images.find_stem(path.stem, path)
    if len(found) != 1:
        named = path.parent / str(data.get("imagePath") or "").replace("\\", "/")
        if os.path.isfile(named):
            return named
        found = found or images.find(named.name, path)
        if not found and data.get("imageData"):
            return path
    return images.only(str(path), found)


def _id(path: Path, root: Path, split: str, names: Names) -> str:
    """The path below the folder of the split, without suffix."""
    parts = path.relative_to(root).with_suffix("").parts
    return "/".join(part for i, part in enumerate(parts) if i == len(parts) - 1 or split_of(part, names) != split)


def _try_json(path: Path) -> dict[str, Any] | Exception:
    """The content of a file, of its picture only whether it holds one; the error, where it cannot be read."""
    try:
        data = read_json(path)
        return {**data, "imageData": bool(data.get("imageData"))}
    except (DataError, OSError) as error:
        return error


def read_json(path: Path) -> dict[str, Any]:
    """The content of one file.

    Raises:
        DataError: it is none of LabelMe's.
    """
    data = read_object(path, "LabelMe file")
    check_entry(path, "the file", data, FILE)
    check_entries(path, "shapes", data["shapes"], SHAPE)
    return data


def class_names(files: Sequence[dict[str, Any]]) -> list[str]:
    """The labels that occur, in alphabetical order, without LabelMe's own two."""
    found = {shape["label"] for data in files for shape in data["shapes"] if not _fate(shape)}
    return sorted(found - {IGNORED, BACKGROUND})


def _shapes_of(sample: Sample, size: tuple[int, int], values: Mapping[str, int]) -> list[Shape]:
    return read_shapes(sample.mask, values, size)[0]


def read_shapes(path: Path, values: Mapping[str, int], size: tuple[int, ...]) -> tuple[list[Shape], tuple[int, int]]:
    """The shapes of a file in its order, and the (height, width) that it was drawn on; lines and points have no area.

    Args:
        size: of the image, where the file does not state it.

    Raises:
        DataError: a label that is not in `values`, a shape that is not known.
    """
    data = read_json(path)
    values = {IGNORED: None, BACKGROUND: 0, **values}  # type: ignore[dict-item]
    shapes = []
    for number, entry in enumerate(data["shapes"]):
        if _fate(entry):
            continue
        if entry["label"] not in values:
            raise DataError(f"{path}: the label {entry['label']!r} is none of {', '.join(values)}")
        try:
            shapes.append({"value": values[entry["label"]], **_outline(entry), "entry": f"shapes[{number}]"})
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: shapes[{number}]: points are no list of [x, y]: {error}") from error
    height, width = annotated_size(data)
    return shapes, (height, width) if height and width else (size[0], size[1])


def annotated_size(data: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) as a file states it; (0, 0) where it does not."""
    return int(data.get("imageHeight") or 0), int(data.get("imageWidth") or 0)


def embedded_image(path: Path) -> PIL.Image.Image:
    """The picture that a file holds as base64.

    Raises:
        DataError: it holds none.
    """
    text = read_json(path).get("imageData")
    if not text:
        raise DataError(f"{path}: neither its image file nor imageData is there")
    with open_picture(path, base64.b64decode(text)) as picture:
        picture.load()
        return PIL.ImageOps.exif_transpose(picture)


def _outline(entry: Mapping[str, Any]) -> Shape:
    kind, points = entry.get("shape_type") or "polygon", entry["points"]
    if kind in OUTLINES or (kind == "rectangle" and len(points) == 4):  # X-AnyLabeling writes all its corners
        return {"polygons": [[float(number) for x, y in points for number in (x, y)]]}
    (x0, y0), (x1, y1) = points
    if kind == "rectangle":
        return {"polygons": [rectangle(x0, y0, x1, y1)]}
    if kind == "circle":  # its centre and a point on it
        radius = math.dist((x0, y0), (x1, y1))
        return {"ellipse": [x0, y0, radius, radius, 0]}
    return {"bitmap": entry["mask"], "box": [int(x0), int(y0)]}
