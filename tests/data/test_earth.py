"""The dataset inside the package is the one its data card describes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

SPLITS = {"train": 94, "val": 39, "test": 37}
TEST_BANDS, VAL_BANDS = {2, 7, 12}, {4, 9, 14}  # of 24 degrees longitude: two tiles


@pytest.fixture(scope="module")
def classes(earth: Path) -> dict:
    return json.loads((earth / "classes.json").read_text())


def test_tiles_are_paired_counted_and_in_one_split_only(earth: Path) -> None:
    seen: Counter[str] = Counter()
    for split, count in SPLITS.items():
        images = {path.stem for path in (earth / "images" / split).glob("*.jpg")}
        masks = {path.stem for path in (earth / "masks" / split).glob("*.png")}
        assert images == masks
        assert len(images) == count
        seen.update(images)
    assert set(seen.values()) == {1}
    assert len([path for path in earth.rglob("*") if path.is_file()]) == 2 * 170 + 3  # and card, licence, classes


def test_splits_follow_the_bands_of_longitude(earth: Path) -> None:
    for split in SPLITS:
        bands = {int(path.stem[-2:]) // 2 for path in (earth / "images" / split).glob("*.jpg")}
        expected = {"test": TEST_BANDS, "val": VAL_BANDS, "train": set(range(15)) - TEST_BANDS - VAL_BANDS}[split]
        assert bands == expected


@pytest.mark.parametrize("split", SPLITS)
def test_sizes_ids_and_frequencies(earth: Path, classes: dict, split: str) -> None:
    counts = np.zeros(256, np.int64)
    for path in sorted((earth / "masks" / split).glob("*.png")):
        with Image.open(path) as mask, Image.open(earth / "images" / split / f"{path.stem}.jpg") as image:
            assert (mask.mode, mask.size) == ("L", (180, 180))
            assert (image.mode, image.size) == ("RGB", (180, 180))
            assert np.asarray(image).std() > 1  # decodes, and is a picture
            counts += np.bincount(np.asarray(mask).ravel(), minlength=256)
    assert set(np.flatnonzero(counts)) == {0, 1, 2, 3, 255}
    stated = classes["splits"][split]
    assert stated["images"] == SPLITS[split]
    for value, name in {0: "water", 1: "vegetation", 2: "bare", 3: "ice", 255: "ignore"}.items():
        assert stated["pixel_percent"][name] == pytest.approx(100 * counts[value] / counts.sum(), abs=0.006)


def test_classes_have_names_and_colors(classes: dict) -> None:
    assert classes["classes"] == {"0": "water", "1": "vegetation", "2": "bare", "3": "ice"}
    assert classes["ignore_id"] == 255
    colors = {key: tuple(color) for key, color in classes["palette"].items()}
    assert list(colors) == list(classes["classes"])
    assert len(set(colors.values())) == 4
    assert all(0 <= part <= 255 for color in colors.values() for part in color)


def test_card_has_a_header_and_names_the_sources(earth: Path, classes: dict) -> None:
    _, header, text = (earth / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(header)
    assert card["task_categories"] == ["image-segmentation"]
    assert card["size_categories"] == ["n<1K"]
    assert (earth / card["license_link"]).is_file()
    for source in ("NASA Earth Observatory", "10.5067/MODIS/MCD12C1.006", "no restrictions on reuse, sale, or"):
        assert source in text
    for color in classes["palette"].values():
        assert "`#{:02x}{:02x}{:02x}`".format(*color) in text
