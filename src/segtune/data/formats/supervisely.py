"""Supervisely projects: meta.json, and in each data set ann/<image>.json beside img/<image>."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from segtune.data.annotations.find_images import AnnotatedImages, sample_id
from segtune.data.annotations.json_fields import LIST, NUMBER, TEXT, Fields, check_entries, check_entry, read_object
from segtune.data.annotations.shapes import Shape, rectangle
from segtune.data.annotations.tally import LINE, UNKNOWN, Fate, Tally
from segtune.data.class_names import drawn_names, number_classes, value_of
from segtune.data.config import DatasetConfig
from segtune.data.formats.sniff import json_kind
from segtune.data.index import DatasetIndex, Sample, in_threads
from segtune.data.splits import split_names, split_of
from segtune.errors import DataError, UsageError, naming
from segtune.imageio.walk import walk_folders

WITHOUT_AREA = ("point", "line", "graph", "cuboid", "cuboid_2d")
FILE: Fields = {"objects": LIST, "size": (dict,)}
SIZE: Fields = {"height": NUMBER, "width": NUMBER}
OBJECT: Fields = {"classTitle": TEXT, "geometryType?": TEXT}
LARGEST = 2**26  # bytes of a bitmap's PNG


def find_annotations(root: Path) -> list[Path]:
    """The files in folders called ann that lie beside folders of images, sorted."""
    found = []
    for parent, folders, files in walk_folders(root):
        if parent.name == "ann" and (parent.parent / "img").is_dir():
            folders.clear()
            found += [parent / name for name in files if name.endswith(".json")]
    return sorted(found)


def scan_supervisely(root: Path, config: DatasetConfig) -> DatasetIndex:
    """The images of a project; classes are those of meta.json in its order, then others by name; later objects on top.

    The split of an image is that of the data set's name; train where that is none of ours. Holes are left out of their
    polygon. Points and lines have no area.

    Raises:
        UsageError: there are no such files.
        DataError: one of another form.
    """
    files = find_annotations(root / (config.masks or ""))
    if not files or json_kind(files[0]) != "supervisely":
        raise UsageError(f"{root}: no project of Supervisely in it (ann/<image>.json beside img/<image>)")
    content = in_threads(_read, files, "reading annotations")
    index = DatasetIndex(root)
    images = AnnotatedImages(index, config)
    shapes = [
        list(_shapes(path, index.below(path), data, images.tally)) for path, data in zip(files, content, strict=True)
    ]
    known = _listed(root)
    used = {label for found in shapes for label, _ in found}
    index.classes = number_classes(drawn_names([*known, *sorted(used - set(known))]), config, root)
    values = {str(name): value for value, name in index.classes.items()}
    names = split_names(config.splits)
    for path, data, drawn in zip(files, content, shapes, strict=True):
        part = {"shapes": [{"value": value_of(label, values), **outline} for label, outline in drawn]}
        beside = path.parent.parent / "img" / path.stem
        if image := images.only(index.below(beside), [beside] if beside.is_file() else images.find(path.stem, path)):
            folders = path.relative_to(root).parts[:-2]
            split = next((found for name in reversed(folders) if (found := split_of(name, names))), "train")
            size = int(data["size"]["height"]), int(data["size"]["width"])
            images.add(Sample(_id(index, image), split, image, path, size), part)
        else:
            images.lose(index.below(beside), part)
    images.finish()
    return index


def _id(index: DatasetIndex, image: Path) -> str:
    """The path below the project without the folder img."""
    parts = sample_id(index.below(image)).split("/")
    return "/".join(part for i, part in enumerate(parts) if i != len(parts) - 2 or part != "img")


def _listed(root: Path) -> list[str]:
    """The classes of meta.json that may have an area, where it is there."""
    place = next((folder for folder in (root, root.parent) if (folder / "meta.json").is_file()), None)
    if place is None:
        return []
    path = place / "meta.json"
    data = read_object(path, "meta.json of Supervisely")
    check_entries(path, "classes", data.get("classes", []), {"title": TEXT, "shape?": TEXT})
    return [entry["title"] for entry in data.get("classes", []) if entry.get("shape") not in WITHOUT_AREA]


def _read(path: Path) -> dict[str, Any]:
    data = read_object(path, "annotation of Supervisely")
    check_entry(path, "the file", data, FILE)
    check_entry(path, "size", data["size"], SIZE)
    check_entries(path, "objects", data["objects"], OBJECT)
    return data


def _shapes(path: Path, name: str, data: Mapping[str, Any], tally: Tally) -> Iterator[tuple[str, Shape]]:
    """The class and the outline of each object that is drawn; where the others end is counted."""
    tally.give(len(data["objects"]))
    for number, entry in enumerate(data["objects"]):
        label = entry["classTitle"]
        with naming(f"{path}: objects[{number}]"):
            outline = _outline(entry)
        if shape := tally.take(outline, label, name, f"objects[{number}]"):
            yield label, shape


def _outline(entry: Mapping[str, Any]) -> Shape | Fate:
    """An object as a shape, or where it ends, if it is none."""
    kind = entry.get("geometryType") or ("bitmap" if entry.get("bitmap") else "polygon")
    if kind in WITHOUT_AREA:
        return LINE
    try:
        if kind == "bitmap":
            left, top = entry["bitmap"]["origin"]
            return {"bitmap": _png(entry["bitmap"]["data"]), "box": [int(left), int(top)]}
        if kind not in ("polygon", "rectangle"):
            return UNKNOWN
        exterior, holes = entry["points"]["exterior"], entry["points"].get("interior") or []
        if kind == "rectangle":
            (left, top), (right, bottom) = exterior
            return {"polygons": [rectangle(left, top, right, bottom)]}
        outline, *inner = ([float(number) for x, y in ring for number in (x, y)] for ring in (exterior, *holes))
        return {"polygons": [outline], "holes": inner} if inner else {"polygons": [outline]}
    except DataError:
        raise
    except (LookupError, TypeError, ValueError, OverflowError, zlib.error) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise DataError(f"no {kind} of Supervisely: {what}") from error


def _png(text: str) -> str:
    """The PNG that an object holds, packed by zlib and base64, as base64 alone."""
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(base64.b64decode(text), LARGEST)
    if unpacker.unconsumed_tail:
        raise DataError(f"a bitmap is unpacked to more than {LARGEST} bytes")
    if not unpacker.eof:
        raise DataError("a bitmap is cut off")
    return binascii.b2a_base64(content, newline=False).decode()
