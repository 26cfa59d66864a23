"""Pictures of predictions."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from segtune.errors import DataError, UsageError
from segtune.labels.label_map import LabelMap
from segtune.viz.overlay import comparison, overlay


def _photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colour patches."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


LABELS = LabelMap.from_names(["sky", "road", "car"], colors=[(10, 20, 200), (200, 30, 40), (240, 200, 20)])


def _colors(picture: Image.Image) -> set[tuple[int, int, int]]:
    return {color for _, color in picture.getcolors(1 << 24)}


def test_an_opaque_overlay_shows_the_classes_in_their_colors():
    labels = np.array([[0] * 250 + [1] * 250] * 300)
    picture = np.asarray(overlay(_photo(300, 500), labels, LABELS, alpha=1, legend=False))
    np.testing.assert_array_equal(picture, LABELS.colorize(labels))


def test_a_half_transparent_overlay_mixes_and_outlines():
    photo, labels = np.full((300, 500, 3), 100, np.uint8), np.array([[0] * 250 + [1] * 250] * 300)
    picture = np.asarray(overlay(photo, labels, LABELS, legend=False))
    assert picture[10, 10].tolist() == [55, 60, 150]
    assert picture[10, 490].tolist() == [150, 65, 70]
    assert picture[10, 249].tolist() == [10, 20, 200]  # the last column of the first region
    photo_alone = np.asarray(overlay(photo, labels, LABELS, alpha=0, legend=False))
    np.testing.assert_array_equal(photo_alone[:, :249], photo[:, :249])


@pytest.mark.parametrize(("shape", "factor"), [((180, 180), 3), ((64, 100), 5), ((360, 480), 1), ((100, 900), 1)])
def test_small_images_are_enlarged_by_a_whole_factor(shape, factor):
    labels = np.zeros(shape, np.uint8)
    labels[: shape[0] // 2] = 2
    picture = overlay(_photo(*shape), labels, LABELS, alpha=1, legend=False)
    assert picture.size == (shape[1] * factor, shape[0] * factor)
    np.testing.assert_array_equal(np.asarray(picture)[::factor, ::factor], LABELS.colorize(labels))


def test_ignored_pixels_are_grey_and_hatched():
    labels = np.zeros((300, 500), np.uint8)
    labels[100:200, 100:200] = 255
    photo = _photo(300, 500)
    picture = np.asarray(overlay(photo, labels, LABELS, legend=False)).astype(int)
    inside = picture[101:199, 101:199].reshape(-1, 3)
    assert (inside.max(axis=1) == inside.min(axis=1)).all()
    light = inside[:, 0] > 200
    assert 0.08 < light.mean() < 0.2
    assert inside[~light].max() < 130
    assert (picture[:90] != picture[:90, :, :1]).any()  # elsewhere there is colour


def test_the_legend_lists_what_occurs():
    labels = np.zeros((300, 500), np.uint8)
    labels[:, 250:] = 2
    photo = np.full((300, 500, 3), 128, np.uint8)
    picture = overlay(photo, labels, LABELS)
    legend = picture.crop((0, 300, *picture.size))
    assert picture.width == 500
    assert legend.height > 20
    assert {LABELS.colors[0], LABELS.colors[2]} <= _colors(legend)
    assert LABELS.colors[1] not in _colors(legend)
    dark = np.asarray(legend.convert("L")) < 90
    assert dark.any()  # the names
    hatched = overlay(photo, np.where(labels == 2, 255, labels), LABELS).crop((0, 300, *picture.size))
    assert (235, 235, 235) in _colors(hatched)
    assert (235, 235, 235) not in _colors(legend)


def test_long_legends_wrap_within_the_picture():
    names = [f"a rather long class name {i}" for i in range(30)]
    label_map = LabelMap.from_names(names)
    labels = np.arange(30).repeat(500).reshape(30, 500)
    picture = overlay(_photo(30, 500), labels, label_map)
    assert picture.width == 500
    assert set(label_map.colors) <= _colors(picture.crop((0, 30, *picture.size)))


def test_a_name_wider_than_the_picture_widens_the_page():
    label_map = LabelMap.from_names(["a class whose name is far wider than the strip"])
    picture = overlay(_photo(600, 40), np.zeros((600, 40), np.uint8), label_map)
    assert picture.width > 200
    ink = np.asarray(picture.convert("L"))[600:] < 90
    last = np.flatnonzero(ink.any(axis=0)).max()
    assert 200 < last < picture.width - 1  # the name ends within the page


def test_a_comparison_is_three_panels_and_one_legend():
    truth = np.zeros((300, 400), np.uint8)
    truth[:50] = 255
    prediction = np.full((300, 400), 1, np.uint8)
    photo = np.full((300, 400, 3), 90, np.uint8)
    picture = comparison(photo, truth, prediction, LABELS)
    gap = (picture.width - 3 * 400) // 2
    assert 0 < gap < 40
    pixels = np.asarray(picture)
    top = next(row for row in range(picture.height) if (pixels[row, 200] == 90).all())
    assert top > 20  # the titles
    panels = [pixels[top : top + 300, i * (400 + gap) :][:, :400] for i in range(3)]
    np.testing.assert_array_equal(panels[0], photo)
    for panel, color in zip(panels[1:], LABELS.colors, strict=False):
        np.testing.assert_allclose(panel[200, 200], 0.4 * 90 + 0.6 * np.array(color), atol=1)
    legend = picture.crop((0, top + 300, *picture.size))
    assert {LABELS.colors[0], LABELS.colors[1], (235, 235, 235)} <= _colors(legend)
    assert LABELS.colors[2] not in _colors(legend)


def test_pictures_take_paths_and_refuse_other_sizes(tmp_path):
    photo, labels = _photo(300, 500), np.zeros((300, 500), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    assert overlay(tmp_path / "photo.png", labels, LABELS).tobytes() == overlay(photo, labels, LABELS).tobytes()
    with pytest.raises(UsageError, match=r"image is \(300, 500\).*labels \(500, 300\)"):
        overlay(photo, labels.T, LABELS)
    with pytest.raises(UsageError, match=r"labels \(10, 10\)"):
        comparison(photo, labels, labels[:10, :10], LABELS)
    with pytest.raises(DataError, match="id 7"):
        overlay(photo, labels + 7, LABELS)
