"""Mask values, ids and colours: as one number a pixel, counted, shown in messages, read from what people write.

In Python a value is an int, or a tuple of red, green and blue; in arrays it is a code: the int itself, or 0xRRGGBB.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segtune.errors import UsageError, listed
from segtune.labels.label_file import FORMS

Color = tuple[int, int, int]
MOST_IDS = 2**17  # that a label file may name: all of 16 bits, and as many again
NO_DATA = -(2**31)  # the code, and the value, of pixels that a raster says have none


def count_values(mask: np.ndarray) -> dict[Any, int]:
    """Ids (H, W) or colours (H, W, 3 or 4) of a stored mask, each with its pixel count; masked pixels do not count."""
    ignored, mask = masked_pixels(mask), np.asarray(mask)
    colors = mask.ndim == 3 and mask.shape[2] >= 3
    codes = pack(mask.astype(np.int64)) if colors else mask
    return count_codes(codes if ignored is None else codes[~ignored], colors)


def show_value(key: Any) -> str:
    """A mask value as it is written in a JSON label file: '42' or '#804080'."""
    return "#{:02x}{:02x}{:02x}".format(*key) if isinstance(key, tuple) else str(key)


def show_values(values: Mapping[Any, int], limit: int = 5) -> str:
    """'id 42 (17 pixels), id 43 (1 pixel)', the most frequent first."""
    ranked = sorted(values.items(), key=lambda item: -item[1])
    shown = [
        f"{'colour' if isinstance(key, tuple) else 'id'} {show_value(key)} ({count} pixel{'s' if count != 1 else ''})"
        for key, count in ranked
    ]
    return listed(shown, limit)


def shorten(keys: Sequence[Any], limit: int = 12) -> str:
    """'ids 0 to 10' for a run of ids, else a list."""
    if len(keys) > 2 and isinstance(keys[0], int) and sorted(keys) == list(range(min(keys), max(keys) + 1)):
        return f"{min(keys)} to {max(keys)}"
    return ", ".join(show_value(key) for key in keys[:limit]) + (" ..." if len(keys) > limit else "")


def distinct_colors(count: int) -> tuple[Color, ...]:
    """Hues by the golden ratio, which come back to nearly the same after 21, in three tones."""
    tones = ((0.75, 0.95), (0.95, 0.60), (0.45, 0.85))
    colors = [colorsys.hsv_to_rgb((0.1 + i * 0.6180339887) % 1, *tones[(i + i // 21) % 3]) for i in range(count)]
    return tuple((round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in colors)


def is_color(key: Any) -> bool:
    return isinstance(key, (tuple, list)) or (isinstance(key, str) and key.startswith("#"))


def read_color(value: Any) -> Color:
    """(128, 64, 128), [128, 64, 128] or "#804080"."""
    try:
        parts = bytes.fromhex(value.removeprefix("#")) if isinstance(value, str) else value
        red, green, blue = (int(part) for part in parts)
        if all(0 <= part <= 255 for part in (red, green, blue)):
            return red, green, blue
    except (TypeError, ValueError, OverflowError):
        pass
    raise UsageError(f'{value!r} is no colour: write "#804080" or [128, 64, 128]')


def read_name(value: Any) -> str:
    if isinstance(value, str) and value.strip():
        return value
    raise UsageError(f"class name {value!r} is not text: put it in quotes")


def read_id(value: Any) -> int:
    try:
        if not isinstance(value, bool) and int(value) == float(value) and abs(int(value)) < 2**62:
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise UsageError(f"{value!r} is no mask id; write {FORMS}")


def id_range(key: Any) -> range:
    """The ids that "128-255" stands for, or the one that any other key is."""
    bounds = re.fullmatch(r"(\d{1,18})-(\d{1,18})", key) if isinstance(key, str) else None
    return range(int(bounds[1]), int(bounds[2]) + 1) if bounds else range(read_id(key), read_id(key) + 1)


def masked_pixels(mask: np.ndarray) -> np.ndarray | None:
    """Which pixels (H, W) of a masked array are masked; None of a plain one."""
    if not isinstance(mask, np.ma.MaskedArray):
        return None
    ignored: np.ndarray = np.ma.getmaskarray(mask)
    return ignored if ignored.ndim == 2 else np.any(ignored, axis=2)


def encode_value(value: Any) -> int:
    """The code of an id or a colour."""
    return value if isinstance(value, int) else value[0] << 16 | value[1] << 8 | value[2]


def decode_value(code: Any, is_color: bool) -> Any:
    """The id or the colour that a code stands for."""
    return (code >> 16, code >> 8 & 255, code & 255) if is_color and code != NO_DATA else code


def as_color(value: Any) -> Any:
    """The grey colour that a whole number from 0 to 255 stands for; other values as they are."""
    is_grey = not isinstance(value, tuple) and 0 <= value <= 255 and value == int(value)
    return (int(value),) * 3 if is_grey else value


def pack(channels: np.ndarray) -> np.ndarray:
    """The codes (H, W) of colours (H, W, 1, 3 or 4), whose type must hold 24 bits; one channel is grey."""
    red, green, blue = (channels[:, :, i] for i in ((0, 0, 0) if channels.shape[2] == 1 else (0, 1, 2)))
    return np.asarray(red << 16 | green << 8 | blue)


def mask_codes(mask: np.ndarray) -> tuple[np.ndarray, bool]:
    """The codes (H, W) of a stored mask, and whether they stand for colours.

    Ids keep their type, fractions too. Colours (H, W, 3 or 4) of which all are grey count as ids. Pixels that are
    masked (`numpy.ma`) get the code `NO_DATA`.
    """
    ignored, mask = masked_pixels(mask), np.ma.filled(mask, 0)
    is_color = mask.ndim == 3 and bool((mask[:, :, :3] != mask[:, :, :1]).any())
    codes = pack(mask.astype(np.int32)) if is_color else mask if mask.ndim == 2 else mask[:, :, 0]
    codes = codes.astype(np.uint8) if codes.dtype == bool else codes
    return codes if ignored is None else np.where(ignored, np.int64(NO_DATA), codes), is_color


def count_codes(codes: np.ndarray, colors: bool = False) -> dict[Any, int]:
    """Value -> how often its code occurs."""
    found, counts = np.unique(codes.astype(np.uint8) if codes.dtype == bool else codes, return_counts=True)
    values = (decode_value(code, colors) for code in found.tolist())
    return dict(zip(values, counts.tolist(), strict=True))
