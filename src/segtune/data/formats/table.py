"""Table manifests: CSV, JSON lines and text files with the paths of an image and its mask in each row."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from segtune.data.annotations.find_images import sample_id
from segtune.data.config import DatasetConfig
from segtune.data.formats.pairing import keep_same_sizes
from segtune.data.index import DatasetIndex, Sample
from segtune.data.splits import split_names, split_of
from segtune.errors import UsageError
from segtune.files import parse_json, utf_16_of
from segtune.imageio.walk import entries_of

logger = logging.getLogger(__name__)

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
STEMS = ("metadata", "manifest", "dataset", "data", "index")
IMAGE_COLUMNS = ("image", "image_path", "img", "img_path", "file_name", "filename", "pixel_values", "images", "jpg")
MASK_COLUMNS = (
    "mask", "mask_path", "annotation", "label", "label_path", "labels", "segmentation_mask", "segmentation", "seg",
    "annotation_path", "masks", "annotated", "semantic_mask", "png",
)  # fmt: skip
ID_COLUMNS, SPLIT_COLUMNS = ("id", "image_id", "sample_id"), ("split", "subset", "set", "partition")
OF_FILES = "_file_name"  # what the columns of ImageFolder's tables end with
HEAD = 2**20  # bytes that are read to find out which columns a table has
LONGEST_CELL = 2**27


def find_manifests(root: Path, config: DatasetConfig) -> dict[str | None, Path]:
    """The tables with image and mask columns: one for all splits (None), or one for each.

    They lie in the folder, or in its folders of the splits, as ImageFolder's do.

    Raises:
        UsageError: there are several for one split.
    """
    names = split_names(config.splits)
    found: dict[str | None, Path] = {}
    for folder_split, path in tables_of(root, config):
        split = split_of(path.stem, names)
        if (split or path.stem.lower() in STEMS) and _has_both_columns(path, config):
            other = found.setdefault(split or folder_split, path)
            if other != path:
                raise UsageError(f"{other} and {path} are tables of {split or folder_split or 'all splits'}: keep one")
    return found


def tables_of(root: Path, config: DatasetConfig) -> Iterator[tuple[str | None, Path]]:
    """The tables of a folder (None), then those of the folders of its splits, in it or in its folder "data"."""
    names = split_names(config.splits)
    places: list[tuple[str | None, Path]] = [(None, root)]
    for parent in (root, root / "data"):
        folders = [Path(entry.path) for entry in entries_of(parent)[0]] if parent.is_dir() else []
        places += [(split, folder) for folder in folders if (split := split_of(folder.name, names))]
    for split, place in places:
        files = [Path(entry.path) for entry in entries_of(place)[1]]
        yield from ((split, path) for path in files if path.suffix.lower() in TABLES and path.is_file())


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
    incomplete: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    for number, (split, folder, row) in enumerate(rows, start=1):
        columns = find_columns(list(row), config, str(root))
        own = _first(row, SPLIT_COLUMNS)
        split = split_of(own, names) if own else split or "train"
        if split is None:
            left_out[str(own)] += 1
            continue
        if empty := [column for column in columns if row[column] in (None, "")]:
            incomplete[f"row {number}"] = f"row {number} ({empty[0]} is empty)"
            continue
        image, mask = paths = [_find(folder, str(row[column])) for column in columns]
        missing = {index.below(path): index.below(path) for path in paths if not os.path.isfile(path)}
        absent |= missing
        if not missing:
            samples.append(Sample(_first(row, ID_COLUMNS) or sample_id(index.below(image)), split, image, mask))
    if left_out:
        logger.warning("%s: rows of other splits are left out: %s", root, dict(left_out))
    fix = "Paths are relative to the table, whose text is read as UTF-8, UTF-16 or else cp1252"
    index.report("file_missing", "files of the table that are not there", absent, fix)
    index.report(
        "row_incomplete", "rows of the table without a path", incomplete, "Fill these cells, or remove the rows"
    )
    keep_same_sizes(index, samples)
    return index


def _first(row: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    """The first of these columns that a row fills, in whatever case the table writes their names."""
    known = {_plain(column): column for column in row}
    return next((str(row[known[name]]) for name in columns if name in known and row[known[name]]), None)


def _find(folder: Path, text: str) -> Path:
    """The file that a row names: with backslashes between folders, or accents composed otherwise, where only that one
    is there; else the path as it is."""
    slashes = text.replace("\\", "/")
    for name, form in product(dict.fromkeys([text, slashes]), (None, "NFC", "NFD")):
        path = folder / (unicodedata.normalize(form, name) if form else name)
        if os.path.isfile(path):
            return path
    return folder / slashes


# -- text -------------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table as mappings from column to value.

    Raises:
        UsageError: it cannot be read.
    """
    content = path.read_bytes()
    try:
        encoding = _encoding_of(content)
        text = content.decode(encoding).removeprefix("\ufeff")
        if encoding == "cp1252":
            logger.warning("%s is no UTF-8: read as cp1252, as Excel writes it on Windows", path)
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            return [_row(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if path.suffix.lower() == ".txt":
            return [_two_paths(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        return list(_read_csv(text))
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{path} is no table of images and masks: {error}") from error


def _encoding_of(content: bytes) -> str:
    """UTF-8 where it is, else what Windows writes: UTF-16, or the code page of Western Europe."""
    if wide := utf_16_of(content):
        return wide
    try:
        content.decode()
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def _row(number: int, line: str) -> dict[str, Any]:
    row = parse_json(line)
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no object")
    return row


def _two_paths(number: int, line: str) -> dict[str, Any]:
    """A line of two paths, with a tab, a comma or a blank between them."""
    words = next((words for sign in "\t,;" if len(words := line.strip().split(sign)) == 2), line.split())
    if len(words) != 2:
        raise ValueError(
            f"line {number} holds {len(words)} words, not the path of an image and that of its mask (where names have "
            "blanks, set a tab between the two)"
        )
    return dict(zip(("image", "mask"), map(str.strip, words), strict=True))


def _read_csv(text: str) -> Iterator[dict[str, Any]]:
    """The rows below the heading, which shows what stands between the cells."""
    first, _, rest = text.partition("\n")
    if re.fullmatch(r"sep=.\s*", first, re.IGNORECASE):  # for Excel
        delimiter, text = first[4], rest
    else:
        outside = re.sub('"[^"]*"', "", text.lstrip().partition("\n")[0])
        delimiter = max(",;\t|", key=outside.count)
    with _long_cells():
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        columns = [cell.strip() for cell in next(filter(any, rows), [])]
        if not columns:
            raise ValueError("it is empty")
        if len(set(columns)) < len(columns):
            raise ValueError(f"two of its columns have one name: {', '.join(columns)}")
        for row in rows:
            if any(row[len(columns) :]):
                raise ValueError(
                    f"line {rows.line_num} has {len(row)} cells, the heading {len(columns)}: what holds {delimiter!r} "
                    "stands in quotes"
                )
            if any(row):
                yield dict(zip(columns, row + [""] * len(columns), strict=False))


@contextmanager
def _long_cells() -> Iterator[None]:
    """Cells may be longer than 128 kB, as run lengths are."""
    usual = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(usual)


# -- columns ----------------------------------------------------------------------------------------------------------


def find_columns(columns: Sequence[str], config: DatasetConfig, where: str) -> tuple[str, str]:
    """The column of images and that of masks, by the recipe or by the usual names.

    Raises:
        UsageError: one of them is not there.
    """
    found: list[str] = []
    for given, usual, what in ((config.images, IMAGE_COLUMNS, "images"), (config.masks, MASK_COLUMNS, "masks")):
        column = _named(columns, [given]) if given else _named(columns, usual)
        column = column or _of_files(columns, found) if what == "masks" and not given else column
        if column is None:
            raise UsageError(f"{where} has no column of {what}; name one in dataset.{what}: {', '.join(columns)}")
        found.append(column)
    return found[0], found[1]


def _named(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of these names among the columns, also in another case or as that of ImageFolder's tables."""
    known = {_plain(column): column for column in columns}
    wanted = [form for name in names for form in (_plain(name), f"{_plain(name)}{OF_FILES}")]
    return next((known[name] for name in wanted if name in known), None)


def _of_files(columns: Sequence[str], taken: Sequence[str]) -> str | None:
    """The only other column that names files, as ImageFolder's tables call them."""
    others = [column for column in columns if _plain(column).endswith(OF_FILES) and column not in taken]
    return others[0] if len(others) == 1 else None


def _plain(column: str) -> str:
    return str(column).strip().lower().replace(" ", "_")


def columns_of(path: Path) -> list[str]:
    """The columns of a table, by its first row; none where it has no such form, or no rows."""
    return list(first_row(path))


def first_row(path: Path) -> dict[str, Any]:
    """The first row of a table, of which only the head is read; empty where it is none."""
    with path.open("rb") as file:
        content = file.read(HEAD)
    text = content.decode(_encoding_of(content.rpartition(b"\n")[0]), errors="ignore").removeprefix("\ufeff")
    try:
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            return _row(1, text.lstrip().partition("\n")[0])
        return next(_read_csv(text), {})
    except (ValueError, csv.Error):
        return {}


def _has_both_columns(path: Path, config: DatasetConfig) -> bool:
    try:
        find_columns(columns_of(path), config, str(path))
    except UsageError:
        return False
    return True
