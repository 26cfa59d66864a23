"""Polygon clipping and run lengths: what an annotation may say of a shape before anything is drawn of it.

pycocotools trusts its callers: what is not a number, or lies far outside, takes all memory or ends the process, and run
lengths of another size are drawn beside the picture. So shapes are checked, and cut to what can be seen, in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segtune.errors import DataError

LONGEST = 2**22  # pixels around one shape's outlines: pycocotools holds 80 bytes for each
Size = tuple[int, int]


def checked_outlines(outlines: Sequence[Any], size: Size) -> list[list[float]]:
    """Outlines [x, y, x, y, …] that are safe to draw on a picture of (height, width); those of less than three points
    enclose nothing and are left out.

    Raises:
        DataError: something else than pairs of finite numbers, or more outline than a picture can show.
    """
    points = [_points(outline) for outline in outlines]
    clipped = [found if _is_near(found, size) else _clip(found, size) for found in points if len(found) >= 3]
    length = sum(float(np.abs(found - np.roll(found, 1, axis=0)).max(axis=1).sum()) for found in clipped if len(found))
    if length > LONGEST:
        raise DataError(f"outlines of {length:.0f} pixels: at most {LONGEST} are drawn of one shape")
    return [found.ravel().tolist() for found in clipped if len(found) >= 3]


def _points(outline: Any) -> np.ndarray:
    """An outline as (N, 2) numbers."""
    try:
        numbers = np.asarray(outline, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty((0, 0))
    if numbers.ndim != 1 or len(numbers) % 2:
        raise DataError("an outline is a list of numbers x, y, x, y, …")
    return _finite(numbers).reshape(-1, 2)


def _finite(numbers: np.ndarray) -> np.ndarray:
    if not np.isfinite(numbers).all():
        raise DataError(f"coordinates hold {numbers[~np.isfinite(numbers)][0]}, which is no place in a picture")
    return numbers


def _is_near(points: np.ndarray, size: Size) -> bool:
    """Whether all points lie in the picture or less than its longer side outside: these are drawn as they are."""
    margin = max(size)
    return bool((points >= -margin).all() and (points <= np.array([size[1], size[0]]) + margin).all())


def _clip(points: np.ndarray, size: Size) -> np.ndarray:
    """The part of a polygon (N, 2) in the picture and a margin around it, side by side (Sutherland and Hodgman, 1974).

    Where it falls into several parts, these hang together by lines along the margin, which enclose nothing.
    """
    margin = max(size)
    for axis, bound, sign in ((0, -margin, 1), (0, size[1] + margin, -1), (1, -margin, 1), (1, size[0] + margin, -1)):
        points = _clip_side(points, axis, float(bound), sign) if len(points) else points
    return points


def _clip_side(points: np.ndarray, axis: int, bound: float, sign: int) -> np.ndarray:
    """The part of a polygon where sign * (coordinate - bound) >= 0."""
    before = np.roll(points, 1, axis=0)  # an edge leads from `before` to `points`
    inside, was_inside = sign * (points[:, axis] - bound) >= 0, sign * (before[:, axis] - bound) >= 0
    crosses = inside != was_inside
    is_near = np.abs(points[:, axis] / 2 - bound / 2) < np.abs(
        before[:, axis] / 2 - bound / 2
    )  # halved: none overflows
    near = np.where(is_near[:, None], points, before)  # from this end on, so that no digits are lost to a far one
    far = np.where(is_near[:, None], before, points)
    step = np.where(crosses, far[:, axis] / 2 - near[:, axis] / 2, 1.0)  # halved: no sum of two may overflow
    share = np.where(crosses, (bound / 2 - near[:, axis] / 2) / step, 0.0)[:, None]
    crossings = near * (1 - share) + far * share
    crossings[:, axis] = bound
    pairs = np.stack([crossings, points], axis=1).reshape(-1, 2)  # (2 N, 2), the crossing first
    return pairs[np.stack([crosses, inside], axis=1).ravel()]


def checked_rle(rle: Any, size: Size) -> dict[str, Any]:
    """COCO's run lengths {"size": [height, width], "counts": numbers or text}, which cover a picture exactly.

    Raises:
        DataError: they are for another size, or their sum is.
    """
    if not isinstance(rle, dict) or not {"size", "counts"} <= rle.keys():
        raise DataError("a segmentation is a list of outlines, or run lengths with size and counts")
    stated, counts = rle["size"], rle["counts"]
    if not isinstance(stated, (list, tuple)):
        raise DataError("the size of run lengths is [height, width]")
    if tuple(stated) != tuple(size):
        raise DataError(f"run lengths for {tuple(stated)} (height, width) in a picture of {tuple(size)}")
    runs = _runs_of(counts) if isinstance(counts, str) else whole_numbers(counts, "run lengths")
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise DataError(f"run lengths of {runs.sum()} pixels in a picture of {tuple(size)} (height, width)")
    return {"size": list(size), "counts": counts}


def checked_pixels(text: str, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """The first pixels, from 0 on, and the lengths of Kaggle's runs, which lie in the picture.

    Raises:
        DataError: they do not, or are no pairs of whole numbers.
    """
    try:
        numbers = np.array(text.split(), dtype=np.int64)
    except (ValueError, OverflowError):
        numbers = np.zeros(1, dtype=np.int64)
    if len(numbers) % 2:
        raise DataError("run lengths are pairs of whole numbers: a first pixel and a length")
    starts, lengths = numbers[::2], numbers[1::2]
    most = size[0] * size[1]
    if (starts < 1).any() or (lengths < 0).any() or (lengths > most).any() or (starts > most - lengths + 1).any():
        raise DataError(f"run lengths that leave the picture of {tuple(size)}: pixels count from 1 to {most}")
    return starts - 1, lengths


def whole_numbers(numbers: Any, what: str) -> np.ndarray:
    """A list of whole numbers that fit into 48 bits, as int64.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(numbers, list) or not all(isinstance(number, int) and abs(number) < 2**48 for number in numbers):
        raise DataError(f"{what} are a list of whole numbers")
    return np.array(numbers, dtype=np.int64)


def _runs_of(text: str) -> np.ndarray:
    """The numbers in COCO's compressed text: 5 bits a sign from "0" on, the lowest first, a sixth where more follow;
    from the fourth number on, differences to the one before the last."""
    signs = np.frombuffer(text.encode(errors="replace"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((signs & 32) == 0)
    if not len(signs) or signs.min() < 0 or signs.max() > 63 or not len(ends) or ends[-1] != len(signs) - 1:
        raise DataError("run lengths that are no text of COCO")
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 8:
        raise DataError("run lengths that are longer than any picture")
    places = np.arange(len(signs)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((signs & 31) << (5 * places), starts)
    numbers -= np.where(signs[ends] & 16, np.int64(1) << (5 * (ends - starts + 1)), 0)
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


def checked_ellipse(ellipse: Sequence[float]) -> tuple[float, float, float, float, float]:
    """Five finite numbers.

    Raises:
        DataError: they are something else.
    """
    x, y, across, down, degrees = _finite(np.array(ellipse, dtype=np.float64)).tolist()
    return x, y, across, down, degrees


def check_part(size: Size, whole: Size) -> None:
    """Refuse a drawn part that is much larger than the picture that it is a part of.

    Raises:
        DataError: it is.
    """
    if min(size) < 0 or size[0] > 2 * whole[0] or size[1] > 2 * whole[1]:
        raise DataError(f"a part of {size} (height, width) in a picture of {tuple(whole)}")
