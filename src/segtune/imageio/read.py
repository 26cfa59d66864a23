"""Image reading: a file as a picture or an array, whole or a window of it, and what those are as image or mask.

Pillow reads pictures, NumPy reads .npy and .npz, and rasterio what Pillow cannot read of TIFF: other numbers of bands,
bands of more than 8 bits, windows. The orientation that a camera noted is applied everywhere. Decoders raise what they
like; here it becomes a `ReadError`.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps

from segtune.errors import DataError, UsageError
from segtune.imageio import geotiff
from segtune.imageio.geotiff import LARGEST, TIFFS
from segtune.imageio.walk import check_regular

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".jp2", ".ppm", ".pgm"}
WITH_FRAMES = {".gif"}  # Pillow keeps their files open until each picture is gone
ARRAYS = {".npy", ".npz"}
SUFFIXES = PICTURES | ARRAYS | TIFFS
TURNED = (5, 6, 7, 8)  # the EXIF orientations that swap height and width

Pixels = PIL.Image.Image | np.ndarray
Palette = tuple[tuple[int, int, int], ...]
ImageLike = str | os.PathLike[str] | PIL.Image.Image | np.ndarray


class Window(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def area(self) -> tuple[slice, slice]:
        """Its rows and columns, as an array is indexed."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def crop(self, image: Pixels) -> Pixels:
        """This part of a picture or an array (H, W) or (H, W, C)."""
        if not isinstance(image, PIL.Image.Image):
            return image[self.area]
        return image.crop((self.left, self.top, self.left + self.width, self.top + self.height))


class Header(NamedTuple):
    """What the header of a picture file says; the defaults stand where there is none, as for arrays.

    Attributes:
        size: (height, width) as the picture is shown, turned by its orientation.
        mode, format: Pillow's names.
        orientation: of the EXIF entry, from 1 to 8; 1 is upright.
        palette: RGB colours by index.
        lossy: the format does not keep values.
    """

    size: tuple[int, int]
    mode: str = ""
    format: str = ""
    orientation: int = 1
    palette: Palette = ()
    lossy: bool = False


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture or an array, and not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


class ReadError(DataError):
    """A file, or what stands for one, that cannot be read as an image.

    Attributes:
        path: the file.
        reason: the fault, without the file.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: cannot be read ({self.reason})"


@contextmanager
def read_errors(path: Path | str) -> Iterator[None]:
    """Raises `ReadError` for whatever goes wrong inside, where the content of a file is decoded and nothing else.

    A package that is not installed and a lack of memory are no faults of the file: they pass.
    """
    try:
        yield
    except (UsageError, MemoryError):
        raise
    except Exception as error:  # Pillow alone raises OSError, SyntaxError, struct.error, OverflowError, EOFError, …
        if isinstance(error, DataError) and str(path) in str(error):
            raise
        raise ReadError(str(path), _reason(path, error)) from error


def _reason(path: Path | str, error: Exception) -> str:
    if os.path.isfile(path) and not os.path.getsize(path):
        return "the file is empty"
    if isinstance(error, PIL.UnidentifiedImageError):
        return "it is no picture, or of an unknown format"
    if isinstance(error, PIL.Image.DecompressionBombError):
        return f"{error} PIL.Image.MAX_IMAGE_PIXELS = None lifts the limit"
    words = error.strerror if isinstance(error, OSError) else None
    return words or str(error) or type(error).__name__


@contextmanager
def open_picture(path: Path | str, content: bytes | None = None) -> Iterator[PIL.Image.Image]:
    """A picture whose header is read, from a file or from `content`, which `path` then names in errors.

    Raises:
        ReadError: it cannot be opened, or what is done inside fails.
    """
    with read_errors(path):
        if content is None:
            check_regular(path)
        with PIL.Image.open(path if content is None else io.BytesIO(content)) as picture:
            yield picture


def orientation_of(picture: PIL.Image.Image) -> int:
    """The EXIF orientation that is still to be applied to a picture, from 1 (upright) to 8."""
    # Pillow turns TIFF by itself, and would read all of a PNG to look for an orientation behind the pixels.
    has_exif = picture.format != "TIFF" and (picture.format != "PNG" or "exif" in picture.info)
    return int(picture.getexif().get(PIL.Image.ExifTags.Base.Orientation, 1)) if has_exif else 1


def read_header(path: Path) -> Header:
    """The header of a file.

    Raises:
        ReadError: there is none that can be read.
        UsageError: it needs rasterio, which is not installed.
    """
    with read_errors(path):
        check_regular(path)
        if path.suffix.lower() in ARRAYS:
            return Header(_array_size(path))
        if path.suffix.lower() in TIFFS and not geotiff.is_for_pillow(path):
            return Header(geotiff.read_size(path))
        with PIL.Image.open(path) as picture:
            values = (picture.getpalette() or []) if picture.mode == "P" else []
            palette = tuple(zip(values[::3], values[1::3], values[2::3], strict=False))
            lossy = _is_lossy(picture.format, path)
            orientation = orientation_of(picture)
            size = picture.size if orientation in TURNED else (picture.height, picture.width)
            return Header(size, picture.mode, picture.format or "", orientation, palette, lossy)


def read_size(path: Path) -> tuple[int, int] | ReadError:
    """(height, width) as a file is shown, from its header; the error, where it cannot be read, for a list of them."""
    try:
        return read_header(path).size
    except ReadError as error:
        return error


def read_file(path: Path, window: Window | None = None) -> Pixels:
    """A file, or a window of it, as a picture, or as an array of numbers (H, W) or (H, W, C).

    An array is masked (`numpy.ma`) where the file says that it has no data.

    Raises:
        ReadError: the file cannot be read.
        UsageError: it needs rasterio, which is not installed.
    """
    suffix, area, nodata = path.suffix.lower(), window and window.area, None
    pixels: Pixels
    with read_errors(path):
        check_regular(path)
        if suffix in ARRAYS:
            pixels = channels_at_end(_load_array(path))
        elif suffix in TIFFS and (window or not geotiff.is_for_pillow(path)):
            return geotiff.read(path, area)
        else:
            with PIL.Image.open(path) as picture:
                picture.load()
                nodata = geotiff.nodata_of(picture)
                pixels = PIL.ImageOps.exif_transpose(picture)
    pixels = window.crop(pixels) if window else pixels
    if suffix in ARRAYS:
        return np.array(pixels)  # no longer mapped to the file
    return pixels if nodata is None else geotiff.without_nodata(np.asarray(pixels), nodata)


def open_image(image: str | os.PathLike[str] | PIL.Image.Image) -> Pixels:
    """A file as a picture or an array, or a PIL image, upright.

    Raises:
        ReadError, UsageError: see `read_file`.
    """
    return PIL.ImageOps.exif_transpose(image) if isinstance(image, PIL.Image.Image) else read_file(Path(image))


def channels_at_end(array: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C) of an array that may be (C, H, W): the channels are the shorter of its ends.

    Raises:
        DataError: it has another number of axes, no pixels, or something else than numbers.
    """
    if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "buif":
        raise DataError(f"an array of {array.dtype} {array.shape}: expected numbers (H, W), (H, W, C) or (C, H, W)")
    return np.moveaxis(array, 0, 2) if array.ndim == 3 and array.shape[0] < array.shape[2] else array


def _load_array(path: Path) -> np.ndarray:
    if path.suffix.lower() == ".npy":
        array: np.ndarray = np.load(path, mmap_mode="r")
        return array
    _unpacked(path)
    with path.open("rb") as file, np.load(file) as archive:  # given the path, NumPy leaves a broken file open
        only: np.ndarray = archive[_only_name(path, archive.files)]
        return only


def _array_size(path: Path) -> tuple[int, int]:
    """(height, width) of an array; of a compressed one without unpacking it."""
    array = _load_array(path) if path.suffix.lower() == ".npy" else _unpacked(path)
    height, width = channels_at_end(array).shape[:2]
    return height, width


def _unpacked(path: Path) -> np.ndarray:
    """An array of the shape and type of a compressed one, without its numbers: those may be a thousand times the file.

    Raises:
        DataError: they would not fit into memory.
    """
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        with archive.open(f"{_only_name(path, names)}.npy") as file:
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read_header[np.lib.format.read_magic(file)](file)
    size = math.prod(shape) * dtype.itemsize
    if size > LARGEST:
        raise DataError(f"its array is {size / 2**30:.1f} GiB: at most 2 are unpacked, save it as .npy instead")
    return np.broadcast_to(np.zeros((), dtype), shape)


def _only_name(path: Path, names: list[str]) -> str:
    if len(names) != 1:
        raise DataError(f"{path.name} holds {len(names)} arrays ({', '.join(names[:5])}): save one array in each file")
    return names[0]


def _is_lossy(format: str | None, path: Path) -> bool:
    """JPEG is; WebP where its picture is a "VP8 " chunk (lossless ones are "VP8L"), of its first or extended form."""
    if format != "WEBP":
        return format in ("JPEG", "MPO")
    with path.open("rb") as file:
        return b"VP8 " in file.read(64)


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
