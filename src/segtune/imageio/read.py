"""Image reading: a file as a picture or an array, whole or a window of it, and what those are as image or mask.

Pillow reads pictures, NumPy reads .npy and .npz, rasterio what Pillow cannot read of TIFF (other numbers of bands,
bands of more than 8 bits, windows), and `imageio.medical` reads NIfTI and DICOM. The orientation that a camera noted is
applied everywhere. Decoders raise what they like; here it becomes a `ReadError`.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

from segtune.errors import DataError, UsageError
from segtune.imageio import geotiff, medical
from segtune.imageio.encoded import LEVELS, check_decodable, choose, frame_places, open_encoded, stored_levels
from segtune.imageio.geotiff import LARGEST, TIFFS
from segtune.imageio.walk import check_regular

JPEGS = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"}
JPEGS_2000 = {".jp2", ".j2k", ".jpf", ".jpx", ".jpc", ".j2c"}
NETPBM = {".pbm", ".pgm", ".ppm", ".pnm"}
PICTURES = JPEGS | JPEGS_2000 | NETPBM | {".png", ".apng", ".bmp", ".dib", ".webp", ".gif", ".avif", ".tga", ".pcx"}
WITH_FRAMES = {".gif", ".apng", ".mpo", ".avif"}  # Pillow keeps their files open until each picture is gone
ARRAYS = {".npy", ".npz"}
SUFFIXES = PICTURES | ARRAYS | TIFFS | medical.MEDICAL
LARGE = 2**26  # pixels of a picture that is read by rows or windows
ORIENTATION = PIL.ExifTags.Base.Orientation
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
        frames: how many pages or frames there are.
    """

    size: tuple[int, int]
    mode: str = ""
    format: str = ""
    orientation: int = 1
    palette: Palette = ()
    lossy: bool = False
    frames: int = 1


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture or an array, and not hidden."""
    return not name.startswith(".") and suffix_of(name) in SUFFIXES


def suffix_of(name: str) -> str:
    """The suffix of a file's name or path, in lower case; both of ".nii.gz"."""
    return ".nii.gz" if name.lower().endswith(".nii.gz") else os.path.splitext(name)[1].lower()


def stem_of(name: str) -> str:
    """A file's name or path without its suffix."""
    return name[: len(name) - len(suffix_of(name))]


class FractionsError(DataError):
    """A mask that holds fractions, which are no ids."""


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
        with open_encoded(path if content is None else io.BytesIO(content)) as picture:
            yield picture


def read_picture(path: Path | str, content: bytes | None = None, frame: int | None = None) -> PIL.Image.Image:
    """A picture from a file or from `content`, which `path` then names in errors; upright.

    Args:
        frame: the one that is wanted, counted from 0; None where there is only one.

    Raises:
        ReadError: it cannot be read, is too large to be decoded as a whole, or holds several frames.
    """
    with open_picture(path, content) as picture:
        return load_picture(picture, frame)


def load_picture(picture: PIL.Image.Image, frame: int | None = None) -> PIL.Image.Image:
    """A picture that is open, decoded and upright; see `read_picture`."""
    picture.seek(choose(frame_places(picture), frame))
    check_decodable(picture)
    picture.load()
    return PIL.ImageOps.exif_transpose(picture)


def orientation_of(picture: PIL.Image.Image) -> int:
    """The EXIF orientation that is still to be applied to a picture, from 1 (upright) to 8."""
    # Pillow turns TIFF by itself, and would read all of a PNG to look for an orientation behind the pixels.
    has_exif = picture.format != "TIFF" and (picture.format != "PNG" or "exif" in picture.info)
    noted = picture.getexif().get(ORIENTATION, 1) if has_exif else 1
    return noted if noted in range(2, 9) else 1  # 0 and other numbers turn nothing


def read_header(path: Path) -> Header:
    """The header of a file.

    Raises:
        ReadError: there is none that can be read.
        UsageError: it needs a package that is not installed.
    """
    with read_errors(path):
        check_regular(path)
        if path.suffix.lower() in ARRAYS:
            return Header(_array_size(path))
        if path.suffix.lower() in TIFFS and not geotiff.is_for_pillow(path):
            size, frames = geotiff.read_size(path)
            return Header(size, frames=frames)
        if medical.is_medical(path):
            size, frames, lossy = medical.read_size(path)
            return Header(size, frames=frames, lossy=lossy)
        with open_encoded(path) as picture:
            values = (picture.getpalette() or []) if picture.mode == "P" else []
            palette = tuple(zip(values[::3], values[1::3], values[2::3], strict=False))
            lossy = _is_lossy(picture.format, path)
            orientation = orientation_of(picture)
            size = picture.size if orientation in TURNED else (picture.height, picture.width)
            frames = len(frame_places(picture))
            return Header(size, picture.mode, picture.format or "", orientation, palette, lossy, frames)


def try_header(path: Path) -> Header | ReadError:
    """The header of a file; the error, where it cannot be read, for a list of them."""
    try:
        return read_header(path)
    except ReadError as error:
        return error


def read_file(path: Path, window: Window | None = None, frame: int | None = None) -> Pixels:
    """A file, or a window of it, as a picture, or as an array of numbers (H, W) or (H, W, C).

    An array is masked (`numpy.ma`) where the file says that it has no data.

    Args:
        frame: the page or frame that is wanted, counted from 0; None where there is only one.

    Raises:
        ReadError: the file cannot be read, or holds several frames.
        UsageError: it needs a package that is not installed.
    """
    suffix, nodata = path.suffix.lower(), None
    pixels: Pixels
    with read_errors(path):
        check_regular(path)
        if suffix in ARRAYS:
            pixels = channels_at_end(_load_array(path))
        elif suffix in TIFFS and not geotiff.is_for_pillow(path):
            return geotiff.read(path, window and window.area, frame)
        elif medical.is_medical(path):
            return medical.read(path, window and window.area, frame)
        else:
            with open_encoded(path) as picture:
                place = choose(frame_places(picture), frame)
                if window and _is_for_windows(picture, place):
                    return _read_window(path, window, picture, frame)
                nodata = geotiff.nodata_of(picture)
                pixels = load_picture(picture, frame)
    pixels = window.crop(pixels) if window else pixels
    if isinstance(pixels, np.ndarray):
        return np.array(pixels)  # no longer mapped to the file
    return pixels if nodata is None else geotiff.without_nodata(stored_levels(pixels), nodata)


def _is_for_windows(picture: PIL.Image.Image, place: int) -> bool:
    """Whether windows are read through rasterio: of TIFF, and of what is too large to be decoded for each of them."""
    is_upright = orientation_of(picture) == 1 and geotiff.tags_of(picture).get(ORIENTATION, 1) == 1
    if not is_upright or find_spec("rasterio") is None:
        return False
    return picture.format == "TIFF" or (math.prod(picture.size) > LARGE and place == 0)


def _read_window(path: Path, window: Window, picture: PIL.Image.Image, frame: int | None) -> Pixels:
    """A window as Pillow would cut it from the whole; of a palette picture as one, since its colours may be meant."""
    pixels = geotiff.read(path, window.area, frame)
    if picture.mode == "1":
        return pixels.astype(bool)
    if LEVELS in picture.info and pixels.dtype == np.uint8 and not isinstance(pixels, np.ma.MaskedArray):
        stretched = PIL.Image.fromarray(pixels * np.uint8(255 // picture.info[LEVELS]))
        stretched.info[LEVELS] = picture.info[LEVELS]
        return stretched
    if picture.mode != "P" or pixels.dtype != np.uint8 or isinstance(pixels, np.ma.MaskedArray):
        return pixels
    indices = PIL.Image.fromarray(pixels)
    indices.putpalette(picture.getpalette() or b"")
    return indices


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
        name = f"{_only_name(path, names)}.npy"
        with archive.open(name) as file:
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read_header[np.lib.format.read_magic(file)](file)
            held = archive.getinfo(name).file_size - file.tell()
    size = math.prod(shape) * dtype.itemsize
    if size > LARGEST:
        raise DataError(f"its array is {size / 2**30:.1f} GiB: at most 2 are unpacked, save it as .npy instead")
    if size != held and not dtype.hasobject:
        raise DataError(
            f"its header says an array {shape} of {dtype}, {size} bytes, and {held} are there: it is damaged"
        )
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


def read_mask(mask: Pixels, colors: bool = False) -> np.ndarray:
    """A mask as it is stored: ids (H, W) of the file's own type, palette indices among them, or colours (H, W, 3).

    Args:
        colors: a palette picture is its colours, since the label map names colours.

    Raises:
        DataError: fractions, which are no ids; another number of channels than a picture has; classes in the
            transparency.
    """
    if isinstance(mask, PIL.Image.Image):
        mask = _mask_array(mask, colors)
    mask = np.asanyarray(mask)
    if mask.dtype.kind not in "buif" or mask.ndim not in (2, 3):
        raise DataError(f"a mask of {mask.dtype} {mask.shape}: expected whole numbers (H, W) or colours (H, W, 3)")
    if mask.ndim == 3:
        if mask.shape[2] > 4:
            raise DataError(
                f"a mask of {mask.shape[2]} channels: one of ids has one, one of colours has 3; if each stands for a "
                "class, set dataset.one_hot=true"
            )
        mask = _without_alpha(mask)
    if not isinstance(mask, np.ma.MaskedArray):
        return _whole_numbers(np.asarray(mask))
    return np.ma.masked_array(_whole_numbers(np.ma.filled(mask, 0)), np.ma.getmaskarray(mask))


def _mask_array(mask: PIL.Image.Image, colors: bool) -> np.ndarray:
    if mask.mode == "PA":
        mask = mask.convert("RGBA") if colors else mask
    elif (mask.mode == "P" and colors) or mask.mode not in ("1", "L", "P", "F", "RGB", "RGBA", "LA", "I", "I;16"):
        mask = mask if mask.mode.startswith("I") else mask.convert("RGB")
    return stored_levels(mask)


def _without_alpha(mask: np.ndarray) -> np.ndarray:
    """Ids (H, W) or colours (H, W, 3) of (H, W, 1 to 4), of which the second or fourth channel is the transparency."""
    count = mask.shape[2]
    if count in (2, 4) and not isinstance(mask, np.ma.MaskedArray):
        alpha = mask[:, :, -1]
        is_clear = alpha < alpha.max() / 2
        if is_clear.any():
            _check_alpha(mask[:, :, : count - 1], is_clear)
    return mask[:, :, 0] if count < 3 else mask[:, :, :3]


def _check_alpha(mask: np.ndarray, is_clear: np.ndarray) -> None:
    """Raises DataError where pixels of one colour differ by their transparency alone."""
    codes = mask.astype(np.int64) @ [2 ** (32 - 16 * i) for i in range(mask.shape[2])]  # (H, W)
    if both := np.intersect1d(codes[is_clear], codes[~is_clear])[:1].tolist():
        example = mask[codes == both[0]][0].tolist()
        raise DataError(
            f"pixels of one colour, {example}, are opaque and transparent: the classes seem to be in the transparency, "
            "which is not read. Save that as the mask: Image.open(old).getchannel('A').save(new)"
        )


def _whole_numbers(mask: np.ndarray) -> np.ndarray:
    if mask.dtype.kind != "f":
        return mask
    if not (np.isfinite(mask).all() and (mask == np.rint(mask)).all()):
        raise FractionsError(f"a mask of {mask.dtype} that holds fractions: a mask holds whole numbers")
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
