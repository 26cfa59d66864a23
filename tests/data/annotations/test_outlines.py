"""Shapes that would end the process: refused, or cut to what can be seen, before pycocotools sees them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from segtune.data.annotations.shapes import Shape, draw
from segtune.errors import DataError

SIZE = (48, 64)


def drawn(**shape: Any) -> np.ndarray:
    return np.asarray(draw([{"value": 1, **shape}], SIZE, "later"))


@pytest.mark.parametrize(
    "outline",
    [
        [0, 0, float("nan"), 0, 5, 5],
        [0, 0, float("inf"), 0, 5, 5],
        [0, 0, 10**400, 0, 5, 5],
        [0, 0, 5, 0, 5],
        [[0, 0], [5, 0], [5, 5]],
        ["a", "b", "c", "d", "e", "f"],
        [0, 0, 64, 48] * 50_000,
    ],
)
def test_outlines_that_are_none_are_refused(outline: Any) -> None:
    with pytest.raises(DataError, match=r"^shape 1: .*(x, y, x, y|no place in a picture|at most)"):
        drawn(polygons=[outline])


@pytest.mark.parametrize("far", [1e3, 1e7, 1e9, 1e30, 1e308])
def test_what_lies_far_outside_is_cut_off(far: float) -> None:
    whole = drawn(polygons=[[-far, -far, far, -far, far, far, -far, far]])
    half = drawn(polygons=[[-far, -far, 32, -far, 32, far, -far, far]])
    corner = drawn(polygons=[[0, 0, far, 0, 0, far]])  # one side crosses the picture far away only
    nothing = drawn(polygons=[[far, far, 2 * (far / 2), far / 2, far / 2, far]])
    assert whole.all() and corner.all() and not nothing.any()
    steep = drawn(polygons=[[0, 0, far, far, 0, far]])  # below the diagonal
    assert steep[np.tril_indices(48, -2)[0], np.tril_indices(48, -2)[1]].all() and not np.triu(steep[:, :48], 2).any()
    assert half[:, :32].all() and not half[:, 32:].any()


def test_the_part_inside_is_what_pycocotools_draws() -> None:
    rng = np.random.default_rng(0)
    different = total = 0
    for _ in range(200):
        points = rng.uniform(-400, 450, (rng.integers(3, 12), 2)).ravel().tolist()
        expected = coco.decode(coco.merge(coco.frPyObjects([points], *SIZE)))
        different += int((drawn(polygons=[points]) != expected).sum())
        total += expected.size
    assert different < total / 500  # ends of what was cut are rounded to other fifths of a pixel


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [48, 64], "counts": [5, 10]},
        {"size": [48, 64], "counts": [-5, 3077]},
        {"size": [48, 64], "counts": [48 * 64 + 5]},
        {"size": [48, 64], "counts": "PPYQoooooooooo0"},
        {"size": [48, 64], "counts": "\x10\xff"},
        {"size": [48, 64], "counts": ""},
        {"size": [48, 64], "counts": ["a"]},
        {"size": 5, "counts": [3072]},
        {"counts": [3072]},
        [3072],
    ],
)
def test_run_lengths_that_do_not_cover_the_picture_are_refused(rle: Any) -> None:
    with pytest.raises(DataError, match="run lengths"):
        drawn(rle=rle)


def test_compressed_run_lengths_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = np.asfortranarray(rng.random(SIZE) < rng.random(), dtype=np.uint8)
        rle = coco.encode(mask)
        assert np.array_equal(drawn(rle={"size": list(SIZE), "counts": rle["counts"].decode()}), mask)


@pytest.mark.parametrize(
    "shape",
    [
        {"runs": [0, 10**10], "box": [0, 0, 10**5, 10**5]},
        {"runs": [0, -4, 20], "box": [0, 0, 4, 4]},
        {"runs": [0.5, 3.5], "box": [0, 0, 2, 2]},
        {"ellipse": [5, 5, float("nan"), 3, 0]},
    ],
)
def test_other_shapes_that_are_none_are_refused(shape: Shape) -> None:
    with pytest.raises(DataError, match=r"^shape 1: "):
        drawn(**shape)


def test_parts_and_ellipses_beside_the_picture_cover_nothing() -> None:
    assert not drawn(runs=[0, 16], box=[-100, -100, 4, 4]).any()
    assert not drawn(ellipse=[1e308, 0, 1e308, 1e-300, 20]).any() and not drawn(ellipse=[5, 5, 0, 4, 0]).any()
    assert drawn(ellipse=[32, 24, 1e9, 1e9, 0]).all()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep no limit of memory")
def test_a_process_with_little_memory_survives() -> None:
    code = (
        "import resource, numpy as np\n"
        "from segtune.data.annotations.shapes import draw\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30,) * 2)\n"
        "for far in (1e7, 1e8, 1e9):\n"
        "    print(draw([{'value': 1, 'polygons': [[0, 0, far, 0, far, far, 0, far]]}], (64, 64), 'later').sum())\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["4096"] * 3
