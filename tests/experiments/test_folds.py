from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtune.errors import UsageError
from segtune.experiments.folds import make_folds, stratified_folds


def spread(fold_of: np.ndarray, shown: np.ndarray, count: int) -> np.ndarray:
    """Images of each class in each fold."""
    return np.stack([shown[fold_of == fold].sum(axis=0) for fold in range(count)])


def test_a_rare_class_is_in_every_fold() -> None:
    """Ten images show the common class, those at the end the rare one as well: in order, one fold would have it all."""
    pixels = np.array([[100, 0]] * 8 + [[90, 10]] * 2)
    fold_of = stratified_folds(pixels, np.arange(10), 2)
    assert spread(fold_of, pixels > 0, 2).tolist() == [[5, 1], [5, 1]]


def test_pixels_decide_where_all_images_show_all_classes() -> None:
    """By hand: 8, 4, 3 and 1 pixels of the rare class go 8 to one fold, and 4 + 3 + 1 to the other, were it not that
    the number of images comes first: two each, so 8 + 1 and 4 + 3."""
    pixels = np.array([[10, 8], [10, 4], [10, 3], [10, 1]])
    fold_of = stratified_folds(pixels, np.arange(4), 2)
    assert sorted(pixels[fold_of == fold, 1].sum() for fold in range(2)) == [7, 9]


def test_groups_stay_together() -> None:
    pixels = np.ones((9, 2), int)
    folds = make_folds([f"video{n % 3}/{n}" for n in range(9)], pixels, 3, group_by=r"video\d")
    assert sorted({image[:6] for image in fold} for fold in folds) == [{"video0"}, {"video1"}, {"video2"}] or all(
        len({image[:6] for image in fold}) == 1 for fold in folds
    )
    assert sorted(image for fold in folds for image in fold) == sorted(f"video{n % 3}/{n}" for n in range(9))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(20, 60))
def test_classes_are_spread_as_evenly_as_by_hand_and_the_seed_repeats(seed: int, count: int, images: int) -> None:
    """Against a random division of the same sizes, over all classes: never worse by more than a rounding."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(1, 1000, (images, 4)) * (generator.random((images, 4)) < [0.9, 0.5, 0.2, 0.1])
    groups = np.arange(images)
    fold_of = stratified_folds(pixels, groups, count, seed)
    assert (stratified_folds(pixels, groups, count, seed) == fold_of).all()
    shown = pixels > 0
    sizes = np.bincount(fold_of, minlength=count)
    random = generator.permutation(np.arange(images) % count)
    worst, at_random = (
        (np.abs(spread(fold, shown, count) - shown.sum(axis=0) / count)).max() for fold in (fold_of, random)
    )
    assert sizes.sum() == images and sizes.min() >= 1
    assert worst <= max(at_random, 1.0) + 1


@pytest.mark.parametrize(
    ("ids", "count", "group_by", "fault"),
    [
        (["a", "b"], 3, None, "there are only 2 images to divide"),
        (["v1/a", "v1/b", "v2/c"], 3, r"v\d", "there are only 2 groups to divide"),
        (["v1/a", "w"], 2, r"v\d", "does not occur in 1 ids, such as 'w'"),
    ],
)
def test_what_cannot_be_divided_is_told(ids: list[str], count: int, group_by: str | None, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        make_folds(ids, np.ones((len(ids), 2), int), count, group_by=group_by)
