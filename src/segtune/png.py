"""PNG files written row by row, for maps that never are in memory as a whole.

Pillow and OpenCV encode a whole picture at once. The format itself is a stream: a header, an optional palette, and one
zlib stream of the rows (W3C, Portable Network Graphics, third edition, 2025), so that `zlib` and `struct` are enough.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, PALETTE = 0, 3  # colour types
UP = 2  # the filter: a row as the difference from the one above, which makes most of a label map zeros


class PngWriter:
    """Writes ids as a PNG of one channel; use it as a context, and `write` the rows from top to bottom.

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
        kind = GREY if palette is None else PALETTE
        self._chunk(b"IHDR", struct.pack(">2I5B", self.width, height, 8 * self.stored.itemsize, kind, 0, 0, 0))
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

    def __enter__(self) -> PngWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._chunk(b"IDAT", self.compressor.flush())
            self._chunk(b"IEND", b"")
        self.file.close()

    def _chunk(self, name: bytes, content: bytes) -> None:
        if content or name == b"IEND":
            checksum = zlib.crc32(content, zlib.crc32(name))
            self.file.write(struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum))
