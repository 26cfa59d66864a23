"""Data facts: the numbers of a data set that a recipe follows from, taken from what the doctor has read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segtune.data.config import DatasetConfig
from segtune.data.formats.detect import format_of_file, format_of_folder
from segtune.doctor.case import Case
from segtune.doctor.examine import Diagnosis
from segtune.errors import DataError, UsageError
from segtune.evaluation.object_size import object_areas

LOOKED_AT = 60  # training masks, spread evenly, whose objects are measured
LEAST_AREA = 16  # pixels of an object; below, it is a speck


@dataclass(frozen=True)
class DataFacts:
    """Of a data set.

    Attributes:
        recognised: its format, and what speaks for it.
        images: split -> how many there are.
        val_is_drawn: the val split is a part of the training images, by `dataset.val_fraction`.
        size: (height, width), the medians of the training images.
        largest: (height, width) of the image with most pixels, of any split.
        names: of the classes.
        shares: (K,), of the labelled pixels of train.
        shown: (K,), the part of the training masks that show the class.
        sides: (K,), pixels: the square root of the area of the object that the median pixel of a class is in; nan for
            a class without objects.
        small_sides: (K,), likewise of its median object, which is smaller: there are more small ones.
    """

    recognised: str
    images: Mapping[str, int]
    val_is_drawn: bool
    size: tuple[int, int]
    largest: tuple[int, int]
    names: tuple[str, ...]
    shares: np.ndarray
    shown: np.ndarray
    sides: np.ndarray
    small_sides: np.ndarray


def gather_facts(diagnosis: Diagnosis, config: DatasetConfig) -> DataFacts:
    """The facts of a data set that was examined without an error.

    Args:
        config: which the diagnosis is of.

    Raises:
        UsageError: there are no training images.
    """
    case = diagnosis.case
    counts = {split: sum(s.split == split for s in case.index.samples) for split in case.splits}
    if not counts.get("train"):
        raise UsageError(f"dataset.path = {config.path}: no training images, only {', '.join(counts)}")
    sizes = {split: [f.image.size for f in case.facts if f.image and f.sample.split == split] for split in counts}
    pixels = case.pixels_of("train")[:, :-1]  # (masks, K)
    sides, small_sides = object_sides(case)
    height, width = np.median(sizes["train"], axis=0).round().astype(int).tolist()
    return DataFacts(
        recognised=_recognised(case, config),
        images={split: number for split, number in counts.items() if number},
        val_is_drawn=case.index.val_is_drawn,
        size=(height, width),
        largest=max((size for found in sizes.values() for size in found), key=lambda size: size[0] * size[1]),
        names=tuple(case.label_map.names),
        shares=pixels.sum(0) / max(int(pixels.sum()), 1),
        shown=(pixels > 0).mean(0),
        sides=sides,
        small_sides=small_sides,
    )


def object_sides(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """`DataFacts.sides` and `small_sides`, both (K,), of the objects in some training masks."""
    samples = [sample for sample, _ in case.masks if sample.split == "train" and sample not in case.untrusted]
    areas: list[list[int]] = [[] for _ in case.label_map.names]
    for sample in samples[:: max(1, len(samples) // LOOKED_AT)]:
        try:
            labels = case.labels(np.asarray(case.opener.mask(sample)[0]))  # (H, W), -1 where it is ignored
        except DataError:
            continue  # said by the doctor
        for label, area in zip(*object_areas(labels, labels >= 0), strict=True):
            if area >= LEAST_AREA and label < len(areas):
                areas[label].append(area)
    medians = [(median_by_pixels(found), float(np.median(found))) if found else (np.nan, np.nan) for found in areas]
    large, small = np.sqrt(np.array(medians)).T
    return large, small


def median_by_pixels(areas: Sequence[int]) -> float:
    """The area of the object that the median pixel of all is in."""
    ordered = np.sort(areas)
    passed = np.cumsum(ordered)
    return float(ordered[np.searchsorted(passed, passed[-1] / 2)])


def _recognised(case: Case, config: DatasetConfig) -> str:
    """The format, and why where that was found out from files on this machine."""
    name, root = case.index.format, Path(config.path).expanduser()
    if config.format != "auto" or not root.exists():
        return name
    found = format_of_file(root) if root.is_file() else format_of_folder(root, config)
    return f"{name} ({found[1]})" if found else name
