"""Maps written to files row by row: masks with their colours, confidences; a file is there when it is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from segtune.errors import UsageError
from segtune.geo import Georeference, TiffWriter
from segtune.labels import LabelMap
from segtune.png import PngWriter
from segtune.whole_files import complete

Write = Callable[[np.ndarray], None]


@contextmanager
def mask_writer(
    path: Path, size: tuple[int, int], label_map: LabelMap, georeference: Georeference | None = None
) -> Iterator[Write]:
    """Writes the training ids of an image of `size`, the ignore index among them, from top to bottom.

    A PNG or, by its suffix, a TIFF, with the labels' palette; of more than 256 labels, 16-bit ids without one.
    """
    wide = label_map.num_labels > 256
    if label_map.num_labels > 2**16:
        raise UsageError(f"{path}: a mask holds ids up to {2**16 - 1}, the model has {label_map.num_labels} labels")
    dtype, colors = (np.uint16, None) if wide else (np.uint8, label_map.colors)
    with complete(path) as temporary:
        if path.suffix == ".png":
            with PngWriter(temporary, size, colors, dtype) as png:
                yield png.write
        else:
            ignored = label_map.ignore_index
            nodata = ignored if 0 <= ignored <= np.iinfo(dtype).max else None
            with TiffWriter(temporary, size, dtype, georeference, colors, nodata) as tiff:
                yield tiff.write


@contextmanager
def confidence_writer(path: Path, size: tuple[int, int], georeference: Georeference | None = None) -> Iterator[Write]:
    """Writes probabilities from 0 to 1: as 8-bit grey of a PNG (255 is 1), or as they are, 32-bit, into a TIFF."""
    with complete(path) as temporary:
        if path.suffix == ".png":
            with PngWriter(temporary, size) as png:
                yield lambda rows: png.write(np.rint(rows * 255).astype(np.uint8))
        else:
            with TiffWriter(temporary, size, np.float32, georeference) as tiff:
                yield tiff.write
