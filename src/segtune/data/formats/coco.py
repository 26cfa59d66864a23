"""COCO annotations: a JSON file for each split, with polygons and run lengths, or panoptic PNGs beside it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segtune.data.annotations.find_images import AnnotatedImages, sample_id, tally_of
from segtune.data.annotations.json_fields import KEY, LIST, NUMBER, TEXT, Fields, check_entries, read_object
from segtune.data.annotations.shapes import Shape
from segtune.data.annotations.tally import BOX, CROWD, STRANGER
from segtune.data.class_names import drawn_names, number_classes, value_of
from segtune.data.config import DatasetConfig
from segtune.data.formats.sniff import json_kind
from segtune.data.index import DatasetIndex, Sample
from segtune.data.splits import SPLITS, Names, split_in, split_names, split_of
from segtune.errors import DataError, UsageError, listed
from segtune.imageio.walk import walk_files

logger = logging.getLogger(__name__)


def scan_coco(root: Path, config: DatasetConfig) -> DatasetIndex:
    """The images of COCO's annotation files; masks are drawn when they are read.

    Categories are known by their names, whose ids may differ between the files. Mask values follow the ids of the
    first file that has a name; 0 is what no annotation covers, in panoptic files ignored.

    Raises:
        UsageError: no annotation file, several for one split, or a file of another form.
        DataError: entries of another form; names file, entry and field.
    """
    names = split_names(config.splits)
    files = [_File(split, path, _read(path)) for split, path in find_files(root, config.masks, names).items()]
    if not any(file.data["images"] for file in files):
        raise DataError(f"{root}: {listed([file.path.name for file in files])}: no images are listed")
    is_void = any(file.is_panoptic for file in files)
    found = dict.fromkeys(name for file in files for name in file.categories.values())
    classes = number_classes(found if is_void else drawn_names(found), config, root)
    index = DatasetIndex(root, classes={**classes, 0: None} if is_void else classes)
    values = {name: value for value, name in classes.items() if name is not None}
    images = AnnotatedImages(index, config)
    for file in files:
        _report_repeated_images(index, file)
        make = _panoptic_parts if file.is_panoptic else _shape_parts
        hints = {*names[file.split], *re.findall("[a-z]+[0-9]*", file.path.stem.lower())}
        for image, mask, part in make(index, file, values, config):
            name = image["file_name"]
            path = images.only(name, images.find(name, file.path.parent, hints))
            if not path or not mask:
                images.lose(name, part)
            else:
                size = image.get("height") or 0, image.get("width") or 0
                images.add(Sample(sample_id(name), file.split, path, mask, size), part)
    images.finish()
    if bare := sum(part.get("shapes") == [] for part in images.parts):
        index.remarks.append(f"{bare} of {len(images.parts)} images have no annotation; all of them is background")
        logger.info("%s: %s", root, index.remarks[-1])
    if config.crowd is None:
        _ask_about_crowds(index, files)
    return index


class _File:
    """An annotation file: its split and path, its content, and the names of its categories by the key of their id."""

    def __init__(self, split: str, path: Path, data: dict[str, Any]) -> None:
        self.split, self.path, self.data = split, path, data
        ordered = sorted(data["categories"], key=lambda entry: _by_number(entry["id"]))
        self.categories = {_key(entry["id"]): entry["name"] for entry in ordered}
        self.is_panoptic = _is_panoptic(data)

    def value_of(self, category: Any, values: Mapping[str, int]) -> tuple[str, int | None]:
        """The name of a category, and its mask value."""
        name = self.categories[_key(category)]
        return name, value_of(name, values)


def _by_number(key: float | str) -> tuple[bool, Any]:
    return isinstance(key, str), key


def _key(value: float | str) -> str:
    """What an id is known by: 7, 7.0 and "7" are one, as tools disagree on which of them they write."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


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
        paths = [path for path in walk_files(root, ".json", depth=1) if json_kind(path) == "coco"]
        own = {path: _split_of_file(root, path, names, alone=len(paths) == 1) for path in paths}
        named = [path for path in paths if own[path]]
        for path in paths:
            is_left_out = named and split_in(path.stem, SPLITS)  # of a split that dataset.splits leaves out
            if own[path] or not is_left_out:
                found.setdefault(own[path] or "train", []).append(path)
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


def _split_of_file(root: Path, path: Path, names: Names, alone: bool) -> str | None:
    """By a word of the file's name, else by its folder; None where neither names a split.

    Of a file that is alone, only the first and the last word may name one: crash_test_site.json holds what there is.
    """
    words = re.findall("[a-z]+[0-9]*", path.stem.lower())
    text = " ".join(words[:1] + words[-1:]) if alone else path.stem
    split = split_in(text, names) or split_of(path.relative_to(root).parts[0], names)
    if split and split != "train":
        logger.info("%s: %s is read as %s, by its name", root, path.relative_to(root), split)
    return split


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
    names: dict[str, str] = {}
    for number, category in enumerate(data["categories"]):
        if not category["name"].strip():
            raise DataError(f"{path}: categories[{number}]: name is empty; give the category one")
        if names.setdefault(_key(category["id"]), category["name"]) != category["name"]:
            other = names[_key(category["id"])]
            raise DataError(
                f"{path}: categories[{number}]: id {category['id']!r} is both {other!r} and {category['name']!r}; "
                "give each category an id of its own, and the annotations likewise"
            )
    is_panoptic = _is_panoptic(data)
    check_entries(path, "annotations", data["annotations"], PANOPTIC if is_panoptic else ANNOTATION)
    for number, annotation in enumerate(data["annotations"]):
        name = _entry(number, annotation)
        if is_panoptic:
            check_entries(path, f"{name}.segments_info", annotation["segments_info"], SEGMENT)
            _refuse_repeated_segments(path, name, annotation["segments_info"])
        for entry in annotation["segments_info"] if is_panoptic else [annotation]:
            if _key(entry["category_id"]) not in names:
                known = (
                    f"is none of the categories: {listed(list(names))}" if names else "is not listed: no category is"
                )
                raise DataError(
                    f"{path}: {name}: category_id {entry['category_id']!r} {known}; list it in categories, or remove "
                    "the annotation"
                )
    return data


def _refuse_repeated_segments(path: Path, name: str, segments: Sequence[Mapping[str, Any]]) -> None:
    known: set[str] = set()
    for segment in segments:
        if _key(segment["id"]) in known:
            raise DataError(f"{path}: {name}: the segment {segment['id']!r} is listed twice")
        known.add(_key(segment["id"]))


def _is_panoptic(data: Mapping[str, Any]) -> bool:
    return any(isinstance(entry, dict) and "segments_info" in entry for entry in data["annotations"][:1])


def _report_repeated_images(index: DatasetIndex, file: _File) -> None:
    """Image ids that occur twice, as where two files were joined: which one an annotation means cannot be known."""
    names: dict[str, list[str]] = {}
    for image in file.data["images"]:
        names.setdefault(_key(image["id"]), []).append(image["file_name"])
    place = index.below(file.path)
    twice = {f"{place}: {key}": f"{place}: id {key} is {' and '.join(n[:3])}" for key, n in names.items() if len(n) > 1}
    fix = "Number the images of the joined files anew, and the image_id of their annotations with them"
    index.report("image_id_twice", "image ids that occur more than once", twice, fix)


def _ask_about_crowds(index: DatasetIndex, files: Sequence[_File]) -> None:
    """Classes most of whose regions are crowds: tools mark run lengths so that were painted, not crowds at all."""
    ends = tally_of(index).ends
    shown = {
        label: f"{label} ({count} of {count + ends[None, label]})"
        for (fate, label), count in list(ends.items())
        if fate == CROWD and label and count > ends[None, label]
    }
    fix = (
        "CVAT and datumaro write painted masks so: set dataset.crowd=class to draw them as their class, or "
        "dataset.crowd=ignore where they are crowds"
    )
    what = f"classes most of whose regions have iscrowd 1 in {listed([index.below(file.path) for file in files])}"
    index.report("crowd_or_class", what, shown, fix)


def _shape_parts(
    index: DatasetIndex, file: _File, values: Mapping[str, int], config: DatasetConfig
) -> Iterator[tuple[dict[str, Any], Path | None, dict[str, Any]]]:
    """Each image, its mask's file and part: the annotations as shapes, crowds below the others."""
    shapes: dict[str, list[Shape]] = {_key(image["id"]): [] for image in file.data["images"]}
    tally, place = tally_of(index), index.below(file.path)
    tally.give(len(file.data["annotations"]))
    for number, annotation in enumerate(file.data["annotations"]):
        entry, outline = _entry(number, annotation), annotation.get("segmentation")
        label, value = file.value_of(annotation["category_id"], values)
        is_crowd = bool(annotation.get("iscrowd"))
        if not outline or (isinstance(outline, list) and outline[0] != 0 and not any(outline)):
            tally.end(BOX, f"{place}: {entry}", label)
        elif _key(annotation["image_id"]) not in shapes:
            tally.end(STRANGER, f"{place}: {entry} (image {annotation['image_id']!r})", label)
        else:
            shape = {"value": value, **_outline(outline), "entry": entry}
            if is_crowd and config.crowd != "class":
                shape |= {"value": None, "label": label, "rule": CROWD.kind}
            mine = shapes[_key(annotation["image_id"])]
            mine.insert(0, shape) if is_crowd else mine.append(shape)
    for image in file.data["images"]:
        yield image, file.path, {"shapes": shapes.pop(_key(image["id"]), [])}


def _outline(segmentation: Any) -> Shape:
    """Run lengths, or outlines; a flat list of numbers is one outline."""
    if isinstance(segmentation, dict):
        return {"rle": segmentation}
    is_flat = all(isinstance(number, (int, float)) for number in segmentation)
    return {"polygons": [segmentation] if is_flat else segmentation}


def _entry(number: int, annotation: Mapping[str, Any]) -> str:
    """How an annotation is named: by its id, where it has one."""
    own = annotation.get("id")
    return f"annotation {own}" if isinstance(own, (int, str)) and len(str(own)) < 40 else f"annotations[{number}]"


def _panoptic_parts(
    index: DatasetIndex, file: _File, values: Mapping[str, int], config: DatasetConfig
) -> Iterator[tuple[dict[str, Any], Path | None, dict[str, Any]]]:
    """Each image, its PNG and the values of the numbers in it; the PNGs lie in a folder named like the file."""
    path, tally = file.path, tally_of(index)
    images = {_key(image["id"]): image for image in file.data["images"]}
    places = [path.with_suffix(""), index.root / path.stem, path.parent]
    absent: dict[str, str] = {}
    for annotation in file.data["annotations"]:
        segments: dict[str, int | None] = {}
        tally.give(len(annotation["segments_info"]))
        image = images.pop(_key(annotation["image_id"]), None)
        for segment in annotation["segments_info"]:
            label, value = file.value_of(segment["category_id"], values)
            is_ignored = bool(segment.get("iscrowd")) and config.crowd != "class"
            segments[_key(segment["id"])] = None if is_ignored else value
            if image is None:
                entry = f"segment {segment['id']} (image {annotation['image_id']!r})"
                tally.end(STRANGER, f"{index.below(path)}: {entry}", label)
        if image is None:
            continue
        tried = [place / annotation["file_name"] for place in places]
        picture = next((found for found in tried if os.path.isfile(found)), None)
        if picture is None:
            absent[annotation["file_name"]] = annotation["file_name"]
        yield image, picture, {"segments": segments}
    fix = f"Put them into {index.below(path.with_suffix(''))}/"
    index.report("mask_missing", "panoptic pictures that are not there", absent, fix)
    bare = {image["file_name"]: image["file_name"] for image in images.values()}
    fix = "Annotate these images, or take them out of the list"
    index.report("image_without_mask", "images without an annotation", bare, fix)
