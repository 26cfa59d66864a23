"""Rasterization of polygons and other shapes: masks are drawn by one rule for every annotation format.

A pixel belongs to a shape whose outline encloses its centre. Coordinates are those of the picture's corner: pixel (row,
column) covers x from column to column + 1. Polygons and run lengths are drawn by pycocotools, which rounds outlines to
a fifth of a pixel, as COCO's own masks are drawn.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, Literal

import numpy as np
import PIL.Image

from segtune.data.annotations.outlines import (
    check_part,
    checked_ellipse,
    checked_outlines,
    checked_pixels,
    checked_rle,
    whole_numbers,
)
from segtune.errors import DataError, UsageError, naming
from segtune.imageio.read import Window

LARGE = 2**22  # pixels of a picture in which each shape is drawn in the part where it lies
OnTop = Literal["smaller", "later"]
Shape = dict[str, Any]
"""What covers a part of a picture, JSON-able: "value" is its mask value, None for ignored, and one of

- "polygons": outlines [[x, y, x, y, …], …], together one shape, without what outlines in "holes" enclose;
- "rle": COCO's run lengths, {"size": [height, width], "counts": numbers or text};
- "ellipse": [x, y, radius across, radius down, degrees clockwise];
- "runs": numbers of pixels, not covered and covered in turn, row by row within "box" [left, top, width, height];
- "brush": Label Studio's run lengths as base64, of the whole picture;
- "pixels": Kaggle's run lengths as text, pairs of a first pixel, from 1 on down the columns, and a length;
- "bitmap": a PNG of the covered pixels as base64, at "box" [left, top]; with "whole", of the whole picture.

More may be there for messages and counts: "entry" names it in its file, as "annotation 7"; of a shape that is ignored,
"label" is its class and "rule" the kind of the `tally.Fate` that says why.
"""


def draw(shapes: Iterable[Shape], size: tuple[int, int], on_top: OnTop, window: Window | None = None) -> np.ndarray:
    """Mask values (H, W); 0 where no shape lies; masked (`numpy.ma`) where the top one is ignored.

    Args:
        size: (height, width).
        on_top: which shape counts where several lie: the smaller one (of one size, the later one; ignored ones lie
            below all others) or the later one.
        window: the part of the picture that is drawn; of polygons, what lies elsewhere costs next to nothing.

    Raises:
        DataError: a shape does not fit the size.
        UsageError: pycocotools is not installed.
    """
    coco = _import_pycocotools()
    shapes = list(shapes)
    if window and any("polygons" not in shape for shape in shapes):
        return draw(shapes, size, on_top)[window.area]
    seen = window or Window(0, 0, *size)
    covers, areas = [], []
    for number, shape in enumerate(shapes, start=1):
        with naming(shape.get("entry", f"shape {number}")):
            part = _part_of(shape, seen) if window or math.prod(size) > LARGE else seen
            if part is None:
                continue
            covers.append((shape["value"], _cover(shape, size, part), part))
            if on_top == "smaller":
                areas.append(int(coco.area(covers[-1][1] if part == Window(0, 0, *size) else _cover(shape, size))))
    if on_top == "smaller":
        order = sorted(range(len(covers)), key=lambda place: (covers[place][0] is not None, -areas[place]))
        covers = [covers[place] for place in order]
    labels = np.zeros(
        (seen.height, seen.width), dtype=np.min_scalar_type(max((cover[0] or 0 for cover in covers), default=0))
    )
    ignored = np.zeros(labels.shape, dtype=bool)
    for (value, part), group in groupby(covers, key=lambda cover: (cover[0], cover[2])):
        covered = coco.decode(coco.merge([cover for _, cover, _ in group])).astype(bool)  # (h, w)
        area = part._replace(top=part.top - seen.top, left=part.left - seen.left).area
        ignored[area][covered] = value is None
        if value is not None:
            labels[area][covered] = value
    labels = labels.astype(np.min_scalar_type(int(labels.max(initial=0))), copy=False)
    return np.ma.masked_array(labels, ignored) if ignored.any() else labels


def rectangle(
    left: float,
    top: float,
    right: float,
    bottom: float,
    degrees: float = 0.0,
    pivot: tuple[float, float] | None = None,
) -> list[float]:
    """The outline of a box, turned clockwise around `pivot`, by default its centre."""
    center = pivot or ((left + right) / 2, (top + bottom) / 2)
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=np.float64)
    with np.errstate(all="ignore"):  # what is no number is refused when it is drawn
        return np.add(_turn(corners - center, degrees), center).ravel().tolist()


def _turn(points: np.ndarray, degrees: float) -> np.ndarray:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return points @ np.array([[cosine, sine], [-sine, cosine]])


def covers_a_pixel(shape: Shape, size: tuple[int, int]) -> bool:
    """Whether a shape covers any pixel of a picture of (height, width); of brush strokes, only their size is checked.

    Raises:
        DataError: it does not fit the size.
        UsageError: pycocotools is not installed.
    """
    if "brush" in shape:  # they take a while to decode
        _check_brush(_Bits(base64.b64decode(shape["brush"])), size)
        return True
    if "pixels" in shape:
        return bool(checked_pixels(shape["pixels"], size)[1].any())
    return int(_import_pycocotools().area(_cover(shape, size))) > 0


def _part_of(shape: Shape, seen: Window) -> Window | None:
    """The part of a window in which polygons may cover a pixel, None where there is none; of other shapes, all of it.

    Outlines that cannot be drawn have all of it, too: that is told when they are.
    """
    try:
        outlines = [np.asarray(outline, dtype=np.float64) for outline in shape.get("polygons", [None])]
        points = np.concatenate([outline.reshape(-1, 2) for outline in outlines]) if outlines else np.empty((0, 2))
    except (TypeError, ValueError, OverflowError):
        return seen
    if not np.isfinite(points).all() or any(outline.ndim != 1 for outline in outlines):
        return seen
    if not len(points):
        return None
    ends = np.array([[seen.left, seen.top], [seen.left + seen.width, seen.top + seen.height]])
    (left, top), (right, bottom) = np.clip([points.min(axis=0) - 1, points.max(axis=0) + 2], *ends).astype(int).tolist()
    return Window(top, left, bottom - top, right - left) if bottom > top and right > left else None


def _seen_from(outline: Sequence[float], window: Window) -> list[float]:
    """An outline in the coordinates of a window, so that pycocotools draws the same pixels in it as in the picture.

    It rounds to fifths of a pixel by cutting off behind the point, which goes up for numbers below 0.
    """
    fifths = np.trunc(5 * np.asarray(outline) + 0.5) - 5 * np.resize([window.left, window.top], len(outline))
    return (np.where(fifths < 0, fifths - 0.6, fifths) / 5).tolist()


def _cover(shape: Shape, size: tuple[int, int], window: Window | None = None) -> Any:
    """The pixels that a shape covers, as COCO's compressed run lengths; of polygons, those of a window."""
    coco = _import_pycocotools()
    if "polygons" in shape:
        outlines = checked_outlines(shape["polygons"], size)
        drawn = (window.height, window.width) if window else size
        if window and window != Window(0, 0, *size):
            outlines = [_seen_from(outline, window) for outline in outlines]
        cover = coco.merge(coco.frPyObjects(outlines, *drawn)) if outlines else _encode(np.zeros(drawn, dtype=bool))
        return _without(cover, _cover({"polygons": shape["holes"]}, size, window)) if shape.get("holes") else cover
    if "rle" in shape:
        rle = checked_rle(shape["rle"], size)
        return rle if isinstance(rle["counts"], str) else coco.frPyObjects(rle, *size)
    if "pixels" in shape:
        return _encode(_pixels(shape["pixels"], size))
    if "ellipse" in shape:
        return _encode(_ellipse(shape["ellipse"], size))
    if "brush" in shape:
        return _encode(decode_brush(base64.b64decode(shape["brush"]), size))
    left, top = shape["box"][:2]
    part = _runs(shape, size) if "runs" in shape else _bitmap(shape["bitmap"], size)
    if shape.get("whole") and part.shape != tuple(size):
        raise DataError(f"a bitmap of {part.shape} (height, width) for a picture of {tuple(size)}")
    whole = np.zeros(size, dtype=bool)
    place = whole[max(top, 0) : max(top + part.shape[0], 0), max(left, 0) : max(left + part.shape[1], 0)]
    place[:] = part[max(-top, 0) :, max(-left, 0) :][: place.shape[0], : place.shape[1]]
    return _encode(whole)


def _without(cover: Any, hole: Any) -> Any:
    coco = _import_pycocotools()
    return _encode(coco.decode(cover).astype(bool) & ~coco.decode(hole).astype(bool))


def _encode(covered: np.ndarray) -> Any:
    return _import_pycocotools().encode(np.asfortranarray(covered, dtype=np.uint8))


def _ellipse(ellipse: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    x, y, across, down, degrees = checked_ellipse(ellipse)
    covered = np.zeros(size, dtype=bool)
    if across and down:
        reach = max(abs(across), abs(down))
        top, bottom = np.clip([y - reach, y + reach + 1], 0, size[0]).astype(int)
        left, right = np.clip([x - reach, x + reach + 1], 0, size[1]).astype(int)
        rows, columns = np.mgrid[top:bottom, left:right] + 0.5
        with np.errstate(all="ignore"):  # what is too large for a number lies outside
            points = _turn(np.stack([columns - x, rows - y], axis=-1), -degrees)  # (h, w, 2)
            covered[top:bottom, left:right] = ((points / (across, down)) ** 2).sum(axis=-1) <= 1
    return covered


def _runs(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    _, _, width, height = shape["box"]
    check_part((height, width), size)
    runs = whole_numbers(shape["runs"], "run lengths")
    if (runs < 0).any() or runs.sum() != width * height:
        raise DataError(f"run lengths of {runs.sum()} pixels for a box of {height} x {width}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)


def _pixels(text: str, size: tuple[int, int]) -> np.ndarray:
    starts, lengths = checked_pixels(text, size)
    steps = np.zeros(size[0] * size[1] + 1, dtype=np.int32)
    np.add.at(steps, starts, 1)
    np.add.at(steps, starts + lengths, -1)
    return (steps[:-1].cumsum() > 0).reshape(size[1], size[0]).T  # down the columns


def _bitmap(text: str, size: tuple[int, int]) -> np.ndarray:
    """What a PNG covers: what is not transparent, else what is not black; all of it, where it is nothing but black."""
    with PIL.Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        check_part((picture.height, picture.width), size)
        values = np.asarray(picture.convert("LA"))  # (H, W, 2)
    light, opaque = values[:, :, 0] > 0, values[:, :, 1] > 0
    has_alpha = picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info
    return light if opaque.all() and (light.any() or not has_alpha) else opaque


def decode_brush(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """Where the brush of Label Studio has painted, bool (H, W).

    Its bytes are the run lengths of @thi.ng/rle-pack, of the picture's (H, W, 4) values: 32 bits for their number, 5
    for the bits of a value less one, four times 4 for the bits of a length less one; then tokens of 1 bit (a run or
    single values), 2 bits (which of the four), the length less one, and one value of a run or each single one.
    """
    bits = _Bits(data)
    count = _check_brush(bits, size)
    width = bits.take(5) + 1
    lengths = [bits.take(4) + 1 for _ in range(4)]
    values = np.zeros(count, dtype=np.uint8)
    position = 0
    while position < count:
        is_run = bits.take(1)
        end = position + 1 + bits.take(lengths[bits.take(2)])
        if is_run:
            values[position:end] = bits.take(width)
        else:
            values[position:end] = [bits.take(width) for _ in range(position, end)]
        position = end
    return values.reshape(*size, 4)[:, :, 3] > 0


def _check_brush(bits: _Bits, size: tuple[int, int]) -> int:
    """The number of values, which must be that of the picture."""
    count = bits.take(32)
    if count != 4 * size[0] * size[1]:
        raise DataError(f"brush strokes of {count} values for a picture of {tuple(size)} (height, width)")
    return count


class _Bits:
    """Reads numbers of any number of bits, the highest bit first."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, count: int) -> int:
        first, last = self.position // 8, (self.position + count + 7) // 8
        self.position += count
        if last > len(self.data):
            raise DataError("brush strokes end too early")
        chunk = int.from_bytes(self.data[first:last], "big")
        return chunk >> (8 * last - self.position) & ((1 << count) - 1)


def _import_pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UsageError("drawing shapes needs the package pycocotools: pip install 'segtune[coco]'") from error
    return mask
