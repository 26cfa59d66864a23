"""Where shapes end, against drawing each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtune.data.annotations.coverage import ends_of, ends_of_each
from segtune.data.annotations.shapes import draw
from segtune.data.annotations.tally import EMPTY, FAR, OUTSIDE, TINY, Fate
from segtune.errors import DataError

SIZE = (20, 30)


def polygon(*outlines: list[float]) -> dict[str, Any]:
    return {"value": 1, "polygons": list(outlines)}


BOX = [2, 2, 9, 2, 9, 9, 2, 9]


@pytest.mark.parametrize(
    ("shape", "fate"),
    [
        (polygon(BOX), None),
        (polygon([-50, -50, 80, -50, 80, 70, -50, 70]), None),
        (polygon([2, 2, 5000, 2, 5000, 9, 2, 9]), None),
        (polygon([2, 2, 2.1e8, 2, 2.1e8, 9, 2, 9]), FAR),
        (polygon([2, 2, 1e300, 2, 1e300, 1e300]), FAR),
        (polygon([1e308, 2, 1e300, 2, 1e300, 1e300]), OUTSIDE),
        (polygon([], BOX), None),
        (polygon([]), EMPTY),
        (polygon([3, 3, 9, 9]), EMPTY),
        (polygon([3, 3, 6, 6, 9, 9]), EMPTY),
        (polygon([500003.5, 5399994, 500015.5, 5399994, 500015.5, 5399984]), OUTSIDE),
        (polygon([31, 2, 40, 2, 40, 9]), OUTSIDE),
        (polygon([2, -9, 9, -9, 9, -1]), OUTSIDE),
        (polygon([0.1, 0.1, 0.3, 0.1, 0.3, 0.3, 0.1, 0.3]), TINY),
        ({"value": 1, "ellipse": [10, 10, 3, 2, 0]}, None),
        ({"value": 1, "ellipse": [10, 10, 0, 2, 0]}, EMPTY),
        ({"value": 1, "ellipse": [100, 10, 3, 2, 0]}, OUTSIDE),
        ({"value": 1, "ellipse": [10, 10, 0.2, 0.2, 0]}, TINY),
        ({"value": 1, "rle": {"size": [20, 30], "counts": [600]}}, EMPTY),
        ({"value": 1, "rle": {"size": [20, 30], "counts": [0, 1, 599]}}, None),
        ({"value": 1, "runs": [0, 4], "box": [40, 0, 2, 2]}, OUTSIDE),
        ({"value": 1, "runs": [4], "box": [4, 4, 2, 2]}, EMPTY),
        ({"value": 1, "runs": [0, 4], "box": [-1, -1, 2, 2]}, None),
    ],
)
def test_where_shapes_end(shape: dict[str, Any], fate: Fate | None) -> None:
    assert ends_of([polygon(BOX), shape, polygon(BOX)], SIZE) == [None, fate, None]


@pytest.mark.parametrize(
    "bad", [[[0, 0, float("nan"), 0, 5, 5]], [0, 0, 5, 5, 5, 0], [[[0, 0, 5, 5, 5, 0]]], [["a"] * 6], [[0, 0, 5, 5, 5]]]
)
def test_what_cannot_be_drawn_is_named(bad: Any) -> None:
    with pytest.raises(DataError, match=r"^annotation 7: "):
        ends_of([polygon(BOX), {"value": 1, "polygons": bad, "entry": "annotation 7"}], SIZE)


coordinates = st.floats(-40, 60, allow_nan=False) | st.integers(-5, 35).map(float)
outlines = st.lists(coordinates, min_size=3, max_size=8).flatmap(
    lambda xs: st.lists(coordinates, min_size=len(xs), max_size=len(xs)).map(
        lambda ys: [number for pair in zip(xs, ys, strict=True) for number in pair]
    )
)


@settings(max_examples=300, deadline=None)
@given(st.lists(outlines, min_size=1, max_size=4))
def test_a_shape_is_drawn_where_it_covers_a_pixel(drawn: list[list[float]]) -> None:
    shapes = [polygon(outline) for outline in drawn]
    covered = [bool(np.asarray(draw([shape], SIZE, "later")).any()) for shape in shapes]
    assert [fate is None for fate in ends_of(shapes, SIZE)] == covered


def test_pictures_that_are_looked_at_together_end_as_each_alone() -> None:
    broken = {"value": 1, "polygons": ["abcdef"], "entry": "annotation 7"}
    images = [([polygon(BOX)], SIZE), ([], SIZE), ([polygon(BOX), polygon(BOX[:4])], (3, 3)), ([broken], SIZE)]
    for chosen in (images[:3], images):
        found = ends_of_each(chosen)
        assert found[:3] == [ends_of(shapes, size) for shapes, size in images[:3]]
    assert found[2][1] == EMPTY
    assert "annotation 7" in str(found[3])
