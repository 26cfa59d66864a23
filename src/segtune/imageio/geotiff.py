"""GeoTIFF and other rasters through rasterio (the extra `geo`): windows and rows in, rows out; tags through Pillow."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from segtune.errors import DataError, UsageError
from segtune.imageio.encoded import choose, open_encoded, tags_of

TIFFS = {".tif", ".tiff"}
# What a file may be, whatever its name: GDAL also knows formats that name other files and hosts (VRT, WMS, …).
DRIVERS = ["GTiff", "PNG", "JPEG", "JP2OpenJPEG", "WEBP", "BMP", "GIF", "PNM", "TGA"]
BITS, PHOTOMETRIC = 258, 262  # tags of TIFF
BANDS, PIXEL_SCALE, TIE_POINTS, TRANSFORMATION, NODATA = 277, 33550, 33922, 34264, 42113
BLOCK = 256  # side of the tiles of what is written; so many rows are compressed at once
LARGEST = 2**31  # bytes that are unpacked at once
CACHE = 64 * 2**20  # bytes of GDAL's cache of blocks, which is a twentieth of the memory by default
HELD = 2  # files whose windows are read that a thread keeps open: an image and its mask
_held = threading.local()
_filters = threading.Lock()  # the filters of warnings are one for all threads


class Georeference(NamedTuple):
    """Where pixels lie: rasterio's coordinate reference system (or None) and affine transformation."""

    crs: Any
    transform: Any


def read_tags(path: Path) -> Any | None:
    """The tags of a TIFF by number, as Pillow reads them; none of another picture; None where Pillow cannot open it."""
    try:
        with open_encoded(path) as picture:
            return tags_of(picture)
    except PIL.UnidentifiedImageError:
        return None


def has_position(tags: Any) -> bool:
    """Whether a TIFF with these tags says where on earth it lies."""
    return PIXEL_SCALE in tags or TRANSFORMATION in tags


def is_georeferenced(path: Path) -> bool:
    """Whether a file is a TIFF that says where on earth it lies; looks at the header only."""
    if path.suffix.lower() not in TIFFS or not path.is_file():
        return False
    try:
        tags = read_tags(path)
    except OSError:
        return False  # said when it is read
    return GeoRaster(path).georeference is not None if tags is None else has_position(tags)


def is_for_pillow(path: Path) -> bool:
    """Whether Pillow reads every band of a TIFF as it is."""
    try:
        with open_encoded(path) as picture:
            return bool(tags_of(picture).get(BANDS, 1) == len(picture.getbands()))
    except PIL.UnidentifiedImageError:
        return False


def nodata_of(picture: PIL.Image.Image) -> float | None:
    """The value that stands for "no data" in a GeoTIFF that Pillow has opened."""
    return _nodata_in(tags_of(picture))


def _nodata_in(tags: Any) -> float | None:
    """Where 0 is white, the value after Pillow has turned the numbers round, which it does up to 8 bits."""
    if NODATA not in tags:
        return None
    value = float(str(tags[NODATA]).strip("\x00 "))
    bits = tags.get(BITS, (1,))[0]
    is_turned = tags.get(PHOTOMETRIC) == 0 and bits <= 8 and tags.get(BANDS, 1) == 1
    return 2**bits - 1 - value if is_turned else value


def nodata_value(path: Path) -> float | None:
    """The value that stands for "no data" in a TIFF, from its header."""
    tags = read_tags(path)
    if tags is None:
        with _open(path) as raster:
            value: float | None = raster.nodata
            return value
    return _nodata_in(tags)


def without_nodata(pixels: np.ndarray, nodata: float | None) -> np.ndarray:
    """(H, W) or (H, W, C), masked where every channel has no data or is not a number."""
    missing = np.isnan(pixels) if pixels.dtype.kind == "f" else np.zeros(pixels.shape, dtype=bool)
    if nodata is not None and not math.isnan(nodata):
        missing |= pixels == nodata
    if pixels.ndim == 3:
        missing = np.broadcast_to(missing.all(axis=2, keepdims=True), pixels.shape)
    return np.ma.masked_array(pixels, missing) if missing.any() else pixels


def grid_of(path: Path) -> tuple[float, ...] | None:
    """Where on earth a TIFF lies: the six numbers of its affine transformation; None where it does not say."""
    tags = read_tags(path)
    if tags is None:
        with _open(path) as raster:
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
    columns = 3 if len(one) == 6 else 4  # of the matrix, the last one of which says where the first pixel lies
    pixel = max(abs(number) for place, number in enumerate(one, start=1) if place % columns)
    return all(abs(a - b) <= 0.01 * pixel for a, b in zip(one, other, strict=True))


def read_size(path: Path) -> tuple[tuple[int, int], int]:
    """(height, width) of any TIFF, and how many pages it has."""
    with _open(path) as raster:
        return (raster.height, raster.width), max(len(raster.subdatasets), 1)


def read(path: Path, area: tuple[slice, slice] | None = None, frame: int | None = None) -> np.ndarray:
    """(H, W) of one band or (H, W, C), or an area (rows, columns) of it; masked (`numpy.ma`) where there is no data.

    Args:
        frame: a page; None where there is only one.
    """
    raster = _open_window(path, frame) if area else _open_frame(path, frame)
    try:
        window = area and tuple((part.start, part.stop) for part in area)
        _check_memory(path, raster, [(stop - start) for start, stop in window] if window else raster.shape)
        with import_rasterio(path).Env(GDAL_CACHEMAX=CACHE):
            bands, nodata = raster.read(window=window), raster.nodata  # (C, H, W)
            if (black := _turned_from(raster)) is not None:
                bands, nodata = black - bands, None if nodata is None else black - nodata
    finally:
        if not area:
            raster.close()
    pixels = bands[0] if len(bands) == 1 else np.ascontiguousarray(np.moveaxis(bands, 0, 2))  # (H, W) or (H, W, C)
    return without_nodata(pixels, nodata)


def _turned_from(raster: Any) -> np.uint8 | None:
    """What stands for black where 0 is white, which is turned round as Pillow does; None of other rasters."""
    if raster.dtypes != ("uint8",) or raster.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") != "YES":
        return None
    return np.uint8(2 ** int(raster.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8)) - 1)


def _open_frame(path: Path, frame: int | None) -> Any:
    raster = _open(path)
    place = choose(raster.subdatasets or [None], frame)
    if place is None:
        return raster
    raster.close()
    return _open(place)


def _open_window(path: Path, frame: int | None) -> Any:
    """A file that further windows will be read of; kept open, since a PNG is decoded anew from its top otherwise.

    Each thread of each process has its own: GDAL's are not to be shared.
    """
    key = os.getpid(), path, frame, path.stat().st_mtime_ns
    held = _held.__dict__.setdefault("rasters", {})
    if key in held:
        held[key] = held.pop(key)  # the last one used is the last one to go
        return held[key]
    for old in list(held):
        if old[0] != key[0] or len(held) >= HELD:
            raster = held.pop(old)
            if old[0] == key[0]:
                raster.close()
    held[key] = _open_frame(path, frame)
    return held[key]


def _check_memory(path: Path, raster: Any, size: Sequence[int] = (0, 0)) -> None:
    """Refuse what would be unpacked to more than memory holds: a size (height, width), or a block of the file itself.

    Raises:
        DataError: says what to do.
    """
    width = max(np.dtype(dtype).itemsize for dtype in raster.dtypes)
    if math.prod(size) * raster.count * width > LARGEST:
        raise DataError(f"{path}: {raster.count} bands of {tuple(size)} pixels are too large at once: set dataset.tile")
    if (block := max(map(math.prod, raster.block_shapes))) * width > LARGEST:
        raise DataError(f"{path}: blocks of {block} pixels: write it with tiles, as gdal_translate -co TILED=YES does")


class GeoRaster:
    """A file that rasterio reads, a few rows at a time; rows that were read last are kept for the next read.

    Forward reads cost one pass over the file, even where it is one compressed stream, as PNG is.

    Args:
        frame: the page that is wanted, counted from 0; None where there is only one.

    Attributes:
        height, width, channels: the size of the file.
        georeference: where its pixels lie; None where the file does not say.

    Raises:
        DataError: the file cannot be read.
        UsageError: rasterio is not installed.
    """

    def __init__(self, path: Path, frame: int | None = None) -> None:
        self.path, self.frame = path, frame
        with _gdal(path):
            self._dataset = _open_frame(path, frame)
        _check_memory(path, self._dataset)
        self.height, self.width, self.channels = self._dataset.height, self._dataset.width, self._dataset.count
        located = self._dataset.crs is not None or not self._dataset.transform.is_identity
        self.georeference = Georeference(self._dataset.crs, self._dataset.transform) if located else None
        flags = {flag.name for flags in self._dataset.mask_flag_enums for flag in flags}
        self._has_gaps = bool(flags & {"nodata", "per_dataset"}) and "alpha" not in flags
        self._black = _turned_from(self._dataset)
        self._first, self._rows = 0, np.empty((0, self.width, self.channels))

    def read(self, top: int, bottom: int) -> np.ndarray:
        """Rows `top` to `bottom`, `(bottom - top, W, C)`, of the file's own type."""
        end = self._first + len(self._rows)
        kept = self._rows[top - self._first : bottom - self._first] if self._first <= top <= end else self._rows[:0]
        pieces = [kept] if len(kept) else []
        if top + len(kept) < bottom:
            pieces.append(self._read(top + len(kept), bottom))
        self._first, self._rows = top, pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return self._rows

    def missing(self, top: int, bottom: int) -> np.ndarray | None:
        """Where the file says that it has no data, `(bottom - top, W)`; None where it never says so."""
        if not self._has_gaps:
            return None
        with _gdal(self.path):
            return np.asarray(self._dataset.dataset_mask(window=((top, bottom), (0, self.width))) == 0)

    def again(self) -> GeoRaster:
        """The same file, to be read from the top at its own pace."""
        return GeoRaster(self.path, self.frame)

    def _read(self, top: int, bottom: int) -> np.ndarray:
        with _gdal(self.path):
            bands = self._dataset.read(window=((top, bottom), (0, self.width)))  # (C, rows, W)
            bands = bands if self._black is None else self._black - bands
        return np.ascontiguousarray(bands.transpose(1, 2, 0))  # (rows, W, C)


class TiffWriter:
    """Writes a TIFF of one channel: `write` the rows from top to bottom, then `close` it.

    Args:
        size: (height, width).
        colors: one RGB colour for each id from 0, at most 256.
        nodata: the value that stands for "no data".
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        dtype: type[np.generic],
        georeference: Georeference | None = None,
        colors: Sequence[tuple[int, int, int]] | None = None,
        nodata: int | None = None,
    ) -> None:
        self.path, self.row, self.width = path, 0, size[1]
        position = {"crs": georeference.crs, "transform": georeference.transform} if georeference else {}
        tiles = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK} if min(size) > BLOCK else {}
        with _gdal(path):
            self._dataset = _open(
                path,
                "w",
                driver="GTiff",
                count=1,
                height=size[0],
                width=size[1],
                dtype=np.dtype(dtype).name,
                nodata=nodata,
                compress="deflate",
                bigtiff="if_safer",
                **tiles,
                **position,
            )
            if colors is not None:
                self._dataset.write_colormap(1, dict(enumerate(colors)))

    def write(self, rows: np.ndarray) -> None:
        """The next rows, `(n, width)`."""
        window = ((self.row, self.row + len(rows)), (0, self.width))
        with _gdal(self.path):
            self._dataset.write(rows, 1, window=window)
        self.row += len(rows)

    def close(self) -> None:
        """Ends the file."""
        with _gdal(self.path):
            self._dataset.close()


def import_rasterio(path: Path | str) -> Any:
    """The package rasterio; UsageError that names the file it is needed for, where it is not installed."""
    try:
        import rasterio
        import rasterio.features
    except ImportError:
        raise UsageError(f"{path}: this needs the package rasterio: pip install 'segtune[geo]'") from None
    return rasterio


def _open(path: Path | str, *mode: str, **profile: Any) -> Any:
    """A data set of rasterio, without its warning where the file does not say where on earth it lies."""
    rasterio = import_rasterio(path)
    with without_warnings(rasterio.errors.NotGeoreferencedWarning):
        if profile:
            return rasterio.open(path, *mode, **profile)
        # rasterio.open, which does the same, takes a single driver
        return rasterio.env.ensure_env(rasterio.io.DatasetReader)(os.fspath(path), driver=DRIVERS)


@contextmanager
def without_warnings(category: type[Warning] = Warning) -> Iterator[None]:
    """Leaves warnings out, one thread after the other."""
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield


@contextmanager
def _gdal(path: Path) -> Iterator[None]:
    """GDAL with a small cache and with our errors."""
    rasterio = import_rasterio(path)
    with rasterio.Env(GDAL_CACHEMAX=CACHE):
        try:
            yield
        except rasterio.errors.RasterioError as error:
            raise DataError(f"{path}: {error}") from error
