from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtune.errors import UsageError
from segtune.labels.mask_values import (
    NO_DATA,
    as_color,
    count_codes,
    count_values,
    decode_value,
    distinct_colors,
    encode_value,
    id_range,
    mask_codes,
    pack,
    read_color,
    shorten,
    show_value,
    show_values,
)


def test_values_are_counted_ids_and_colors_apart_from_what_is_masked() -> None:
    assert count_values(np.array([[0, 7, 7]], np.uint8)) == {0: 1, 7: 2}
    colors = np.array([[(128, 64, 128), (0, 0, 1)], [(128, 64, 128), (9, 9, 9)]], np.uint8)
    masked = np.ma.masked_array(colors, (colors == 9))
    assert count_values(colors) == {(128, 64, 128): 2, (0, 0, 1): 1, (9, 9, 9): 1}
    assert count_values(masked) == {(128, 64, 128): 2, (0, 0, 1): 1}


@pytest.mark.parametrize("shape", [(1, 2), (1, 2, 3)])
def test_pixels_without_data_have_a_code_of_their_own(shape: tuple[int, ...]) -> None:
    mask = np.ma.masked_array(np.full(shape, 7, np.uint8), np.zeros(shape, bool))
    mask[0, 1] = np.ma.masked
    codes, is_color = mask_codes(mask)
    assert (codes.tolist(), is_color) == ([[7, NO_DATA]], False)
    assert decode_value(NO_DATA, True) == NO_DATA


def test_colors_become_codes_and_grey_pictures_ids() -> None:
    colors = np.array([[[128, 64, 32], [0, 0, 1]]], np.uint8)
    for mask in (colors, np.dstack([colors, [[0, 255]]]).astype(np.uint8)):  # alpha is not looked at
        codes, is_color = mask_codes(mask)
        assert (codes.tolist(), is_color) == ([[0x804020, 1]], True)
        assert [decode_value(code, is_color) for code in codes[0].tolist()] == [(128, 64, 32), (0, 0, 1)]
    codes, is_color = mask_codes(np.full((2, 2, 3), 7, np.uint8))
    assert (codes.tolist(), is_color) == ([[7, 7], [7, 7]], False)
    codes, is_color = mask_codes(np.array([[[7, 7, 7, 255]]], np.uint8))
    assert (codes.tolist(), is_color) == ([[7]], False)
    assert count_codes(np.array([[7, 7]])) == {7: 2}
    assert count_codes(np.array([[7, 7]]), colors=True) == {(0, 0, 7): 2}
    assert mask_codes(np.array([[True, False]]))[0].tolist() == [[1, 0]]
    assert pack(np.array([[[7]]])).tolist() == [[0x070707]]
    assert mask_codes(np.array([[0.5, 2]]))[0].tolist() == [[0.5, 2]]


@given(st.one_of(st.integers(-(2**31), 2**31), st.tuples(*[st.integers(0, 255)] * 3)))
@settings(deadline=None, max_examples=30)
def test_values_come_back_from_their_codes(value: Any) -> None:
    assert decode_value(encode_value(value), isinstance(value, tuple)) == value


def test_ids_stand_for_grey_colors() -> None:
    assert [as_color(value) for value in (7, 255.0, (1, 2, 3))] == [(7, 7, 7), (255, 255, 255), (1, 2, 3)]
    assert [as_color(value) for value in (256, -1, 0.5, NO_DATA)] == [256, -1, 0.5, NO_DATA]


def test_values_are_shown_as_they_are_written() -> None:
    assert show_value(42) == "42"
    assert show_value((128, 64, 128)) == "#804080"
    assert show_values({43: 1, 42: 17}) == "id 42 (17 pixels), id 43 (1 pixel)"
    assert show_values({(1, 2, 3): 4, 5: 2, 6: 1}, limit=1) == "colour #010203 (4 pixels) and 2 more"
    assert shorten([2, 0, 1]) == "0 to 2"
    assert shorten([0, 2, 3], limit=2) == "0, 2 ..."
    assert shorten([0, 2, 3], limit=3) == "0, 2, 3"
    assert shorten([(1, 2, 3)]) == "#010203"
    assert shorten([5, 6]) == "5, 6"
    assert shorten([7, (1, 2, 3)], limit=2) == "7, #010203"


@pytest.mark.parametrize("value", ["#804080", [128, 64, 128], (128, 64, 128)])
def test_colors_are_read(value: Any) -> None:
    assert read_color(value) == (128, 64, 128)


@pytest.mark.parametrize("value", ["804080ff", [128, 64], [0, 0, 256], "#80408", 7, None])
def test_what_is_no_color_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="is no colour"):
        read_color(value)


def test_black_and_white_are_colors() -> None:
    assert read_color("#000000") == (0, 0, 0)
    assert read_color([255, 255, 255]) == (255, 255, 255)


def test_ranges_of_ids() -> None:
    assert list(id_range("3-5")) == [3, 4, 5]
    assert list(id_range("3")) == list(id_range(3.0)) == [3]
    for wrong in ("a-b", True, 1.5, "x"):
        with pytest.raises(UsageError, match="is no mask id"):
            id_range(wrong)


def test_colors_for_display_are_distinct() -> None:
    colors = distinct_colors(171)
    assert len(set(colors)) == 171
    assert colors[:3] == distinct_colors(3) == ((242, 170, 61), (52, 8, 153), (119, 217, 121))
    assert colors[20:22] == ((119, 217, 194), (153, 76, 8))  # other tones where the hues come back
