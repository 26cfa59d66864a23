"""Parts of files as samples: tiles of large images, and pages of stacks, read one at a time and never written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Literal

from segtune.data.index import DatasetIndex, Sample
from segtune.imageio.read import Window


def choose_frames(index: DatasetIndex, wanted: Literal["all", "first"] | None) -> None:
    """Make the samples of files with several pages or frames what `dataset.frames` says; note them as a problem else.

    "all" gives each page of an image the same page of its mask, as a sample whose id ends with "@p" and its number from
    0. They are made after splits were drawn, so that one file is in one split.
    """
    several = {sample: max(sample.frames) for sample in index.samples if max(sample.frames) > 1}
    unlike = {sample for sample in several if wanted == "all" and len(set(sample.frames)) > 1}
    index.report(
        "several_frames",
        "files with several pages or frames",
        {index.below(s.image): _show_frames(index, s) for s in several if wanted is None or s in unlike},
        "dataset.frames=all makes a sample of each page, and wants as many of the mask; dataset.frames=first takes the "
        "first alone. Where pages are channels, store them in one page",
    )
    if several:
        kept = [s for s in index.samples if s not in unlike and (wanted or s not in several)]
        chosen = [_frames_of(sample, wanted or "first", several.get(sample, 1)) for sample in kept]
        index.samples = [sample for samples in chosen for sample in samples]


def _show_frames(index: DatasetIndex, sample: Sample) -> str:
    return f"{index.below(sample.image)} ({sample.frames[0]}, its mask {sample.frames[1]})"


def _frames_of(sample: Sample, wanted: Literal["all", "first"], number: int) -> list[Sample]:
    """The samples that a file of so many pages becomes."""
    if number == 1:
        return [sample]
    frames = [_with_part(sample, sample.id, frame=0)]
    if wanted == "all":
        width = len(str(number - 1))
        frames = [_with_part(sample, f"{sample.id}@p{frame:0{width}}", frame=frame) for frame in range(number)]
    return [frame._replace(frames=(1, 1)) for frame in frames]


def _with_part(sample: Sample, sample_id: str, **what: object) -> Sample:
    """The sample with more said about which part of both files is meant."""
    image_part, mask_part = (
        json.dumps((json.loads(part) if part else {}) | what) for part in (sample.image_part, sample.mask_part)
    )
    return sample._replace(id=sample_id, image_part=image_part, mask_part=mask_part)


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
        for window in windows:
            tile = _with_part(sample, f"{sample.id}@{window.top},{window.left}", window=window)
            tiles.append(tile._replace(size=(window.height, window.width)))
    return tiles


def without_tile(sample_id: str) -> str:
    """The id of the image that a tile or a page is part of."""
    return re.sub(r"(@p\d+)?(@\d+,\d+)?$", "", sample_id)


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
