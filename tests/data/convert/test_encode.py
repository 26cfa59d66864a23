"""Samples in the form of a converted data set: what is copied, what is encoded, and how it is cut into tiles."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageOps

from segtune.data.convert.encode import EncodedSample, MaskEncoding, SampleEncoder
from segtune.errors import DataError
from segtune.imageio.read import read_image, read_mask
from segtune.labels.label_map import LabelMap

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
IDS = RNG.integers(0, 3, (40, 60), dtype=np.uint8)
LABELS = LabelMap.from_ids({0: "a", 1: "b", 2: "a", 7: None})


def encoded(
    tmp_path: Path,
    image: Any,
    mask: Any,
    label_map: LabelMap = LABELS,
    names: tuple[str, str] = ("i.png", "m.png"),
    **tile: int | None,
) -> list[EncodedSample]:
    paths = [tmp_path / names[0], tmp_path / names[1]]
    for path, picture in zip(paths, (image, mask), strict=True):
        if not isinstance(picture, Path):
            (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path)
    features = Features({"id": Value("string"), "image": ImageFeature(), "mask": ImageFeature()})
    rows = Dataset.from_dict({"id": ["x"], "image": [str(paths[0])], "mask": [str(paths[1])]}, features=features)
    return SampleEncoder(rows, label_map, MaskEncoding.of(label_map), **tile)(0)


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


# -- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label_map", "keeps_ids", "ignored", "dtype"),
    [
        (LABELS, True, 7, "uint8"),
        (LabelMap.from_ids({0: "a", 999: "b"}), True, 255, "uint16"),
        (LabelMap.from_ids({0: "a", 1: "b"}, ignore_index=65535), True, 65535, "uint16"),
        (LabelMap.from_names(["a", "b"], ignore_index=-100), True, 255, "uint8"),
        (LabelMap.from_ids({0: "a"}, ignore_index=-100), False, 255, "uint8"),
        (LabelMap.from_ids({-1: None, 0: "a"}), False, 255, "uint8"),
        (LabelMap.from_ids({70000: "a"}), False, 255, "uint8"),
        (LabelMap.from_colors({"#804080": "a", "#000000": None}), False, 255, "uint8"),
        (
            LabelMap.from_colors({(i // 256, i % 256, 0): f"{i}" for i in range(300)}, ignore_index=999),
            False,
            65535,
            "uint16",
        ),
    ],
)
def test_how_masks_are_stored(label_map: LabelMap, keeps_ids: bool, ignored: int, dtype: str) -> None:
    target = MaskEncoding.of(label_map)
    assert (target.keeps_ids, target.ignored, target.dtype) == (keeps_ids, ignored, dtype)
    assert (target.label_map.names, target.label_map.colors) == (label_map.names, label_map.colors)
    assert target.label_map.ignore_index == label_map.ignore_index
    assert (target.label_map == label_map) == keeps_ids
    if not keeps_ids:
        assert target.label_map.encode(np.array([[0, ignored]], dtype)).tolist() == [[0, label_map.ignore_index]]


def test_files_that_serve_are_copied(tmp_path: Path) -> None:
    palette = Image.fromarray(IDS)
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    (sample,) = encoded(tmp_path, RGB, palette, names=("i.JPG", "m.png"))
    assert (sample.image, sample.suffix) == ((tmp_path / "i.JPG").read_bytes(), ".jpg")
    assert sample.mask == (tmp_path / "m.png").read_bytes()
    counts = np.bincount(IDS.ravel())
    assert (sample.id, sample.counts) == ("x", [counts[0] + counts[2], counts[1], 0])


@pytest.mark.parametrize("name", ["m.tif", "m.bmp"])
def test_ids_in_other_files_become_png(tmp_path: Path, name: str) -> None:
    (sample,) = encoded(tmp_path, RGB, IDS, names=("i.png", name))
    assert opened(sample.mask).format == "PNG"
    np.testing.assert_array_equal(read_mask(opened(sample.mask)), IDS)


def test_grey_colors_and_16_bits(tmp_path: Path) -> None:
    (sample,) = encoded(tmp_path, RGB, np.dstack([IDS] * 3))
    assert opened(sample.mask).mode == "L"
    np.testing.assert_array_equal(read_mask(opened(sample.mask)), IDS)
    large = np.array([0, 999, 2], np.uint16)[IDS]
    label_map = LabelMap.from_ids({0: "a", 2: "b", 999: "c"})
    for name in ("m.png", "m.tif"):
        (sample,) = encoded(tmp_path, RGB, large, label_map, names=("i.png", name))
        np.testing.assert_array_equal(read_mask(opened(sample.mask)), large)


def test_colors_become_training_ids(tmp_path: Path) -> None:
    label_map = LabelMap.from_colors({"#0000ff": "b", "#00ff00": None, "#ff0000": "r"})
    mask = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)[IDS]
    (sample,) = encoded(tmp_path, RGB, mask, label_map)
    np.testing.assert_array_equal(read_mask(opened(sample.mask)), np.array([1, 255, 0])[IDS])
    assert sample.counts == [int(np.sum(i == IDS)) for i in (2, 0, 1)]


def test_ids_that_no_png_holds_are_ignored_ones() -> None:
    """-100 in an array: ignored by the label map, and stored as the id that it ignores."""
    label_map = LabelMap.from_names(["a", "b"], ignore_index=-100)
    mask = np.array([[0, 1, -100, 255]], np.int32)
    stored = MaskEncoding.of(label_map).stored(mask, label_map.encode(mask), label_map)
    assert (stored.dtype, stored.tolist()) == (np.uint8, [[0, 1, 255, 255]])


# -- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_tiles_of_every_kind_of_image_read_the_same(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(RGB[:, :, 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(RGB).convert(mode)
    name = "i.tif" if mode == "CMYK" else "i.png"
    found = np.zeros_like(RGB)
    for sample in encoded(tmp_path, image, IDS, names=(name, "m.png"), tile=40):
        top, left = map(int, (sample.id[3:8], sample.id[10:15]))
        assert sample.suffix == ".png"
        tile = read_image(opened(sample.image))
        found[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    with Image.open(tmp_path / name) as stored:
        np.testing.assert_array_equal(found, read_image(stored))


@pytest.mark.parametrize("tile", [None, 32])
def test_orientation_of_a_camera(tmp_path: Path, tile: int | None) -> None:
    """The image is stored lying, its mask as it is shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "turned.png").rename(tmp_path / "i.png")
    shown = np.rot90(RGB, -1)
    found = np.zeros_like(shown)
    for sample in encoded(tmp_path, tmp_path, IDS.T, **({"tile": tile} if tile else {})):
        top, left = (0, 0) if tile is None else map(int, (sample.id[3:8], sample.id[10:15]))
        part = np.asarray(ImageOps.exif_transpose(opened(sample.image)))
        found[top : top + part.shape[0], left : left + part.shape[1]] = part
    np.testing.assert_array_equal(found, shown)


# -- tiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tile", "overlap"), [(16, 0), (17, 5), (39, 20), (50, 0), (16, None), (45, None)])
def test_tiles_reassemble_exactly(tmp_path: Path, tile: int, overlap: int | None) -> None:
    mask = IDS.copy()
    mask[3:9, 50:] = 7
    image, ids = np.full_like(RGB, 77), np.full_like(mask, 99)
    found = encoded(tmp_path, RGB, mask, tile=tile, overlap=overlap)
    assert len({sample.id for sample in found}) == len(found) > 1
    for sample in found:
        top, left = map(int, (sample.id[3:8], sample.id[10:15]))
        part = np.asarray(opened(sample.mask))
        area = slice(top, top + part.shape[0]), slice(left, left + part.shape[1])
        assert max(part.shape) <= tile and (overlap is None or part.shape == (min(tile, 40), min(tile, 60)))
        image[area], ids[area] = np.asarray(opened(sample.image)), part
        assert sample.counts == [np.isin(part, [0, 2]).sum(), (part == 1).sum(), (part == 7).sum()]
    np.testing.assert_array_equal(image, RGB)
    np.testing.assert_array_equal(ids, mask)
    if overlap is None:
        assert sum(sum(sample.counts) for sample in found) == 40 * 60  # each pixel once


def test_images_no_larger_than_a_tile_stay_whole(tmp_path: Path) -> None:
    (sample,) = encoded(tmp_path, RGB, IDS, tile=60)
    assert (sample.id, sample.image) == ("x", (tmp_path / "i.png").read_bytes())


# -- errors -----------------------------------------------------------------------------------------------------------


def test_errors_name_the_sample(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sample 'x' \(.*i\.png, .*m\.png\): the mask holds id 9 \(2400 pixels\)"):
        encoded(tmp_path, RGB, np.full((40, 60), 9, np.uint8))
    with pytest.raises(
        DataError, match=r"sample 'x' \(.*\): the image is \(40, 60\) \(height, width\), its mask \(60, 40\)"
    ):
        encoded(tmp_path, RGB, IDS.T.copy())
    (tmp_path / "i.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"sample 'x' \(.*i\.jpg: cannot be read \(it is no picture"):
        encoded(tmp_path, tmp_path, IDS, names=("i.jpg", "m.png"))
