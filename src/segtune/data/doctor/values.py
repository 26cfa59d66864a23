"""Which values a mask holds, and how they lie: solid areas, or single pixels and rims between two others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from segtune.label_values import Color, show_value

NO_DATA = -(2**31)  # the code of pixels that a raster says have none
COLOUR = 1 << 24  # is added to 0xRRGGBB, so that no colour is taken for an id
MOST_VALUES = 512  # of one mask, that are kept with their counts


class ValueFacts(NamedTuple):
    """What a mask (H, W) holds.

    Attributes:
        counts: code (the id, or the colour, see `pack`) -> pixels, the most frequent first; at most `MOST_VALUES`.
        distinct: how many different values there are.
        is_colour: the codes are colours; grey pictures with three channels count as ids.
        pixels: H * W.
        steps: places where the value jumps by 2 or more from one pixel to the next.
        rims: pixels whose value lies between those of their two neighbours, as smoothing leaves them.
        rim_values: how many different values `rims` have.
        specks: pixels that differ from all four neighbours.
    """

    counts: Mapping[Any, int]
    distinct: int
    is_colour: bool
    pixels: int
    steps: int
    rims: int
    rim_values: int
    specks: int

    @property
    def rim_share(self) -> float:
        """The part of the boundaries that has a rim; 0 where there are none."""
        return self.rims / max(self.rims + self.steps, 1)


def mask_codes(mask: np.ndarray) -> np.ndarray:
    """Ids (H, W) as they are; colours (H, W, 3) as int32, see `pack`, or as ids where all of them are grey.

    Pixels that are masked (`numpy.ma`) get the code `NO_DATA`.
    """
    if isinstance(mask, np.ma.MaskedArray):
        codes = mask_codes(np.ma.filled(mask, 0)).astype(np.int64)
        missing = np.ma.getmaskarray(mask)
        codes[missing if missing.ndim == 2 else missing.any(axis=2)] = NO_DATA
        return codes
    if mask.ndim == 2:
        return mask.astype(np.uint8) if mask.dtype == bool else mask
    if (mask[:, :, :3] == mask[:, :, :1]).all():
        return mask[:, :, 0]
    red, green, blue = (mask[:, :, channel].astype(np.int32) for channel in range(3))
    return COLOUR | red << 16 | green << 8 | blue  # (H, W)


def pack(color: Color) -> int:
    """The code of a colour."""
    return COLOUR | color[0] << 16 | color[1] << 8 | color[2]


def value_facts(codes: np.ndarray) -> ValueFacts:
    """Counts the values of (H, W) codes."""
    values, counts = np.unique(codes, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_VALUES]
    is_colour = codes.dtype == np.int32 and bool(values.max() >= COLOUR)
    steps, rims = _rims(_brightness(codes) if is_colour else codes)
    between = codes[rims]
    return ValueFacts(
        counts=dict(zip(values[order].tolist(), counts[order].tolist(), strict=True)),
        distinct=len(values),
        is_colour=is_colour,
        pixels=codes.size,
        steps=steps,
        rims=int(rims.sum()),
        rim_values=len(np.unique(between)),
        specks=_specks(codes),
    )


def shown(code: Any, is_colour: bool) -> str:
    """A code as it is written in a label file: '42' or '#804080'."""
    return show_value((code >> 16 & 255, code >> 8 & 255, code & 255)) if is_colour else show_value(code)


def _brightness(codes: np.ndarray) -> np.ndarray:
    return (codes >> 16 & 255) + (codes >> 8 & 255) + (codes & 255)  # (H, W)


def _rims(codes: np.ndarray) -> tuple[int, np.ndarray]:
    """How often neighbours differ by 2 or more, and which pixels lie strictly between the two beside or above/below."""
    levels = codes.astype(np.float32 if codes.dtype.kind == "f" else np.int32)
    rims = np.zeros(codes.shape, dtype=bool)
    steps = 0
    for lines, found in ((levels, rims), (levels.T, rims.T)):
        change = np.diff(lines, axis=1)
        steps += int((np.abs(change) >= 2).sum())
        found[:, 1:-1] |= (change[:, :-1] > 0) & (change[:, 1:] > 0) | (change[:, :-1] < 0) & (change[:, 1:] < 0)
    return steps, rims


def _specks(codes: np.ndarray) -> int:
    """Pixels that differ from all four neighbours; those at the border do not count."""
    across, down = codes[1:-1, 1:] != codes[1:-1, :-1], codes[1:, 1:-1] != codes[:-1, 1:-1]
    return int((across[:, :-1] & across[:, 1:] & down[:-1] & down[1:]).sum())
