"""Video files through PyAV (the extra `video`): upright frames in, a silent H.264 video out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from segtune.errors import DataError, UsageError

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


def is_video(path: Path) -> bool:
    """Whether a file's name is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


class VideoReader:
    """The frames of a video's first video stream, one at a time.

    Attributes:
        num_frames: as the file says; None where it does not.
        rate: frames a second, on average.

    Raises:
        DataError: the file cannot be read or has no video stream.
        UsageError: PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _ffmpeg(path) as av:
            self._container = av.open(str(path))
        if not self._container.streams.video:
            raise DataError(f"{path}: there is no video in this file")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.num_frames: int | None = self._stream.frames or None
        self.rate = Fraction(self._stream.average_rate or 25)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames `(H, W, 3)` uint8 RGB, turned as the camera noted."""
        with _ffmpeg(self.path), self._container:
            for frame in self._container.decode(self._stream):
                pixels = frame.to_ndarray(format="rgb24")
                yield np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


class VideoWriter:
    """Writes frames as an MP4; use it as a context.

    Args:
        rate: frames a second.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.path, self.rate = path, rate
        with _ffmpeg(path) as av:
            self._av, self._container = av, av.open(str(path), "w", format="mp4")
        self._stream: Any = None

    def write(self, frame: np.ndarray) -> None:
        """The next frame, `(H, W, 3)` uint8; a last odd row or column is left out, as H.264 wants."""
        height, width = (side // 2 * 2 for side in frame.shape[:2])
        with _ffmpeg(self.path):
            if self._stream is None:
                codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
                self._stream = self._container.add_stream(codec, rate=self.rate)
                self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
            picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            self._container.mux(self._stream.encode(picture))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _ffmpeg(self.path):
            if self._stream is not None and error is None:
                self._container.mux(self._stream.encode())
            self._container.close()


@contextmanager
def _ffmpeg(path: Path) -> Iterator[Any]:
    """PyAV, with our errors."""
    try:
        import av
    except ImportError:
        raise UsageError(f"{path}: videos need the package av: pip install 'segtune[video]'") from None
    try:
        yield av
    except av.FFmpegError as error:
        raise DataError(f"{path}: {error.strerror}") from error
