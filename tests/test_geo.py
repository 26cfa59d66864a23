"""Rows of rasters in and out, read back by rasterio as a whole."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import Affine

from segtune.errors import DataError, UsageError
from segtune.geo import GeoRaster, Georeference, TiffWriter

PLACE = Georeference(rasterio.crs.CRS.from_epsg(32633), Affine(10, 0, 300000, 0, -10, 5600000))


def save_geotiff(path: Path, pixels: np.ndarray, **profile: object) -> None:
    """Pixels (H, W, C)."""
    height, width, count = pixels.shape
    fields = {"crs": PLACE.crs, "transform": PLACE.transform, **profile}
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype.name, **fields
    ) as file:
        file.write(pixels.transpose(2, 0, 1))


def photo(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_rows_are_read_in_any_order(tmp_path: Path) -> None:
    pixels = photo(100, 30, 5)
    save_geotiff(tmp_path / "a.tif", pixels)
    raster = GeoRaster(tmp_path / "a.tif")
    assert (raster.height, raster.width, raster.channels, raster.georeference) == (100, 30, 5, PLACE)
    for top, bottom in [(0, 40), (30, 70), (30, 50), (50, 51), (60, 100), (0, 100), (90, 100), (10, 20)]:
        assert np.array_equal(raster.read(top, bottom), pixels[top:bottom])
    assert raster.missing(0, 10) is None
    assert np.array_equal(raster.again().read(0, 10), pixels[:10])


def test_overlapping_reads_fetch_each_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG is one stream: going back would decode it from the start."""
    Image.fromarray(photo(100, 30)).save(tmp_path / "a.png")
    raster = GeoRaster(tmp_path / "a.png")
    assert raster.georeference is None
    fetched: list[int] = []
    read = raster._read
    monkeypatch.setattr(raster, "_read", lambda top, bottom: fetched.extend(range(top, bottom)) or read(top, bottom))
    for top in range(0, 80, 20):
        raster.read(top, top + 40)
    assert fetched == list(range(100))


def test_gaps_of_a_raster(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 3), 9, dtype=np.uint8)
    pixels[2, 3] = 0
    pixels[5, 5, 0] = 0  # one channel without data is no gap
    save_geotiff(tmp_path / "a.tif", pixels, nodata=0)
    missing = GeoRaster(tmp_path / "a.tif").missing(1, 6)
    assert missing is not None
    assert np.argwhere(missing).tolist() == [[1, 3]]


@pytest.mark.parametrize("shape", [(100, 70), (600, 700)])
def test_written_rows_are_in_their_place(tmp_path: Path, shape: tuple[int, int]) -> None:
    ids = np.random.default_rng(0).integers(0, 3, shape, dtype=np.uint8)
    colors = [(1, 2, 3), (250, 240, 230), (0, 0, 255)]
    with TiffWriter(tmp_path / "a.tif", shape, np.uint8, PLACE, colors, nodata=255) as tiff:
        for top in range(0, shape[0], 256):
            tiff.write(ids[top : top + 256])
    with rasterio.open(tmp_path / "a.tif") as file:
        assert (file.crs, file.transform, file.nodata, file.count) == (PLACE.crs, PLACE.transform, 255, 1)
        assert np.array_equal(file.read(1), ids)
        assert [file.colormap(1)[i][:3] for i in range(3)] == colors
    with Image.open(tmp_path / "a.tif") as picture:
        assert np.array_equal(np.array(picture), ids)


def test_files_without_a_place(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    with TiffWriter(tmp_path / "a.tif", (3, 4), np.float32) as tiff:
        tiff.write(values)
    raster = GeoRaster(tmp_path / "a.tif")
    assert raster.georeference is None
    assert np.array_equal(raster.read(0, 3)[:, :, 0], values)


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tif").write_text("no raster")
    with pytest.raises(DataError, match=r"a\.tif: "):
        GeoRaster(tmp_path / "a.tif")
    save_geotiff(tmp_path / "cut.tif", photo(300, 300))
    content = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut\.tif: "):
        GeoRaster(tmp_path / "cut.tif").read(0, 300)

    def no_rasterio(name: str, *rest: object) -> object:
        if name.startswith("rasterio"):
            raise ImportError(name)
        return real(name, *rest)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", no_rasterio)
    with pytest.raises(UsageError, match=r"a\.tif: this needs the package rasterio: pip install 'segtune\[geo\]'"):
        GeoRaster(tmp_path / "a.tif")
