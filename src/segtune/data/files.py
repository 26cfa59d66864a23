"""One file as a picture or an array: its size from the header, its pixels in full or a window of them.

Pillow reads pictures, NumPy reads .npy and .npz, and rasterio what Pillow cannot read of TIFF: other numbers of bands,
bands of more than 8 bits, windows. The orientation that a camera noted is applied everywhere.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps

from segtune.data import rasters
from segtune.errors import DataError

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".jp2", ".ppm", ".pgm"}
WITH_FRAMES = {".gif"}  # Pillow keeps their files open until each picture is gone
ARRAYS, TIFFS = {".npy", ".npz"}, {".tif", ".tiff"}
SUFFIXES = PICTURES | ARRAYS | TIFFS
ORIENTATION = PIL.Image.ExifTags.Base.Orientation
TURNED = (5, 6, 7, 8)  # the EXIF orientations that swap height and width

Pixels = PIL.Image.Image | np.ndarray
Window = tuple[int, int, int, int]  # top, left, height, width


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture or an array, and not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def walk_files(folder: Path, suffix: str = "", depth: int | None = None) -> Iterator[Path]:
    """The files of a folder, sorted, then those of the folders in it, level by level; hidden ones are passed over.

    Args:
        depth: how many levels below `folder` are looked at; None for all.
    """
    level = [folder]
    while level:
        below = []
        for parent in level:
            with os.scandir(parent) as entries:
                found = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
            below += [Path(entry.path) for entry in found if entry.is_dir()]
            yield from (Path(entry.path) for entry in found if entry.name.endswith(suffix) and not entry.is_dir())
        level = below if depth is None or depth > 0 else []
        depth = None if depth is None else depth - 1


def read_size(path: Path) -> tuple[int, int] | Exception:
    """(height, width) as it is shown, from the header; what went wrong where there is none."""
    try:
        if path.suffix.lower() in ARRAYS:
            return _array_size(_array_shape(path))
        if path.suffix.lower() in TIFFS and not rasters.is_for_pillow(path):
            return rasters.read_size(path)
        with PIL.Image.open(path) as picture:
            width, height = picture.size
            # Pillow turns TIFF by itself, and would read all of a PNG to look for an orientation behind the pixels.
            has_exif = picture.format != "TIFF" and (picture.format != "PNG" or "exif" in picture.info)
            turned = has_exif and picture.getexif().get(ORIENTATION) in TURNED
    except Exception as error:  # decoders raise what they like
        return error
    return (width, height) if turned else (height, width)


def read_pixels(path: Path, window: Window | None = None) -> Pixels:
    """A picture, or an array (H, W) or (H, W, C); masked (`numpy.ma`) where the file says that it has no data.

    Raises:
        DataError, OSError, …: the file cannot be read; decoders raise what they like.
    """
    suffix = path.suffix.lower()
    if suffix in ARRAYS:
        return _read_array(path, window)
    if suffix in TIFFS and (window or not rasters.is_for_pillow(path)):
        return rasters.read(path, window)
    with PIL.Image.open(path) as picture:
        picture.load()
        nodata = rasters.nodata_of(picture)
        upright = PIL.ImageOps.exif_transpose(picture)
    if window:
        top, left, height, width = window
        upright = upright.crop((left, top, left + width, top + height))
    return upright if nodata is None else rasters.without_nodata(np.asarray(upright), nodata)


def channels_at_end(array: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C) of an array that may be (C, H, W): the channels are the shorter of its ends.

    Raises:
        DataError: it has another number of axes.
    """
    if array.ndim not in (2, 3):
        raise DataError(f"an array of shape {array.shape}: expected (H, W), (H, W, C) or (C, H, W)")
    return np.moveaxis(array, 0, 2) if array.ndim == 3 and array.shape[0] < array.shape[2] else array


def _read_array(path: Path, window: Window | None) -> np.ndarray:
    if path.suffix.lower() == ".npz":
        with np.load(path) as archive:
            array = archive[_only_name(path, archive.files)]
    else:
        array = np.load(path, mmap_mode="r")
    array = channels_at_end(array)
    if window:
        top, left, height, width = window
        array = array[top : top + height, left : left + width]
    return np.array(array)


def _array_shape(path: Path) -> tuple[int, ...]:
    if path.suffix.lower() == ".npy":
        return tuple(np.load(path, mmap_mode="r").shape)
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        with archive.open(f"{_only_name(path, names)}.npy") as file:
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            return tuple(read_header[np.lib.format.read_magic(file)](file)[0])


def _array_size(shape: tuple[int, ...]) -> tuple[int, int]:
    height, width = channels_at_end(np.broadcast_to(np.uint8(0), shape)).shape[:2]
    return height, width


def _only_name(path: Path, names: list[str]) -> str:
    if len(names) != 1:
        raise DataError(f"{path.name} holds {len(names)} arrays ({', '.join(names[:5])}): save one array in each file")
    return names[0]
