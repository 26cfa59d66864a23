from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from segtune.errors import UsageError
from segtune.labels.mask_values import (
    count_values,
    distinct_colors,
    id_range,
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


def test_values_are_shown_as_they_are_written() -> None:
    assert show_value(42) == "42"
    assert show_value((128, 64, 128)) == "#804080"
    assert show_values({43: 1, 42: 17}) == "id 42 (17 pixels), id 43 (1 pixel)"
    assert show_values({(1, 2, 3): 4, 5: 2, 6: 1}, limit=1) == "colour #010203 (4 pixels) and 2 more"
    assert shorten([2, 0, 1]) == "0 to 2"
    assert shorten([0, 2, 3], limit=2) == "0, 2 ..."


@pytest.mark.parametrize("value", ["#804080", [128, 64, 128], (128, 64, 128)])
def test_colors_are_read(value: Any) -> None:
    assert read_color(value) == (128, 64, 128)


@pytest.mark.parametrize("value", ["804080ff", [128, 64], [0, 0, 256], "#80408", 7, None])
def test_what_is_no_color_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="is no colour"):
        read_color(value)


def test_ranges_of_ids() -> None:
    assert list(id_range("3-5")) == [3, 4, 5]
    assert list(id_range("3")) == list(id_range(3.0)) == [3]
    for wrong in ("a-b", True, 1.5, "x"):
        with pytest.raises(UsageError, match="is no mask id"):
            id_range(wrong)


def test_colors_for_display_are_distinct() -> None:
    colors = distinct_colors(171)
    assert len(set(colors)) == 171
    assert colors[:3] == distinct_colors(3)
