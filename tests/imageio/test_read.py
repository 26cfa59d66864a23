"""Files as pictures and arrays, images and masks of them, and what decoders raise."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segtune.errors import DataError, UsageError
from segtune.imageio.read import (
    Header,
    ReadError,
    Window,
    for_display,
    open_picture,
    read_file,
    read_header,
    read_image,
    read_mask,
    try_header,
)
from segtune.labels.label_map import LabelMap

GREY = np.array([[0, 100], [200, 255]], dtype=np.uint8)
RGB = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
BANDS = np.random.default_rng(1).integers(0, 10000, (4, 5, 6), dtype=np.uint16)


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        OSError("planted"),
        SyntaxError("planted"),
        struct.error("planted"),
        OverflowError("planted"),
        EOFError("planted"),
        KeyError("planted"),
        TypeError("planted"),
        RecursionError("planted"),
    ],
)
def test_whatever_a_decoder_raises_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "a.png"
    PIL.Image.fromarray(RGB).save(path)

    def fail(self: Any) -> None:
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", fail)
    with pytest.raises(ReadError, match=r"a\.png: cannot be read \('?planted'?\)$") as found:
        read_file(path)
    assert isinstance(found.value, DataError) and found.value.__cause__ is error
    assert found.value.path == str(path)
    assert read_header(path).size == (4, 5)  # which does not decode


@pytest.mark.parametrize("error", [MemoryError("planted"), UsageError("planted"), KeyboardInterrupt()])
def test_what_is_no_fault_of_the_file_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    PIL.Image.fromarray(RGB).save(tmp_path / "a.png")

    def fail(self: Any) -> None:
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", fail)
    with pytest.raises(type(error)) as found:
        read_file(tmp_path / "a.png")
    assert found.value is error


def test_a_bug_of_the_caller_is_no_fault_of_the_file(tmp_path: Path) -> None:
    PIL.Image.fromarray(RGB).save(tmp_path / "a.png")
    with pytest.raises(AttributeError):
        read_file(tmp_path / "a.png", (0, 0, 1, 1))  # type: ignore[arg-type]


PNG = b"\x89PNG\r\n\x1a\n"
SIXTEEN_TAGS = b"II*\x00\x08\x00\x00\x00\x10\x00"  # of a TIFF, of which none is there


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", b"", "the file is empty"),
        ("a.npy", b"", "the file is empty"),
        ("a.tif", b"", "the file is empty"),
        ("a.jpg", b"<html>404</html>", "it is no picture, or of an unknown format"),
        ("a.png", PNG, "it is no picture, or of an unknown format"),
        ("a.png", PNG + b"\x00\x00\x00\rIHDR" + bytes(17), "it is no picture, or of an unknown format"),
        ("a.npy", b"nothing", ""),
        ("a.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f8'}  ", ""),
        ("a.npz", b"PK\x03\x04", "File is not a zip file"),
        ("a.tif", b"no raster", ""),
        ("a.tif", SIXTEEN_TAGS, ""),
        ("a.webp", b"RIFF\x00\x00\x00\x00WEBPVP8 ", ""),
        ("a.ppm", b"P6 3", ""),
        ("a.bmp", b"BM" + bytes(20), ""),
    ],
)
def test_files_that_are_broken(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ReadError, match=rf"{name}: cannot be read \(.+\)$") as error:
        read_file(path)
    assert reason in error.value.reason
    size = try_header(path)
    assert isinstance(size, ReadError) and reason in size.reason


def test_pictures_cut_off_anywhere(tmp_path: Path) -> None:
    """The header may be read, or not; no other error comes out."""
    count = 0
    for suffix in ("png", "jpg", "gif", "webp", "bmp", "tif", "jp2", "npy", "npz"):
        path = tmp_path / f"a.{suffix}"
        if suffix in ("npy", "npz"):
            np.save(path, RGB) if suffix == "npy" else np.savez(path, RGB)
        else:
            PIL.Image.fromarray(RGB).save(path)
        content = path.read_bytes()
        for end in range(0, len(content) - 1, max(1, len(content) // 40)):
            path.write_bytes(content[:end])
            for read in (read_file, read_header):
                try:
                    read(path)
                except ReadError:
                    count += 1
    assert count > 300


def test_files_that_are_not_there_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(try_header(tmp_path / "a.png")) == f"{tmp_path}/a.png: cannot be read (No such file or directory)"
    with pytest.raises(ReadError, match=r"it is a folder"):
        read_file(tmp_path)
    PIL.Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 3)
    with pytest.raises(ReadError, match="MAX_IMAGE_PIXELS = None lifts the limit"):
        read_file(tmp_path / "a.png")


def test_content_is_named_by_its_path() -> None:
    with pytest.raises(ReadError, match=r"^row 7: cannot be read \(it is no picture"), open_picture("row 7", b"none"):
        pass


def test_errors_cross_processes() -> None:
    error = pickle.loads(pickle.dumps(ReadError("a.png", "broken")))
    assert (str(error), error.path, error.reason) == ("a.png: cannot be read (broken)", "a.png", "broken")


# -- files ------------------------------------------------------------------------------------------------------------


def test_headers(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=exif)
    assert read_header(tmp_path / "a.jpg") == Header((5, 4), "RGB", "JPEG", 6, (), True)
    palette = PIL.Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([1, 2, 3, 4, 5, 6])
    palette.save(tmp_path / "a.png")
    assert read_header(tmp_path / "a.png") == Header((1, 2), "P", "PNG", 1, ((1, 2, 3), (4, 5, 6)), False)
    for lossless in (True, False):
        PIL.Image.fromarray(RGB).save(tmp_path / "a.webp", lossless=lossless)
        assert read_header(tmp_path / "a.webp").lossy is not lossless
    np.save(tmp_path / "a.npy", RGB)
    assert read_header(tmp_path / "a.npy") == Header((4, 5))


def test_windows_of_pictures_and_arrays() -> None:
    window = Window(1, 2, 3, 2)
    np.testing.assert_array_equal(np.asarray(window.crop(PIL.Image.fromarray(RGB))), RGB[1:4, 2:4])
    np.testing.assert_array_equal(window.crop(BANDS), BANDS[1:4, 2:4])


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("first", [True, False])
def test_arrays_with_channels_at_either_end(tmp_path: Path, suffix: str, first: bool) -> None:
    array = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    path = tmp_path / f"a.{suffix}"
    stored = np.moveaxis(array, 2, 0) if first else array
    np.save(path, stored) if suffix == "npy" else np.savez(path, bands=stored)
    assert read_header(path).size == (6, 5)
    np.testing.assert_array_equal(read_file(path), array)
    np.testing.assert_array_equal(read_file(path, Window(1, 2, 3, 3)), array[1:4, 2:5])


def test_arrays_that_are_no_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.zeros((2, 2)), mask=np.zeros((2, 2)))
    assert "a.npz holds 2 arrays (image, mask): save one array in each file" in str(try_header(tmp_path / "a.npz"))
    np.save(tmp_path / "b.npy", np.zeros(5))
    assert "an array of float64 (5,)" in str(try_header(tmp_path / "b.npy"))
    (tmp_path / "c.npy").write_bytes(b"nothing")
    assert isinstance(try_header(tmp_path / "c.npy"), Exception)
    np.save(tmp_path / "d.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert isinstance(try_header(tmp_path / "d.npy"), Exception)


def test_pictures_in_windows_are_turned_first(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(pixels, -1)
    assert read_header(tmp_path / "a.png").size == (6, 4)
    np.testing.assert_array_equal(np.asarray(read_file(tmp_path / "a.png", Window(2, 1, 3, 2))), upright[2:5, 1:3])


# -- images and masks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image",
    [
        PIL.Image.fromarray(GREY),
        PIL.Image.fromarray(GREY).convert("LA"),
        PIL.Image.fromarray(GREY).convert("P"),
        PIL.Image.fromarray(GREY.astype(np.uint16) * 256 + 17),
        PIL.Image.fromarray(GREY.astype(np.int32) * 256),
        GREY,
        GREY[:, :, None],
        GREY.astype(np.uint16) * 257,
    ],
)
def test_grey_images_become_rgb(image: Any) -> None:
    pixels = read_image(image)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.dstack([GREY] * 3))


@pytest.mark.parametrize(
    "image", [PIL.Image.fromarray(RGB), PIL.Image.fromarray(RGB).convert("RGBA"), RGB, np.dstack([RGB, RGB[:, :, :1]])]
)
def test_alpha_is_dropped(image: Any) -> None:
    np.testing.assert_array_equal(read_image(image), RGB)


def test_black_and_white_images() -> None:
    picture = PIL.Image.fromarray(np.array([[True, False]]))
    for image in (picture, np.asarray(picture), np.array([[True, False]])):
        assert read_image(image).tolist() == [[[255] * 3, [0] * 3]]


def test_transparent_palette_images(tmp_path: Path) -> None:
    image = PIL.Image.fromarray(np.array([[0, 1]], np.uint8), mode=None)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png", transparency=b"\x00\x80")
    with PIL.Image.open(tmp_path / "a.png") as stored:
        assert read_image(stored).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_print_colors(tmp_path: Path) -> None:
    PIL.Image.new("CMYK", (3, 2)).save(tmp_path / "a.jpg")
    with PIL.Image.open(tmp_path / "a.jpg") as stored:
        assert read_image(stored).tolist() == [[[255] * 3] * 3] * 2


@pytest.mark.parametrize(
    "image",
    [PIL.Image.new("F", (2, 2)), np.zeros((2, 2)), np.zeros((2, 2, 5), np.uint8), np.zeros((1, 2, 2, 3), np.uint8)],
)
def test_other_images_are_refused(image: Any) -> None:
    with pytest.raises(DataError, match="an image of"):
        read_image(image)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("ids", [np.array([[0, 7], [11, 255]], np.uint8), np.array([[0, 300], [70, 65535]], np.uint16)])
def test_ids_are_read_as_stored(tmp_path: Path, suffix: str, ids: np.ndarray) -> None:
    PIL.Image.fromarray(ids).save(tmp_path / f"a.{suffix}")
    with PIL.Image.open(tmp_path / f"a.{suffix}") as mask:
        read = read_mask(mask)
    assert read.dtype == ids.dtype
    np.testing.assert_array_equal(read, ids)


def test_palette_masks_give_indices(tmp_path: Path) -> None:
    mask = PIL.Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    mask.putpalette([0, 0, 0, 128, 64, 128, 200, 0, 0])
    mask.save(tmp_path / "a.png", transparency=0)
    with PIL.Image.open(tmp_path / "a.png") as stored:
        assert stored.mode == "P"
        assert read_mask(stored).tolist() == [[0, 1], [2, 1]]


def test_masks_of_other_modes() -> None:
    bits = read_mask(PIL.Image.fromarray(np.array([[True, False]])))
    assert LabelMap.from_names(["no", "yes"]).encode(bits).tolist() == [[1, 0]]
    np.testing.assert_array_equal(read_mask(PIL.Image.fromarray(GREY).convert("LA")), GREY)
    np.testing.assert_array_equal(read_mask(PIL.Image.fromarray(RGB)), RGB)
    np.testing.assert_array_equal(read_mask(PIL.Image.fromarray(RGB).convert("RGBA")), RGB)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_raw_numbers_of_any_type(dtype: Any) -> None:
    image = BANDS.astype(dtype)
    pixels = read_image(image, 6, raw=True)
    assert pixels.dtype == (np.uint8 if dtype is np.uint8 else np.float32)
    np.testing.assert_array_equal(pixels, image)


def test_raw_numbers_of_pictures() -> None:
    grey = PIL.Image.fromarray(GREY.astype(np.int32) * 300 - 5)
    assert read_image(grey, 1, raw=True)[:, :, 0].tolist() == (GREY.astype(int) * 300 - 5).tolist()
    deep = PIL.Image.fromarray(GREY.astype(np.uint16) * 256 + 17)
    assert read_image(deep, raw=True)[0, 1].tolist() == [100 * 256 + 17] * 3
    assert read_image(PIL.Image.fromarray(GREY.astype(np.float32) / 3), 1, raw=True).dtype == np.float32


def test_grey_and_four_channels() -> None:
    assert read_image(PIL.Image.fromarray(GREY), 1).shape == (2, 2, 1)
    assert read_image(PIL.Image.fromarray(RGB), 1).shape == (4, 5, 1)
    four = np.dstack([RGB, RGB[:, :, :1]])
    np.testing.assert_array_equal(read_image(PIL.Image.fromarray(four), 4), four)
    np.testing.assert_array_equal(read_image(four, 4), four)


@pytest.mark.parametrize(
    ("image", "channels", "message"),
    [
        (
            BANDS,
            3,
            r"an image of 6 channels, but transforms\.mean and std have 3 values.*model\.config\.num_channels=6",
        ),
        (BANDS, 6, r"an image of uint16 values, \d+ to \d+: say which .* as in transforms\.value_range=\[0, 10000\]"),
        (GREY / 255, 3, r"an image of float64 values, 0 to 1: say which"),
        (np.zeros((2, 2, 3), complex), 3, "an image of complex128"),
    ],
)
def test_what_must_be_declared(image: np.ndarray, channels: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_image(image, channels)


@pytest.mark.parametrize("mask", [np.array([[0.0, 2.0]]), np.array([[0, 2]], np.float32), [[0.0, 2.0]]])
def test_masks_of_whole_numbers_in_floating_point(mask: Any) -> None:
    assert (read_mask(mask).dtype.kind, read_mask(mask).tolist()) == ("i", [[0, 2]])
    masked = np.ma.masked_array(np.array([[np.nan, 3.0]]), [[True, False]])
    assert read_mask(masked).filled(7).tolist() == [[7, 3]]
    for wrong in (np.array([[0.5]]), np.array([[np.nan]])):
        with pytest.raises(DataError, match="holds fractions"):
            read_mask(wrong)


def test_pictures_for_people() -> None:
    assert for_display(RGB) is not None and (for_display(RGB) == RGB).all()
    np.testing.assert_array_equal(for_display(PIL.Image.fromarray(RGB)), RGB)
    shown = for_display(BANDS)
    assert (shown.dtype, shown.shape, shown.min(), shown.max()) == (np.uint8, (4, 5, 3), 0, 255)
    order = np.argsort(BANDS[:, :, :3].ravel())
    assert (np.diff(shown.ravel()[order].astype(int)) >= 0).all()
    assert for_display(BANDS[:, :, 0]).shape == for_display(BANDS[:, :, :2]).shape == (4, 5, 3)
    assert for_display(np.zeros((2, 2), np.float32)).max() == 0


# -- what would not fit into memory -----------------------------------------------------------------------------------


def bomb(path: Path, shape: tuple[int, ...]) -> None:
    """An .npz whose header announces an array of any size."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mask.npy", header.getvalue() + bytes(4096))


@pytest.mark.parametrize("shape", [(60_000, 60_000), (10**9, 10**9), (2**40, 3)])
def test_compressed_arrays_are_refused_by_their_header(tmp_path: Path, shape: tuple[int, ...]) -> None:
    bomb(tmp_path / "x.npz", shape)
    for read in (read_header, read_file):
        with pytest.raises(ReadError, match=r"x\.npz: cannot be read \(its array is .* GiB: at most 2 are unpacked"):
            read(tmp_path / "x.npz")
    bomb(tmp_path / "small.npz", (64, 64))
    assert np.asarray(read_file(tmp_path / "small.npz")).shape == (64, 64)


@pytest.mark.parametrize("shape", [(64, 63), (64, 65), (40_000, 40_000)])
def test_compressed_arrays_hold_what_their_header_says(tmp_path: Path, shape: tuple[int, ...]) -> None:
    bomb(tmp_path / "x.npz", shape)
    for read in (read_header, read_file):
        with pytest.raises(ReadError, match=r"x\.npz: .*of uint8, \d+ bytes, and 4096 are there: it is damaged"):
            read(tmp_path / "x.npz")


@pytest.mark.parametrize("kind", ["L", "1", "nodata", 4, 2])
def test_windows_of_tiff_equal_the_whole(tmp_path: Path, kind: str | int) -> None:
    """Also where 0 is white, and of grey with few bits: Pillow turns the former round and stretches the latter."""
    rasterio = pytest.importorskip("rasterio")
    values, path = np.random.default_rng(0).integers(0, 200, (20, 30), dtype=np.uint8), tmp_path / "a.tif"
    if isinstance(kind, int):
        profile = {"height": 20, "width": 30, "count": 1, "dtype": "uint8", "nbits": kind, "photometric": "MINISWHITE"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path, "w", driver="GTiff", **profile) as raster:
                raster.write(values[None] % 2**kind)
        expected = 2**kind - 1 - values % 2**kind
    else:
        expected = values % 2 == 1 if kind == "1" else values
        tags = {262: 0} | ({42113: str(255 - int(values[0, 0]))} if kind == "nodata" else {})
        PIL.Image.fromarray(expected).save(path, tiffinfo=tags)
    whole, window = read_file(path), read_file(path, Window(3, 4, 10, 20))
    area = slice(3, 13), slice(4, 24)
    for read in (read_mask, lambda pixels: read_image(pixels, 1)):
        assert np.asarray(read(window)).tolist() == np.asarray(read(whole))[area].tolist()
    assert np.array_equal(np.asarray(read_mask(whole))[expected != values[0, 0]], expected[expected != values[0, 0]])
    if kind == "nodata":
        for pixels, part in ((whole, expected), (window, expected[area])):
            assert np.array_equal(np.ma.getmaskarray(pixels), part == values[0, 0])


def test_rasters_are_refused_as_a_whole_but_read_in_windows(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    size = {"height": 30_000, "width": 30_000, "count": 5, "dtype": "uint8"}
    tiles = {"tiled": True, "blockxsize": 256, "blockysize": 256}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        rasterio.open(tmp_path / "x.tif", "w", driver="GTiff", sparse_ok=True, **size, **tiles).close()
        one = {"tiled": True, "blockxsize": 48_000, "blockysize": 48_000, "compress": "deflate", "sparse_ok": True}
        rasterio.open(tmp_path / "one tile.tif", "w", driver="GTiff", **size, **one).close()
    with pytest.raises(DataError, match=r"5 bands of \(30000, 30000\) pixels are too large at once: set dataset.tile"):
        read_file(tmp_path / "x.tif")
    assert np.asarray(read_file(tmp_path / "x.tif", Window(20_000, 100, 8, 6))).shape == (8, 6, 5)
    with pytest.raises(DataError, match=r"one tile\.tif: blocks of 2304000000 pixels"):
        read_file(tmp_path / "one tile.tif", Window(0, 0, 4, 4))
