"""Format detection: which format a data set has, what speaks for it, and an error where several would fit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from segtune.data.config import HUB, DatasetConfig
from segtune.data.formats import cvat, rle_table, via, yolo
from segtune.data.formats.folder import CLASS_TABLE, VOC_IMAGES, VOC_MASKS, find_class_tables, find_layout
from segtune.data.formats.foreign import refuse_foreign
from segtune.data.formats.patterns import is_pattern
from segtune.data.formats.sniff import is_cvat, json_kind
from segtune.data.formats.table import OF_FILES, TABLES, columns_of, find_manifests, tables_of
from segtune.data.index import DatasetIndex
from segtune.data.splits import split_names
from segtune.errors import SegtuneError, UsageError
from segtune.imageio.read import is_picture
from segtune.imageio.walk import walk_files

LOOK_AT = 20  # JSON files, to find out what they are


def is_hub(path: str) -> bool:
    """Whether a path names a data set of the Hub, as in hub://user/name; without that it is a path on this machine."""
    return path.startswith(HUB)


def format_of_file(path: Path) -> tuple[str, str] | None:
    """The format of a single file that is given as the data set, and why.

    Raises:
        UsageError: it is of a kind that is known but not read.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv") and via.is_via_table(path):
        return "via", f"{path.name} has the columns of VIA"
    if suffix in (".csv", ".tsv") and rle_table.is_rle_table(path):
        return "rle", f"{path.name} has columns of images and run lengths"
    if suffix in TABLES or (suffix == ".txt" and not yolo.is_name_list(path)):
        return "manifest", f"{path.name} is a table"
    if suffix == ".parquet":
        return "parquet", f"{path.name} is a parquet file"
    if suffix in (".yaml", ".yml", ".txt"):
        return "yolo", f"{path.name} {'lists names beside labels/' if suffix == '.txt' else 'is a YAML file'}"
    if suffix == ".xml" and is_cvat(path):
        return "cvat", f"{path.name} is an export of CVAT"
    if suffix == ".json" and (kind := json_kind(path)):
        return kind, f"{path.name} looks like it"
    refuse_foreign(path)
    return None


def format_of_folder(root: Path, config: DatasetConfig) -> tuple[str, str]:
    """The format of a folder, and why; images and masks in folders where nothing else speaks for another one.

    Raises:
        UsageError: several formats would fit.
    """
    found = dict(_evidence(root, config))
    if len(found) > 1:
        several = "; ".join(f"{name} ({reason})" for name, reason in found.items())
        raise UsageError(f"{root} could be read as {several}: choose one with dataset.format")
    if not found and (file := yolo.find_config(root)) and not _can_be_read(file):
        return "yolo", f"it has {file.name}"  # whose reader tells what is wrong with it
    return next(iter(found.items()), ("folder", "nothing speaks for another format"))


def _evidence(root: Path, config: DatasetConfig) -> Iterator[tuple[str, str]]:
    """Formats that a folder may have, each with what speaks for it."""
    if config.masks and not is_pattern(config.masks.replace("{split}", "")) and Path(config.masks).suffix:
        named = [path for path in root.glob(config.masks.replace("{split}", "*")) if path.is_file()]
        if named and (kind := format_of_file(named[0])):
            yield kind
            return
    if is_pattern(config.images) or is_pattern(config.masks):
        yield "folder", "dataset.images and dataset.masks are patterns"
        return
    reason = _folder_reason(root, config)
    if reason and config.masks:
        yield "folder", f"dataset.masks names a folder of pictures: {reason}"
        return
    if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
        yield "disk", "it has the files of save_to_disk"
    if next(walk_files(root, ".parquet", depth=1), None):
        yield "parquet", "it has .parquet files"
    if (root / VOC_IMAGES).is_dir() and any((root / name).is_dir() for name in VOC_MASKS):
        yield "voc", f"it has {VOC_IMAGES} and {VOC_MASKS[1]}"
    if named := find_class_tables(root, split_names(config.splits)):
        yield "roboflow", f"{named[0].relative_to(root)} names the values of masks ({CLASS_TABLE})"
    annotated: dict[str, str] = {}
    for name, why in _annotation_evidence(root, config):
        annotated.setdefault(name, why)
    yield from annotated.items()
    if tables := find_manifests(root, config):
        path = next(iter(tables.values()))
        yield "manifest", f"{path.name} has columns of images and masks"
        if any(column.endswith(OF_FILES) for column in columns_of(path)):
            return  # of an ImageFolder, whose pictures lie in folders of any name
    if reason:
        yield "folder", reason
    elif not annotated and not tables and (files := rle_table.find_files(root)):
        yield "rle", f"{files[0].name} has columns of images and run lengths"


def _annotation_evidence(root: Path, config: DatasetConfig) -> Iterator[tuple[str, str]]:
    if (file := yolo.find_config(root)) and _has_names_and_splits(file):
        yield "yolo", f"{file.name} has names and splits"
    if file := cvat.find_file(root, None):
        yield "cvat", f"{file.name} is an export of CVAT"
    if table := next(filter(via.is_via_table, (path for _, path in tables_of(root, config))), None):
        yield "via", f"{table.relative_to(root)} has the columns of VIA"
    for path in islice(walk_files(root, ".json"), LOOK_AT):
        if kind := json_kind(path):
            yield kind, f"{path.relative_to(root)} looks like it"


def _folder_reason(root: Path, config: DatasetConfig) -> str | None:
    try:
        layout = find_layout(DatasetIndex(root), config.images, config.masks, split_names(config.splits))
    except SegtuneError:
        return None
    for images, masks in layout.values():
        if all(any(is_picture(path.name) for path in walk_files(folder)) for folder in (images, masks)):
            return f"pictures in {images.relative_to(root)}/ and {masks.relative_to(root)}/"
    return None


def _can_be_read(file: Path) -> bool:
    try:
        yolo.read_config(file)
    except (ValueError, LookupError, TypeError):
        return False
    return True


def _has_names_and_splits(file: Path) -> bool:
    try:
        data = yolo.read_config(file)
    except (ValueError, LookupError, TypeError):
        return False
    return isinstance(data, dict) and "names" in data and any(key in data for key in ("train", "val", "test"))
