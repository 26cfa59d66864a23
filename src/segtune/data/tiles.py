"""Tiling: large images as tiles that are read one at a time, without writing them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from segtune.data.index import Sample
from segtune.imageio.read import Window


def tiled(samples: Sequence[Sample], side: int, overlap: int) -> list[Sample]:
    """The samples in tiles of `side` pixels; their ids get "@top,left". Images that are no larger stay whole.

    Tiles of train overlap by `overlap` pixels or more and have the full side; those of val and test are cut without
    overlap into nearly equal parts of at most `side`, so that each pixel counts once.
    """
    tiles = []
    for sample in samples:
        windows = list(tile_windows(sample.size, side, overlap if sample.split == "train" else None))
        if len(windows) == 1:
            tiles.append(sample)
            continue
        image_part = json.loads(sample.image_part) if sample.image_part else {}
        mask_part = json.loads(sample.mask_part) if sample.mask_part else {}
        for window in windows:
            tiles.append(
                sample._replace(
                    id=f"{sample.id}@{window.top},{window.left}",
                    size=(window.height, window.width),
                    image_part=json.dumps(image_part | {"window": window}),
                    mask_part=json.dumps(mask_part | {"window": window}),
                )
            )
    return tiles


def without_tile(sample_id: str) -> str:
    """The id of the image that a tile is part of."""
    return re.sub(r"@\d+,\d+$", "", sample_id)


def tile_windows(size: tuple[int, int], side: int, overlap: int | None) -> Iterator[Window]:
    """The tiles of an image of (height, width), row by row; see `spans` for where they lie."""
    rows, columns = ([*spans(length, side, overlap)] for length in size)
    for top, bottom in rows:
        for left, right in columns:
            yield Window(top, left, bottom - top, right - left)


def spans(length: int, side: int, overlap: int | None) -> Iterator[tuple[int, int]]:
    """Where tiles begin and end along one side: of the full side, overlapping by `overlap` or more.

    Without an overlap (None) they lie next to each other, in nearly equal parts of at most `side`.
    """
    if length <= side:
        yield 0, length
    elif overlap is None:
        count = -(-length // side)
        yield from ((length * i // count, length * (i + 1) // count) for i in range(count))
    else:
        count = -(-(length - overlap) // (side - overlap))
        yield from ((start := (length - side) * i // (count - 1), start + side) for i in range(count))
