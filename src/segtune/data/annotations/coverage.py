"""Shape coverage: whether a shape will cover a pixel of its picture, found out before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from segtune.data.annotations.outlines import checked_ellipse
from segtune.data.annotations.shapes import Shape, covers_a_pixel
from segtune.data.annotations.tally import EMPTY, FAR, OUTSIDE, TINY, Fate
from segtune.errors import DataError
from segtune.imageio.read import read_errors

FARTHEST = 2**20  # pixels out of the picture: what is cut from large pictures reaches out, but no picture is larger
MANY_POINTS = 10_000  # of a shape, from which on it is checked point by point
Size = tuple[int, int]


def ends_of(shapes: Sequence[Shape], size: Size) -> list[Fate | None]:
    """Where each shape ends on a picture of (height, width): None where it covers a pixel, else why it does not.

    Most shapes are polygons that lie in the picture and are not thin; these are seen at once. Others are drawn.

    Raises:
        DataError: a shape that cannot be drawn; names its "entry".
        UsageError: pycocotools is not installed.
    """
    sure = _certain(shapes, [size] * len(shapes))
    return _ends(shapes, size, sure if sure is not None else [False] * len(shapes))


def ends_of_each(images: Sequence[tuple[Sequence[Shape], Size]]) -> list[list[Fate | None] | DataError]:
    """`ends_of` the shapes of many pictures, which are looked at together; the error, where one cannot be drawn."""
    sure = _certain([shape for shapes, _ in images for shape in shapes], [size for own, size in images for _ in own])
    results: list[list[Fate | None] | DataError] = []
    start = 0
    for shapes, size in images:
        try:
            own = None if sure is None else sure[start : start + len(shapes)]
            results.append(ends_of(shapes, size) if own is None else _ends(shapes, size, own))
        except DataError as error:
            results.append(error)
        start += len(shapes)
    return results


def _ends(shapes: Sequence[Shape], size: Size, sure: Sequence[bool]) -> list[Fate | None]:
    if all(sure):
        return [None] * len(shapes)
    pairs = zip(sure, shapes, strict=True)
    return [None if is_sure else _end_of(number, shape, size) for number, (is_sure, shape) in enumerate(pairs)]


def _certain(shapes: Sequence[Shape], sizes: Sequence[Size]) -> list[bool] | None:
    """Which shapes are a single polygon that surely covers a pixel of its picture; None where one is no polygon."""
    result = np.zeros(len(shapes), dtype=bool)
    try:
        places = [number for number, shape in enumerate(shapes) if _is_usual(shape)]
        outlines = [shapes[number]["polygons"][0] for number in places]
        if not outlines:
            return result.tolist()
        if isinstance(outlines[0], np.ndarray):
            numbers = np.concatenate(outlines, dtype=np.float64)
        else:
            numbers = np.array(list(chain.from_iterable(outlines)), dtype=np.float64)
        lengths = np.array([len(outline) for outline in outlines])
        points = numbers.reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):  # each for itself tells which
        return None
    with np.errstate(all="ignore"):  # what is no number lies in no picture
        result[places] = _thick(points, lengths // 2, np.array([sizes[number] for number in places]))
    return result.tolist()


def _is_usual(shape: Shape) -> bool:
    polygons: Sequence[Any] = shape.get("polygons") or ()
    return len(polygons) == 1 and 6 <= len(polygons[0]) <= 2 * MANY_POINTS and len(polygons[0]) % 2 == 0


def _thick(points: np.ndarray, lengths: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which polygons, one after the other in `points` (N, 2), lie in their picture and are wider than 1.5 pixels.

    Args:
        lengths: of each polygon (P,).
        sizes: (height, width) of its picture (P, 2).
    """
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    lowest, highest = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)  # (P, 2)
    following = np.arange(1, len(points) + 1)
    following[starts + lengths - 1] = starts
    x, y = points.T
    area = np.abs(np.add.reduceat(x * y[following] - x[following] * y, starts)) / 2  # (P,)
    inside = (lowest >= 0).all(axis=1) & (highest <= sizes[:, ::-1]).all(axis=1)
    return np.asarray(inside & (area >= 1.5 * (highest - lowest).max(axis=1) + 2))


def _end_of(number: int, shape: Shape, size: Size) -> Fate | None:
    with read_errors(shape.get("entry", f"shape {number + 1}")):  # annotations come from many tools
        covers, reach = covers_a_pixel(shape, size), _reach(shape)
        if reach is None:
            return None if covers else _why_empty(shape, size)
        lowest, highest = reach
        if (lowest >= (size[1], size[0])).any() or (highest <= 0).any():
            return OUTSIDE
        if max(-lowest.min(), highest.max() - max(size)) > FARTHEST:
            return FAR
        return None if covers else TINY


def _why_empty(shape: Shape, size: Size) -> Fate:
    if "box" not in shape:
        return EMPTY
    left, top = shape["box"][:2]
    return OUTSIDE if left >= size[1] or top >= size[0] or min(left, top) < 0 else EMPTY


def _reach(shape: Shape) -> tuple[np.ndarray, np.ndarray] | None:
    """The lowest and the highest x and y of an outline (2,); None where it encloses nothing, or the shape has none."""
    if "polygons" in shape:
        outlines = [np.reshape(outline, (-1, 2)).astype(np.float64) for outline in shape["polygons"]]
        outlines = [outline for outline in outlines if len(outline) >= 3 and _area(outline)]
        if not outlines:
            return None
        return np.min([o.min(axis=0) for o in outlines], axis=0), np.max([o.max(axis=0) for o in outlines], axis=0)
    if "ellipse" in shape:
        x, y, across, down, _ = checked_ellipse(shape["ellipse"])
        radius = max(abs(across), abs(down)) if across and down else 0.0
        return (np.array([x, y]) - radius, np.array([x, y]) + radius) if radius else None
    return None


def _area(points: np.ndarray) -> float:
    """What a polygon (N, 2) encloses, in parts of its extent; 0 where all points lie on one line."""
    points = points / (np.abs(points).max() or 1.0)  # so that no product overflows
    x, y = (points - points.mean(axis=0)).T
    area = abs(float(x @ np.roll(y, -1) - np.roll(x, -1) @ y)) / 2
    return area if area > 1e-9 * float(np.ptp(points, axis=0).max()) ** 2 else 0.0
