"""Images of every kind as arrays: whole, or a few rows at a time."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from segtune.data.loading import read_image
from segtune.errors import DataError
from segtune.segformer.image_processing_segformer import channels_last, resize

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray
Item = TypeVar("Item")


class Raster(Protocol):
    """An image that is read by rows."""

    height: int
    width: int

    def read(self, top: int, bottom: int) -> np.ndarray:
        """Rows `top` to `bottom`, `(bottom - top, W, C)`."""


class ArrayRaster:
    """An image in memory, `(H, W, C)`, as a raster."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def read(self, top: int, bottom: int) -> np.ndarray:
        return self.pixels[top:bottom]


class ResizedRaster:
    """A raster at another size, resized a few rows at a time as Pillow resizes the whole.

    Args:
        size: (height, width).
        resample: Pillow's filter.
    """

    def __init__(self, raster: Raster, size: tuple[int, int], resample: int) -> None:
        self.raster, self.resample = raster, resample
        self.height, self.width = size
        self.step = raster.height / self.height  # rows of the raster for each of ours
        self.reach = math.ceil(3 * max(1.0, self.step)) + 1  # of the widest filter

    def read(self, top: int, bottom: int) -> np.ndarray:
        first = max(0, math.floor(top * self.step) - self.reach)
        last = min(self.raster.height, math.ceil(bottom * self.step) + self.reach)
        rows = self.raster.read(first, last)
        box = (0.0, top * self.step - first, float(self.raster.width), min(bottom * self.step - first, len(rows)))
        return resize(rows, (bottom - top, self.width), self.resample, box)


def resized(raster: Raster, size: tuple[int, int], resample: int) -> Raster:
    """The raster at `size` (height, width)."""
    if (raster.height, raster.width) == size:
        return raster
    return ResizedRaster(raster, size, resample)


def is_image(images: Any) -> bool:
    """Whether this is one image, rather than several."""
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return images.ndim < 4
    return isinstance(images, (str, os.PathLike, Image.Image))


def read_pixels(image: Any, channels: int = 3) -> np.ndarray:
    """A path, PIL image or array as `(H, W, channels)`, upright."""
    if isinstance(image, (str, os.PathLike)):
        try:
            with Image.open(image) as opened:
                opened.load()
                image = opened
        except FileNotFoundError as error:
            raise DataError(f"{image}: no such image") from error
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{image}: cannot be read as an image ({error})") from error
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        return read_image(upright) if channels == 3 else channels_last(upright, channels)
    return channels_last(image, channels)


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
