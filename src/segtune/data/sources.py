"""Where the pictures come from: folders of images and masks as a `datasets.DatasetDict`, and their label map."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import PIL.Image
from datasets import Dataset, DatasetDict, Image
from pydantic import Field

from segtune.data.layouts import find_layout, list_files, scan_folders
from segtune.data.loading import read_mask
from segtune.data.scan import Sample, Scan
from segtune.data.splits import SPLITS, draw_val
from segtune.errors import UsageError
from segtune.labels import LabelMap, count_values, show_value, show_values
from segtune.section import Section

logger = logging.getLogger(__name__)

PACKAGED = "segtune://"
LABEL_FILES = ("labels.json", "classes.json", "id2label.json")


class DatasetConfig(Section):
    """The recipe's `dataset` section.

    Attributes:
        path: a folder, or "segtune://earth" for the data set inside the package.
        images: sub-folder of the images, where it has none of the usual names.
        masks: sub-folder of the masks, where it has none of the usual names.
        labels: the classes, inline or a JSON file (relative to `path`, else to the working directory), in a form of
            `LabelMap.from_dict`. Left out: labels.json, classes.json or id2label.json in `path`.
        ignore_index: what ignored pixels become in labels.
        val_fraction: the part of the training samples that becomes "val" where the data has no such split.
        split_seed: of that split.
        split_file: JSON {"train": [ids], "val": [ids], "test": [ids]}, found like `labels`.
        check_masks: read every image and mask before the first step.
    """

    path: str
    images: str | None = None
    masks: str | None = None
    labels: str | list[str] | dict[str | int, Any] | None = None
    ignore_index: int = 255
    val_fraction: float = Field(default=0.1, ge=0, lt=1)
    split_seed: int = 0
    split_file: str | None = None
    check_masks: bool = True


def resolve_path(path: str | Path) -> Path:
    """The folder of a data set: a path, or "segtune://<name>" for one inside the package.

    Raises:
        UsageError: there is no such folder.
    """
    if str(path).startswith(PACKAGED):
        package, name = Path(__file__).parent, str(path).removeprefix(PACKAGED)
        names = sorted(folder.parent.name for folder in package.glob("*/images"))
        if name not in names:
            raise UsageError(f"no data set {str(path)!r} in the package; it has {', '.join(names) or 'none'}")
        return package / name
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UsageError(f"the data set folder {folder} {what}: set dataset.path")
    return folder


def scan_dataset(config: DatasetConfig) -> Scan:
    """The samples of a data set and what is wrong with the others; only headers are read (`check_masks` reads all).

    Raises:
        UsageError: no such folder, no layout that is known, a split file of another form.
    """
    root = resolve_path(config.path)
    split_file = find_file(config.split_file, root) if config.split_file else None
    scan = scan_folders(root, config.images, config.masks, split_file)
    if not any(sample.split == "val" for sample in scan.samples):
        train = [sample.id for sample in scan.samples if sample.split == "train"]
        drawn = set(draw_val(train, config.val_fraction, config.split_seed))
        scan.samples = [s._replace(split="val") if s.split == "train" and s.id in drawn else s for s in scan.samples]
    scan.samples.sort(key=lambda sample: (list(SPLITS).index(sample.split), sample.id))
    return scan


def load_segmentation_dataset(
    path: str | Path,
    *,
    images: str | None = None,
    masks: str | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    split_file: str | Path | None = None,
) -> DatasetDict:
    """Pair the images and masks of a folder by their names.

    Layouts: images/{train,val,test} with masks/{train,val,test}, {train,val,test}/images with .../masks, or images
    with masks; other usual names count too, and folders inside. Hidden files and files that are no pictures are
    passed over. Only headers are read here; `check_masks` reads the rest.

    Args:
        path: a folder or "segtune://earth".
        images: sub-folder of the images, where it has none of the usual names; `masks` likewise.
        val_fraction: the part of train that becomes val where there is no val. Which samples those are depends on
            `seed` and their ids only.
        split_file: JSON {"train": [ids], "val": [ids], "test": [ids]}; other files are then left out.

    Returns:
        Splits out of train, val and test, sorted by id, with the columns "id" (the path below the split's folder
        without suffix, "/" between folders), "image" and "mask" (`datasets.Image`, read when asked for).

    Raises:
        UsageError: no such folder, or no layout that is known.
        DataError: files without a partner, several files of one name, unreadable files, partners of different sizes.
    """
    if not 0 <= val_fraction < 1:
        raise UsageError(f"val_fraction is {val_fraction}: give a number from 0 to below 1")
    scan = scan_dataset(
        DatasetConfig(
            path=str(path),
            images=images,
            masks=masks,
            val_fraction=val_fraction,
            split_seed=seed,
            split_file=None if split_file is None else str(split_file),
        )
    )
    scan.refuse()
    splits = {split: [sample for sample in scan.samples if sample.split == split] for split in SPLITS}
    splits = {split: samples for split, samples in splits.items() if samples}
    logger.info("%s: %s", scan.root, ", ".join(f"{len(samples)} {split}" for split, samples in splits.items()))
    return DatasetDict({split: _to_dataset(samples) for split, samples in splits.items()})


def save_split(dataset: DatasetDict, path: str | Path) -> None:
    """Write which id is in which split, as a `split_file` that loads the same splits again."""
    ids = {split: list(rows["id"]) for split, rows in dataset.items()}
    Path(path).write_text(json.dumps(ids, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def find_label_map(config: DatasetConfig) -> LabelMap:
    """The label map of a data set: `config.labels`, else the JSON file of labels in its folder.

    Raises:
        UsageError: there is none (the message proposes one from the first masks), or it contradicts `config`.
    """
    root = resolve_path(config.path)
    if isinstance(config.labels, (list, dict)):
        try:
            label_map = LabelMap.from_dict(config.labels, config.ignore_index)
        except UsageError as error:
            raise UsageError(f"dataset.labels: {error}") from error
    else:
        usual = [root / name for name in LABEL_FILES if (root / name).is_file()]
        if not config.labels and not usual:
            raise UsageError(_propose_labels(root, config))
        file = find_file(config.labels, root) if config.labels else usual[0]
        label_map = LabelMap.from_file(file, config.ignore_index)
    if label_map.ignore_index != config.ignore_index:
        raise UsageError(
            f"the labels say ignore_index {label_map.ignore_index}, the recipe says {config.ignore_index}: "
            f"set dataset.ignore_index={label_map.ignore_index}"
        )
    return label_map


def find_file(file: str | Path, root: Path) -> Path:
    """A file named in the recipe: relative to the data set's folder, else to the working directory.

    Raises:
        UsageError: it is in neither.
    """
    places = [root / Path(file).expanduser(), Path(file).expanduser()]
    for place in places:
        if place.is_file():
            return place
    raise UsageError(f"no file {file} in {root}, and none in the working directory {Path.cwd()}")


def _to_dataset(samples: Sequence[Sample]) -> Dataset:
    columns = {
        "id": [sample.id for sample in samples],
        "image": [str(sample.image) for sample in samples],
        "mask": [str(sample.mask) for sample in samples],
    }
    return Dataset.from_dict(columns).cast_column("image", Image()).cast_column("mask", Image())


def _propose_labels(root: Path, config: DatasetConfig, limit: int = 8) -> str:
    folders = find_layout(Scan(root), config.images, config.masks)
    masks = [path for images, masks in folders.values() for path in chain(*list_files(masks, images).values())][:limit]
    values: Counter[Any] = Counter()
    for path in masks:
        with contextlib.suppress(OSError), PIL.Image.open(path) as mask:
            values.update(count_values(read_mask(mask)))
    keys = sorted((key for key, _ in values.most_common(20)), key=lambda key: (isinstance(key, tuple), key))
    if keys == [0, 255]:
        proposal: dict[str, str | None] = {"0": "background", "255": "foreground"}
    else:
        proposal = {show_value(key): None if key == config.ignore_index else "<class>" for key in keys}
    return (
        f"{root} does not say which classes its masks hold. The first {len(masks)} hold {show_values(values, 20)}. "
        f"Write {root / LABEL_FILES[0]} or set dataset.labels, as in {json.dumps(proposal)}"
    )
