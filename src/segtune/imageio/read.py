"""One file as a picture or an array: its size from the header, its pixels in full or a window of them.

Pillow reads pictures, NumPy reads .npy and .npz, and rasterio what Pillow cannot read of TIFF: other numbers of bands,
bands of more than 8 bits, windows. The orientation that a camera noted is applied everywhere.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import PIL.ImageOps

from segtune.errors import DataError
from segtune.imageio import geotiff

if TYPE_CHECKING:
    pass

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
        if path.suffix.lower() in TIFFS and not geotiff.is_for_pillow(path):
            return geotiff.read_size(path)
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
    if suffix in TIFFS and (window or not geotiff.is_for_pillow(path)):
        return geotiff.read(path, window)
    with PIL.Image.open(path) as picture:
        picture.load()
        nodata = geotiff.nodata_of(picture)
        upright = PIL.ImageOps.exif_transpose(picture)
    if window:
        top, left, height, width = window
        upright = upright.crop((left, top, left + width, top + height))
    return upright if nodata is None else geotiff.without_nodata(np.asarray(upright), nodata)


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


def read_image(image: Pixels, channels: int = 3, raw: bool = False) -> np.ndarray:
    """An image as (H, W, channels).

    Takes PIL images and arrays (H, W) or (H, W, C). Where three channels are wanted, grey is repeated, palettes and
    CMYK are resolved and transparency is dropped. What is masked (`numpy.ma`) becomes 0. The EXIF orientation is left
    alone: whoever opened the file has applied it.

    Args:
        raw: keep the numbers of the file, for a declared range of values.

    Returns:
        uint8; of 16-bit images of up to 3 channels the upper 8 bits. Where `raw`, uint8 or else float32.

    Raises:
        DataError: another number of channels, or numbers whose range must be declared.
    """
    if isinstance(image, PIL.Image.Image):
        image = _pil_array(image, channels, raw)
    pixels = np.ma.filled(image, 0) if isinstance(image, np.ma.MaskedArray) else np.asarray(image)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels  # (H, W, C)
    if pixels.ndim != 3 or pixels.dtype.kind not in "buif":
        raise DataError(f"an image of {pixels.dtype} {pixels.shape}: expected numbers (H, W) or (H, W, C)")
    if channels == 3 and pixels.shape[2] in (1, 4):
        pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3]  # (H, W, 3)
    if pixels.shape[2] != channels:
        raise DataError(
            f"an image of {pixels.shape[2]} channels, but transforms.mean and std have {channels} values: give one for "
            f"each channel, and model.config.num_channels={pixels.shape[2]}"
        )
    if pixels.dtype == np.bool_:
        pixels = pixels * np.uint8(255)
    elif pixels.dtype == np.uint16 and channels <= 3 and not raw:
        pixels = pixels >> 8
    elif pixels.dtype != np.uint8 and not raw:
        raise DataError(
            f"an image of {pixels.dtype} values, {pixels.min():g} to {pixels.max():g}: say which of them stand for "
            "black and white, as in transforms.value_range=[0, 10000]"
        )
    return np.ascontiguousarray(pixels, dtype=np.float32 if raw and pixels.dtype != np.uint8 else np.uint8)


def _pil_array(image: PIL.Image.Image, channels: int, raw: bool) -> np.ndarray:
    """What of a picture may be converted without a loss, as an array."""
    if image.mode.startswith("I"):
        array = np.asarray(image)
        return array if raw or array.dtype == np.uint16 else array.clip(0, 65535).astype(np.uint16)
    if channels == 1 and image.mode not in ("1", "F"):
        return np.asarray(image.convert("L"))  # (H, W)
    if channels == 3 and image.mode != "F":
        image = image.convert("RGBA") if "transparency" in image.info else image
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))  # (H, W, 3); no copy of a copy
    return np.asarray(image)


def read_mask(mask: Pixels) -> np.ndarray:
    """A mask as it is stored: ids (H, W) of the file's own type, palette indices among them, or colours (H, W, 3).

    Raises:
        DataError: fractions, which are no ids.
    """
    if isinstance(mask, PIL.Image.Image):
        if mask.mode in ("LA", "PA"):
            mask = mask.getchannel(0)
        elif mask.mode not in ("1", "L", "P", "F", "RGB") and not mask.mode.startswith("I"):
            mask = mask.convert("RGB")
    if not isinstance(mask, np.ma.MaskedArray):
        return _whole_numbers(np.asarray(mask))
    return np.ma.masked_array(_whole_numbers(np.ma.filled(mask, 0)), np.ma.getmaskarray(mask))


def _whole_numbers(mask: np.ndarray) -> np.ndarray:
    if mask.dtype.kind != "f":
        return mask
    if not (np.isfinite(mask).all() and (mask == np.rint(mask)).all()):
        raise DataError(f"a mask of {mask.dtype} that holds fractions: a mask holds whole numbers")
    return mask.astype(np.int32)


def for_display(image: Pixels) -> np.ndarray:
    """An image of any channels and numbers as (H, W, 3) uint8 for people: its first three channels, or its first.

    8-bit pictures stay as they are; others are stretched between their 2nd and 98th percentile.
    """
    if isinstance(image, PIL.Image.Image) and image.mode != "F" and not image.mode.startswith("I"):
        return read_image(image)
    pixels = np.ma.filled(image, 0) if isinstance(image, np.ma.MaskedArray) else np.asarray(image)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels  # (H, W, C)
    shown = pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, axis=2)  # (H, W, 3)
    if shown.dtype == np.uint8:
        return np.ascontiguousarray(shown)
    low, high = np.percentile(shown, (2, 98))
    stretched: np.ndarray = np.clip((shown - low) * (255 / max(high - low, 1e-9)), 0, 255).astype(np.uint8)
    return stretched
