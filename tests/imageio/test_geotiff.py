"""Rows of rasters in and out, read back by rasterio as a whole."""

from __future__ import annotations

import builtins
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

from segtune.data.dataset import load_segmentation_dataset
from segtune.data.samples import read_pair
from segtune.errors import DataError, UsageError
from segtune.imageio import geotiff
from segtune.imageio.geotiff import GeoRaster, Georeference, TiffWriter, without_warnings
from segtune.imageio.read import Window, read_file, read_header
from segtune.labels.label_map import LabelMap

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
    with closing(TiffWriter(tmp_path / "a.tif", shape, np.uint8, PLACE, colors, nodata=255)) as tiff:
        for top in range(0, shape[0], 256):
            tiff.write(ids[top : top + 256])
    with without_warnings(rasterio.errors.NotGeoreferencedWarning), rasterio.open(tmp_path / "a.tif") as file:
        assert (file.crs, file.transform, file.nodata, file.count) == (PLACE.crs, PLACE.transform, 255, 1)
        assert np.array_equal(file.read(1), ids)
        assert [file.colormap(1)[i][:3] for i in range(3)] == colors
    with Image.open(tmp_path / "a.tif") as picture:
        assert np.array_equal(np.array(picture), ids)


def test_files_without_a_place(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    with closing(TiffWriter(tmp_path / "a.tif", (3, 4), np.float32)) as tiff:
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


TWO = LabelMap.from_names(["water", "land"])


def write(path: Path, bands: Any, **profile: Any) -> np.ndarray:
    """A GeoTIFF of bands (C, H, W)."""
    bands = np.asarray(bands)
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": bands.shape[0], "height": bands.shape[1], "width": bands.shape[2]}
    quiet = nullcontext() if "transform" in profile else pytest.warns(NotGeoreferencedWarning)
    with quiet, rasterio.open(path, "w", driver="GTiff", dtype=bands.dtype, **shape, **profile) as file:
        file.write(bands)
    return bands


@pytest.mark.parametrize(
    ("dtype", "count", "for_pillow"),
    [
        ("uint8", 1, True), ("uint8", 3, True), ("uint8", 4, True), ("uint16", 1, True), ("float32", 1, True),
        ("uint8", 2, False), ("uint8", 5, False), ("uint16", 3, False), ("float32", 6, False), ("int16", 4, False),
        ("float64", 1, False),
    ],
)  # fmt: skip
def test_any_number_of_bands_and_any_numbers(tmp_path: Path, dtype: str, count: int, for_pillow: bool) -> None:
    bands = np.random.default_rng(0).integers(0, 200, (count, 5, 7)).astype(dtype)
    path = tmp_path / "a.tif"
    write(path, bands)
    assert geotiff.is_for_pillow(path) is for_pillow
    assert read_header(path).size == (5, 7)
    pixels = np.asarray(read_file(path))
    expected = bands[0] if count == 1 else np.moveaxis(bands, 0, 2)
    assert pixels.dtype == expected.dtype
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(np.asarray(read_file(path, Window(1, 2, 3, 4))), expected[1:4, 2:6])


def test_no_data_is_masked_where_every_band_has_none(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", [[[0, 5], [0, 7]], [[0, 0], [3, 9]]], nodata=0)
    pixels = read_file(tmp_path / "a.tif")
    assert isinstance(pixels, np.ma.MaskedArray)
    assert pixels.mask.tolist() == [[[True, True], [False, False]], [[False, False], [False, False]]]
    write(tmp_path / "b.tif", np.array([[[1, np.nan, -9999]]], np.float32), nodata=-9999)
    assert np.ma.getmaskarray(read_file(tmp_path / "b.tif")).tolist() == [[False, True, True]]
    write(tmp_path / "c.tif", np.array([[[1, 2]]], np.uint8), nodata=9)
    assert not isinstance(read_file(tmp_path / "c.tif"), np.ma.MaskedArray)


def test_no_data_in_image_or_mask_is_ignored(tmp_path: Path) -> None:
    write(tmp_path / "images/a.tif", np.array([[[0, 5, 6]], [[0, 5, 0]], [[0, 5, 6]]], np.uint8), nodata=0)
    write(tmp_path / "masks/a.tif", np.array([[[1, 200, 1]]], np.uint8), nodata=200)
    row = load_segmentation_dataset(tmp_path)["train"][0]
    image, labels = read_pair(row, TWO)
    assert labels.tolist() == [[255, 255, 1]]
    assert image.tolist() == [[[0, 0, 0], [5, 5, 5], [6, 0, 6]]]


@pytest.mark.parametrize("bands", [1, 5])
def test_partners_must_lie_on_one_grid(tmp_path: Path, bands: int) -> None:
    def grid(x: float, y: float, pixel: float = 10.0) -> dict[str, Any]:
        return {"crs": "EPSG:32632", "transform": rasterio.Affine(pixel, 0, x, 0, -pixel, y)}

    for name in "abcd":
        write(tmp_path / f"images/{name}.tif", np.zeros((bands, 4, 6), np.uint8), **grid(500000, 5400000))
    mask = np.zeros((1, 4, 6), np.uint8)
    write(tmp_path / "masks/a.tif", mask, **grid(500000, 5400000))
    write(tmp_path / "masks/b.tif", mask)  # says nothing
    write(tmp_path / "masks/c.tif", mask, **grid(500000.05, 5400000))  # a 200th of a pixel
    write(tmp_path / "masks/d.tif", mask, **grid(500010, 5400000))
    with pytest.raises(
        DataError, match=r"elsewhere in the world \(1\): images/d\.tif and masks/d\.tif\. Bring the mask"
    ):
        load_segmentation_dataset(tmp_path)
    write(tmp_path / "masks/d.tif", mask, **grid(500000, 5400000, 10.5))
    with pytest.raises(DataError, match=r"elsewhere in the world \(1\)"):
        load_segmentation_dataset(tmp_path)


def test_turned_grids(tmp_path: Path) -> None:
    turned = rasterio.Affine(0, 10, 500000, 10, 0, 5400000)
    write(tmp_path / "a.tif", np.zeros((1, 4, 4), np.uint8), crs="EPSG:32632", transform=turned)
    assert geotiff.grid_of(tmp_path / "a.tif") == pytest.approx((0, 10, 500000, 10, 0, 5400000))
    write(tmp_path / "b.tif", np.zeros((7, 4, 4), np.uint8), crs="EPSG:32632", transform=turned)
    assert geotiff.grid_of(tmp_path / "b.tif") == pytest.approx((0, 10, 500000, 10, 0, 5400000))


def test_message_where_rasterio_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.tif", np.zeros((5, 4, 4), np.uint8))
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    with pytest.raises(UsageError, match=r"a\.tif: this needs the package rasterio: pip install 'segtune\[geo\]'"):
        read_file(tmp_path / "a.tif")


def test_a_file_that_names_another_file_is_not_followed(tmp_path: Path) -> None:
    """GDAL's virtual format is known by its content, so that any name would do."""
    Image.fromarray(photo(8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "a.tif").write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{tmp_path / 'secret.png'}</SourceFilename><SourceBand>1</SourceBand>"
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with without_warnings(rasterio.errors.NotGeoreferencedWarning), rasterio.open(tmp_path / "a.tif") as file:
        assert np.array_equal(file.read(1), np.asarray(Image.open(tmp_path / "secret.png"))[:, :, 0])  # it would
    for read in (read_header, read_file):
        with pytest.raises(DataError, match=r"a\.tif"):
            read(tmp_path / "a.tif")
