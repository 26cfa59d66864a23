"""What shapes cover, by hand and against simple rules."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtune.data.annotations import shapes as drawing
from segtune.data.annotations.shapes import _Bits, decode_brush, draw, rectangle
from segtune.errors import DataError
from segtune.imageio.read import Window


def picture(*rows: str) -> list[list[int]]:
    return [[int(sign) for sign in row] for row in rows]


def square(value: int | None, left: float, top: float, side: float) -> dict[str, Any]:
    return {"value": value, "polygons": [rectangle(left, top, left + side, top + side)]}


def pack(values: np.ndarray) -> bytes:
    """@thi.ng/rle-pack, in its simplest form: runs of one length class, with the header of Label Studio's files."""
    bits = f"{values.size:032b}" + f"{7:05b}" + "".join(f"{bits - 1:04b}" for bits in (3, 4, 8, 16))
    start = 0
    while start < values.size:
        end = start
        while end < values.size and values[end] == values[start] and end - start < 2**16:
            end += 1
        bits += f"1{3:02b}{end - start - 1:016b}{values[start]:08b}"
        start = end
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def brush(covered: np.ndarray) -> dict[str, Any]:
    values = np.repeat(covered.astype(np.uint8).ravel() * 255, 4)
    return {"brush": base64.b64encode(pack(values)).decode()}


def test_pixel_belongs_to_the_shape_that_encloses_its_centre() -> None:
    assert draw([square(1, 1, 0, 2)], (3, 5), "later").tolist() == picture("01100", "01100", "00000")
    assert draw([square(1, 1.4, 0.4, 2)], (3, 5), "later").tolist() == picture("01100", "01100", "00000")
    assert draw([square(1, 1.6, 0.6, 2)], (3, 5), "later").tolist() == picture("00000", "00110", "00110")


def test_nothing_is_drawn_outside() -> None:
    assert draw([square(7, -3, -3, 4.6)], (3, 4), "later").tolist() == picture("7700", "7700", "0000")
    assert draw([square(7, 9, 9, 4)], (2, 2), "later").tolist() == picture("00", "00")
    assert draw([], (2, 2), "later").tolist() == picture("00", "00")


def test_which_shape_is_on_top() -> None:
    shapes = [square(1, 0, 0, 2), square(2, 1, 0, 3)]
    assert draw(shapes, (3, 4), "later").tolist() == picture("1222", "1222", "0222")
    assert draw(shapes, (3, 4), "smaller").tolist() == picture("1122", "1122", "0222")
    assert draw(shapes[::-1], (3, 4), "later").tolist() == picture("1122", "1122", "0222")
    equal = [square(1, 0, 0, 2), square(2, 1, 0, 2)]
    assert draw(equal, (2, 3), "smaller").tolist() == picture("122", "122")


def test_ignored_shapes_mask_what_they_cover() -> None:
    drawn = draw([square(1, 0, 0, 3), square(None, 1, 0, 2), square(2, 2, 1, 1)], (3, 3), "later")
    assert isinstance(drawn, np.ma.MaskedArray)
    assert np.ma.filled(drawn, 9).tolist() == picture("199", "192", "111")


def test_several_outlines_are_one_shape_and_lines_cover_nothing() -> None:
    shape = {"value": 4, "polygons": [rectangle(0, 0, 1, 1), rectangle(2, 0, 4, 2), [0, 0, 3, 3]]}
    assert draw([shape], (2, 4), "later").tolist() == picture("4044", "0044")
    assert draw([{"value": 4, "polygons": [[0, 0, 3, 3]]}], (1, 2), "later").tolist() == picture("00")


def test_values_beyond_a_byte() -> None:
    drawn = draw([square(300, 0, 0, 1)], (1, 2), "later")
    assert (drawn.dtype, drawn.tolist()) == (np.uint16, [[300, 0]])


@pytest.mark.parametrize("packed", [False, True])
def test_run_lengths_of_coco_go_down_the_columns(packed: bool) -> None:
    rle: Any = {"size": [2, 4], "counts": [1, 2, 3, 1, 1]}
    if packed:
        rle = {"size": [2, 4], "counts": "123ON"}  # what pycocotools.mask.frPyObjects makes of it
    expected = picture("0101", "1000")
    assert draw([{"value": 1, "rle": rle}], (2, 4), "later").tolist() == expected


def test_run_lengths_of_another_size_are_refused() -> None:
    with pytest.raises(DataError, match=r"run lengths for \(2, 4\) \(height, width\) in a picture of \(4, 2\)"):
        draw([{"value": 1, "rle": {"size": [2, 4], "counts": [8]}}], (4, 2), "later")


def test_runs_of_a_box_go_along_the_rows() -> None:
    """As in CVAT: 2 pixels not covered, 4 covered, in a box of 3 x 2 at column 1, row 1."""
    shape = {"value": 5, "runs": [2, 4], "box": [1, 1, 3, 2]}
    assert draw([shape], (4, 5), "later").tolist() == picture("00000", "00050", "05550", "00000")
    assert draw([shape | {"box": [3, 3, 3, 2]}], (4, 5), "later").tolist() == picture(
        "00000", "00000", "00000", "00000"
    )
    assert draw([shape | {"box": [-1, -1, 3, 2]}], (2, 3), "later").tolist() == picture("550", "000")
    with pytest.raises(DataError, match="run lengths of 6 pixels for a box of 2 x 2"):
        draw([shape | {"box": [0, 0, 2, 2]}], (4, 5), "later")


def test_bitmaps_lie_at_their_corner() -> None:
    """As in LabelMe: a PNG of the box."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.array([[0, 255], [255, 255]], np.uint8)).save(buffer, "PNG")
    shape = {"value": 3, "bitmap": base64.b64encode(buffer.getvalue()).decode(), "box": [2, 1]}
    assert draw([shape], (3, 4), "later").tolist() == picture("0000", "0003", "0033")


def png(pixels: np.ndarray) -> str:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def test_bitmaps_are_what_is_opaque_or_else_what_is_light() -> None:
    covered = np.array([[0, 255], [255, 0]], np.uint8)
    black = np.dstack([np.zeros((2, 2, 3), np.uint8), covered])
    full = np.dstack([np.zeros((2, 2, 3), np.uint8), np.full((2, 2), 255, np.uint8)])
    white = np.dstack([covered, covered, covered, np.full((2, 2), 255, np.uint8)])
    for pixels, expected in ((covered, "01 10"), (black, "01 10"), (white, "01 10"), (full, "11 11")):
        shape = {"value": 1, "bitmap": png(pixels), "box": [0, 0], "whole": True}
        assert draw([shape], (2, 2), "later").tolist() == picture(*expected.split())
    with pytest.raises(DataError, match=r"a bitmap of \(2, 2\) \(height, width\) for a picture of \(2, 3\)"):
        draw([{"value": 1, "bitmap": png(covered), "box": [0, 0], "whole": True}], (2, 3), "later")


def test_holes_are_left_out_of_their_shape_only() -> None:
    below, ring = square(2, 0, 0, 2), square(1, 1, 0, 3)
    ring["holes"] = [rectangle(1, 1, 3, 2)]
    assert draw([below, ring], (3, 4), "later").tolist() == picture("2111", "2201", "0111")


@pytest.mark.parametrize(
    ("text", "rows"),
    [("1 2 5 1", "100 110 000"), ("1 1 1 2 2 1", "100 100 000"), ("9 1", "000 000 001"), ("4 0 1 9", "111 111 111")],
)
def test_kaggles_runs_count_from_1_down_the_columns(text: str, rows: str) -> None:
    assert draw([{"value": 1, "pixels": text}], (3, 3), "later").tolist() == picture(*rows.split())


@pytest.mark.parametrize("text", ["0 1", "9 2", "10 1", "1 -1", "1", "1 x", "1.5 1", f"{2**63} 1", "1 99999999"])
def test_other_runs_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="run lengths"):
        draw([{"value": 1, "pixels": text}], (3, 3), "later")


def test_ellipses() -> None:
    circle = draw([{"value": 1, "ellipse": [2.5, 2.5, 2.1, 2.1, 0]}], (5, 5), "later")
    assert circle.tolist() == picture("00100", "01110", "11111", "01110", "00100")
    flat = draw([{"value": 1, "ellipse": [2.5, 2.5, 2.4, 0.9, 0]}], (5, 5), "later")
    assert flat.tolist() == picture("00000", "00000", "11111", "00000", "00000")
    upright = draw([{"value": 1, "ellipse": [2.5, 2.5, 2.4, 0.9, 90]}], (5, 5), "later")
    assert upright.tolist() == flat.T.tolist()


def test_ellipses_turn_clockwise_in_pictures_of_any_shape() -> None:
    """Degrees go from x to y, which points down."""
    falling = draw([{"value": 1, "ellipse": [4, 2, 2.8, 0.6, 45]}], (4, 8), "later")
    assert falling.tolist() == picture("00100000", "00010000", "00001000", "00000100")
    rising = draw([{"value": 1, "ellipse": [4, 2, 2.8, 0.6, -45]}], (4, 8), "later")
    assert rising.tolist() == falling[::-1].tolist()
    touched = draw([{"value": 1, "ellipse": [2.5, 0.5, 2, 1, 0]}], (1, 6), "later")
    assert touched.tolist() == picture("111110")  # a centre on the rim belongs to it


def test_turned_boxes() -> None:
    assert rectangle(0, 0, 4, 2) == [0, 0, 4, 0, 4, 2, 0, 2]
    np.testing.assert_allclose(rectangle(0, 0, 4, 2, 90), [3, -1, 3, 3, 1, 3, 1, -1], atol=1e-12)
    np.testing.assert_allclose(rectangle(0, 0, 4, 2, 90, pivot=(0, 0)), [0, 0, 0, 4, -2, 4, -2, 0], atol=1e-12)


def test_brush_strokes() -> None:
    covered = np.random.default_rng(0).random((9, 13)) < 0.3
    assert decode_brush(pack(np.repeat(covered.ravel() * np.uint8(255), 4)), (9, 13)).tolist() == covered.tolist()
    drawn = draw([{"value": 6, **brush(covered)}], (9, 13), "later")
    assert drawn.tolist() == (covered * 6).tolist()
    with pytest.raises(DataError, match=r"brush strokes of 468 values for a picture of \(9, 12\)"):
        decode_brush(pack(np.repeat(covered.ravel() * np.uint8(255), 4)), (9, 12))
    with pytest.raises(DataError, match="brush strokes end too early"):
        decode_brush(pack(np.repeat(covered.ravel() * np.uint8(255), 4))[:20], (9, 13))


def test_single_values_of_brush_strokes() -> None:
    """A token without a run: bit 0, length class 0 (3 bits), 4 values; then a run of 4."""
    bits = f"{8:032b}" + f"{7:05b}" + "0010" + "0011" + "0111" + "1111"
    bits += "0" + "00" + "011" + "".join(f"{value:08b}" for value in (0, 0, 0, 255)) + "1" + "00" + "011" + f"{0:08b}"
    bits += "0" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    assert decode_brush(data, (1, 2)).tolist() == [[True, False]]


def test_header_of_a_file_that_label_studio_wrote() -> None:
    """The first bytes of a brush region of a picture of 3332 x 2527 pixels, from a published export."""
    bits = _Bits(bytes([2, 1, 233, 240, 57, 27, 255, 255, 255]))
    assert bits.take(32) == 3332 * 2527 * 4
    assert bits.take(5) + 1 == 8
    assert [bits.take(4) + 1 for _ in range(4)] == [3, 4, 8, 16]
    assert (bits.take(1), bits.take(2), bits.take(16) + 1) == (1, 3, 2**16)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2**40 - 1)), max_size=20))
@settings(deadline=None, max_examples=40)
def test_bits_are_read_as_they_were_written(numbers: list[tuple[int, int]]) -> None:
    numbers = [(width, number % 2**width) for width, number in numbers]
    text = "".join(f"{number:0{width}b}" for width, number in numbers)
    padded = text + "0" * (-len(text) % 8)
    bits = _Bits(bytes(int(padded[start : start + 8], 2) for start in range(0, len(padded), 8)))
    assert [bits.take(width) for width, _ in numbers] == [number for _, number in numbers]
    with pytest.raises(DataError, match="end too early"):
        bits.take(9)


# -- against simple rules ---------------------------------------------------------------------------------------------

HEIGHT, WIDTH = 24, 31


def even_odd(outline: list[float]) -> np.ndarray:
    """Where the centre of a pixel has an odd number of edges to its left (H, W)."""
    inside = np.zeros((HEIGHT, WIDTH), bool)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for (x0, y0), (x1, y1) in edges_of(outline):
        if y0 != y1:
            crosses = (rows >= min(y0, y1)) & (rows < max(y0, y1))
            inside ^= crosses & (x0 + (rows - y0) * (x1 - x0) / (y1 - y0) < columns)
    return inside


def distance(outline: list[float]) -> np.ndarray:
    """From the centre of each pixel to the nearest edge (H, W)."""
    centers = np.stack(np.mgrid[:HEIGHT, :WIDTH][::-1], axis=-1) + 0.5  # (H, W, 2) of x, y
    found = []
    for start, end in edges_of(outline):
        along = np.subtract(end, start)
        part = ((centers - start) @ along / max(along @ along, 1e-9)).clip(0, 1)
        found.append(np.linalg.norm(centers - start - part[..., None] * along, axis=-1))
    return np.min(found, axis=0)


def edges_of(outline: list[float]) -> list[tuple[np.ndarray, np.ndarray]]:
    points = np.reshape(outline, (-1, 2))
    return list(zip(points, np.roll(points, -1, axis=0), strict=True))


@st.composite
def outlines(draw: st.DrawFn) -> list[float]:
    """Polygons that do not cross themselves: points around a centre, partly beyond the picture."""
    x, y = draw(st.floats(-3, WIDTH + 3)), draw(st.floats(-3, HEIGHT + 3))
    radii = draw(st.lists(st.floats(1, 25), min_size=3, max_size=9))
    angles = np.arange(len(radii)) / len(radii) * 2 * np.pi + draw(st.floats(0, 6))
    return np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=-1).ravel().tolist()


@given(outlines())
@settings(deadline=None, max_examples=60)
def test_polygons_cover_what_they_enclose(outline: list[float]) -> None:
    """But for pixels whose centre is within 0.8 of an edge: COCO rounds outlines, and clips them to the picture."""
    drawn = draw([{"value": 1, "polygons": [outline]}], (HEIGHT, WIDTH), "later") == 1
    wrong = drawn != even_odd(outline)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    assert not wrong[distance(outline) > 0.8].any(), (rows[wrong], columns[wrong])


@st.composite
def boxes(draw: st.DrawFn) -> list[tuple[int | None, tuple[int, int, int, int]]]:
    """Values, None for ignored, with (left, top, width, height) inside the picture."""
    found = []
    for _ in range(draw(st.integers(0, 6))):
        width, height = draw(st.integers(1, WIDTH)), draw(st.integers(1, HEIGHT))
        left, top = draw(st.integers(0, WIDTH - width)), draw(st.integers(0, HEIGHT - height))
        found.append((draw(st.one_of(st.none(), st.integers(0, 5))), (left, top, width, height)))
    return found


def painted(shapes: list[tuple[int | None, tuple[int, int, int, int]]]) -> np.ndarray:
    """The values of boxes painted one over the other; -1 for ignored."""
    canvas = np.zeros((HEIGHT, WIDTH), int)
    for value, (left, top, width, height) in shapes:
        canvas[top : top + height, left : left + width] = -1 if value is None else value
    return canvas


@pytest.mark.parametrize("on_top", ["later", "smaller"])
@given(boxes())
@settings(deadline=None, max_examples=40)
def test_shapes_lie_on_each_other_in_order(
    on_top: Any, found: list[tuple[int | None, tuple[int, int, int, int]]]
) -> None:
    """In the order given; or ignored ones (crowds) below all others, then the larger below the smaller."""
    shapes = [{"value": value, "runs": [0, box[2] * box[3]], "box": list(box)} for value, box in found]
    drawn = draw(shapes, (HEIGHT, WIDTH), on_top)
    if on_top == "smaller":
        found = sorted(found, key=lambda item: -item[1][2] * item[1][3])
        found = [item for item in found if item[0] is None] + [item for item in found if item[0] is not None]
    expected = painted(found)
    np.testing.assert_array_equal(np.ma.filled(drawn.astype(int), -1), expected)
    assert np.ma.isMaskedArray(drawn) == bool((expected == -1).any())


@pytest.mark.parametrize("on_top", ["smaller", "later"])
def test_a_window_is_drawn_as_the_same_part_of_the_whole(on_top: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the whole as well, where each shape is drawn in the part where it lies."""
    random = np.random.default_rng(0)
    for _ in range(60):
        size = tuple(map(int, random.integers(20, 90, 2)))
        shapes: list[Any] = []
        for _ in range(8):
            number = int(random.integers(3, 8))
            middle = random.uniform(-10, 100, 2)
            outlines = [(middle + random.normal(0, 15, (number, 2))).round(2).ravel().tolist() for _ in range(2)]
            shapes.append({"value": random.choice([1, 2, 3, None]), "polygons": outlines[:1]})
            shapes[-1]["value"] = None if shapes[-1]["value"] is None else int(shapes[-1]["value"])
            if random.random() < 0.3:
                shapes[-1]["holes"] = outlines[1:]
        whole = draw(shapes, size, on_top)
        top, left = (int(random.integers(0, side - 8)) for side in size)
        height, width = int(random.integers(1, size[0] - top + 1)), int(random.integers(1, size[1] - left + 1))
        window = Window(top, left, height, width)
        found, expected = draw(shapes, size, on_top, window), whole[window.area]
        assert found.shape == (height, width)
        with monkeypatch.context() as patched:
            patched.setattr(drawing, "LARGE", 0)
            again = draw(shapes, size, on_top)
        assert np.array_equal(np.ma.getmaskarray(again), np.ma.getmaskarray(whole))
        assert np.array_equal(np.ma.filled(again, 9), np.ma.filled(whole, 9))
        assert np.array_equal(np.ma.getmaskarray(found), np.ma.getmaskarray(expected))
        assert np.array_equal(np.ma.filled(found, 9), np.ma.filled(expected, 9))


def test_a_window_of_other_shapes_is_cut_from_the_whole() -> None:
    shapes = [{"value": 1, "ellipse": [10, 10, 6, 4, 0]}, {"value": 2, "polygons": [[2, 2, 9, 2, 9, 9, 2, 9]]}]
    assert np.array_equal(
        draw(shapes, (20, 20), "later", Window(5, 5, 8, 9)), draw(shapes, (20, 20), "later")[5:13, 5:14]
    )


def test_odd_outlines_of_a_window_are_told() -> None:
    for outline in ([1, 2, 3], [[1, 2], [3, 4]], [float("nan"), 1, 2, 3, 4, 5], ["a", 1], [10**400, 1, 2, 3, 4, 5]):
        with pytest.raises(DataError):
            draw([{"value": 1, "polygons": [outline]}], (20, 20), "later", Window(0, 0, 4, 4))
