"""PNG row by row, read back by Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtune.png import PngWriter

COLORS = [(1, 2, 3), (250, 240, 230), (0, 0, 255)]


@pytest.mark.parametrize("bands", [[7], [1, 1, 5], [3, 4]])
@pytest.mark.parametrize("width", [1, 5, 300])
def test_a_palette_is_read_back(tmp_path: Path, bands: list[int], width: int) -> None:
    ids = np.random.default_rng(0).integers(0, 3, (7, width), dtype=np.uint8)
    with PngWriter(tmp_path / "a.png", ids.shape, COLORS) as png:
        for rows in np.split(ids, np.cumsum(bands)[:-1]):
            png.write(rows)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.array(picture), ids)
        assert np.array_equal(np.array(picture.convert("RGB")), np.array(COLORS, dtype=np.uint8)[ids])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_values_are_read_back(tmp_path: Path, dtype: type[np.generic]) -> None:
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (40, 33), dtype=dtype)
    with PngWriter(tmp_path / "a.png", values.shape, dtype=dtype) as png:
        png.write(values[:1])
        png.write(values[1:].astype(np.int32))  # another type and no view
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == ("L" if dtype is np.uint8 else "I;16")
        assert np.array_equal(np.array(picture), values)


def test_label_maps_become_small(tmp_path: Path) -> None:
    ids = np.zeros((2000, 3000), dtype=np.uint8)
    ids[500:900, 100:2000] = 1
    with PngWriter(tmp_path / "a.png", ids.shape, COLORS) as png:
        for rows in np.split(ids, 20):
            png.write(rows)
    assert (tmp_path / "a.png").stat().st_size < 20_000
