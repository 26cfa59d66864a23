from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtune.data.doctor.values import MOST_VALUES, mask_codes, shown, value_facts


def test_colours_become_numbers_and_grey_pictures_ids() -> None:
    colours = np.array([[[128, 64, 32], [0, 0, 1]]], dtype=np.uint8)
    np.testing.assert_array_equal(mask_codes(colours), [[0x1804020, 0x1000001]])  # 1 is no id
    assert value_facts(mask_codes(colours)).is_colour
    grey = np.full((2, 2, 3), 7, dtype=np.uint8)
    np.testing.assert_array_equal(mask_codes(grey), [[7, 7], [7, 7]])
    np.testing.assert_array_equal(mask_codes(np.array([[True, False]])), [[1, 0]])
    assert (shown(0x1804020, True), shown(11, False)) == ("#804020", "11")


def test_values_are_counted_most_frequent_first() -> None:
    facts = value_facts(np.array([[3, 3, 3], [3, 200, 3], [0, 0, 0]]))
    assert list(facts.counts.items()) == [(3, 5), (0, 3), (200, 1)]
    assert (facts.distinct, facts.pixels, facts.is_colour) == (3, 9, False)
    assert facts.specks == 1  # the 200, alone among others


def test_many_values_are_cut_but_counted() -> None:
    facts = value_facts(np.arange(4000, dtype=np.int32).reshape(40, 100))
    assert (len(facts.counts), facts.distinct) == (MOST_VALUES, 4000)


def test_rims_lie_between_both_neighbours() -> None:
    row = np.array([[0, 0, 0, 4, 8, 8, 8, 2, 1, 1]])
    facts = value_facts(np.repeat(row, 3, axis=0))
    # 4 lies between 0 and 8, 2 between 8 and 1; jumps of 2 and more are 0-4, 4-8, 8-2: three in each row
    assert (facts.rims, facts.rim_values, facts.steps) == (6, 2, 9)
    assert facts.rim_share == 6 / 15


def test_whole_areas_have_no_rims(stripes: np.ndarray) -> None:
    facts = value_facts(stripes)
    assert (facts.rims, facts.specks, facts.rim_share) == (0, 0, 0.0)


@pytest.mark.parametrize("resampling", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
def test_interpolation_leaves_rims(earth: Path, resampling: Image.Resampling) -> None:
    paths = sorted((earth / "masks" / "train").glob("*.png"))[10:60:5]
    assert len(paths) == 10
    for path in paths:
        mask = Image.fromarray(np.asarray(Image.open(path)))
        smooth = value_facts(np.asarray(mask.resize((120, 120), resampling)))
        nearest = value_facts(np.asarray(mask.resize((120, 120), Image.Resampling.NEAREST)))
        assert nearest.rim_share < 0.07
        assert smooth.steps < 100 or smooth.rim_share > 0.15
