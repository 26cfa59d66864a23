"""Data set loading: any format as an index, as a `datasets.DatasetDict`, and with its label map."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets
from pydantic import ValidationError

from segtune.data.annotations.accounts import settle
from segtune.data.checks import check_lossy, check_nodata, remark_medical, without_unreadable
from segtune.data.class_names import BACKGROUND, LABEL_FILES, label_map_of
from segtune.data.config import HUB, PACKAGED, DatasetConfig, refuse_missing
from segtune.data.containment import contain
from segtune.data.formats import hub_parquet
from segtune.data.formats.coco import scan_coco
from segtune.data.formats.cvat import scan_cvat
from segtune.data.formats.detect import format_of_file, format_of_folder, is_hub
from segtune.data.formats.folder import listed_ids, scan_folders, scan_roboflow, scan_voc
from segtune.data.formats.label_studio import scan_label_studio
from segtune.data.formats.labelme import scan_labelme
from segtune.data.formats.rle_table import scan_rle
from segtune.data.formats.supervisely import scan_supervisely
from segtune.data.formats.table import scan_manifest
from segtune.data.formats.via import scan_via
from segtune.data.formats.yolo import numbers_of, scan_yolo
from segtune.data.index import DatasetIndex, Sample
from segtune.data.lazy_rows import Reader, decoded, sample_ids, to_dataset, undecoded
from segtune.data.splits import SPLITS, draw_val, write_split_file
from segtune.data.streaming import open_stream
from segtune.data.tiles import choose_frames, tiled, without_tile
from segtune.errors import DataError, UsageError
from segtune.imageio.object_store import is_stored
from segtune.imageio.read import read_mask
from segtune.labels.label_map import LabelMap
from segtune.labels.mask_values import count_values, show_value, show_values

logger = logging.getLogger(__name__)

SCANS: dict[str, Callable[[Path, DatasetConfig], DatasetIndex]] = {
    "folder": scan_folders,
    "voc": scan_voc,
    "roboflow": scan_roboflow,
    "coco": scan_coco,
    "labelme": scan_labelme,
    "yolo": scan_yolo,
    "cvat": scan_cvat,
    "label_studio": scan_label_studio,
    "via": scan_via,
    "supervisely": scan_supervisely,
    "rle": scan_rle,
}
SMALLER_ON_TOP = ("coco", "yolo")
PLAIN = ("folder", "voc", "manifest")  # formats that do not name classes


def resolve_path(path: str | Path) -> Path:
    """The folder of a data set, or its annotation file: a path, or "segtune://<name>" for one inside the package.

    Raises:
        UsageError: there is no such folder, or a file of no known format.
    """
    if str(path).startswith(PACKAGED):
        package, name = Path(__file__).parent, str(path).removeprefix(PACKAGED)
        names = sorted(folder.parent.name for folder in package.glob("*/images"))
        if name not in names:
            raise UsageError(f"no data set {str(path)!r} in the package; it has {', '.join(names) or 'none'}")
        return package / name
    folder = Path(path).expanduser().absolute()
    refuse_missing(path)
    if not folder.is_dir() and not (folder.is_file() and format_of_file(folder)):
        raise UsageError(f"the data set folder {folder} is a file, not a folder: set dataset.path")
    return folder


def scan_dataset(config: DatasetConfig) -> DatasetIndex:
    """The samples of a data set and what is wrong with the others; only headers are read (`check_masks` reads all).

    Raises:
        UsageError: no such folder, no format or several that would fit, a split file of another form.
    """
    root, name = find_format(config)
    index = _scan(root, name, config)
    index.format = name
    if config.split_file and name not in ("folder", "voc"):
        _follow_split_file(index, config)
    contain(index, config)
    _report_repeated_ids(index)
    index.report_names_alike()
    settle(index)
    _report_nothing(index)
    if not any(sample.split == "val" for sample in index.samples):
        train = [sample.id for sample in index.samples if sample.split == "train"]
        drawn = set(draw_val(train, config.val_fraction, config.split_seed))
        index.val_is_drawn = bool(drawn)
        index.samples = [s._replace(split="val") if s.split == "train" and s.id in drawn else s for s in index.samples]
    remark_medical(index)
    choose_frames(index, config.frames)
    if config.tile:
        if index.tables is not None:
            raise UsageError(f"{root}: dataset.tile cuts image files; this data set holds rows")
        index.samples = tiled(index.samples, config.tile, config.overlap)
    index.samples.sort(key=lambda sample: (list(SPLITS).index(sample.split), sample.id))
    return index


def find_format(config: DatasetConfig) -> tuple[Path, str]:
    """The folder of a data set (of the Hub: its name), and its format; logs why, where that was found out.

    Raises:
        UsageError: no such folder, or several formats that would fit.
    """
    if config.format == "hub" or (config.format == "auto" and is_hub(config.path)):
        return Path(config.path.removeprefix(HUB)), "hub"
    if is_stored(config.path):
        if config.format not in ("auto", "parquet"):
            raise UsageError(f"dataset.format={config.format}: of {config.path}, parquet files alone are read")
        return Path(config.path), "parquet"
    root = resolve_path(config.path)
    if config.format != "auto":
        return root, config.format
    found = format_of_file(root) if root.is_file() else format_of_folder(root, config)
    assert found is not None  # resolve_path lets no other file through
    logger.info("%s: read as %s, since %s", root, *found)
    return root, found[0]


def rows_of(index: DatasetIndex, config: DatasetConfig) -> DatasetDict:
    """The samples of an index as rows "id", "image" and "mask" by split; files are read when a row is."""
    classes = index.classes or {}
    values = {name: value for value, name in classes.items() if name is not None}
    values = numbers_of(classes) if index.format == "yolo" else values
    on_top = config.on_top or ("smaller" if index.format in SMALLER_ON_TOP else "later")
    reader = Reader(values, on_top, config.one_hot, config.nodata == "class")
    splits = {split: [sample for sample in index.samples if sample.split == split] for split in SPLITS}
    return DatasetDict(
        {
            split: to_dataset(samples, reader) if index.tables is None else _table_rows(index.tables, samples)
            for split, samples in splits.items()
            if samples
        }
    )


def open_dataset(config: DatasetConfig) -> tuple[DatasetDict, LabelMap]:
    """The rows of a data set by split, and its label map; with `config.streaming`, train is a stream.

    Raises:
        UsageError: see `scan_dataset` and `find_label_map`.
        DataError: see `load_segmentation_dataset`.
    """
    if config.streaming:
        return _open_stream(config)
    index = scan_dataset(config)
    label_map = find_label_map(config, index)
    check_nodata(index, label_map, config.nodata)
    check_lossy(index, label_map)
    index.raise_or_skip(config.on_error)
    rows = rows_of(index, config)
    if config.on_error == "skip":
        rows = without_unreadable(rows)
        if not rows:
            raise DataError(f"{index.root}: none of the {len(index.samples)} samples can be read")
    logger.info("%s: %s", index.root, ", ".join(f"{len(found)} {split}" for split, found in rows.items()))
    return rows, label_map


def load_segmentation_dataset(path: str | Path, **options: Any) -> DatasetDict:
    """The images and masks of a data set; docs/data.md shows the formats.

    Files are paired by name, in the usual folders or by patterns, or found through an annotation file. Hidden files and
    files that are no pictures are passed over. Only headers are read here; `check_masks` reads the rest.

    Args:
        path: a folder or annotation file, "hub://user/name" or "segtune://earth".
        options: fields of `DatasetConfig`, such as images="photos", val_fraction=0.2, split_file="split.json".

    Returns:
        Splits out of train, val and test, sorted by id, with the columns "id" (the path below the split's folder
        without suffix, "/" between folders), "image" and "mask", which are read when asked for: PIL images, or arrays
        where no picture format holds them.

    Raises:
        UsageError: options that do not exist, no such folder, no format that is known.
        DataError: files without a partner, several files of one name, unreadable files, partners of different sizes.
    """
    try:
        given = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        config = DatasetConfig(path=str(path), **given)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise UsageError(f"load_segmentation_dataset: {faults}") from error
    index = scan_dataset(config)
    index.raise_or_skip(config.on_error)
    return rows_of(index, config)


def save_split(dataset: DatasetDict, path: str | Path) -> None:
    """Write which id is in which split, as a `split_file` that loads the same splits again."""
    ids = {split: list(dict.fromkeys(map(without_tile, sample_ids(rows)))) for split, rows in dataset.items()}
    write_split_file(Path(path), ids)


def find_label_map(config: DatasetConfig, index: DatasetIndex | None = None) -> LabelMap:
    """The label map of a data set: `config.labels`, else a label file in its folder, else the names in its format.

    Args:
        index: of the same data set, where there is one; it is made where the format holds the names.

    Raises:
        UsageError: there is none (the message proposes one from the first masks), or it contradicts `config`.
    """
    root, name = (index.root, index.format) if index else find_format(config)
    if index is None and (name not in PLAIN or "{class}" in (config.masks or "")):
        index = scan_dataset(config)
    with hub_parquet.label_folder(root, config) as folder:
        label_map = label_map_of(config, folder, index.classes if index else None)
    if label_map is None:
        index = index or scan_dataset(config)
        if not index.samples:
            index.raise_or_skip(config.on_error)
        raise UsageError(_propose_labels(index, config))
    return label_map


def _open_stream(config: DatasetConfig) -> tuple[DatasetDict, LabelMap]:
    root, name = find_format(config)
    stream = open_stream(config, root, name)
    index = hub_parquet.scan_held_out(root, name, config)
    index.format = name
    contain(index, config)
    index.raise_or_skip(config.on_error)
    with hub_parquet.label_folder(root, config) as folder:
        label_map = label_map_of(config, folder, index.classes)
    if label_map is None:
        raise UsageError(f"{config.path} does not say which classes its masks hold: set dataset.labels")
    logger.info("%s: train is streamed from %d shards", config.path, stream.num_shards)
    return DatasetDict({"train": stream, **rows_of(index, config)}), label_map


# -- scanning ---------------------------------------------------------------------------------------------------------


def _scan(root: Path, name: str, config: DatasetConfig) -> DatasetIndex:
    if name == "hub":
        return hub_parquet.scan_tables(root, *hub_parquet.open_hub(root.as_posix(), config), config)
    if name == "disk":
        return hub_parquet.scan_tables(root, hub_parquet.open_disk(root), None, config)
    if name == "parquet":
        return hub_parquet.scan_parquet(root, config)
    if not root.is_file():
        return scan_manifest(root, None, config) if name == "manifest" else SCANS[name](root, config)
    if name == "manifest":
        return scan_manifest(root.parent, root, config)
    return SCANS[name](root.parent, config.model_copy(update={"masks": root.name}))


def _follow_split_file(index: DatasetIndex, config: DatasetConfig) -> None:
    """Put the samples into the splits of `config.split_file` and leave out those that it does not list."""
    own = {(sample.split, sample.id): sample for sample in index.samples}
    anywhere = {sample.id: sample for sample in reversed(index.samples)}
    samples, absent = [], {}
    for split, members in listed_ids(config, index.root, anywhere).items():
        for i in members:
            sample = own.get((split, i)) or anywhere.get(i)
            if sample is None:
                absent[i] = i
            else:
                samples.append(sample._replace(split=split))
    index.samples = samples
    fix = "Its ids are the names of the images, with or without their folders and suffix"
    index.report("id_without_files", "ids of the split file without files", absent, fix)


def _report_nothing(index: DatasetIndex) -> None:
    """A data set without samples, or without classes to learn, is a problem: both are read without any other fault."""
    where = str(index.root)
    if not index.samples and not index.rejected and not index.problems:
        fix = "Look whether dataset.path, dataset.format and dataset.splits are right"
        index.report("no_samples", f"read as {index.format}, it has no samples", {where: where}, fix)
    elif index.tally and set((index.classes or {}).values()) <= {BACKGROUND, None}:
        fix = "Look whether the annotations were exported, and are finished"
        index.report("no_classes", f"read as {index.format}, it has no class but background", {where: where}, fix)


def _report_repeated_ids(index: DatasetIndex) -> None:
    counts = Counter((sample.split, sample.id) for sample in index.samples)
    repeated = {i: i for (_, i), count in counts.items() if count > 1}
    fix = "Rename them, or give them ids of their own"
    index.report("id_twice", "several samples have one id", repeated, fix)


def _table_rows(tables_by_name: dict[str, Dataset], samples: list[Sample]) -> Dataset:
    """The rows of tables that samples stand for; all of one table together."""
    parts = []
    for name, table in tables_by_name.items():
        rows = [int(sample.image_part) for sample in samples if str(sample.image) == name]
        parts += [table.select(rows)] if rows else []
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


# -- messages ---------------------------------------------------------------------------------------------------------


def _propose_labels(index: DatasetIndex, config: DatasetConfig, limit: int = 8) -> str:
    """What a label file could say, after the values of the first masks; rare values are not proposed but counted."""
    values: Counter[Any] = Counter()
    count = 0
    for rows in map(undecoded, rows_of(index, config).values()):
        for number in range(min(len(rows), limit - count)):
            with contextlib.suppress(DataError):
                values.update(count_values(read_mask(decoded(rows[number])["mask"])))
            count += 1
    total = sum(values.values())
    if not total:
        return f"{index.root} does not say which classes its masks hold, and none could be read: set dataset.labels"
    frequent = [value for value, pixels in values.most_common(40) if pixels >= total / 1000]
    keys = sorted(frequent, key=lambda key: (isinstance(key, tuple), key))
    if keys == [0, 255]:
        proposal: dict[str, str | None] = {"0": "background", "255": "foreground"}
    else:
        proposal = {show_value(key): None if key == config.ignore_index else "<class>" for key in keys}
    stray = len(values) - len(keys)
    rest = (
        f". {stray} other values have {1 - sum(values[key] for key in keys) / total:.2%} of the pixels: edges that "
        "were smoothed or compressed?"
    )
    return (
        f"{index.root} does not say which classes its masks hold. The first {count} hold {show_values(values, 20)}. "
        f"Write {index.root / LABEL_FILES[0]} or set dataset.labels, as in {json.dumps(proposal)}"
        f"{rest if stray else ''}"
    )
