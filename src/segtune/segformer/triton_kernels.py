"""Triton kernels for CUDA: cross-entropy and prediction of upsampled logits, without any map of K planes at full size.

Bilinear upsampling is computed where its values are needed, from four logits that lie in a cache. Every number of a
result is gathered by one program: nothing is added up atomically, so that the same input gives the same bits.

Letters: B batch, K labels, h w the size of the logits, H W the size of the labels. In the kernels, P pixels, or X
columns, and K labels make a tile, whose sides are powers of two. Offsets inside an image are int32 (see
`upsampling.has_kernels`), those between images int64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

try:  # the Hub's loader would ask for a package that is imported outside of `try`
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(
        f"CUDA builds of PyTorch for Linux bring Triton; otherwise: pip install triton ({error})"
    ) from None

_PIXELS, _COLUMNS, _LABELS = 32, 16, 32  # sides of a tile: small enough for registers, 128 bytes to read at a time


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `cross_entropy._cross_entropy` returns, by one kernel for the loss and one for its gradient."""
    b, num_labels, h, w = logits.shape
    height, width = labels.shape[1:]
    x, labels = _labels_last(logits), labels.contiguous()
    spread = share = None
    if label_smoothing > 0:  # e/K w_k (K,), and the sum of them ()
        spread = label_smoothing / num_labels * (x.new_ones(num_labels) if weight is None else weight).float()
        share = spread.sum()
    lse = torch.empty(labels.shape, dtype=torch.float32, device=x.device)
    tiles, side = triton.cdiv(height * width, _PIXELS), _side_of(num_labels)
    sums = torch.empty((2, b * tiles), dtype=torch.float32, device=x.device)
    settings = (ignore_index, 1 - label_smoothing)
    sizes = (num_labels, h, w, height, width, h / height, w / width)
    gradient = torch.empty(0, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        inputs = (x, labels, weight, spread, share)
        _loss_kernel[(b * tiles,)](*inputs, lse, sums, b * tiles, *settings, *sizes, _PIXELS, side)
        if needs_gradient:
            gradient = torch.empty_like(x, dtype=torch.float32)
            grid = (b * h * triton.cdiv(w, _COLUMNS), triton.cdiv(num_labels, side))
            reach = (-(-2 * height // h), -(-2 * width // w))  # rows and columns that an input pixel is part of
            _gradient_kernel[grid](*inputs, lse, gradient, *settings, *sizes, *reach, _COLUMNS, side)
    if needs_gradient and gradient.stride() != logits.stride():
        gradient = torch.empty_like(logits, dtype=torch.float32).copy_(gradient)
    return sums[0].sum(), sums[1].sum(), gradient


def predict(logits: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The class of the largest logit, of equal ones the first, and its probability: `(B, *size)`, int64 and float32."""
    b, num_labels, h, w = logits.shape
    height, width = size
    x = _labels_last(logits)
    ids = torch.empty((b, height, width), dtype=torch.int64, device=x.device)
    probability = torch.empty(ids.shape, dtype=torch.float32, device=x.device)
    grid = (b * triton.cdiv(height * width, _PIXELS),)
    sizes = (num_labels, h, w, height, width, h / height, w / width)
    with torch.cuda.device_of(x):
        _prediction_kernel[grid](x, ids, probability, *sizes, _PIXELS, _side_of(num_labels))
    return ids, probability


def _labels_last(x: Tensor) -> Tensor:
    """`(B, K, h, w)` with the labels of a pixel one after another in memory, as convolutions on a GPU leave it."""
    x = x.float() if x.dtype == torch.float64 else x
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _side_of(num_labels: int) -> int:
    return min(_LABELS, max(16, triton.next_power_of_2(num_labels)))


# --- kernels ---------------------------------------------------------------------------------------------------------


@triton.jit
def _between(out, size, scale):  # type: ignore[no-untyped-def]
    """The two inputs between which an output lies, and how far: `(1 - t) x[before] + t x[after]`."""
    position = tl.maximum((out.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    before = tl.minimum(position.to(tl.int32), size - 1)
    return before, tl.minimum(before + 1, size - 1), position - before.to(tl.float32)


@triton.jit
def _read_labels(labels, weight, at, is_inside, ignore_index, num_labels):  # type: ignore[no-untyped-def]
    """Targets `(P,)`, their class weights (0 where ignored, NaN where there is no such class), and which count."""
    label = tl.load(labels + at, mask=is_inside, other=0).to(tl.int64)
    valid = is_inside & (label != ignore_index)
    known = (label >= 0) & (label < num_labels)
    target = tl.where(known, label, 0).to(tl.int32)
    of_target = tl.where(known, 1.0, float("nan"))
    if weight is not None:
        of_target *= tl.load(weight + target)
    return target, tl.where(valid, of_target, 0.0), valid


@triton.jit
def _four_corners(row, column, num_labels, h, w, scale_h, scale_w):  # type: ignore[no-untyped-def]
    """Where in an image the first label of the four inputs around each output `(P,)` lies, and their shares."""
    above, below, dy = _between(row, h, scale_h)
    left, right, dx = _between(column, w, scale_w)
    a, b = (above * w + left) * num_labels, (above * w + right) * num_labels
    c, d = (below * w + left) * num_labels, (below * w + right) * num_labels
    return a, b, c, d, (1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx


@triton.jit
def _read(x, at, k, mask):  # type: ignore[no-untyped-def]
    """Logits `(P, K)` of labels `k` (K,) at pixels whose first label lies at `at` (P,)."""
    return tl.load(x + at[:, None] + k[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _upsampled(x, p00, p01, p10, p11, w00, w01, w10, w11, k, mask):  # type: ignore[no-untyped-def]
    """Upsampled logits `(P, K)`, of what `_four_corners` gives."""
    u = w00[:, None] * _read(x, p00, k, mask) + w01[:, None] * _read(x, p01, k, mask)
    return u + (w10[:, None] * _read(x, p10, k, mask) + w11[:, None] * _read(x, p11, k, mask))


@triton.jit
def _loss_kernel(  # type: ignore[no-untyped-def]
    logits,  # (B, h, w, K)
    labels,  # (B, H, W), of any integer type
    weight,  # (K,), or None
    spread,  # (K,), or None: e/K w_k
    share,  # (): the sum of it, or None
    lse,  # (B, H, W)
    sums,  # (2, programs): the loss, and the class weights of the targets
    programs,
    ignore_index,
    confidence,  # 1 - e
    num_labels,
    h,
    w,
    height,
    width,
    scale_h,
    scale_w,
    PIXELS: tl.constexpr,  # noqa: N803
    LABELS: tl.constexpr,  # noqa: N803
):
    """One tile of P pixels of an image: lse of all labels, a block of them at a time, and the sum of the losses."""
    program = tl.program_id(0)
    tiles = (height * width + PIXELS - 1) // PIXELS
    image = (program // tiles).to(tl.int64)
    pixel = (program % tiles) * PIXELS + tl.arange(0, PIXELS)  # (P,)
    is_inside = pixel < height * width
    pixel = tl.minimum(pixel, height * width - 1)
    at = image * height * width + pixel
    target, of_target, valid = _read_labels(labels, weight, at, is_inside, ignore_index, num_labels)
    p00, p01, p10, p11, w00, w01, w10, w11 = _four_corners(
        pixel // width, pixel % width, num_labels, h, w, scale_h, scale_w
    )
    x = logits + image * h * w * num_labels
    top = tl.full((PIXELS,), float("-inf"), tl.float32)  # the largest u so far
    total = tl.zeros((PIXELS,), tl.float32)  # Σ exp(u - top)
    u_target = tl.zeros((PIXELS,), tl.float32)
    u_spread = tl.zeros((PIXELS,), tl.float32)  # Σ e/K w_k u_k
    for first in range(0, num_labels, LABELS):
        k = first + tl.arange(0, LABELS)
        mask = (k < num_labels)[None, :]
        u = _upsampled(x, p00, p01, p10, p11, w00, w01, w10, w11, k, mask)
        u_target += tl.sum(tl.where(k[None, :] == target[:, None], u, 0.0), 1)
        if spread is not None:
            u_spread += tl.sum(u * tl.load(spread + k, mask=k < num_labels, other=0.0)[None, :], 1)
        u = tl.where(mask, u, float("-inf"))
        higher = tl.maximum(top, tl.max(u, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(u - higher[:, None]), 1)
        top = higher
    log_total = tl.log(total)
    # a lse - c u_t - e/K Σ_k w_k u_k, of u - top: no sum of two large numbers
    loss = confidence * of_target * (log_total - (u_target - top))
    if spread is not None:
        all_of_it = tl.load(share)
        loss += tl.where(valid, all_of_it * log_total - (u_spread - all_of_it * top), 0.0)
    tl.store(lse + at, top + log_total, mask=is_inside)
    tl.store(sums + program, tl.sum(loss, 0))
    tl.store(sums + programs + program, tl.sum(of_target, 0))


@triton.jit
def _gradient_kernel(  # type: ignore[no-untyped-def]
    logits,  # (B, h, w, K)
    labels,  # (B, H, W), of any integer type
    weight,  # (K,), or None
    spread,  # (K,), or None
    share,  # (), or None
    lse,  # (B, H, W)
    gradient,  # (B, h, w, K)
    ignore_index,
    confidence,
    num_labels,
    h,
    w,
    height,
    width,
    scale_h,
    scale_w,
    reach_h,
    reach_w,
    COLUMNS: tl.constexpr,  # noqa: N803
    LABELS: tl.constexpr,  # noqa: N803
):
    """X input pixels of a row, a block of labels: the gradient of all output pixels that these are part of.

    Those lie between the neighbours of an input pixel, at most `reach_h` rows and `reach_w` columns of them. There, u
    is made of the pixel itself and its eight neighbours.
    """
    tiles = (w + COLUMNS - 1) // COLUMNS
    row = tl.program_id(0) // tiles  # of all images, one below the other
    image, y = (row // h).to(tl.int64), row % h
    column = (tl.program_id(0) % tiles) * COLUMNS + tl.arange(0, COLUMNS)  # (X,)
    is_inside = column < w
    column = tl.minimum(column, w - 1)
    left, right = tl.maximum(column - 1, 0), tl.minimum(column + 1, w - 1)
    k = tl.program_id(1) * LABELS + tl.arange(0, LABELS)
    mask = (k < num_labels)[None, :]
    of_spread = tl.zeros((LABELS,), tl.float32)
    all_of_it = 0.0
    if spread is not None:
        of_spread = tl.load(spread + k, mask=k < num_labels, other=0.0)
        all_of_it = tl.load(share)
    first_row, first_column = _first_output(y, h, height), _first_output(column, w, width)
    x = logits + image * h * w * num_labels
    total = tl.zeros((COLUMNS, LABELS), tl.float32)
    for i in range(reach_h):
        out_row = first_row + i
        above, below, dy = _between(tl.minimum(out_row, height - 1), h, scale_h)
        in_height = tl.where(above == y, 1 - dy, 0.0) + tl.where(below == y, dy, 0.0)
        in_height = tl.where(out_row < height, in_height, 0.0)
        upper, lower = above * w, below * w
        # the three input columns around each pixel, at the height of the output row
        v0 = (1 - dy) * _read(x, (upper + left) * num_labels, k, mask)
        v0 += dy * _read(x, (lower + left) * num_labels, k, mask)
        v1 = (1 - dy) * _read(x, (upper + column) * num_labels, k, mask)
        v1 += dy * _read(x, (lower + column) * num_labels, k, mask)
        v2 = (1 - dy) * _read(x, (upper + right) * num_labels, k, mask)
        v2 += dy * _read(x, (lower + right) * num_labels, k, mask)
        row_at = (image * height + tl.minimum(out_row, height - 1)) * width
        for j in range(reach_w):
            out_column = first_column + j
            is_part = is_inside & (out_column < width)
            out_column = tl.minimum(out_column, width - 1)
            before, after, dx = _between(out_column, w, scale_w)
            in_width = tl.where(before == column, 1 - dx, 0.0) + tl.where(after == column, dx, 0.0)
            share_of_it = in_height * in_width  # of this input pixel in that output pixel
            is_part = is_part & (share_of_it > 0)
            at = row_at + out_column
            target, of_target, valid = _read_labels(labels, weight, at, is_part, ignore_index, num_labels)
            c = confidence * of_target
            a = c + tl.where(valid, all_of_it, 0.0)
            of_all = tl.load(lse + at, mask=is_part, other=float("inf"))
            near = tl.where((before == column)[:, None], v1, v0)
            far = tl.where((before == column)[:, None], v2, v1)
            u = (1 - dx)[:, None] * near + dx[:, None] * far
            # du = a softmax(u) - c [k = t] - e/K w_k
            du = a[:, None] * tl.exp(u - of_all[:, None])
            du -= tl.where(k[None, :] == target[:, None], c[:, None], 0.0)
            du -= tl.where(valid, 1.0, 0.0)[:, None] * of_spread[None, :]
            total += share_of_it[:, None] * du
    at = ((image * h + y) * w + column) * num_labels
    tl.store(gradient + at[:, None] + k[None, :], total, mask=mask & is_inside[:, None])


@triton.jit
def _first_output(at, size, target):  # type: ignore[no-untyped-def]
    """The first output that lies behind input `at - 1`."""
    # (i + 1/2) size / target - 1/2 > at - 1, in whole numbers: 2 size i > (2 at - 1) target - size
    bound = (2 * at - 1).to(tl.int64) * target - size
    return tl.where(bound < 0, 0, bound // (2 * size) + 1).to(tl.int32)


@triton.jit
def _prediction_kernel(  # type: ignore[no-untyped-def]
    logits,  # (B, h, w, K)
    ids,  # (B, H, W)
    probability,  # (B, H, W)
    num_labels,
    h,
    w,
    height,
    width,
    scale_h,
    scale_w,
    PIXELS: tl.constexpr,  # noqa: N803
    LABELS: tl.constexpr,  # noqa: N803
):
    """One tile of P pixels of an image: the largest of all labels, a block of them at a time, and its softmax."""
    program = tl.program_id(0)
    tiles = (height * width + PIXELS - 1) // PIXELS
    image = (program // tiles).to(tl.int64)
    pixel = (program % tiles) * PIXELS + tl.arange(0, PIXELS)  # (P,)
    is_inside = pixel < height * width
    p00, p01, p10, p11, w00, w01, w10, w11 = _four_corners(
        tl.minimum(pixel // width, height - 1), pixel % width, num_labels, h, w, scale_h, scale_w
    )
    x = logits + image * h * w * num_labels
    best = tl.full((PIXELS,), float("-inf"), tl.float32)
    total = tl.zeros((PIXELS,), tl.float32)  # Σ exp(u - best)
    label = tl.zeros((PIXELS,), tl.int32)
    for first in range(0, num_labels, LABELS):
        k = first + tl.arange(0, LABELS)
        mask = (k < num_labels)[None, :]
        u = _upsampled(x, p00, p01, p10, p11, w00, w01, w10, w11, k, mask)
        u = tl.where(mask, u, float("-inf"))
        highest = tl.max(u, 1)
        # ascending labels, the first of equal ones, and a strict comparison: as argmax
        lowest_label = tl.min(tl.where(u == highest[:, None], k[None, :], num_labels), 1)
        label = tl.where(highest > best, lowest_label, label)
        higher = tl.maximum(best, highest)
        total = total * tl.exp(best - higher) + tl.sum(tl.exp(u - higher[:, None]), 1)
        best = higher
    at = image * height * width + pixel
    tl.store(ids + at, label.to(tl.int64), mask=is_inside)
    tl.store(probability + at, 1.0 / total, mask=is_inside)
