"""Videos: frames out and in, upright, and what cannot be read."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from segtune.errors import DataError
from segtune.imageio.video import VideoReader, VideoWriter, is_video


def frames(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """A bright square in the upper left corner on a background that gets lighter."""
    pictures = [np.full((height, width, 3), 20 * i, np.uint8) for i in range(count)]
    for picture in pictures:
        picture[:16, :16] = 250
    return pictures


def save(path: Path, pictures: list[np.ndarray], rate: Fraction = Fraction(25)) -> None:
    with VideoWriter(path, rate) as video:
        for picture in pictures:
            video.write(picture)


@pytest.mark.parametrize("size", [(48, 64), (49, 65)])
def test_frames_come_back(tmp_path: Path, size: tuple[int, int]) -> None:
    pictures = frames(8, *size)
    save(tmp_path / "a.mp4", pictures, Fraction(30000, 1001))
    video = VideoReader(tmp_path / "a.mp4")
    assert (video.num_frames, video.rate) == (8, Fraction(30000, 1001))
    found = list(video)
    assert [picture.shape for picture in found] == [(48, 64, 3)] * 8  # sides of H.264 are even
    for picture, wanted in zip(found, pictures, strict=True):
        assert np.abs(picture.astype(int) - wanted[:48, :64]).mean() < 4


def test_frames_are_turned_as_the_camera_noted(tmp_path: Path) -> None:
    """A telephone held upright writes lying frames and a matrix that turns them clockwise by a quarter."""
    save(tmp_path / "a.mp4", frames(3))
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # ISO 14496-12, 8.3.2: version 0
    one = 1 << 16
    assert struct.unpack(">9i", content[matrix : matrix + 36]) == (one, 0, 0, 0, one, 0, 0, 0, one << 14)
    content[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 48 * one, 0, one << 14)
    (tmp_path / "a.mp4").write_bytes(content)
    picture = next(iter(VideoReader(tmp_path / "a.mp4")))
    assert picture.shape == (64, 48, 3)
    bright = picture.mean(axis=2) > 200
    assert bright[:14, -14:].all() and bright[:, :30].mean() < 0.05  # the upper left corner went to the upper right


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"a\.mp4: Invalid data"):
        VideoReader(tmp_path / "a.mp4")
    with pytest.raises(DataError, match=r"none\.mp4: No such file"):
        VideoReader(tmp_path / "none.mp4")


def test_videos_are_known_by_their_name() -> None:
    assert is_video(Path("a/b.MP4")) and is_video(Path("c.mov"))
    assert not is_video(Path("mp4.png"))
