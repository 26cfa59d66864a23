"""Mask-to-image alignment: boundaries of classes are correlated with edges of the image, over small shifts.

Where classes change, images mostly change too. So the correlation of the two maps, each freed of its local mean, has a
sharp peak at the shift between them; for a mask that belongs to another image it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import PIL.Image

LONGEST_SIDE = 512  # pictures are reduced to this for the comparison; a shift is known to a pixel of that
REACH = 16  # the largest shift looked at, in those pixels
TOLERANCE = 1  # shifts up to this count as none: a boundary lies between two pixels
NEIGHBOURHOOD = 12  # radius of the local mean that is taken off, so that busy regions do not count more than calm ones
LEAST_EDGES = 100  # boundary pixels below which nothing is said
DOUBTFUL = 4.0  # evidence below which turned and mirrored masks are tried as well
MOSTLY = 0.75  # share of the changes of value that ignored pixels are part of, for them to be the rim of everything
RIM_TOLERANCE = 6  # shifts up to this count as none where the boundary is the middle of a rim
RIM = 16  # steps by which classes grow into a rim, from both sides
_ALL, _LATER, _EARLIER = slice(None), slice(1, None), slice(-1)
GROWTH = (
    ((_LATER, _ALL), (_EARLIER, _ALL)),
    ((_EARLIER, _ALL), (_LATER, _ALL)),
    ((_ALL, _LATER), (_ALL, _EARLIER)),
    ((_ALL, _EARLIER), (_ALL, _LATER)),
)
POSES: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # the last three can only be told of squares
    "mirrored left to right": lambda mask: mask[:, ::-1],
    "mirrored top to bottom": lambda mask: mask[::-1],
    "turned by 180 degrees": lambda mask: mask[::-1, ::-1],
    "transposed": lambda mask: mask.T,
    "turned by 90 degrees to the left": lambda mask: mask.T[::-1],
    "turned by 90 degrees to the right": lambda mask: mask.T[:, ::-1],
}


class Alignment(NamedTuple):
    """How well a mask lies on its image.

    Attributes:
        shift: (down, right) in pixels of the file, by which the mask must move to fit best.
        here: correlation without a shift (the best within `TOLERANCE`); -1 to 1, well drawn masks have 0.1 to 0.4.
        best: correlation at `shift`.
        noise: spread of the correlations over all shifts; chance reaches 3 times that.
        surface: correlations (33, 33) over shifts of -16 to 16 reduced pixels, (down, right).
        scale: pixels of the file in a reduced pixel.
        tolerance: reduced pixels that count as no shift.
    """

    shift: tuple[int, int]
    here: float
    best: float
    noise: float
    surface: np.ndarray
    scale: int
    tolerance: int = TOLERANCE

    @property
    def evidence_here(self) -> float:
        """`here` in units of `noise`."""
        return self.here / self.noise

    @property
    def evidence_best(self) -> float:
        """`best` in units of `noise`."""
        return self.best / self.noise

    @property
    def distance(self) -> int:
        """The larger part of the shift, in reduced pixels."""
        return max(map(abs, self.shift)) // self.scale


def align(
    pixels: np.ndarray, codes: np.ndarray, ignored: Collection[int] = ()
) -> tuple[Alignment | None, dict[str, Alignment]]:
    """How a mask (H, W) lies on its image (H, W, 3) and, where that is doubtful, the turned and mirrored mask.

    Args:
        ignored: codes of ignored pixels; where they part the classes as a rim, the middle of it is the boundary.
    """
    scale = reduction(codes.shape)
    grey = np.asarray(PIL.Image.fromarray(pixels).convert("L").reduce(scale))
    codes = codes[scale // 2 :: scale, scale // 2 :: scale][: grey.shape[0], : grey.shape[1]]
    whole = without_rims(codes, ignored)
    gradient, boundary = image_edges(grey[: codes.shape[0], : codes.shape[1]]), class_edges(whole)
    found = measure_alignment(boundary, gradient, scale)
    if found and whole is not codes:
        found = found._replace(tolerance=RIM_TOLERANCE)
    if found is None or found.evidence_here >= DOUBTFUL:
        return found, {}
    poses = {}
    for pose, turn in POSES.items():
        other = turn(boundary)
        if other.shape == boundary.shape and (turned := measure_alignment(other, gradient, scale)):
            poses[pose] = turned
    return found, poses


def reduction(size: tuple[int, ...]) -> int:
    """The whole factor that brings the longer side of (height, width) to at most `LONGEST_SIDE`."""
    return -(-max(size) // LONGEST_SIDE)


def without_rims(codes: np.ndarray, ignored: Collection[int]) -> np.ndarray:
    """(H, W) whose rims of ignored pixels are divided among the classes beside them, where rims part most classes."""
    is_ignored = np.isin(codes, [*ignored])  # (H, W)
    across, down = codes[:, 1:] != codes[:, :-1], codes[1:] != codes[:-1]
    beside = (across & (is_ignored[:, 1:] | is_ignored[:, :-1])).sum() + (
        down & (is_ignored[1:] | is_ignored[:-1])
    ).sum()
    if beside <= MOSTLY * (across.sum() + down.sum()):
        return codes
    filled, rest = codes.copy(), is_ignored.copy()
    for step in range(RIM):
        for to, source in (GROWTH, GROWTH[::-1])[step % 2]:
            taken = rest[to] & ~rest[source]
            filled[to][taken] = filled[source][taken]
            rest[to][taken] = False
    return filled


def class_edges(codes: np.ndarray) -> np.ndarray:
    """1 on both sides of every change of value in (H, W), else 0; float32, free of its local mean."""
    edges = np.zeros(codes.shape, dtype=np.float32)
    across, down = codes[:, 1:] != codes[:, :-1], codes[1:] != codes[:-1]
    edges[:, 1:][across] = 1
    edges[:, :-1][across] = 1
    edges[1:][down] = 1
    edges[:-1][down] = 1
    return edges


def image_edges(grey: np.ndarray) -> np.ndarray:
    """The square root of the gradient's length in (H, W), float32: strong edges do not outvote the others."""
    grey = grey.astype(np.float32)
    across, down = np.zeros_like(grey), np.zeros_like(grey)
    across[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    down[1:-1] = grey[2:] - grey[:-2]
    return np.sqrt(np.hypot(across, down))


def measure_alignment(boundary: np.ndarray, gradient: np.ndarray, scale: int) -> Alignment | None:
    """Compares `class_edges` with `image_edges` of one size (H, W); None where there is too little to compare."""
    if min(boundary.shape) <= 4 * REACH or boundary.sum() < LEAST_EDGES or not gradient.any():
        return None
    surface = _correlate(_standardised(boundary), _standardised(gradient))
    centre = surface[REACH - TOLERANCE : REACH + TOLERANCE + 1, REACH - TOLERANCE : REACH + TOLERANCE + 1]
    down, right = divmod(int(surface.argmax()), surface.shape[1])
    level = float(np.median(surface))
    noise = 1.4826 * float(np.median(np.abs(surface - level)))
    return Alignment(
        shift=((down - REACH) * scale, (right - REACH) * scale),
        here=float(centre.max()) - level,
        best=float(surface.max()) - level,
        noise=max(noise, 1e-6),
        surface=surface,
        scale=scale,
    )


def _standardised(values: np.ndarray) -> np.ndarray:
    """Free of the local mean, of length 1; the map is continued by its rim for the mean."""
    r, side = NEIGHBOURHOOD, 2 * NEIGHBOURHOOD + 1
    sums = np.pad(values, ((r + 1, r), (r + 1, r)), mode="edge").cumsum(0, dtype=np.float64).cumsum(1)
    means = (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2  # (H, W)
    values = values - means.astype(np.float32)
    return values / max(float(np.linalg.norm(values)), 1e-12)


def _correlate(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(2 R + 1, 2 R + 1): at [R + d, R + r] the sum over pixels of mask(y, x) image(y + d, x + r), cyclic."""
    spectrum = np.fft.rfft2(image) * np.fft.rfft2(mask).conj()
    sums = np.fft.irfft2(spectrum, s=mask.shape)  # (H, W)
    return np.roll(sums, (REACH, REACH), (0, 1))[: 2 * REACH + 1, : 2 * REACH + 1].astype(np.float32)
