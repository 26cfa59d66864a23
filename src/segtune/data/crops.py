"""Random crops and copy-paste: where a training sample is cut from its image, and what is pasted into it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from segtune.data.augmentations import resize_image, resize_mask

CROP_TRIES = 10
SHARE_GRID = 64  # the shares of classes are counted on a grid of about this many rows and columns, or all there are


class Readable(Protocol):
    """An array, or what reads windows of one when asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, area: tuple[slice, slice], /) -> np.ndarray: ...


class View(NamedTuple):
    """A window of an image, the (height, width) it is resized to, and quarter turns after that."""

    area: tuple[slice, slice]
    size: tuple[int, int]
    turns: int

    def of_image(self, window: np.ndarray, colors: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The window's pixels (H, W, C) as they are seen, (h, w, C), with its colours changed.

        Colours are changed where the pixels are fewer: before the window is enlarged, or after it has shrunk.
        """
        if math.prod(window.shape[:2]) < math.prod(self.size):
            return self._turned(resize_image(colors(window), self.size))
        return colors(self._turned(resize_image(window, self.size)))

    def of_mask(self, window: np.ndarray) -> np.ndarray:
        """The window's ids (H, W) as they are seen: (h, w)."""
        return self._turned(resize_mask(window, self.size))

    def _turned(self, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(array, self.turns))


@dataclass(frozen=True)
class RandomCrop:
    """Draws views. Only the window of a view is read and resized: large images cost no more than small ones.

    Attributes are those of `TransformConfig`; `rare_ids` are training ids.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    short_side: int | None
    rotate90: bool
    max_class_share: float
    ignore_index: int
    rare_ids: Sequence[int] = ()

    def draw(self, labels: Readable, rng: random.Random, around_rare: bool = False) -> View:
        """A view of an image with these labels (H, W): around a pixel of a rare class, if asked for and there is one.

        A window with too large a share of one class is drawn anew, up to 10 times.
        """
        height, width = labels.shape
        turns = rng.randrange(4) if self.rotate90 else 0
        crop = self.size[::-1] if turns % 2 else self.size
        scale = rng.uniform(*self.scale) * (self.short_side or min(height, width)) / min(height, width)
        size = _scaled(height, crop[0], scale), _scaled(width, crop[1], scale)
        rows, columns = min(height, max(1, round(size[0] / scale))), min(width, max(1, round(size[1] / scale)))
        pixel = self._rare_pixel(labels, rng) if around_rare else None
        for _ in range(CROP_TRIES):
            top = rng.randint(*_starts(height, rows, pixel and pixel[0]))
            left = rng.randint(*_starts(width, columns, pixel and pixel[1]))
            area = slice(top, top + rows), slice(left, left + columns)
            if self.max_class_share == 1 or self._largest_share(labels, area) <= self.max_class_share:
                break
        return View(area, size, turns)

    def _largest_share(self, labels: Readable, area: tuple[slice, slice]) -> float:
        """Of the most frequent class among the labelled pixels; 1 where none is labelled."""
        rows, columns = (slice(part.start, part.stop, max(1, (part.stop - part.start) // SHARE_GRID)) for part in area)
        found = labels[rows, columns]
        counts = np.bincount(found[found != self.ignore_index])
        return float(counts.max() / counts.sum()) if counts.size else 1.0

    def _rare_pixel(self, labels: Readable, rng: random.Random) -> tuple[int, int] | None:
        """A pixel (row, column) of a rare class; every class that occurs is as likely as the others."""
        ids = labels[:, :]
        for class_id in rng.sample(list(self.rare_ids), len(self.rare_ids)):
            places = np.flatnonzero(ids == class_id)
            if places.size:
                return divmod(int(places[rng.randrange(places.size)]), ids.shape[1])
        return None


def _scaled(side: int, crop: int, scale: float) -> int:
    return min(crop, max(1, round(side * scale)))


def _starts(side: int, part: int, position: int | None) -> tuple[int, int]:
    """The first and the last place where a window of `part` pixels can begin, to hold the pixel at `position`."""
    first, last = (0, side) if position is None else (position - part + 1, position)
    return max(0, first), min(last, side - part)


def paste(
    image: np.ndarray,
    mask: np.ndarray,
    source_image: np.ndarray,
    source_mask: np.ndarray,
    class_ids: Sequence[int],
    rng: random.Random,
) -> tuple[np.ndarray, np.ndarray]:
    """The image (h, w, C) and mask (h, w) with regions of the source pasted in where the source has them.

    Of the classes that occur in the source's mask, each is taken with probability 0.5, at least one. The source may be
    of another size; both lie on each other with their upper left corners.
    """
    height, width = (min(sides) for sides in zip(mask.shape, source_mask.shape, strict=True))
    source_image, source_mask = source_image[:height, :width], source_mask[:height, :width]
    present = [class_id for class_id in class_ids if (source_mask == class_id).any()]
    if not present:
        return image, mask
    taken = [class_id for class_id in present if rng.random() < 0.5] or [rng.choice(present)]
    where = np.isin(source_mask, taken)
    image, mask = image.copy(), mask.copy()
    image[:height, :width][where] = source_image[where]
    mask[:height, :width][where] = source_mask[where]
    return image, mask
