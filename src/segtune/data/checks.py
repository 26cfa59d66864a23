"""Reads every image and mask once, before the first step, and compares the masks with the label map."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import PIL.Image
from datasets import Dataset, DatasetDict, Image

from segtune.data.loading import read_image, read_mask
from segtune.data.scan import in_threads
from segtune.errors import DataError
from segtune.labels import LabelError, LabelMap, show_value


def check_masks(dataset: DatasetDict, label_map: LabelMap) -> dict[str, np.ndarray]:
    """Read every image and mask once, and compare the masks with the label map.

    Returns:
        Split -> pixels of each class in each of its masks, int64 (images, K + 1), ignored pixels last.

    Raises:
        DataError: files that cannot be read, ids or colours that the label map does not name, or only one class beside
            ignored pixels in all masks; with the files, the pixel counts and what to write in the recipe.
    """
    rows = [row for split in dataset.values() for row in _undecoded(split)]
    checked = in_threads(lambda row: _check_row(row, label_map), rows, "checking masks")
    problems = [problem for problem, _ in checked if problem]
    if problems:
        values = Counter(value for problem in problems if isinstance(problem, LabelError) for value in problem.values)
        raise DataError(_summary(problems, len(rows)) + (_advice(values) if values else ""))
    counts = iter(count for _, count in checked)
    pixels = {split: np.stack(list(islice(counts, len(dataset[split])))) for split in dataset}
    seen = np.flatnonzero(sum(each.sum(axis=0) for each in pixels.values()))  # (K + 1,)
    if label_map.num_labels > 1 and len(seen) == 2 and seen[1] == label_map.num_labels:
        raise DataError(
            f"the only class in all {len(rows)} masks is {label_map.names[seen[0]]!r}, all other pixels are ignored; "
            f"the label map has {label_map}. If an ignored value is a class, name it; for masks of 0 and 255: "
            f'dataset.labels: {{"0": "background", "255": "foreground"}}'
        )
    return pixels


def _undecoded(split: Dataset) -> list[dict[str, Any]]:
    return list(split.cast_column("image", Image(decode=False)).cast_column("mask", Image(decode=False)))


def _check_row(row: Mapping[str, Any], label_map: LabelMap) -> tuple[Exception | None, np.ndarray]:
    """What is wrong with a sample, if anything, and its pixels of each class and ignored ones (K + 1,)."""
    nothing = np.zeros(label_map.num_labels + 1, dtype=np.int64)
    cell = row["image"]
    try:
        with _open(cell) as image:
            image.draft("RGB", (1, 1))  # lets JPEG skip most of the arithmetic; a truncated file still shows
            read_image(image)
        cell = row["mask"]
        with _open(cell) as mask:
            lossy, stored = mask.format == "JPEG", read_mask(mask)
        labels = label_map.encode(stored)
        labels[labels == label_map.ignore_index] = label_map.num_labels
        return None, np.bincount(labels.ravel(), minlength=len(nothing))
    except LabelError as error:
        message = f"{cell['path'] or row['id']}: {error}"
        if lossy:
            return DataError(f"{message}. JPEG does not keep exact values: save masks as PNG"), nothing
        return LabelError(message, error.values), nothing
    except Exception as error:
        return DataError(f"{cell['path'] or row['id']}: {error}"), nothing


def _open(cell: Mapping[str, Any]) -> PIL.Image.Image:
    return PIL.Image.open(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"]))


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
