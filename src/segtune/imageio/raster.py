"""Rasters: images of every kind read a few rows at a time, from a file, an array or resized; and reading ahead."""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from segtune.errors import DataError, naming
from segtune.imageio.encoded import choose, frame_places, tags_of
from segtune.imageio.geotiff import GeoRaster, has_position
from segtune.imageio.medical import is_medical
from segtune.imageio.read import (
    LARGE,
    TIFFS,
    ImageLike,
    ReadError,
    for_display,
    open_image,
    open_picture,
    orientation_of,
    read_file,
    read_image,
)
from segtune.segformer.image_processing_segformer import channels_last, resize

logger = logging.getLogger(__name__)

ROWS = 1024  # of a raster that are resized at a time

Item = TypeVar("Item")


class Rows(Protocol):
    """An image `(height, width)` that is read by rows, best from top to bottom."""

    height: int
    width: int

    def read(self, top: int, bottom: int) -> np.ndarray:
        """Rows `top` to `bottom`, `(bottom - top, W, C)`."""


class Raster(Rows, Protocol):
    """An image that is read by rows, more than once."""

    def again(self) -> Raster:
        """The same image, to be read from the top at its own pace."""


class ArrayRaster:
    """An image in memory, `(H, W, C)`, as a raster."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def read(self, top: int, bottom: int) -> np.ndarray:
        return self.pixels[top:bottom]

    def again(self) -> ArrayRaster:
        return self


class FileRaster:
    """A large or georeferenced file whose rows are brought to what `read_image` makes of a whole image.

    Attributes:
        file: what rasterio reads.
    """

    def __init__(self, file: GeoRaster, channels: int, raw: bool = False) -> None:
        if file.channels != channels and not (channels == 3 and file.channels in (1, 4)):
            raise DataError(f"{file.path}: an image of {file.channels} channels, the model reads {channels}")
        self.file, self.channels, self.raw = file, channels, raw
        self.height, self.width = file.height, file.width

    def read(self, top: int, bottom: int) -> np.ndarray:
        rows, missing = self.file.read(top, bottom), self.file.missing(top, bottom)
        if missing is not None:
            rows = np.where(missing[:, :, None], rows.dtype.type(0), rows)
        with naming(str(self.file.path)):
            return read_image(np.nan_to_num(rows) if rows.dtype.kind == "f" else rows, self.channels, self.raw)

    def again(self) -> FileRaster:
        return FileRaster(self.file.again(), self.channels, self.raw)


class ResizedRaster:
    """A raster at another size, resized a few rows at a time as Pillow resizes the whole.

    Args:
        size: (height, width).
        resample: Pillow's filter.
    """

    def __init__(self, raster: Rows, size: tuple[int, int], resample: int) -> None:
        self.raster, self.resample = raster, resample
        self.height, self.width = size
        self.step = raster.height / self.height  # rows of the raster for each of ours
        self.reach = math.ceil(3 * max(1.0, self.step)) + 1  # of the widest filter

    def read(self, top: int, bottom: int) -> np.ndarray:
        count = max(1, int(ROWS / self.step))
        return np.concatenate([self._resized(at, min(at + count, bottom)) for at in range(top, bottom, count)])

    def _resized(self, top: int, bottom: int) -> np.ndarray:
        first = max(0, math.floor(top * self.step) - self.reach)
        last = min(self.raster.height, math.ceil(bottom * self.step) + self.reach)
        rows = self.raster.read(first, last)
        box = (0.0, top * self.step - first, float(self.raster.width), min(bottom * self.step - first, len(rows)))
        return resize(rows, (bottom - top, self.width), self.resample, box)


def resized(raster: Rows, size: tuple[int, int], resample: int) -> Rows:
    """The raster at `size` (height, width)."""
    if (raster.height, raster.width) == size:
        return raster
    return ResizedRaster(raster, size, resample)


def open_raster(
    image: ImageLike | torch.Tensor, channels: int = 3, raw: bool = False, frame: int | None = None
) -> Raster:
    """A path, PIL image or array as a raster, upright.

    A file is read by rows, through rasterio, where it is georeferenced or large; else it is in memory.

    Args:
        raw: see `read_image`.
        frame: of a file with several pages, frames or slices, the one that is wanted, counted from 0.

    Raises:
        DataError: it is missing or no image of so many channels.
        UsageError: it needs rasterio, which is not installed.
    """
    if not isinstance(image, (str, os.PathLike, Image.Image)):
        return ArrayRaster(channels_last(image, channels))
    if isinstance(image, Image.Image):
        return ArrayRaster(read_image(open_image(image), channels, raw))
    if _is_for_rows(Path(image), frame):
        return FileRaster(GeoRaster(Path(image), frame), channels, raw)
    with naming(str(image)):
        return ArrayRaster(read_image(read_file(Path(image), frame=frame), channels, raw))


@contextmanager
def any_size() -> Iterator[None]:
    """Lets Pillow open images of any number of pixels; for files that the user of a command has named."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _is_for_rows(path: Path, frame: int | None) -> bool:
    """Whether a file is georeferenced, or so large that it is read by rows; faults are said when it is read."""
    if is_medical(path):
        return False
    try:
        with open_picture(path) as picture:
            picture.seek(choose(frame_places(picture), frame))
            if has_position(tags_of(picture)):
                return True
            is_plain = picture.mode in {"L", "RGB", "RGBA"} and orientation_of(picture) == 1
            if picture.width * picture.height <= LARGE or not is_plain:
                return False
    except ReadError as error:  # a TIFF may have more channels than Pillow knows
        return isinstance(error.__cause__, UnidentifiedImageError) and path.suffix.lower() in TIFFS
    if find_spec("rasterio") is None:
        logger.warning("%s: read into memory as a whole; pip install 'segtune[geo]' reads it by rows", path)
        return False
    return True


def is_image(images: object) -> bool:
    """Whether this is one image, rather than several."""
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return images.ndim < 4
    return isinstance(images, (str, os.PathLike, Image.Image))


def shown(image: ImageLike | torch.Tensor) -> np.ndarray:
    """A path, PIL image or array as `(H, W, 3)` uint8 for people, whatever its channels and numbers."""
    if isinstance(image, (str, os.PathLike, Image.Image)):
        return for_display(open_image(image))
    array = np.asarray(image)
    is_picture = array.dtype == np.uint8 and (array.ndim < 3 or bool({array.shape[0], array.shape[2]} & {1, 3, 4}))
    return channels_last(array, 3) if is_picture else for_display(array)


def read_ahead(items: Iterable[Item], count: int = 1) -> Iterator[Item]:
    """The same items, the next `count` of them made in a thread while the last one is used."""
    source = iter(items)
    end: Any = object()
    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque(pool.submit(next, source, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, source, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
