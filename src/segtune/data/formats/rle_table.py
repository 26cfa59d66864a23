"""Kaggle's tables of run lengths: an image, its class and the covered pixels in each row."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segtune.data.annotations.find_images import AnnotatedImages, sample_id
from segtune.data.annotations.shapes import Shape
from segtune.data.class_names import drawn_names, number_classes, value_of
from segtune.data.config import DatasetConfig
from segtune.data.formats.sniff import files_of_splits
from segtune.data.formats.table import columns_of, first_row, read_rows
from segtune.data.index import DatasetIndex, Sample
from segtune.data.splits import split_names
from segtune.errors import UsageError
from segtune.imageio.walk import walk_files

logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("imageid", "image", "imagename", "filename", "img", "imageidclassid", "id")
RUN_COLUMNS = ("encodedpixels", "rle", "rlemask", "maskrle", "rleencoding", "segmentation")
CLASS_COLUMNS = ("classid", "class", "classname", "label", "labels", "category", "categoryid")
NOTHING = ("", "-1", "nan")  # where an image has none
ONLY_CLASS = "foreground"


def find_files(root: Path) -> list[Path]:
    """The tables of a folder that hold run lengths; not what a competition gives as the form of an answer."""
    tables = [path for path in walk_files(root, depth=0) if path.suffix.lower() in (".csv", ".tsv")]
    return [path for path in tables if "submission" not in path.stem.lower() and is_rle_table(path)]


def is_rle_table(path: Path) -> bool:
    """Whether a table has columns of images and of run lengths, and its first row has such."""
    columns = _columns(columns_of(path))
    if not {"image", "runs"} <= columns.keys():
        return False
    text = str(first_row(path)[columns["runs"]]).strip()
    numbers = text.split()
    return text.lower() in NOTHING or (len(numbers) % 2 == 0 and all(map(str.isdecimal, numbers)))


def scan_rle(root: Path, config: DatasetConfig) -> DatasetIndex:
    """The images of a table; those of its rows that are empty have no objects.

    Runs are pairs of a first pixel, counted from 1 down the columns, and a length, as Kaggle's competitions have them.
    Names may lack the suffix, and end with "_" and the class. Without a column of classes all is one, "foreground";
    classes that are numbers are called "class 1" and so on.

    Raises:
        UsageError: no such table, several, or rows of another form.
    """
    names = split_names(config.splits)
    files = files_of_splits(root, config.masks, names, find_files(root), "tables of run lengths")
    rows = [(split, path, *row) for split, path in files.items() for row in _rows(path)]
    found = sorted({name for *_, name, _ in rows if name}, key=_by_number)
    index = DatasetIndex(root, classes=number_classes(drawn_names(found), config, root))
    values = {str(name): value for value, name in (index.classes or {}).items()}
    shapes: dict[tuple[str, Path, str], list[Shape]] = {}
    for split, path, entry, picture, name, runs in rows:
        mine = shapes.setdefault((split, path, picture), [])
        if runs.lower() not in NOTHING:
            mine.append({"value": value_of(name, values), "pixels": runs, "entry": entry})
    images = AnnotatedImages(index, config)
    for (split, path, name), mine in shapes.items():
        images.tally.give(len(mine))
        if image := images.only(name, images.find(name, path) or images.find_stem(name, path)):
            images.add(Sample(sample_id(index.below(image)), split, image, path), {"shapes": mine})
        else:
            images.lose(name, {"shapes": mine})
    images.finish()
    if bare := sum(not mine for mine in shapes.values()):
        index.remarks.append(f"{bare} of {len(shapes)} images have no run lengths: all of them is background")
        logger.info("%s: %s", root, index.remarks[-1])
    return index


def _rows(path: Path) -> list[tuple[str, str, str, str]]:
    """What messages call each row, its image, its class and its runs."""
    rows = read_rows(path)
    columns = _columns(list(rows[0]) if rows else [])
    if not {"image", "runs"} <= columns.keys():
        raise UsageError(
            f"{path}: no columns of images and run lengths, such as ImageId and EncodedPixels, but "
            f"{', '.join(rows[0]) if rows else 'no rows'}"
        )
    return [_row(path, number, row, columns) for number, row in enumerate(rows, start=1)]


def _row(path: Path, number: int, row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str, str, str, str]:
    image, runs = row[columns["image"]].strip(), row[columns["runs"]].strip()
    name = row[columns["class"]].strip() if "class" in columns else ONLY_CLASS
    if _plain(columns["image"]) == "imageidclassid":
        image, _, name = image.rpartition("_")
    if not image or (not name and runs.lower() not in NOTHING):
        raise UsageError(f"{path}, row {number}: it names no {'class' if image else 'image'}")
    return f"row {number}", image, f"class {name}" if name.isdecimal() else name, runs


def _columns(columns: Sequence[str]) -> dict[str, str]:
    """What each column holds, "image", "runs" or "class" -> its name."""
    known = {_plain(column): column for column in columns}
    wanted = {"image": IMAGE_COLUMNS, "runs": RUN_COLUMNS, "class": CLASS_COLUMNS}
    found = {what: next((known[name] for name in names if name in known), None) for what, names in wanted.items()}
    return {what: column for what, column in found.items() if column}


def _plain(column: str) -> str:
    return re.sub("[^a-z]", "", column.lower())


def _by_number(name: str) -> tuple[int, str]:
    return int("".join(re.findall(r"^class (\d+)$", name)) or -1), name
