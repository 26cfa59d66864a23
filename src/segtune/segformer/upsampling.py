"""From quarter-size logits to full-size answers: the one place that owns `mode="bilinear", align_corners=False`.

The full-resolution logits never exist as a whole. A CPU walks over strips, as many rows as stay in its cache. Other
devices take as much of the batch at once as a bounded chunk of memory holds, without a wait for what they compute; on
CUDA, where Triton is there, one kernel does it without any map of full size.

Letters: B batch, K labels, h w the size of the logits, H W the size of the labels.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_CPU_STRIP, _DEVICE_STRIP = 2**19, 2**25  # elements of a strip: what stays in a CPU's cache, what fills a GPU
_DEVICE_CHUNK = 2**27  # elements of an upsampled tensor elsewhere than on a CPU, 0.5 GB of float32
PHASES = (0.125, 0.375, 0.625, 0.875)  # where output pixels lie between two input pixels at a ratio of four
_LARGEST = 1e30  # logits beyond, as that of a class that is excluded, are taken to be this
_PREDICTED, _MOST_PREDICTED = 2**15, 2**18  # pixels whose classes are chosen together: for each thread, and at most
_C_COMPILERS = ("cc", "gcc", "clang")  # one of which Triton needs, or the one that CC names


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps `(B, C, h, w)` to `(B, C, *size)`: bilinear, corners not aligned; keeps the memory format.

    Under `torch.use_deterministic_algorithms(True)`, elsewhere than on a CPU and where a gradient may follow, by two
    matrix products: the gradient of the operator adds up in an order that changes from run to run.
    """
    if torch.jit.is_tracing():
        return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)  # keeps sizes that are traced
    if not (_by_products(x) and x.requires_grad and torch.is_grad_enabled()):
        # what F.interpolate calls, but for its way through many operations where determinism is asked for
        return torch.ops.aten.upsample_bilinear2d(x, list(size), False)
    down, across = _matrices(x.shape, size, x)
    with full_precision(x.device.type):
        return down @ (x @ across.t())  # (C, H, h) by (B, C, h, W)


def upsample_backward(gradient: Tensor, shape: Sequence[int]) -> Tensor:
    """What `upsample` does to a gradient: from full size back to `shape` (B, C, h, w)."""
    size = list(gradient.shape[2:])
    if not _by_products(gradient):
        return torch.ops.aten.upsample_bilinear2d_backward(gradient, size, list(shape), False)
    down, across = _matrices(shape, size, gradient)
    with full_precision(gradient.device.type):
        return (down.t() @ gradient) @ across


def _by_products(x: Tensor) -> bool:
    return x.device.type != "cpu" and torch.are_deterministic_algorithms_enabled()


def full_precision(device_type: str) -> AbstractContextManager[Any]:
    """Autocast off; the meta device has none."""
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


def upsampled_prediction(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Class maps `(B, H, W)`, int64, of logits `(B, K, h, w)` at `size`, equal to `upsample(...).argmax(1)`.

    The decision is taken at the full size: the largest of K logits, or, for K = 1, whether it is above 0 (a
    probability above 0.5). Bit-equal but where logits are equal up to rounding. On a CPU no `(K, H, W)` tensor is made:
    a class that is below another one at all four corners of a cell is so everywhere in it, so that only classes which
    may win somewhere are upsampled, one after another.
    """
    logits = logits.detach()  # a decision has no gradient
    if logits.shape[1] == 1:
        return (upsample(logits.float(), size)[:, 0] > 0).long()  # (B, H, W)
    if logits.device.type == "cpu":
        return torch.stack([_predict_one(image, size) for image in logits.float().contiguous()])
    if has_kernels(logits):
        from .triton_kernels import predict

        return predict(logits, size)[0]
    return _by_images(_largest, logits.float(), size)


def upsampled_confidence(logits: Tensor, size: Sequence[int]) -> Tensor:
    """The probability of what `upsampled_prediction` answers, `(B, H, W)`, float32, in (0, 1].

    `upsample(logits, size).softmax(1).amax(1)` up to rounding; for K = 1, the sigmoid of the logit or of its negative.
    """
    logits = logits.detach()
    if logits.shape[1] == 1:
        return upsample(logits.float(), size)[:, 0].abs_().sigmoid_()  # (B, H, W)
    if logits.device.type == "cpu":
        return _confidence_in_strips(logits.float().contiguous(), size)
    if has_kernels(logits):
        from .triton_kernels import predict

        return predict(logits, size)[1]
    return _by_images(_largest_probability, logits.float(), size)


def upsampled_at(logits: Tensor, size: Sequence[int], rows: Tensor, columns: Tensor) -> Tensor:
    """`upsample(logits, size)` of one image `(1, K, h, w)` at n pixels given by rows and columns `(n,)`: `(n, K)`."""
    # grid_sample counts from -1 to 1 over the image: the centre of pixel i of n lies at (2i + 1) / n - 1
    centers = [(2 * at + 1) / side - 1 for at, side in ((columns, size[1]), (rows, size[0]))]
    grid = torch.stack(centers, dim=-1).to(logits)[None, None]  # (1, 1, n, 2)
    values = F.grid_sample(logits, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return values[0, :, 0].T  # (n, K)


# --- on a CPU, in strips ---------------------------------------------------------------------------------------------


def _confidence_in_strips(logits: Tensor, size: Sequence[int]) -> Tensor:
    """`(B, K, h, w)` -> `(B, H, W)`."""
    b, num_labels, h, _ = logits.shape
    height, width = size
    above, below, dy = linear_weights(h, height, logits.device)
    out = logits.new_empty((b, height, width))
    for i in range(b):
        for rows in torch.arange(height).split(strip_rows(num_labels * width, logits.device)):
            # bilinear is linear in height, then in width: only the strip's own rows are made
            strip = torch.lerp(logits[i][:, above[rows]], logits[i][:, below[rows]], dy[rows, None])  # (K, rows, w)
            strip = upsample(strip[None], (len(rows), width))[0]  # (K, rows, W)
            # max_k softmax(u)_k = exp(max_k u_k - log Σ_k exp(u_k))
            out[i, rows] = (strip.amax(0) - strip.logsumexp(0)).exp_()
    return out


def _predict_one(x: Tensor, size: Sequence[int]) -> Tensor:
    """`(K, h, w)` -> `(H, W)`, int64."""
    _, h, w = x.shape
    lowest, highest = (each.item() for each in x.aminmax()) if x.numel() else (0.0, 0.0)
    if max(-lowest, highest) > _LARGEST:  # a share of 0 of an infinite one is not a number
        x = x.clamp(-_LARGEST, _LARGEST)
    if tuple(size) == (4 * h, 4 * w) and x.numel() and not math.isnan(lowest):
        return _predict_ratio_four(x)
    return _predict_whole(x, size)


def _predict_ratio_four(x: Tensor) -> Tensor:
    """`(K, h, w)`, finite, -> `(4h, 4w)`, int64: in strips, each with candidates of its own.

    Between the h + 2 input rows (a border of copies included) lie h + 1 gaps of four output rows each, of which the two
    outermost at either end are outside of the map, and columns alike. The four phases of a gap are maps of their own
    until the end, so that to interpolate takes whole rows of memory.
    """
    _, h, w = x.shape
    out = torch.empty((h + 1, 4, w + 1, 4), dtype=torch.long, device=x.device)
    t = x.new_tensor(PHASES)[:, None, None]
    step = max(1, min(_PREDICTED * torch.get_num_threads(), _MOST_PREDICTED) // (16 * (w + 1)))
    for first in range(0, h + 1, step):
        rows = min(step, h + 1 - first)
        strip, _ = with_border(x, first, rows)  # (K, rows+1, w+2)
        lines = x.new_empty((4, rows, w + 2))

        def interpolate(label: int, values: Tensor, strip: Tensor = strip, lines: Tensor = lines) -> None:
            torch.lerp(strip[label, :-1], strip[label, 1:], t, out=lines)
            torch.lerp(lines[..., :-1], lines[..., 1:], t[..., None], out=values)

        ids = _largest_of(_candidates(strip).tolist(), interpolate, (4, 4, rows, w + 1), x)  # (column, row, rows, w+1)
        out[first : first + rows] = ids.permute(2, 1, 3, 0)
    return out.view(4 * (h + 1), 4 * (w + 1))[2:-2, 2:-2]


def _predict_whole(x: Tensor, size: Sequence[int]) -> Tensor:
    """`(K, h, w)` -> `(H, W)`, int64."""
    candidates = _candidates(x).tolist()
    if not candidates:  # not a number everywhere
        return upsample(x[None], size)[0].argmax(0)

    def interpolate(label: int, values: Tensor) -> None:
        plane, out = x[None, label : label + 1], values[None, None]
        torch.ops.aten.upsample_bilinear2d.out(plane, list(size), False, out=out)

    return _largest_of(candidates, interpolate, tuple(size), x).long()


def _largest_of(
    labels: Sequence[int], interpolate: Callable[[int, Tensor], None], shape: tuple[int, ...], like: Tensor
) -> Tensor:
    """At each place that of some labels, ascending, which has the largest value, int32 of `shape`.

    They are interpolated one after another, by a function that writes the values of a label, and the best so far is
    kept for each place. By a strict comparison the first one wins of equal logits, as in argmax.
    """
    first, *others = labels
    ids = torch.full(shape, first, dtype=torch.int32, device=like.device)
    if not others:
        return ids
    best, score = like.new_empty((2, *shape))
    higher = torch.empty_like(best, dtype=torch.bool)
    interpolate(first, best)
    for label in others:
        interpolate(label, score)
        torch.gt(score, best, out=higher)
        ids.masked_fill_(higher, label)
        torch.maximum(best, score, out=best)
    return ids


def _candidates(x: Tensor) -> Tensor:
    """The classes of `x` (K, h, w) that may have the largest value somewhere between its pixels, ascending."""
    num_labels, h, w = x.shape
    lowest, highest = x.aminmax()
    rounding = 1e-5 * torch.maximum(-lowest, highest)  # an interpolated value may be off by so much
    found = torch.zeros(num_labels, dtype=torch.bool, device=x.device)
    rows = strip_rows(num_labels * w, x.device)
    for first in range(0, max(h - 1, 1), rows):
        # a bilinear value lies between the smallest and the largest of the four corners of its cell
        strip = x[:, first : first + rows + 1]
        low, high = torch.minimum(strip[:, :-1], strip[:, 1:]), torch.maximum(strip[:, :-1], strip[:, 1:])
        if h == 1:
            low = high = strip
        if w > 1:  # (K, rows, w-1), of the four corners of each cell
            low, high = torch.minimum(low[..., :-1], low[..., 1:]), torch.maximum(high[..., :-1], high[..., 1:])
        # max_k low_k: some class is at least this everywhere in the cell, and what stays below it cannot win there
        sure = low.amax(0)  # (rows, w-1)
        found |= (high >= sure - rounding).flatten(1).any(1)
    return found.nonzero()[:, 0]


# --- at a ratio of four -----------------------------------------------------------------------------------------------


def with_border(x: Tensor, first: int, rows: int) -> tuple[Tensor, slice]:
    """The input rows around gaps `first` to `first + rows`, and where in them those lie that are no copies.

    Gap r lies between input rows r - 1 and r of x (K, h, w); row -1 is a copy of row 0 and row h one of the last, and
    so are the columns. Returns `(K, rows+1, w+2)`, and a slice of its rows.
    """
    num_labels, h, w = x.shape
    strip = x.new_empty((num_labels, rows + 1, w + 2))
    inside = slice(int(first == 0), rows + int(first + rows <= h))
    strip[:, inside, 1:-1].copy_(x[:, max(first - 1, 0) : first + rows])
    for copy, of in _copies(strip, inside):
        copy.copy_(of)
    return strip, inside


def fold_border(gradient: Tensor, inside: slice) -> None:
    """What `with_border` does to a gradient: that of a copy belongs to what was copied."""
    for copy, of in reversed(_copies(gradient, inside)):
        of += copy


def _copies(strip: Tensor, inside: slice) -> list[tuple[Tensor, Tensor]]:
    """Rows and columns of the border, and those of which they are copies; columns of the border's rows come last."""
    found = [(strip[:, 0], strip[:, 1])] if inside.start == 1 else []
    if inside.stop < strip.shape[1]:
        found.append((strip[:, -1], strip[:, -2]))
    return [*found, (strip[:, :, 0], strip[:, :, 1]), (strip[:, :, -1], strip[:, :, -2])]


# --- elsewhere, in chunks of the batch -------------------------------------------------------------------------------


def chunks(shape: Sequence[int], size: Sequence[int]) -> tuple[list[slice], list[slice]]:
    """How to upsample maps of `shape` (B, K, h, w) within a bounded memory: some images, and some labels, at once.

    Returns:
        Slices of the batch; and slices of the labels: one, unless even one image is too large.
    """
    pixels = size[0] * size[1]
    images, labels = (max(1, _DEVICE_CHUNK // elements) for elements in (shape[1] * pixels, pixels))
    return _slices(shape[0], images), _slices(shape[1], labels)


def _slices(total: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, total)) for first in range(0, total, step)]


def _by_images(function: Any, logits: Tensor, size: Sequence[int]) -> Tensor:
    """`function(some images, size, slices of the labels)`, `(n, H, W)` each, of all images: `(B, H, W)`."""
    images, labels = chunks(logits.shape, size)
    parts = [function(logits[some], size, labels) for some in images]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _largest(x: Tensor, size: Sequence[int], labels: Sequence[slice]) -> Tensor:
    """The class of the largest logit; of equal ones the first."""
    best, ids = upsample(x[:, labels[0]], size).max(1)
    for some in labels[1:]:
        value, index = upsample(x[:, some], size).max(1)
        ids = torch.where(value > best, index + some.start, ids)
        best = torch.maximum(best, value)
    return ids


def _largest_probability(x: Tensor, size: Sequence[int], labels: Sequence[slice]) -> Tensor:
    # max_k softmax(u)_k = exp(max_k u_k - log Σ_k exp(u_k))
    best = lse = x.new_full((len(x), *size), -torch.inf)
    for some in labels:
        u = upsample(x[:, some], size)
        best, lse = torch.maximum(best, u.amax(1)), torch.logaddexp(lse, u.logsumexp(1))
    return (best - lse).exp_()


def has_kernels(logits: Tensor) -> bool:
    """Whether Triton's kernels take logits `(B, K, h, w)`: on CUDA from compute capability 7.0 on, of up to 2^31
    elements an image; not where the environment says `SEGTUNE_TRITON=0`.
    """
    return (
        logits.device.type == "cuda"
        and os.environ.get("SEGTUNE_TRITON", "1") != "0"
        and logits.shape[1:].numel() < 2**31
        and _compiles_kernels(logits.device)
    )


@functools.cache
def _compiles_kernels(device: torch.device) -> bool:
    has_compiler = "CC" in os.environ or any(map(shutil.which, _C_COMPILERS))
    is_there = has_compiler and importlib.util.find_spec("triton") is not None
    return is_there and torch.cuda.get_device_capability(device) >= (7, 0)


# --- weights of the interpolation ------------------------------------------------------------------------------------


def linear_weights(size: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """How `size` input positions make `target` output positions, as `upsample` does in each direction.

    Returns:
        `before`, `after` and `t`, each `(target,)`: an output is `(1 - t) x[before] + t x[after]`.
    """
    position = _positions(size, target, device)
    before = position.long().clamp(max=size - 1)
    return before, (before + 1).clamp(max=size - 1), position - before


def _positions(size: int, target: int, device: torch.device) -> Tensor:
    """Where each of `target` outputs lies among `size` inputs, `(target,)`, at least 0."""
    # the centre of output i lies at (i + 1/2) size / target - 1/2 of the input; before 0, the first one counts
    return ((torch.arange(target, device=device, dtype=torch.float32) + 0.5) * (size / target) - 0.5).clamp(min=0)


def _matrices(shape: Sequence[int], size: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """`(H, h)` and `(W, w)`, which make rows and columns of `size` from those of `shape` (B, C, h, w)."""
    height, width = (_matrix(*sides, like) for sides in zip(shape[2:], size, strict=True))
    return height, width


def _matrix(size: int, target: int, like: Tensor) -> Tensor:
    """Row i is 0 but for `1 - t` and `t` of `linear_weights`: a triangle of width 1 around the position of output i."""
    position = _positions(size, target, like.device).clamp(max=size - 1)
    distance = (position[:, None] - torch.arange(size, device=like.device)).abs()
    return (1 - distance).clamp(min=0).to(like.dtype)  # (target, size)


def upsampled_strip(x: Tensor, weights: tuple[Tensor, Tensor, Tensor], strip: slice, width: int) -> Tensor:
    """Rows `strip` of a map `(h, w, C)` upsampled to `width` and to the height that `linear_weights` is for."""
    before, after, t = weights
    above, below = (x.index_select(0, near[strip]) for near in (before, after))
    lines = torch.lerp(above, below, t[strip, None, None].to(x.dtype))  # (rows, w, C)
    lines = lines.permute(0, 2, 1)[:, :, None]  # (rows, C, 1, w): the rows as a batch, over which threads divide
    return upsample(lines, (1, width))[:, :, 0].permute(0, 2, 1)  # (rows, W, C)


def strip_rows(row_elements: int, device: torch.device) -> int:
    """Rows of a strip whose rows have `row_elements` elements: on a CPU, as many as stay in the cache."""
    return max(1, (_CPU_STRIP if device.type == "cpu" else _DEVICE_STRIP) // row_elements)
