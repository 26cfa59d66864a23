"""Sliding window: overlapping windows along an image, and the blending of their logits, row after row.

Windows start at multiples of 4 pixels, so that the quarter-size logits of all of them lie on one grid: that of the
logits of the whole image. They are blended there and upsampled once, as those of the whole image are. Along each axis
a window counts fully in its middle and less and less towards a neighbour: over their overlap its weight falls as
`cos²` and the neighbour's rises as `sin²`. The weight of a window is the product of both axes'; the weights of all
windows over a position are divided by their sum.

The blend is a running mean: with w_i the weight of the i-th window, `mean += (new - mean) * w_i / (w_1 + … + w_i)`. So
only one row of windows and the rows that overlap the next are in memory, and equal logits stay what they are to the
last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segtune.inference.protocol import LOGIT_STRIDE
from segtune.segformer.upsampling import linear_weights

ROWS = 16  # of logits that are handed on at a time


@dataclass(frozen=True)
class Span:
    """One window along one axis.

    Attributes:
        start, stop: in pixels; `start` is a multiple of 4.
        share: what the window counts for in the running mean, at each of its logits, `(n,)` in (0, 1].
    """

    start: int
    stop: int
    share: Tensor

    @property
    def logits(self) -> slice:
        """Where its logits lie in those of the whole axis."""
        return slice(self.start // LOGIT_STRIDE, -(-self.stop // LOGIT_STRIDE))


def spans(length: int, window: int | None, stride: int | None, device: torch.device | str | None = None) -> list[Span]:
    """The windows over `length` pixels: one each `stride`, the last one up to the end (by up to 3 pixels smaller).

    One window where `window` is None or not below `length`. What the windows count for lies on `device`.
    """
    if window is None or stride is None or window >= length:
        return [Span(0, length, torch.ones(-(-length // LOGIT_STRIDE), device=device))]
    last = -(-(length - window) // LOGIT_STRIDE) * LOGIT_STRIDE
    starts = [*range(0, length - window, stride), last]
    stops = [min(start + window, length) for start in starts]
    pieces = [Span(start, stop, torch.empty(0)).logits for start, stop in zip(starts, stops, strict=True)]
    shares = torch.cat(_shares(pieces)).to(device).split([piece.stop - piece.start for piece in pieces])
    return [Span(start, stop, share) for start, stop, share in zip(starts, stops, shares, strict=True)]


def _shares(pieces: Sequence[slice]) -> list[Tensor]:
    """Each window's weight, divided by the sum of its own and of those before it."""
    total = torch.zeros(pieces[-1].stop, dtype=torch.float64)
    shares = []
    for index, piece in enumerate(pieces):
        weight = torch.ones(piece.stop - piece.start, dtype=torch.float64)
        if index > 0:
            rise = _rise(pieces[index - 1].stop - piece.start)
            weight[: len(rise)] *= rise
        if index + 1 < len(pieces):
            fall = _rise(piece.stop - pieces[index + 1].start).flip(0)
            weight[len(weight) - len(fall) :] *= fall
        total[piece] += weight
        shares.append((weight / total[piece]).float())
    return shares


def _rise(overlap: int) -> Tensor:
    """From near 0 to near 1 over `overlap` logits; with its mirror image it makes 1."""
    positions = (torch.arange(overlap, dtype=torch.float64) + 0.5) / max(overlap, 1)
    return (positions * torch.pi / 2).sin().square()


def blend_across(maps: Iterable[tuple[Span, Tensor]], width: int) -> Tensor:
    """The windows of one row of them, maps `(…, n, m)` from left to right, blended: `(…, n, width)`."""
    blended = torch.empty(0)
    for span, logits in maps:
        if not blended.numel():
            blended = logits.new_zeros((*logits.shape[:-1], width))
        blended[..., span.logits].lerp_(logits, span.share.to(logits))
    return blended


def blend_down(maps: Iterable[Tensor], spans: Sequence[Span]) -> Iterator[Tensor]:
    """Maps `(…, n, w)` from top to bottom, one for each of `spans`, blended: consecutive rows `(…, rows, w)`."""
    overlap: Tensor | None = None  # the blend so far of the rows that the next map also covers
    source = iter(maps)
    for index, span in enumerate(spans):
        blended = next(source)
        if overlap is not None:
            rows = overlap.shape[-2]
            share = span.share[:rows, None].to(blended)
            blended[..., :rows, :] = torch.lerp(overlap, blended[..., :rows, :], share)
        final = blended.shape[-2]
        if index + 1 < len(spans):
            final = spans[index + 1].logits.start - span.logits.start
        yield from blended[..., :final, :].split(ROWS, dim=-2)
        overlap = blended[..., final:, :].clone()
        del blended  # let it go before the next one is made


class UpsampledRows:
    """Reads the upsampled rows out of a stream of map rows, strip by strip, and forgets what is above.

    Args:
        chunks: consecutive rows `(…, n, w)` of maps of `height` rows.
        target: number of rows that the maps are upsampled to.
    """

    def __init__(self, chunks: Iterator[Tensor], height: int, target: int) -> None:
        self.chunks = chunks
        # row above, row below, how far between: on the CPU, where they are looked up, and where the maps are
        self.weights = self.moved = linear_weights(height, target, torch.device("cpu"))
        self.first = self.end = 0
        self.held = torch.empty(0, 0)  # rows `first` to `end` of the maps

    def read(self, top: int, bottom: int) -> Tensor:
        """Rows `top` to `bottom` of the result, `(…, bottom - top, w)`: upsampled in height, not yet in width.

        Strips are asked for from top to bottom.
        """
        rows = self._take(int(self.weights[0][top]), int(self.weights[1][bottom - 1]) + 1)
        if self.moved[0].device != rows.device:
            above, below, way = self.weights
            self.moved = above.to(rows.device), below.to(rows.device), way.to(rows.device)
        above, below, way = (weight[top:bottom] for weight in self.moved)
        above, below = (rows.index_select(-2, near - self.first) for near in (above, below))
        return torch.lerp(above, below, way[:, None].to(rows))

    def _take(self, first: int, last: int) -> Tensor:
        """Rows `first` and below, at least up to `last`; what is above is let go before more is made."""
        rows = self.held[..., first - self.first :, :]
        if self.end < last:
            rows = rows.clone()
            del self.held
        while self.end < last:
            chunk = next(self.chunks)
            missed = max(0, first - self.end)
            self.end += chunk.shape[-2]
            below = chunk[..., missed:, :]
            rows = torch.cat([rows, below], dim=-2) if rows.numel() else below
        self.held, self.first = rows, first
        return rows
