from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtune.data.config import DatasetConfig
from segtune.doctor.examine import examine
from segtune.proposal.data_facts import DataFacts, gather_facts, median_by_pixels
from segtune.recipe.recipe import Recipe


def write(root: Path, name: str, mask: np.ndarray) -> None:
    noise = np.random.default_rng(len(name) + mask.shape[0]).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    for kind, array in (("images", noise), ("masks", mask)):
        path = root / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def facts_of(config: DatasetConfig) -> DataFacts:
    diagnosis = examine(Recipe(dataset=config))
    assert not diagnosis.count("error"), diagnosis.to_dict()["findings"]
    return gather_facts(diagnosis, config)


def mask(height: int, width: int, *blocks: tuple[int, int, int, int]) -> np.ndarray:
    """Ground 0 with squares: (row, column, side, id)."""
    array = np.zeros((height, width), np.uint8)
    for row, column, side, value in blocks:
        array[row : row + side, column : column + side] = value
    return array


def test_numbers_by_hand(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(json.dumps(["ground", "house", "car"]))
    write(tmp_path, "train/a", mask(40, 60, (0, 0, 20, 1), (30, 30, 6, 2), (0, 40, 2, 2)))
    write(tmp_path, "train/bb", mask(40, 60, (0, 20, 20, 1), (20, 50, 10, 1)))
    write(tmp_path, "train/ccc", mask(80, 100, (40, 40, 30, 1)))
    write(tmp_path, "val/d", mask(50, 200, (10, 10, 20, 1), (40, 100, 6, 2)))
    found = facts_of(DatasetConfig(path=str(tmp_path)))
    assert found.images == {"train": 3, "val": 1} and not found.val_is_drawn
    assert found.recognised.startswith("folder (pictures in images")
    assert found.names == ("ground", "house", "car")
    assert (found.size, found.largest) == ((40, 60), (50, 200))
    total = 40 * 60 * 2 + 80 * 100
    houses, cars = 400 + 400 + 100 + 900, 36 + 4
    assert found.shares.tolist() == pytest.approx([1 - (houses + cars) / total, houses / total, cars / total])
    assert found.shown.tolist() == pytest.approx([1, 1, 1 / 3])
    # Houses of 20, 20, 10 and 30 pixels a side: of 1800 pixels, the 900th is in one of 20. The car of 2 is a speck.
    assert found.small_sides[1:].tolist() == [20, 6]
    assert found.sides[1:].tolist() == [20, 6]
    assert median_by_pixels([1, 1, 1, 10]) == 10 and median_by_pixels([5]) == 5


def test_a_drawn_split_is_told(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(json.dumps(["ground", "house"]))
    for number in range(12):
        write(tmp_path, f"train/{'x' * (number + 1)}", mask(40, 60, (number, number, 20, 1)))
    config = DatasetConfig(path=str(tmp_path), val_fraction=0.25)
    assert facts_of(config).images == {"train": 9, "val": 3} and facts_of(config).val_is_drawn
    none = facts_of(config.model_copy(update={"val_fraction": 0.0}))
    assert none.images == {"train": 12} and not none.val_is_drawn
