"""Folds of a cross-validation: groups of images, divided so that each class is spread evenly over the folds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segtune.errors import UsageError
from segtune.evaluation.uncertainty import units_of


def make_folds(
    ids: Sequence[str], pixels: np.ndarray, count: int, *, group_by: str | None = None, seed: int = 0
) -> list[list[str]]:
    """The ids of each fold, sorted.

    Args:
        ids: of the images.
        pixels: of each class in each image, `(images, K)`.
        count: number of folds.
        group_by: a regular expression; images whose ids agree in what it finds are in one fold.
        seed: decides where several divisions are as good.

    Raises:
        UsageError: fewer groups than folds, `group_by` does not make groups, or they cannot be spread over the folds.
    """
    unit, groups = units_of(ids, group_by)
    found = int(groups.max()) + 1
    if found < count:
        raise UsageError(f"--folds {count}: there are only {found} {unit}s to divide")
    fold_of = stratified_folds(pixels, groups, count, seed)
    folds = [sorted(image for image, own in zip(ids, fold_of, strict=True) if own == fold) for fold in range(count)]
    if not all(folds):
        raise UsageError(f"--folds {count}: the {found} {unit}s are too uneven, a fold stays empty; take fewer folds")
    return folds


def stratified_folds(pixels: np.ndarray, groups: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """The fold of each image, `(images,)` from 0, by iterative stratification.

    Sechidis, Tsoumakas & Vlahavas 2011, "On the Stratification of Multi-Label Data", with a class in place of a label
    and groups in place of examples: the class that the fewest groups left show comes first, since later there is no
    choice left for it. Its groups go, the largest first, to the fold that lacks most of its images; of equal folds, to
    the one that lacks most of its pixels, then of all images. Groups without any class come last.

    Args:
        pixels: of each class in each image, `(images, K)`.
        groups: the number of the group of each image, `(images,)`; images of one group stay together.
    """
    units = int(groups.max()) + 1
    # of each group: the images that show each class, and the pixels of each; all images and pixels in the last column
    shown = np.column_stack([pixels > 0, np.ones(len(pixels), dtype=bool)]).astype(np.int64)
    areas = np.column_stack([pixels, pixels.sum(axis=1)]).astype(np.int64)
    images, area = np.zeros((units, shown.shape[1]), np.int64), np.zeros((units, shown.shape[1]), np.int64)
    np.add.at(images, groups, shown)
    np.add.at(area, groups, areas)
    # what each fold lacks, times the number of folds: whole numbers, so that equal folds are equal
    lacks_images, lacks_area = (np.tile(table.sum(axis=0), (count, 1)) for table in (images, area))
    order = np.random.default_rng(seed).permutation(units)  # of groups that are alike
    fold_of = np.full(units, -1)
    while (left := fold_of < 0).any():
        groups_left = np.count_nonzero(images[left, :-1], axis=0)  # (K,)
        scarce = np.where(groups_left > 0, groups_left, units + 1)
        column = int(scarce.argmin()) if groups_left.any() else images.shape[1] - 1
        members = [unit for unit in order.tolist() if left[unit] and images[unit, column]]
        for unit in sorted(members, key=lambda unit: (-images[unit, column], -area[unit, column])):
            wish = np.stack([lacks_images[:, column], lacks_area[:, column], lacks_images[:, -1]], axis=1).tolist()
            fold = max(range(count), key=wish.__getitem__)
            fold_of[unit] = fold
            lacks_images[fold] -= count * images[unit]
            lacks_area[fold] -= count * area[unit]
    return fold_of[groups]
