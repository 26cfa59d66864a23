"""What Pillow does in silence: frames, grey of few bits, sizes beyond its limit, transparency."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segtune.errors import DataError
from segtune.imageio.raster import open_raster
from segtune.imageio.read import ReadError, Window, read_file, read_header, read_mask, read_picture

IDS = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], dtype=np.uint8)


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of so many bits, packed by hand."""
    rows = b""
    for row in values:
        digits = "".join(format(int(value), f"0{bits}b") for value in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    header = struct.pack(">2I5B", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_holds_its_ids(tmp_path: Path, bits: int) -> None:
    ids = IDS % 2**bits
    path = tmp_path / "a.png"
    path.write_bytes(grey_png(ids, bits))
    assert read_mask(read_file(path)).tolist() == ids.tolist()
    assert read_mask(read_file(path, Window(0, 1, 2, 2))).tolist() == ids[:, 1:3].tolist()
    assert read_mask(read_picture("x", path.read_bytes())).tolist() == ids.tolist()


@pytest.mark.parametrize("content", [b"P5 4 1 3\n\0\1\2\3", b"P2 4 1 3\n0 1 2 3\n"])
def test_netpbm_of_few_levels_holds_its_ids(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(content)
    assert read_mask(read_file(path)).tolist() == [[0, 1, 2, 3]]


def save_frames(path: Path, pages: list[np.ndarray], **options: Any) -> Path:
    first, *rest = map(PIL.Image.fromarray, pages)
    first.save(path, save_all=True, append_images=rest, **options)
    return path


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp", "a.png"])
def test_one_of_several_frames_is_named_or_asked_for(tmp_path: Path, name: str) -> None:
    pages = [np.full((8, 8, 3), value, np.uint8) for value in (0, 100, 200)]
    path = save_frames(tmp_path / name, pages, **({"lossless": True} if name == "a.webp" else {}))
    assert read_header(path).frames == 3
    for frame, page in enumerate(pages):
        picture = read_file(path, frame=frame)
        assert isinstance(picture, PIL.Image.Image)
        assert np.asarray(picture.convert("RGB")).tolist() == page.tolist()
    with pytest.raises(ReadError, match=r"3 pages or frames, .* dataset.frames=first takes the first"):
        read_file(path)
    with pytest.raises(ReadError, match=r"frame 3 is asked for, counted from 0: it holds 3"):
        read_file(path, frame=3)
    with pytest.raises(DataError, match=r"3 pages or frames"):
        open_raster(path)


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_windows_of_pages_that_pillow_cannot_read(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    bands = np.random.default_rng(0).integers(0, 9, (2, 5, 6, 7)).astype(np.int16)  # pages, bands, H, W
    path = tmp_path / "a.tif"
    for page, pixels in enumerate(bands):
        options = {"APPEND_SUBDATASET": "YES"} if page else {}
        with rasterio.open(path, "w", driver="GTiff", count=5, height=6, width=7, dtype="int16", **options) as file:
            file.write(pixels)
    assert (read_header(path).size, read_header(path).frames) == ((6, 7), 2)
    assert np.asarray(read_file(path, frame=1)).tolist() == np.moveaxis(bands[1], 0, 2).tolist()
    window = read_file(path, Window(1, 2, 3, 4), frame=1)
    assert np.asarray(window).tolist() == np.moveaxis(bands[1][:, 1:4, 2:6], 0, 2).tolist()
    with pytest.raises(ReadError, match=r"2 pages or frames"):
        read_file(path)


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_reduced_copies_in_a_tiff_are_no_pages(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    pixels = np.arange(256 * 256, dtype=np.uint32).reshape(1, 256, 256).astype(np.uint8)
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", count=1, height=256, width=256, dtype="uint8") as file:
        file.write(pixels)
        file.build_overviews([2, 4])
    assert read_header(tmp_path / "a.tif").frames == 1
    assert np.asarray(read_file(tmp_path / "a.tif")).tolist() == pixels[0].tolist()


def test_what_a_phone_puts_behind_its_photograph_is_no_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [np.full((8, 8, 3), value, np.uint8) for value in (0, 200)]
    path = save_frames(tmp_path / "a.mpo", pages)
    assert read_header(path).frames == 1  # Pillow writes "Undefined", as gain maps and depths have it
    picture = read_file(path)
    assert isinstance(picture, PIL.Image.Image) and picture.getpixel((0, 0)) == (0, 0, 0)


def test_headers_and_windows_beyond_pillows_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rasterio")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for name in ("a.tif", "a.png"):
        PIL.Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr("segtune.imageio.read.LARGE", 1000)
    for name in ("a.tif", "a.png"):
        assert read_header(tmp_path / name).size == (40, 60)
        assert np.asarray(read_file(tmp_path / name, Window(5, 7, 20, 30))).tolist() == pixels[5:25, 7:37].tolist()
        with pytest.raises(ReadError, match=r"60 x 40 pixels are too many at once: dataset.tile=1024 reads windows"):
            read_file(tmp_path / name)


@pytest.mark.parametrize("suffix", ["jfif", "avif", "tga", "j2k", "pnm"])
def test_what_pillow_reads_is_read(tmp_path: Path, suffix: str) -> None:
    if f".{suffix}" not in PIL.Image.registered_extensions():  # AVIF came with Pillow 11.3
        pytest.skip("this Pillow reads no AVIF")
    path = tmp_path / f"a.{suffix}"
    PIL.Image.new("RGB", (6, 4), (200, 0, 0)).save(path, format="JPEG" if suffix == "jfif" else None)
    assert read_header(path).size == (4, 6)


# -- masks ------------------------------------------------------------------------------------------------------------


def test_palette_picture_is_its_indices_or_its_colours() -> None:
    mask = PIL.Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    mask.putpalette([0, 0, 0, 200, 100, 50])
    assert read_mask(mask).tolist() == [[0, 1], [1, 0]]
    assert read_mask(mask, colors=True)[0].tolist() == [[0, 0, 0], [200, 100, 50]]


def test_classes_in_the_transparency_are_not_dropped() -> None:
    white = np.full((2, 2, 4), 255, np.uint8)
    white[0, :, 3] = 0
    for mask in (PIL.Image.fromarray(white), white, PIL.Image.fromarray(white).convert("LA")):
        with pytest.raises(DataError, match=r"pixels of one colour, \[255.*\], are opaque and transparent.*getchannel"):
            read_mask(mask)
    white[0, :, :3] = 0  # transparent is black, opaque is white: nothing is lost
    assert read_mask(PIL.Image.fromarray(white))[:, 0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_masks_of_other_channels_and_numbers_are_refused() -> None:
    with pytest.raises(DataError, match=r"a mask of 12 channels.*dataset.one_hot=true"):
        read_mask(np.zeros((2, 3, 12), np.uint8))
    with pytest.raises(DataError, match=r"a mask of complex64 \(2, 3\)"):
        read_mask(np.zeros((2, 3), np.complex64))
