"""Shipped recipes on real files of their data sets, which may not be shipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtune.data.dataset import open_dataset
from segtune.data.lazy_rows import sample_ids
from segtune.doctor.examine import examine
from segtune.imageio.read import read_mask
from segtune.recipe.recipe import Recipe, load_recipe

# Images of train, val and test as they lie there; classes that their masks hold, ignored pixels not counted.
EXPECTED: dict[str, tuple[tuple[int, int, int], int]] = {
    "ade20k": ((3, 3, 0), 15),
    "cityscapes": ((8, 1, 0), 16),
    "coco-stuff": ((13, 8, 0), 87),
    "drive": ((16, 4, 20), 2),
    "isaid": ((2, 6, 0), 4),
    "kvasir-seg": ((4, 1, 0), 2),
    "lip": ((1, 1, 0), 8),
    "loveda": ((3, 3, 0), 6),
    "oxford-pet": ((109, 12, 123), 2),
    "pascal-voc": ((1, 1, 0), 4),
    "sen1floods11": ((1, 1, 1), 2),
}
TWICE = {"ade20k", "loveda", "sen1floods11"}  # the same pictures lie under two splits
# A test of these takes more than two seconds.
LARGE = {"cityscapes", "drive", "loveda", "oxford-pet"}


def marked(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in sorted(names)]


@pytest.fixture
def open_real(real_files: Callable[[str], Path]) -> Callable[[str], Recipe]:
    """The recipe of a name with the path of its real files."""
    return lambda name: load_recipe(name, [f"dataset.path={real_files(name)}"])


def opened(recipe: Recipe) -> tuple[tuple[int, ...], set[str]]:
    """Samples of train, val and test; the classes that their masks hold."""
    dataset, label_map = open_dataset(recipe.dataset)
    found: set[int] = set()
    for rows in dataset.values():
        for row in rows:
            labels = label_map.encode(read_mask(row["mask"]))
            assert labels.shape == np.asarray(row["image"]).shape[:2]
            found |= set(np.unique(labels).tolist()) - {label_map.ignore_index}
    return tuple(len(dataset.get(split, ())) for split in ("train", "val", "test")), {label_map.names[i] for i in found}


@pytest.mark.parametrize("name", marked(EXPECTED))
def test_files_open_and_masks_hold_classes(open_real: Callable[[str], Recipe], name: str) -> None:
    samples, classes = opened(open_real(name))
    assert (samples, len(classes)) == EXPECTED[name]


@pytest.mark.parametrize("name", marked(EXPECTED.keys() - TWICE))
def test_the_doctor_finds_no_errors(open_real: Callable[[str], Recipe], name: str) -> None:
    diagnosis = examine(open_real(name))
    assert sum(diagnosis.samples.values()) == sum(EXPECTED[name][0])
    assert [finding for finding in diagnosis.findings if finding.severity == "error"] == []


@pytest.mark.parametrize("name", marked(TWICE))
def test_the_doctor_finds_pictures_of_two_splits(open_real: Callable[[str], Recipe], name: str) -> None:
    diagnosis = examine(open_real(name))
    assert {finding.code for finding in diagnosis.findings if finding.severity == "error"} == {"leaked-duplicates"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("drive", {"train": ["21_training", "22_training"], "test": ["01_test", "02_test"]}),
        ("isaid", {"train": ["P0005@0,0", "P0005@81,0"], "val": ["P0003@0,0", "P0003@0,573"]}),
    ],
)
def test_ids_are_the_names_of_the_data_set(
    open_real: Callable[[str], Recipe], name: str, expected: dict[str, list[str]]
) -> None:
    dataset, _ = open_dataset(open_real(name).dataset)
    assert {split: sample_ids(dataset[split])[:2] for split in expected} == expected
