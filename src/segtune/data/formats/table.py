"""Table manifests: CSV, JSON lines and text files with the paths of an image and its mask in each row."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segtune.data.annotations.find_images import sample_id
from segtune.data.config import DatasetConfig
from segtune.data.formats.pairing import keep_same_sizes
from segtune.data.index import DatasetIndex, Sample
from segtune.data.splits import split_names, split_of
from segtune.errors import UsageError
from segtune.files import parse_json
from segtune.imageio.walk import walk_files

logger = logging.getLogger(__name__)

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
STEMS = ("metadata", "manifest", "dataset", "data", "index")
IMAGE_COLUMNS = ("image", "image_path", "img", "img_path", "file_name", "filename", "pixel_values", "images", "jpg")
MASK_COLUMNS = (
    "mask", "mask_path", "annotation", "label", "label_path", "labels", "segmentation_mask", "segmentation", "seg",
    "annotation_path", "masks", "annotated", "semantic_mask", "png",
)  # fmt: skip
ID_COLUMNS, SPLIT_COLUMNS = ("id", "image_id", "sample_id"), ("split", "subset", "set", "partition")


def find_manifests(root: Path, config: DatasetConfig) -> dict[str | None, Path]:
    """The tables with image and mask columns in a folder: one for all splits (None), or one for each."""
    found: dict[str | None, Path] = {}
    for path in [path for path in walk_files(root, depth=0) if path.suffix.lower() in TABLES]:
        split = split_of(path.stem, split_names(config.splits))
        if (split or path.stem.lower() in STEMS) and _has_both_columns(path, config):
            found[split] = path
    return found


def scan_manifest(root: Path, file: Path | None, config: DatasetConfig) -> DatasetIndex:
    """The rows of a table, or of one for each split; paths are relative to the table.

    Columns are found by the usual names, or named by `dataset.images` and `dataset.masks`; there may be one of ids and
    one of splits. A .txt file has the two paths in each line.

    Raises:
        UsageError: no table, one that cannot be read, or one without these columns.
    """
    files = {None: file} if file else find_manifests(root, config)
    if not files:
        raise UsageError(f"{root}: no table ({', '.join(TABLES)}) with a column of images and one of masks in it")
    return scan_rows(
        root, ((split, path.parent, row) for split, path in files.items() for row in read_rows(path)), config
    )


def scan_rows(
    root: Path, rows: Iterable[tuple[str | None, Path, Mapping[str, Any]]], config: DatasetConfig
) -> DatasetIndex:
    """Rows as samples.

    Args:
        rows: the split of all rows of the table, if it has one; the folder that paths are relative to; the row.

    Raises:
        UsageError: a column is missing.
    """
    index, names = DatasetIndex(root), split_names(config.splits)
    samples: list[Sample] = []
    absent: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    for split, folder, row in rows:
        columns = find_columns(list(row), config, str(root))
        own = next((str(row[column]) for column in SPLIT_COLUMNS if row.get(column)), None)
        split = split_of(own, names) if own else split or "train"
        if split is None:
            left_out[str(own)] += 1
            continue
        image, mask = paths = [folder / str(row[column]) for column in columns]
        identity = next((str(row[column]) for column in ID_COLUMNS if row.get(column)), None)
        missing = {index.below(path): index.below(path) for path in paths if not os.path.isfile(path)}
        absent |= missing
        if not missing:
            samples.append(Sample(identity or sample_id(index.below(image)), split, image, mask))
    if left_out:
        logger.warning("%s: rows of other splits are left out: %s", root, dict(left_out))
    index.report("file_missing", "files of the table that are not there", absent, "Paths are relative to the table")
    keep_same_sizes(index, samples)
    return index


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table as mappings from column to value.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            return [_row(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
        if path.suffix.lower() == ".txt":
            return [
                dict(zip(("image", "mask"), line.split(), strict=True)) for line in text.splitlines() if line.strip()
            ]
        dialect = csv.Sniffer().sniff(text[:4096].splitlines()[0], delimiters=",;\t")
        return list(csv.DictReader(text.splitlines(), dialect=dialect))
    except (ValueError, IndexError, csv.Error) as error:
        raise UsageError(f"{path} is no table of images and masks: {error}") from error


def _row(number: int, line: str) -> dict[str, Any]:
    row = parse_json(line)
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no object")
    return row


def find_columns(columns: Sequence[str], config: DatasetConfig, where: str) -> tuple[str, str]:
    """The column of images and that of masks, by the recipe or by the usual names.

    Raises:
        UsageError: one of them is not there.
    """
    found = []
    for given, usual, what in ((config.images, IMAGE_COLUMNS, "images"), (config.masks, MASK_COLUMNS, "masks")):
        column = next((column for column in ([given] if given else usual) if column in columns), None)
        if column is None:
            raise UsageError(f"{where} has no column of {what}; name one in dataset.{what}: {', '.join(columns)}")
        found.append(column)
    return found[0], found[1]


def _has_both_columns(path: Path, config: DatasetConfig) -> bool:
    try:
        with path.open(encoding="utf-8-sig") as file:
            line = file.readline(2**20)
        is_json = path.suffix.lower() in (".jsonl", ".ndjson")
        columns = list(parse_json(line)) if is_json else [text.strip('" \n') for text in re.split("[,;\t]", line)]
        find_columns(columns, config, str(path))
    except (UsageError, ValueError, TypeError):
        return False
    return True
