"""Image writing: maps row by row into PNG or TIFF, whose file is there when it is complete, and arrays as bytes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from segtune.errors import UsageError
from segtune.files import atomic_path
from segtune.imageio.geotiff import Georeference, TiffWriter
from segtune.labels.label_map import LabelMap
from segtune.labels.mask_values import Color

LARGEST_ID = 2**16 - 1  # that a PNG holds

Write = Callable[[np.ndarray], None]  # of the next rows

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, PALETTE = 0, 3  # colour types
UP = 2  # the filter: a row as the difference from the one above, which makes most of a label map zeros


def id_type(label_map: LabelMap) -> type[np.uint8] | type[np.uint16]:
    """Of the masks that are written: 8 bits where they hold all labels and what their ignored pixels have."""
    is_wide = label_map.num_labels > 256 or (label_map.num_labels == 256 and label_map.ignore_index > 255)
    return np.uint16 if is_wide else np.uint8


@contextmanager
def mask_writer(
    path: Path, size: tuple[int, int], label_map: LabelMap, georeference: Georeference | None = None
) -> Iterator[Write]:
    """Writes the training ids of an image of `size`, the ignore index among them, from top to bottom.

    A PNG or, by its suffix, a TIFF, with the labels' palette; 16-bit ids without one where these are needed.
    """
    if label_map.num_labels > LARGEST_ID + 1:
        raise UsageError(f"{path}: a mask holds ids up to {LARGEST_ID}, the model has {label_map.num_labels} labels")
    dtype = id_type(label_map)
    colors = label_map.colors if dtype is np.uint8 else None
    nodata = label_map.ignore_index if 0 <= label_map.ignore_index <= np.iinfo(dtype).max else None
    with _map_writer(path, size, dtype, georeference, colors, nodata) as writer:
        yield writer.write


@contextmanager
def confidence_writer(path: Path, size: tuple[int, int], georeference: Georeference | None = None) -> Iterator[Write]:
    """Writes probabilities from 0 to 1: as 8-bit grey of a PNG (255 is 1), or as they are, 32-bit, into a TIFF."""
    is_png = path.suffix == ".png"
    with _map_writer(path, size, np.uint8 if is_png else np.float32, georeference) as writer:
        yield (lambda rows: writer.write(np.rint(rows * 255).astype(np.uint8))) if is_png else writer.write


@contextmanager
def _map_writer(
    path: Path,
    size: tuple[int, int],
    dtype: type[np.generic],
    georeference: Georeference | None,
    colors: Sequence[Color] | None = None,
    nodata: int | None = None,
) -> Iterator[PngWriter | TiffWriter]:
    with atomic_path(path) as temporary:
        if path.suffix == ".png":
            writer: PngWriter | TiffWriter = PngWriter(temporary, size, colors, dtype)
        else:
            writer = TiffWriter(temporary, size, dtype, georeference, colors, nodata)
        with closing(writer):
            yield writer


class PngWriter:
    """Writes ids as a PNG of one channel: `write` the rows from top to bottom, then `close` it.

    Args:
        size: (height, width).
        palette: one RGB colour for each id from 0, at most 256: a palette PNG. None: greyscale.
        dtype: uint8 or, without a palette, uint16.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        palette: Sequence[tuple[int, int, int]] | None = None,
        dtype: type[np.generic] = np.uint8,
    ) -> None:
        height, self.width = size
        self.stored = np.dtype(dtype).newbyteorder(">")
        self.file = path.open("wb")
        self.file.write(SIGNATURE)
        color_type = GREY if palette is None else PALETTE
        self._chunk(b"IHDR", struct.pack(">2I5B", self.width, height, 8 * self.stored.itemsize, color_type, 0, 0, 0))
        if palette is not None:
            self._chunk(b"PLTE", bytes(value for color in palette for value in color))
        self.compressor = zlib.compressobj()
        self.above = np.zeros(self.width * self.stored.itemsize, dtype=np.uint8)

    def write(self, rows: np.ndarray) -> None:
        """The next rows, `(n, width)`."""
        content = np.ascontiguousarray(rows, dtype=self.stored).view(np.uint8)  # (n, bytes of a row)
        filtered = np.empty((len(content), 1 + content.shape[1]), dtype=np.uint8)
        filtered[:, 0] = UP
        np.subtract(content, np.concatenate([self.above[None], content[:-1]]), out=filtered[:, 1:])
        self.above = content[-1].copy()
        self._chunk(b"IDAT", self.compressor.compress(filtered.data))

    def close(self) -> None:
        """Ends the file."""
        with self.file:
            self._chunk(b"IDAT", self.compressor.flush())
            self._chunk(b"IEND", b"")

    def _chunk(self, name: bytes, content: bytes) -> None:
        if content or name == b"IEND":
            checksum = zlib.crc32(content, zlib.crc32(name))
            self.file.write(struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum))


def encode_image(pixels: np.ndarray) -> tuple[bytes, str]:
    """A PNG where that holds the numbers of an image (H, W) or (H, W, C), else a NumPy array; and the file's suffix."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if pixels.dtype == np.bool_ or (pixels.dtype == np.uint8 and channels <= 4):
        return encode_png(np.squeeze(pixels, 2) if pixels.ndim == 3 and channels == 1 else pixels), ".png"
    if pixels.dtype in (np.uint16, np.int32) and channels == 1 and pixels.min() >= 0 and pixels.max() <= LARGEST_ID:
        return encode_png(pixels.reshape(pixels.shape[:2]).astype(np.uint16)), ".png"
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue(), ".npy"


def encode_png(array: np.ndarray) -> bytes:
    """A PNG of uint8 (H, W) or (H, W, 2, 3 or 4), uint16 (H, W) or bool (H, W)."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()
