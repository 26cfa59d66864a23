"""TIFF beyond pictures: any number of bands and any type of number, windows, no-data values, and their grid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from segtune.geo import PIXEL_SCALE, TRANSFORMATION, import_rasterio, may_lie_nowhere

BANDS, NODATA = 277, 42113  # tags of TIFF
TIE_POINTS = 33922


def is_for_pillow(path: Path) -> bool:
    """Whether Pillow reads every band of a TIFF as it is."""
    try:
        with PIL.Image.open(path) as picture:
            return _tags(picture).get(BANDS, 1) == len(picture.getbands())
    except PIL.UnidentifiedImageError:
        return False


def nodata_of(picture: PIL.Image.Image) -> float | None:
    """The value that stands for "no data" in a GeoTIFF that Pillow has opened."""
    text = _tags(picture).get(NODATA)
    return None if text is None else float(str(text).strip("\x00 "))


def without_nodata(pixels: np.ndarray, nodata: float | None) -> np.ndarray:
    """(H, W) or (H, W, C), masked where every channel has no data or is not a number."""
    missing = np.isnan(pixels) if pixels.dtype.kind == "f" else np.zeros(pixels.shape, dtype=bool)
    if nodata is not None and not math.isnan(nodata):
        missing |= pixels == nodata
    if pixels.ndim == 3:
        missing = np.broadcast_to(missing.all(axis=2, keepdims=True), pixels.shape)
    return np.ma.masked_array(pixels, missing) if missing.any() else pixels


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of any TIFF."""
    with _opened(path) as raster:
        return raster.height, raster.width


def read(path: Path, window: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """(H, W) of one band or (H, W, C), or a window (top, left, height, width) of it; masked where there is no data."""
    with _opened(path) as raster:
        area = None
        if window:
            top, left, height, width = window
            area = ((top, top + height), (left, left + width))
        bands, nodata = raster.read(window=area), raster.nodata  # (C, H, W)
    pixels = bands[0] if len(bands) == 1 else np.ascontiguousarray(np.moveaxis(bands, 0, 2))  # (H, W) or (H, W, C)
    return without_nodata(pixels, nodata)


def grid_of(path: Path) -> tuple[float, ...] | None:
    """Where on earth a TIFF lies: the numbers of its affine transformation; None where it does not say.

    Read from the header, without rasterio where Pillow can.
    """
    try:
        with PIL.Image.open(path) as picture:
            tags = _tags(picture)
    except PIL.UnidentifiedImageError:
        with _opened(path) as raster:
            return None if raster.transform.is_identity else tuple(raster.transform)[:6]
    if TRANSFORMATION in tags:
        return tuple(tags[TRANSFORMATION][i] for i in (0, 1, 3, 4, 5, 7))
    if PIXEL_SCALE not in tags or TIE_POINTS not in tags:
        return None
    (across, down), (column, row, _, x, y) = tags[PIXEL_SCALE][:2], tags[TIE_POINTS][:5]
    return across, 0.0, x - column * across, 0.0, -down, y + row * down


def same_grid(one: tuple[float, ...] | None, other: tuple[float, ...] | None) -> bool:
    """Whether two rasters of one size lie on each other, up to a hundredth of a pixel; unknown counts as yes."""
    if one is None or other is None:
        return True
    pixel = max(map(abs, (one[0], one[1], one[3], one[4])))
    return all(abs(a - b) <= 0.01 * pixel for a, b in zip(one, other, strict=True))


def _tags(picture: PIL.Image.Image) -> Any:
    return getattr(picture, "tag_v2", {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    rasterio = import_rasterio(path)
    with may_lie_nowhere(rasterio):
        raster = rasterio.open(path)
    with raster:
        yield raster
