"""Data checks before training: every mask is compared with the label map; mean and std of the images are counted.

These are two passes, not one: masks are checked in all splits, `mean` and `std` want 1000 images of train, seldom.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import PIL.Image
from datasets import Dataset, DatasetDict

from segtune.data.config import TransformConfig
from segtune.data.index import DatasetIndex, in_threads
from segtune.data.lazy_rows import decoded, undecoded
from segtune.errors import DataError, listed
from segtune.imageio import medical
from segtune.imageio.encoded import check_decodable, choose, frame_places
from segtune.imageio.geotiff import TIFFS, nodata_value
from segtune.imageio.medical import is_medical
from segtune.imageio.read import (
    TURNED,
    Pixels,
    load_picture,
    open_picture,
    orientation_of,
    read_file,
    read_image,
    read_mask,
)
from segtune.labels.label_map import LabelError, LabelMap
from segtune.labels.mask_values import as_color, show_value

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

COUNTED_IMAGES = 1000  # for mean and std, spread over the split
LOSSY = "masks of a format that does not keep values, so that edges may hold the ids of other classes"
SAVE_AS_PNG = (
    "Save masks as PNG, from the annotation; of black and white ones, dataset.labels may name all values: "
    '{"0-127": "background", "128-255": "foreground"}'
)
_BLOCK = 2**22  # pixels that are counted at a time: bincount makes eight bytes of each


def check_masks(dataset: Mapping[str, Dataset], label_map: LabelMap) -> dict[str, np.ndarray]:
    """Read every image and mask once, and compare the masks with the label map.

    Returns:
        Split -> pixels of each class in each of its masks, int64 (images, K + 1), ignored pixels last.

    Raises:
        DataError: files that cannot be read, ids or colours that the label map does not name, ignored pixels alone, or
            only one class beside them in all masks; with the files, the pixel counts and what to write in the recipe.
    """
    checked = _read_all(dataset, label_map, "checking masks")
    total = len(checked)
    problems = [problem for problem, _ in checked if problem]
    if problems:
        values = Counter(value for problem in problems if isinstance(problem, LabelError) for value in problem.values)
        raise DataError(_summary(problems, total) + (_advice(values) if values else ""))
    counts = iter(count for _, count in checked)
    pixels = {split: np.stack(list(islice(counts, len(rows)))) for split, rows in dataset.items()}
    seen: Sequence[int] = np.flatnonzero(sum(each.sum(axis=0) for each in pixels.values())).tolist() if pixels else []
    if list(seen) == [label_map.num_labels]:
        raise DataError(
            f"every pixel of all {total} masks is ignored, so that there is nothing to learn: name the values that "
            "they hold in dataset.labels"
        )
    if label_map.num_labels > 1 and len(seen) == 2 and seen[1] == label_map.num_labels:
        raise DataError(
            f"the only class in all {total} masks is {label_map.names[seen[0]]!r}, all other pixels are ignored; "
            f"the label map has {label_map}. If an ignored value is a class, name it; for masks of 0 and 255: "
            f'dataset.labels: {{"0": "background", "255": "foreground"}}'
        )
    return pixels


def check_nodata(index: DatasetIndex, label_map: LabelMap, wanted: Literal["ignore", "class"] | None) -> None:
    """Note the masks whose file calls a value nodata that labels name as a class, where `dataset.nodata` is not set."""
    paths = [path for path in dict.fromkeys(s.mask for s in index.samples) if path.suffix.lower() in TIFFS]
    if wanted is not None or index.tables is not None or not paths:
        return
    named: Mapping[Any, int | None] = label_map.mask_colors or label_map.ids or {}
    found = {}
    for path, value in zip(paths, in_threads(nodata_value, paths, "reading headers"), strict=True):
        key = None if value is None or not value.is_integer() else int(value)
        target = None if key is None else named.get(as_color(key) if label_map.by_color else key)
        if target is not None:
            file = index.below(path)
            found[file] = f"{file} (nodata {key}, which labels name {label_map.names[target]!r})"
    index.report(
        "nodata_named",
        "masks whose nodata value is a class",
        found,
        "dataset.nodata=class counts these pixels as the class; dataset.nodata=ignore leaves them out",
    )


def remark_medical(index: DatasetIndex) -> None:
    """Note what of medical files does not count."""
    if any(is_medical(path) for sample in index.samples for path in (sample.image, sample.mask)):
        index.remarks.append(f"{index.root}: {medical.NOT_USED}")
        logger.info("%s", index.remarks[-1])


def check_lossy(index: DatasetIndex, label_map: LabelMap) -> None:
    """Note the masks of a format that does not keep values, unless every value that may come out of it is named."""
    paths = [] if label_map.names_every_grey else list(dict.fromkeys(index.lossy))
    varied = in_threads(_holds_several, paths, "reading masks")
    found = [index.below(path) for path, several in zip(paths, varied, strict=True) if several]
    index.report("lossy_masks", LOSSY, dict(zip(found, found, strict=True)), SAVE_AS_PNG)


def _holds_several(path: Path) -> bool:
    """Whether a mask has several values; a single one is kept by every format."""
    try:
        return len(np.unique(np.asarray(read_file(path)))) > 1
    except DataError:
        return True  # said when it is read


def without_unreadable(dataset: DatasetDict) -> DatasetDict:
    """The rows whose image and mask can be read and have one size; warns of the others."""
    problems = iter([problem for problem, _ in _read_all(dataset, None, "reading all files")])
    kept, skipped = {}, []
    for split, rows in dataset.items():
        faults = list(islice(problems, len(rows)))
        skipped += [str(fault) for fault in faults if fault]
        kept[split] = rows.select([i for i, fault in enumerate(faults) if not fault])
    if skipped:
        logger.warning("skipped %d samples that cannot be read: %s", len(skipped), listed(skipped))
    return DatasetDict({split: rows for split, rows in kept.items() if len(rows)})


def _read_all(
    dataset: Mapping[str, Dataset], label_map: LabelMap | None, title: str
) -> list[tuple[Exception | None, np.ndarray]]:
    """What is wrong with each sample, if anything, and its pixels of each class and ignored ones (K + 1,)."""
    splits = {split: undecoded(rows) for split, rows in dataset.items()}
    places = [(split, number) for split, rows in splits.items() for number in range(len(rows))]
    return in_threads(lambda place: _check_row(splits[place[0]], place[1], label_map), places, title)


def _check_row(rows: Dataset, number: int, label_map: LabelMap | None) -> tuple[Exception | None, np.ndarray]:
    nothing = np.zeros(label_map.num_labels + 1 if label_map else 1, dtype=np.int64)
    name, lossy = str(rows.with_format("arrow")[number]["id"][0]), False
    try:
        row = rows[number]
        name = _name(row["image"], name)
        size = _image_size(row["image"], name)
        name = _name(row["mask"], row["id"])
        stored, lossy = _stored_mask(row["mask"], name, label_map is not None and label_map.by_color)
        if size != stored.shape[:2]:
            raise DataError(f"the image is {size} (height, width), its mask {stored.shape[:2]}")
        if label_map is None:
            return None, nothing
        counts = label_map.count_pixels(label_map.encode(stored))
        if lossy and not label_map.names_every_grey and len(np.unique(stored)) > 1:
            raise DataError(f"{LOSSY}. {SAVE_AS_PNG}")
        return None, counts
    except DataError as error:
        named = error if str(error).startswith(name) else error.named(name)
        if lossy and isinstance(error, LabelError):
            return DataError(f"{named}. JPEG does not keep exact values: save masks as PNG"), nothing
        return named, nothing


def _name(cell: Any, otherwise: str) -> str:
    return (cell.get("path") if isinstance(cell, dict) else None) or otherwise


def _image_size(cell: Any, name: str) -> tuple[int, int]:
    """(height, width) of an image that can be read to its end."""
    if isinstance(cell, dict):
        with open_picture(cell["path"] or name, cell["bytes"]) as picture:
            width, height = picture.size
            choose(frame_places(picture), None)
            check_decodable(picture)
            picture.draft("RGB", (1, 1))  # lets JPEG skip most of the arithmetic; a truncated file still shows
            picture.load()
            return (width, height) if orientation_of(picture) in TURNED else (height, width)
    return (cell.height, cell.width) if isinstance(cell, PIL.Image.Image) else cell.shape[:2]


def _stored_mask(cell: Any, name: str, colors: bool) -> tuple[np.ndarray, bool]:
    """A mask as it is stored, and whether it was compressed with losses."""
    if not isinstance(cell, dict):
        return read_mask(cell, colors), False
    with open_picture(cell["path"] or name, cell["bytes"]) as picture:
        lossy = picture.format == "JPEG"
        return read_mask(load_picture(picture), colors), lossy


def _summary(problems: Sequence[Exception], total: int, limit: int = 5) -> str:
    lines = [f"{len(problems)} of {total} samples cannot be used:", *(str(problem) for problem in problems[:limit])]
    if len(problems) > limit:
        lines.append(f"... and {len(problems) - limit} more")
    return "\n  ".join(lines)


def _advice(values: Counter[Any]) -> str:
    keys = [show_value(value) for value, _ in values.most_common(3)]
    named = ", ".join(f'"{key}": "<class>"' for key in keys)
    ignored = ", ".join(f'"{key}": null' for key in keys)
    return f"\nName such values in dataset.labels (or its file), as in {{{named}}}, or ignore them: {{{ignored}}}"


def with_statistics(
    transforms: TransformConfig, rows: datasets.Dataset, channels: int | None = None
) -> TransformConfig:
    """The settings with `mean` and `std` counted, where they say so: of all pixels of up to 1000 training images.

    Args:
        channels: of the images; None takes 3 for pictures, and what arrays and rasters have.

    Raises:
        DataError: an image has another number of channels, or a channel has one value everywhere.
    """
    if transforms.mean != "counted":
        return transforms
    images = undecoded(rows.select_columns("image"))
    numbers = np.linspace(0, len(images) - 1, min(len(images), COUNTED_IMAGES)).round().astype(int).tolist()
    count, raw = channels or channels_of(decoded(images[0])["image"]), transforms.value_range is not None

    def sums(number: int) -> np.ndarray:
        return _sums(decoded(images[number])["image"], count, raw)

    found = in_threads(sums, numbers, "counting mean and std")
    mean, deviation = mean_and_std(np.sum(found, axis=0))  # (C,) each
    low, high = transforms.value_range or (0, 255)
    if (deviation == 0).any():
        raise DataError(
            f"channel {int(np.argmin(deviation)) + 1} of {count} has one value in all images: give numbers for "
            "transforms.mean and std"
        )
    counted = {
        "mean": tuple(float(f"{value:.4g}") for value in (mean - low) / (high - low)),
        "std": tuple(float(f"{value:.4g}") for value in deviation / (high - low)),
    }
    logger.info("counted from %d images: transforms.mean=%s std=%s", len(numbers), *map(list, counted.values()))
    return transforms.model_copy(update=counted)


def channels_of(image: Pixels) -> int:
    """As many as training reads where no number is given: 3 for pictures and what is grey."""
    if isinstance(image, PIL.Image.Image) or image.ndim == 2:
        return 3
    return 3 if image.shape[2] == 1 else image.shape[2]


def _sums(image: Pixels, channels: int, raw: bool) -> np.ndarray:
    values = read_image(image, channels, raw).reshape(-1, channels)  # (N, C)
    if isinstance(image, np.ma.MaskedArray):
        missing = np.ma.getmaskarray(image)
        values = values[~(missing if missing.ndim == 2 else missing.all(axis=2)).ravel()]
    return channel_sums(values)


def channel_sums(values: np.ndarray) -> np.ndarray:
    """How many values (N, C) there are, their sum and the sum of their squares, by channel (3, C)."""
    if values.dtype == np.uint8:
        blocks = (values[start : start + _BLOCK] for start in range(0, max(len(values), 1), _BLOCK))
        parts = [np.stack([np.bincount(channel, minlength=256) for channel in block.T]) for block in blocks]
        counts = np.sum(parts, axis=0)  # (C, 256)
        return np.stack([counts.sum(axis=1), counts @ np.arange(256), counts @ np.arange(256) ** 2])
    values = values.astype(np.float64)
    return np.stack([np.full(values.shape[1], len(values)), values.sum(axis=0), (values**2).sum(axis=0)])


def mean_and_std(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (C,) from `channel_sums`, of one image or added up over many."""
    count, total, squares = sums
    return total / count, np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
