"""Masks and confidences as files: ids and colours are kept, and a file is there when it is complete."""

from __future__ import annotations

import io
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from PIL import Image

from segtune.errors import UsageError
from segtune.files import atomic_path
from segtune.imageio.writers import PngWriter, confidence_writer, encode_image, mask_writer
from segtune.labels.label_map import LabelMap

LABELS = LabelMap.from_names(["sky", "road"], colors=[(1, 2, 3), (250, 240, 230)])


def save(labels: np.ndarray, label_map: LabelMap, path: Path) -> None:
    with mask_writer(path, labels.shape, label_map) as write:
        write(labels[:1])
        write(labels[1:]) if len(labels) > 1 else None


def nodata_of(path: Path) -> float | None:
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(path) as file:
        return file.nodata


def test_mask_keeps_ids_and_shows_colors(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 1], [1, 0, 255]], dtype=np.uint8)
    for name in ("mask.png", "mask.tif"):
        save(labels, LABELS, tmp_path / "new" / name)
        with Image.open(tmp_path / "new" / name) as mask:
            assert mask.mode == "P"
            assert np.array_equal(np.array(mask), labels)
            assert np.array(mask.convert("RGB"))[0, :2].tolist() == [[1, 2, 3], [250, 240, 230]]
    assert nodata_of(tmp_path / "new" / "mask.tif") == 255  # ignored


def test_mask_of_256_labels_fills_the_palette(tmp_path: Path) -> None:
    label_map = LabelMap.from_names([f"c{i}" for i in range(256)], ignore_index=-100)
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save(labels, label_map, tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.array(mask), labels)
    save(labels, label_map, tmp_path / "mask.tif")
    assert nodata_of(tmp_path / "mask.tif") is None


def test_mask_has_16_bits_where_the_ignored_id_needs_them(tmp_path: Path) -> None:
    label_map = LabelMap.from_names([f"c{i}" for i in range(256)])
    labels = np.array([[0, 255, 65535]], dtype=np.uint16)
    save(labels, label_map, tmp_path / "mask.tif")
    with Image.open(tmp_path / "mask.tif") as mask:
        assert np.array(mask).tolist() == labels.tolist() and mask.mode.startswith("I")
    assert nodata_of(tmp_path / "mask.tif") == 65535


def test_mask_of_more_labels_has_16_bits(tmp_path: Path) -> None:
    label_map = LabelMap.from_names([f"c{i}" for i in range(300)], ignore_index=-100)
    labels = np.array([[0, 255, 256, 299]], dtype=np.int32)
    for name in ("mask.png", "mask.tif"):
        save(labels, label_map, tmp_path / name)
        with Image.open(tmp_path / name) as mask:
            assert mask.mode.startswith("I")
            assert np.array(mask).tolist() == labels.tolist()
    with pytest.raises(UsageError, match="up to 65535, the model has 70000"):
        save(labels, SimpleNamespace(num_labels=70000), tmp_path / "other.png")  # type: ignore[arg-type]


def test_confidence_is_8_or_32_bit(tmp_path: Path) -> None:
    values = np.array([[0.2, 0.5], [0.9, 1.0]], dtype=np.float32)
    for name in ("a.png", "a.tif"):
        with confidence_writer(tmp_path / name, (2, 2)) as write:
            write(values)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "L"
        assert np.array(picture).tolist() == [[51, 128], [230, 255]]
    with Image.open(tmp_path / "a.tif") as picture:
        assert np.array_equal(np.array(picture), values)


def test_nothing_is_left_half_written(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("before")
    with pytest.raises(RuntimeError), mask_writer(tmp_path / "a.png", (4, 4), LABELS) as write:
        write(np.zeros((2, 4), dtype=np.uint8))
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_text() == "before"
    with atomic_path(tmp_path / "a.png") as temporary:
        temporary.write_text("after")
        assert (tmp_path / "a.png").read_text() == "before"
    assert (tmp_path / "a.png").read_text() == "after"


COLORS = [(1, 2, 3), (250, 240, 230), (0, 0, 255)]


@pytest.mark.parametrize("bands", [[7], [1, 1, 5], [3, 4]])
@pytest.mark.parametrize("width", [1, 5, 300])
def test_a_palette_is_read_back(tmp_path: Path, bands: list[int], width: int) -> None:
    ids = np.random.default_rng(0).integers(0, 3, (7, width), dtype=np.uint8)
    with closing(PngWriter(tmp_path / "a.png", ids.shape, COLORS)) as png:
        for rows in np.split(ids, np.cumsum(bands)[:-1]):
            png.write(rows)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.array(picture), ids)
        assert np.array_equal(np.array(picture.convert("RGB")), np.array(COLORS, dtype=np.uint8)[ids])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_values_are_read_back(tmp_path: Path, dtype: type[np.generic]) -> None:
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (40, 33), dtype=dtype)
    with closing(PngWriter(tmp_path / "a.png", values.shape, dtype=dtype)) as png:
        png.write(values[:1])
        png.write(values[1:].astype(np.int32))  # another type and no view
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == ("L" if dtype is np.uint8 else "I;16")
        assert np.array_equal(np.array(picture), values)


def test_label_maps_become_small(tmp_path: Path) -> None:
    ids = np.zeros((2000, 3000), dtype=np.uint8)
    ids[500:900, 100:2000] = 1
    with closing(PngWriter(tmp_path / "a.png", ids.shape, COLORS)) as png:
        for rows in np.split(ids, 20):
            png.write(rows)
    assert (tmp_path / "a.png").stat().st_size < 20_000


RGB = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("array", "suffix"),
    [
        (RGB, ".png"),
        (RGB[:, :, :2], ".png"),
        (RGB[:, :, :1], ".png"),
        (RGB[:, :, 0] > 100, ".png"),
        (RGB[:, :, 0].astype(np.uint16) * 200, ".png"),
        (RGB.astype(np.uint16), ".npy"),
        (RGB.astype(np.float32) / 7, ".npy"),
        (np.dstack([RGB, RGB]), ".npy"),
    ],
)
def test_arrays_are_encoded_without_loss(array: np.ndarray, suffix: str) -> None:
    content, found = encode_image(array)
    assert found == suffix
    read = np.load(io.BytesIO(content)) if suffix == ".npy" else np.asarray(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(read, array if suffix == ".npy" else np.squeeze(array))
