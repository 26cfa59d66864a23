"""Windows and their blending, against the plain formula: weights, sums, division."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from segtune.inference.sliding_window import UpsampledRows, blend_across, blend_down, spans

GRIDS = [
    (96, 32, 24),
    (97, 32, 24),
    (99, 32, 24),
    (100, 32, 24),
    (64, 64, 64),
    (70, 64, 16),
    (200, 64, 64),
    (130, 64, 8),
]


@st.composite
def grids(draw: st.DrawFn) -> tuple[int, int, int]:
    """A length, a window and a stride that a protocol may have."""
    window = 32 * draw(st.integers(1, 4))
    return draw(st.integers(1, 500)), window, 4 * draw(st.integers(1, window // 4))


def test_windows_are_those_of_mmseg() -> None:
    """mmseg's slide_inference over Cityscapes: columns 0, 768 and 1024 of 2048; rows 0."""
    assert [(s.start, s.stop) for s in spans(2048, 1024, 768)] == [(0, 1024), (768, 1792), (1024, 2048)]
    assert [(s.start, s.stop) for s in spans(1024, 1024, 768)] == [(0, 1024)]
    assert [(s.start, s.stop) for s in spans(50, 64, 48)] == [(0, 50)]
    assert [(s.start, s.stop) for s in spans(50, None, None)] == [(0, 50)]
    assert [(s.start, s.stop) for s in spans(128, 64, 64)] == [(0, 64), (64, 128)]


@pytest.mark.parametrize(("length", "window", "stride"), GRIDS)
def test_windows_cover_the_length_on_the_grid_of_logits(length: int, window: int, stride: int) -> None:
    found = spans(length, window, stride)
    assert found[0].start == 0 and found[-1].stop == length
    assert all(span.start % 4 == 0 and window - 3 <= span.stop - span.start <= window for span in found)
    for one, two in itertools.pairwise(found):
        assert one.start < two.start <= one.stop  # no gap
        assert two.start - one.start <= stride
    assert found[-1].logits.stop == math.ceil(length / 4)
    assert all(len(span.share) == span.logits.stop - span.logits.start for span in found)


@pytest.mark.parametrize(("length", "window", "stride"), GRIDS)
def test_weights_sum_to_one(length: int, window: int, stride: int) -> None:
    """The weight that each window has in the end, read off by blending windows of which one is 1 and all others 0."""
    found = spans(length, window, stride)
    weights = []
    for chosen in range(len(found)):
        maps = [(s, torch.full((1, 1, len(s.share)), float(i == chosen))) for i, s in enumerate(found)]
        weights.append(blend_across(maps, math.ceil(length / 4))[0, 0].double())
    total = torch.stack(weights).sum(0)
    assert (total - 1).abs().max() < 1e-6
    assert all((weight >= 0).all() for weight in weights)


def test_two_windows_by_hand() -> None:
    """96 pixels, windows of 64 at 0 and 32: 8 logits overlap, the second one's weight is sin² at 1/32, 3/32, … of π."""
    left, right = spans(96, 64, 32)
    expected = torch.tensor([math.sin(math.pi / 2 * (i + 0.5) / 8) ** 2 for i in range(8)])
    torch.testing.assert_close(right.share[:8], expected)
    assert (left.share == 1).all() and (right.share[8:] == 1).all()
    blended = blend_across([(left, torch.zeros(1, 1, 16)), (right, torch.ones(1, 1, 16))], 24)
    torch.testing.assert_close(blended[0, 0], torch.cat([torch.zeros(8), expected, torch.ones(8)]))


def _windows(full: torch.Tensor, height: int, width: int, window: int, stride: int, noise: float = 0.0):
    down, across = spans(height, window, stride), spans(width, window, stride)
    grid = [[full[..., d.logits, a.logits] + noise * torch.randn(()) for a in across] for d in down]
    return down, across, grid


@pytest.mark.parametrize(("height", "width"), [(96, 97), (131, 200), (40, 150), (150, 40)])
def test_blending_is_the_weighted_mean(height: int, width: int) -> None:
    torch.manual_seed(0)
    full = torch.randn(2, 3, math.ceil(height / 4), math.ceil(width / 4))
    down, across, grid = _windows(full, height, width, 64, 24, noise=1.0)
    strips = (blend_across(zip(across, row, strict=True), full.shape[-1]) for row in grid)
    rows = list(blend_down(strips, down))
    found = torch.cat(rows, dim=-2)
    assert found.shape == full.shape
    assert max(part.shape[-2] for part in rows) <= 16

    total, weights = torch.zeros(full.shape, dtype=torch.float64), torch.zeros(full.shape[-2:], dtype=torch.float64)
    for i, d in enumerate(down):
        for j, a in enumerate(across):
            weight = _ramp(down, i)[:, None] * _ramp(across, j)[None]
            total[..., d.logits, a.logits] += weight * grid[i][j]
            weights[d.logits, a.logits] += weight
    torch.testing.assert_close(found.double(), total / weights, atol=1e-6, rtol=1e-6)


def _ramp(places, index: int) -> torch.Tensor:
    """The plain weight of one window: cos² over the overlap with each neighbour."""
    piece = places[index].logits
    weight = torch.ones(piece.stop - piece.start, dtype=torch.float64)
    for position in range(piece.start, piece.stop):
        if index > 0 and position < (end := places[index - 1].logits.stop):
            share = (position - piece.start + 0.5) / (end - piece.start)
            weight[position - piece.start] *= math.sin(math.pi / 2 * share) ** 2
        if index + 1 < len(places) and position >= (start := places[index + 1].logits.start):
            share = (position - start + 0.5) / (piece.stop - start)
            weight[position - piece.start] *= math.cos(math.pi / 2 * share) ** 2
    return weight


@pytest.mark.parametrize(("height", "width"), [(512, 131), (301, 302)])
def test_equal_logits_stay_equal_to_the_last_bit(height: int, width: int) -> None:
    values = torch.tensor([0.1, -7.3, 1e-3])[:, None, None]
    full = values.expand(3, math.ceil(height / 4), math.ceil(width / 4))[None]
    down, across, grid = _windows(full, height, width, 64, 20)
    strips = (blend_across(zip(across, row, strict=True), full.shape[-1]) for row in grid)
    assert torch.equal(torch.cat(list(blend_down(strips, down)), dim=-2), full)


@pytest.mark.parametrize("target", [96, 101, 24, 7, 300])
@pytest.mark.parametrize("step", [1, 10, 1000])
def test_strips_are_rows_of_the_upsampled_map(target: int, step: int) -> None:
    torch.manual_seed(0)
    full = torch.randn(2, 3, 24, 5)
    rows = UpsampledRows(iter(full.split([5, 1, 10, 8], dim=-2)), 24, target)
    found = torch.cat([rows.read(top, min(top + step, target)) for top in range(0, target, step)], dim=-2)
    torch.testing.assert_close(found, F.interpolate(full, (target, 5), mode="bilinear", align_corners=False))


def test_rows_above_are_forgotten() -> None:
    rows = UpsampledRows((torch.full((1, 1, 4, 1), float(i)) for i in range(100)), 400, 1600)
    held = []
    for top in range(0, 1600, 40):
        rows.read(top, top + 40)
        assert rows.held is not None
        held.append(rows.held.shape[-2])
    assert max(held) <= 10 + 4 + 2


@settings(deadline=None, max_examples=60)
@given(grids())
def test_each_logit_is_covered_and_its_weights_sum_to_one(grid: tuple[int, int, int]) -> None:
    length, window, stride = grid
    found, size = spans(length, window, stride), math.ceil(length / 4)
    assert all(0 <= span.start < span.stop <= length and span.stop - span.start <= window for span in found)
    total = torch.zeros(size, dtype=torch.float64)
    for chosen, span in enumerate(found):
        maps = [(s, torch.full((1, len(s.share)), float(i == chosen))) for i, s in enumerate(found)]
        weight = blend_across(maps, size)[0].double()
        outside = torch.ones(size, dtype=torch.bool)
        outside[span.logits] = False
        assert (weight >= 0).all() and not weight[outside].any()
        total += weight
    torch.testing.assert_close(total, torch.ones(size, dtype=torch.float64), atol=1e-6, rtol=0)


@settings(deadline=None, max_examples=30)
@given(grids(), grids(), st.floats(-1e4, 1e4, width=32))
def test_a_constant_stays_what_it_is(down: tuple[int, int, int], across: tuple[int, int, int], value: float) -> None:
    rows, columns = spans(*down), spans(*across)
    size = (math.ceil(down[0] / 4), math.ceil(across[0] / 4))
    maps = ([(c, torch.full((1, len(r.share), len(c.share)), value)) for c in columns] for r in rows)
    blended = torch.cat(list(blend_down((blend_across(row, size[1]) for row in maps), rows)), dim=-2)
    assert torch.equal(blended, torch.full((1, *size), value))
