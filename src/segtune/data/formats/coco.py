"""COCO annotations: a JSON file for each split, with polygons and run lengths, or panoptic PNGs beside it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from segtune.data.annotations.find_images import AnnotatedImages, sample_id, tally_of
from segtune.data.annotations.json_fields import KEY, LIST, NUMBER, TEXT, Fields, check_entries, read_object
from segtune.data.annotations.shapes import Shape
from segtune.data.annotations.tally import BOX, CROWD, STRANGER
from segtune.data.class_names import number_classes
from segtune.data.config import DatasetConfig
from segtune.data.formats.sniff import json_kind
from segtune.data.index import DatasetIndex, Sample
from segtune.data.splits import Names, split_in, split_names, split_of
from segtune.errors import DataError, UsageError, listed
from segtune.imageio.walk import walk_files

logger = logging.getLogger(__name__)


def scan_coco(root: Path, config: DatasetConfig) -> DatasetIndex:
    """The images of COCO's annotation files; masks are drawn when they are read.

    Mask values follow the category ids; 0 is what no annotation covers, in panoptic files ignored.

    Raises:
        UsageError: no annotation file, several for one split, or a file of another form.
    """
    names = split_names(config.splits)
    files = find_files(root, config.masks, names)
    content = {split: _read(path) for split, path in files.items()}
    if not any(data["images"] for data in content.values()):
        raise DataError(f"{root}: {listed([path.name for path in files.values()])}: no images are listed")
    categories = {entry["id"]: entry["name"] for data in content.values() for entry in data["categories"]}
    classes = number_classes(dict.fromkeys(categories[i] for i in sorted(categories, key=_by_number)), config, root)
    by_name = {name: value for value, name in classes.items()}
    values = {i: by_name[name] for i, name in categories.items()}
    index = DatasetIndex(root, classes=classes)
    images = AnnotatedImages(index, config)
    for split, path in files.items():
        is_panoptic = _is_panoptic(content[split])
        if is_panoptic:
            index.classes = {**classes, 0: None}
        make = _panoptic_parts if is_panoptic else _shape_parts
        hints = {*names[split], *re.findall("[a-z]+[0-9]*", path.stem.lower())}
        for image, mask, part in make(index, path, content[split], values, config):
            found = images.only(image["file_name"], images.find(image["file_name"], path.parent, hints))
            if not found or not mask:
                images.lose(image["file_name"], part)
            else:
                size = image.get("height") or 0, image.get("width") or 0
                images.add(Sample(sample_id(image["file_name"]), split, found, mask, size), part)
    images.finish()
    if bare := sum(part.get("shapes") == [] for part in images.parts):
        index.remarks.append(f"{bare} of {len(images.parts)} images have no annotation; all of them is background")
        logger.info("%s: %s", root, index.remarks[-1])
    return index


def _by_number(key: int | str) -> tuple[bool, Any]:
    return isinstance(key, str), key


def find_files(root: Path, given: str | None, names: Names) -> dict[str, Path]:
    """Split -> its annotation file.

    Raises:
        UsageError: there is none, or there are several for one split.
    """
    if given:
        found = {split: [root / given.replace("{split}", name) for name in known] for split, known in names.items()}
        found = {split: [path for path in paths if path.is_file()] for split, paths in found.items()}
        if "{split}" not in given:
            found = {"train": [root / given] if (root / given).is_file() else []}
    else:
        found = {}
        for path in walk_files(root, ".json", depth=1):
            if json_kind(path) == "coco":
                found.setdefault(_split_of_file(root, path, names), []).append(path)
    for split, paths in found.items():
        if len(paths) > 1:
            several = ", ".join(str(path.relative_to(root)) for path in paths)
            raise UsageError(
                f"{root} has several annotation files for {split}: {several}; choose with dataset.masks, such as "
                "masks='annotations/instances_{split}2017.json'"
            )
    files = {split: paths[0] for split, paths in found.items() if paths}
    if not files:
        there = listed([path.relative_to(root).as_posix() for path in walk_files(root, ".json", depth=1)])
        raise UsageError(
            f"{root}: no COCO file {given or 'below it or in annotations/'}; name one in dataset.masks"
            + (f" (there are {there})" if there else "")
        )
    return files


def _split_of_file(root: Path, path: Path, names: Names) -> str:
    """By a word of the file's name, else by its folder; train where neither names a split."""
    return split_in(path.stem, names) or split_of(path.relative_to(root).parts[0], names) or "train"


IMAGE: Fields = {"id": KEY, "file_name": TEXT, "height?": NUMBER, "width?": NUMBER}
CATEGORY: Fields = {"id": KEY, "name": TEXT}
ANNOTATION: Fields = {"image_id": KEY, "category_id": KEY, "segmentation?": (list, dict), "iscrowd?": NUMBER}
PANOPTIC: Fields = {"image_id": KEY, "file_name": TEXT, "segments_info": LIST}
SEGMENT: Fields = {"id": KEY, "category_id": KEY, "iscrowd?": NUMBER}


def _read(path: Path) -> dict[str, Any]:
    """The content of a file, whose entries have the fields that are read below.

    Raises:
        UsageError: it is no COCO file.
        DataError: one of its entries is of another form, or speaks of a category that is not listed.
    """
    data = read_object(path, "COCO file")
    if not all(isinstance(data.get(key), list) for key in ("images", "annotations", "categories")):
        raise UsageError(f"{path} is no COCO file: it needs the lists images, annotations and categories")
    check_entries(path, "images", data["images"], IMAGE)
    check_entries(path, "categories", data["categories"], CATEGORY)
    known = {category["id"] for category in data["categories"]}
    is_panoptic = _is_panoptic(data)
    check_entries(path, "annotations", data["annotations"], PANOPTIC if is_panoptic else ANNOTATION)
    for number, annotation in enumerate(data["annotations"]):
        name = f"annotations[{number}]"
        if is_panoptic:
            check_entries(path, f"{name}.segments_info", annotation["segments_info"], SEGMENT)
        for entry in annotation["segments_info"] if is_panoptic else [annotation]:
            if entry["category_id"] not in known:
                raise DataError(f"{path}: {name}: category_id {entry['category_id']!r} is none of the categories")
    return data


def _is_panoptic(data: Mapping[str, Any]) -> bool:
    return any(isinstance(entry, dict) and "segments_info" in entry for entry in data["annotations"][:1])


def _shape_parts(
    index: DatasetIndex, path: Path, data: Mapping[str, Any], values: Mapping[Any, int], config: DatasetConfig
) -> Iterator[tuple[dict[str, Any], Path | None, dict[str, Any]]]:
    """Each image, its mask's file and part: the annotations as shapes, crowds below the others."""
    shapes: dict[Any, list[Shape]] = {image["id"]: [] for image in data["images"]}
    tally = tally_of(index)
    tally.give(len(data["annotations"]))
    for number, annotation in enumerate(data["annotations"]):
        entry, value = _entry(number, annotation), values[annotation["category_id"]]
        outline, label = annotation.get("segmentation"), (index.classes or {}).get(value) or ""
        is_crowd = bool(annotation.get("iscrowd"))
        if not outline or not any(outline):
            tally.end(BOX, f"{index.below(path)}: {entry}", label)
        elif annotation["image_id"] not in shapes:
            tally.end(STRANGER, f"{index.below(path)}: {entry} (image {annotation['image_id']!r})", label)
        else:
            shape = {"value": value, ("polygons" if isinstance(outline, list) else "rle"): outline, "entry": entry}
            if is_crowd and config.crowd == "ignore":
                shape |= {"value": None, "label": label, "rule": CROWD.kind}
            mine = shapes[annotation["image_id"]]
            mine.insert(0, shape) if is_crowd else mine.append(shape)
    for image in data["images"]:
        yield image, path, {"shapes": shapes[image["id"]]}


def _entry(number: int, annotation: Mapping[str, Any]) -> str:
    """How an annotation is named: by its id, where it has one."""
    return f"annotation {annotation['id']}" if "id" in annotation else f"annotations[{number}]"


def _panoptic_parts(
    index: DatasetIndex, path: Path, data: Mapping[str, Any], values: Mapping[Any, int], config: DatasetConfig
) -> Iterator[tuple[dict[str, Any], Path | None, dict[str, Any]]]:
    """Each image, its PNG and the values of the numbers in it; the PNGs lie in a folder named like the file."""
    images = {image["id"]: image for image in data["images"]}
    places = [path.with_suffix(""), index.root / path.stem, path.parent]
    absent: dict[str, str] = {}
    tally = tally_of(index)
    for annotation in data["annotations"]:
        tally.give(len(annotation["segments_info"]))
        if annotation["image_id"] not in images:
            for segment in annotation["segments_info"]:
                tally.end(STRANGER, f"{index.below(path)}: segment {segment['id']} (image {annotation['image_id']!r})")
            continue
        tried = [place / annotation["file_name"] for place in places]
        file = next((found for found in tried if os.path.isfile(found)), None)
        if file is None:
            absent[annotation["file_name"]] = annotation["file_name"]
        segments = {
            segment["id"]: None
            if segment.get("iscrowd") and config.crowd == "ignore"
            else values[segment["category_id"]]
            for segment in annotation["segments_info"]
        }
        yield images[annotation["image_id"]], file, {"segments": segments}
    fix = f"Put them into {index.below(path.with_suffix(''))}/"
    index.report("mask_missing", f"{index.below(path)}: panoptic pictures that are not there", absent, fix)
