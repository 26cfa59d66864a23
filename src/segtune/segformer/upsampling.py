"""From quarter-size logits to full-size answers: the one place that owns `mode="bilinear", align_corners=False`.

The full-resolution logits never exist. The loss walks over bands of rows: upsample a band, take its part of the
cross-entropy and of the gradient, drop it; memory does not grow with classes times pixels.

Letters: B batch, K labels, h w the size of the logits, H W the size of the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

_CPU_BAND, _DEVICE_BAND = 2**19, 2**25  # elements of a band: what stays in a CPU's cache, what fills a GPU
_LARGEST_SPREAD = 80.0  # exp(-80) is a normal float32
_PHASES = (0.125, 0.375, 0.625, 0.875)  # where output pixels lie between two input pixels at a ratio of four


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps `(B, C, h, w)` to `(B, C, *size)`: bilinear, corners not aligned; keeps the memory format."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def upsample_backward(gradient: Tensor, shape: Sequence[int]) -> Tensor:
    """What `upsample` does to a gradient: from full size back to `shape` (B, C, h, w)."""
    size = list(gradient.shape[2:])
    return torch.ops.aten.upsample_bilinear2d_backward(gradient, size, list(shape), False)


def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """`F.cross_entropy(upsample(logits), labels)` without its memory; the gradient is computed on the way.

    Args:
        logits: `(B, K, h, w)`, floating point; computed in float32.
        labels: `(B, H, W)`, integer, of any size; pixels equal to `ignore_index` do not count.
        weight: one factor for each class, `(K,)`.
        label_smoothing: share of the target that is spread over all classes, in [0, 1].
        reduction: `"mean"` over valid pixels (over their weights, if given), 0 where there is none; or `"sum"`.

    Raises:
        IndexError: a label is neither a class nor `ignore_index`.
        RuntimeError: when the gradient is differentiated again.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction={reduction!r} must be 'mean' or 'sum'")
    if weight is not None:
        weight = weight.to(logits.device, torch.float32)
    needs_gradient = logits.requires_grad and torch.is_grad_enabled()
    total, norm, _ = _cross_entropy(logits.float(), labels, weight, ignore_index, label_smoothing, needs_gradient)
    return total if reduction == "sum" else total / norm.clamp(min=torch.finfo(torch.float32).tiny)


def upsampled_prediction(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Class maps `(B, H, W)`, int64, of logits `(B, K, h, w)` at `size`, bit-equal to `upsample(...).argmax(1)`.

    The decision is taken at the full size: the largest of K logits, or, for K = 1, whether it is above 0 (a
    probability above 0.5). No `(K, H, W)` tensor is made: a class that is below another one at all four corners of a
    cell is so everywhere in it, so that only classes which may win somewhere are upsampled, one after another.
    """
    logits = logits.float().contiguous()
    if logits.shape[1] == 1:
        return (upsample(logits, size)[:, 0] > 0).long()  # (B, H, W)
    return torch.stack([_predict_one(image, size) for image in logits])


def upsampled_confidence(logits: Tensor, size: Sequence[int]) -> Tensor:
    """The probability of what `upsampled_prediction` answers, `(B, H, W)`, float32, in (0, 1].

    `upsample(logits, size).softmax(1).amax(1)` up to rounding, in bands of rows; for K = 1, the sigmoid of the logit or
    of its negative.
    """
    logits = logits.float().contiguous()
    b, num_labels, h, _ = logits.shape
    height, width = size
    if num_labels == 1:
        return upsample(logits, size)[:, 0].abs_().sigmoid_()  # (B, H, W)
    top, bottom, t = neighbours(h, height, logits.device)
    out = logits.new_empty((b, height, width))
    for i in range(b):
        for rows in torch.arange(height, device=logits.device).split(band_rows(num_labels * width, logits.device)):
            band = torch.lerp(logits[i][:, top[rows]], logits[i][:, bottom[rows]], t[rows, None])  # (K, rows, w)
            band = upsample(band[None], (len(rows), width))[0]  # (K, rows, W)
            out[i, rows] = (band.amax(0) - band.logsumexp(0)).exp_()
    return out


def _predict_one(x: Tensor, size: Sequence[int]) -> Tensor:
    """`(K, h, w)` -> `(H, W)`."""
    candidates = _candidates(x).tolist()
    if not candidates:  # not a number everywhere
        return upsample(x[None], size)[0].argmax(0)
    first, *others = candidates
    ids = torch.full(tuple(size), first, dtype=torch.uint8 if len(x) <= 256 else torch.int32, device=x.device)
    if others:
        best = upsample(x[None, first : first + 1], size)[0, 0]  # (H, W)
    for label in others:
        score = upsample(x[None, label : label + 1], size)[0, 0]  # (H, W)
        ids.masked_fill_(score > best, label)
        torch.maximum(best, score, out=best)
    return ids.long()


def _candidates(x: Tensor) -> Tensor:
    """The classes of `x` (K, h, w) that may have the largest value somewhere between its pixels, ascending."""
    _, h, w = x.shape
    x = F.pad(x[None], (0, int(w == 1), 0, int(h == 1)), mode="replicate")[0]
    low, high = torch.minimum(x[:, :-1], x[:, 1:]), torch.maximum(x[:, :-1], x[:, 1:])  # (K, h-1, w)
    low, high = torch.minimum(low[..., :-1], low[..., 1:]), torch.maximum(high[..., :-1], high[..., 1:])
    sure = low.amax(0)  # (h-1, w-1): some class is at least this everywhere in the cell
    rounding = 1e-5 * x.abs().amax()
    return (high >= sure - rounding).flatten(1).any(1).nonzero()[:, 0]


# --- the operator: opaque to torch.compile, so that it may look at the data -------------------------------------------


@torch.library.custom_op("segtune::upsampled_cross_entropy", mutates_args=())
def _cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weight: Optional[Tensor],  # noqa: UP045 (the schema is read at run time)
    ignore_index: int,
    label_smoothing: float,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The summed loss `()`, what the mean divides by `()`, and the gradient of the sum `(B, K, h, w)`.

    With lse the log of the sum of exponentials, t the target and e the smoothing, a pixel's loss is
    `a lse - c u_t - e/K sum_k w_k u_k` where `c = (1 - e) w_t` and `a = c + e/K sum_k w_k`. The terms in u are linear
    in the logits; only lse, and its gradient `a softmax(u)`, need every class at every pixel.
    """
    num_labels, size = logits.shape[1], labels.shape[1:]
    weight = logits.new_ones(num_labels) if weight is None else weight
    valid = labels != ignore_index
    target = torch.where(valid, labels, 0).long()
    if target.numel() and not 0 <= int(target.min()) <= int(target.max()) < num_labels:
        outside = labels[valid & ((labels < 0) | (labels >= num_labels))]
        raise IndexError(f"label {outside[0].item()} is neither one of {num_labels} classes nor {ignore_index}")
    of_target = weight[target] * valid  # (B, H, W)
    spread = label_smoothing / num_labels * weight  # (K,)
    c = (1 - label_smoothing) * of_target  # (B, H, W)
    a = c + spread.sum() * valid  # (B, H, W)

    top = logits.amax(
        1, keepdim=True
    )  # (B, 1, h, w): softmax does not see it; without it, no upsampled value exceeds 0
    fast = tuple(size) == (4 * logits.shape[2], 4 * logits.shape[3]) and logits.numel() > 0
    fast = fast and (logits.amin(1, keepdim=True) - top).amin().item() > -_LARGEST_SPREAD
    add_normalizers = _add_normalizers_of_ratio_four if fast else _add_normalizers
    total = logits.new_zeros((), dtype=torch.float64)
    gradient = torch.empty_like(logits) if needs_gradient else logits.new_empty(0)
    for i in range(len(logits)):  # one image at a time: less memory
        x = logits.new_empty((num_labels, logits.shape[2] + 2, logits.shape[3] + 2))  # with a border
        torch.sub(logits[i], top[i], out=_inside(x))
        g = torch.zeros_like(x) if needs_gradient else None
        total += add_normalizers(x, a[i], g) - _add_targets(_inside(x), target[i], c[i], _inside(g))
        if label_smoothing > 0:
            mean = torch.einsum("khw,k->hw", _inside(x), spread)[None, None]  # (1, 1, h, w)
            total -= (upsample(mean, size)[0, 0] * valid[i]).sum(dtype=torch.float64)
            if g is not None:
                share = upsample_backward(valid[None, None, i].to(x.dtype), mean.shape)[0]  # (1, h, w)
                _inside(g).sub_(share * spread[:, None, None])
        if g is not None:
            gradient[i] = _inside(g)
    return total.to(logits.dtype), of_target.sum(), gradient


@_cross_entropy.register_fake
def _(
    logits: Tensor, labels: Tensor, weight: Any, ignore_index: int, label_smoothing: float, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    gradient = torch.empty_like(logits) if needs_gradient else logits.new_empty(0)
    return logits.new_empty(()), logits.new_empty(()), gradient


def _keep_gradient(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(output[1], output[2])


def _scale_gradient(ctx: Any, grad_total: Tensor, *_: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():  # create_graph=True
        raise RuntimeError(
            "the upsampled cross-entropy has no second derivative: use F.cross_entropy(upsample(logits, size), labels)"
        )
    (gradient,) = ctx.saved_tensors
    return gradient * grad_total, None, None, None, None, None


_cross_entropy.register_autograd(_scale_gradient, setup_context=_keep_gradient)


# --- parts of one image ----------------------------------------------------------------------------------------------


def _inside(x: Any) -> Any:
    """A view without the border, `(K, h, w)` of `(K, h+2, w+2)`; None of None."""
    return None if x is None else x[:, 1:-1, 1:-1]


def _add_targets(x: Tensor, target: Tensor, c: Tensor, gradient: Tensor | None) -> Tensor:
    """Sum of `c u_t` over pixels `(H, W)`, u being `x` (K, h, w) upsampled; subtracts its gradient.

    `gradient` has the strides of `x`.
    """
    _, h, w = x.shape
    top, bottom, dy = neighbours(h, target.shape[0], x.device)
    left, right, dx = neighbours(w, target.shape[1], x.device)
    base = target * x.stride(0)  # (H, W)
    total = x.new_zeros((), dtype=torch.float64)
    for rows, row_weight in ((top, 1 - dy), (bottom, dy)):
        for columns, column_weight in ((left, 1 - dx), (right, dx)):
            index = (base + (rows * x.stride(1))[:, None] + columns).view(-1)  # (H W)
            share = (c * row_weight[:, None] * column_weight).view(-1)
            total += torch.dot(_flat(x)[index], share)
            if gradient is not None:
                _flat(gradient).scatter_add_(0, index, -share)
    return total


def _flat(x: Tensor) -> Tensor:
    """The memory from the first to the last element of `x`, as one view."""
    span = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1
    return x.as_strided((span,), (1,))


def _add_normalizers(x: Tensor, a: Tensor, gradient: Tensor | None) -> Tensor:
    """Sum of `a lse(u)` over pixels; adds its gradient.

    Args:
        x: logits with a border, `(K, h+2, w+2)`; u is what lies inside it, upsampled to the size of `a` (H, W).
        gradient: laid out as `x`.
    """
    x, gradient = _inside(x), _inside(gradient)
    num_labels, h, _ = x.shape
    height, width = a.shape
    top, bottom, dy = neighbours(h, height, x.device)
    total = x.new_zeros((), dtype=torch.float64)
    for rows in torch.arange(height, device=x.device).split(band_rows(num_labels * width, x.device)):
        t = dy[rows, None]
        band = torch.lerp(x[:, top[rows]], x[:, bottom[rows]], t)[None]  # (1, K, rows, w)
        u = upsample(band, (len(rows), width))[0]  # (K, rows, W)
        lse = u.logsumexp(0)  # (rows, W)
        total += (lse * a[rows]).sum()
        if gradient is not None:
            u.sub_(lse).exp_().mul_(a[rows])
            share = upsample_backward(u[None], band.shape)[0]  # (K, rows, w)
            gradient.index_add_(1, top[rows], share * (1 - t))
            gradient.index_add_(1, bottom[rows], share * t)
    return total


def _add_normalizers_of_ratio_four(x: Tensor, a: Tensor, gradient: Tensor | None) -> Tensor:
    """The same for H = 4h, W = 4w and `-80 < x <= 0`, with a quarter of the exponentials; fills the border of `x`.

    Between two columns p and q, the four output columns are `exp((7p + q)/8)`, `exp((5p + 3q)/8)`, … : products of
    powers of `exp(p/8)` and `exp(q/8)`. So only rows are interpolated before the exponential. A band is kept as
    (K, R) with the R positions of all its rows one after another: the neighbour q is the next position, and what the
    last column of a row makes with the first one of the next has `a = 0`.
    """
    num_labels, h, w = _inside(x).shape
    for inner, outer in ((1, 0), (-2, -1)):  # beyond the border, the nearest value
        x[:, outer, 1:-1] = x[:, inner, 1:-1]
    for inner, outer in ((1, 0), (-2, -1)):
        x[:, :, outer] = x[:, :, inner]
    t = x.new_tensor(_PHASES)[:, None, None]
    a = F.pad(a, (2, 2, 2, 2)).view(h + 1, 4, w + 1, 4).permute(3, 1, 0, 2)  # (column, row, h+1, w+1)
    a = F.pad(a, (0, 1))  # (column, row, h+1, w+2)
    total = x.new_zeros((), dtype=torch.float64)
    step = band_rows(4 * num_labels * (w + 2), x.device)
    for first in range(0, h + 1, step):
        last = min(first + step, h + 1)
        p1 = torch.lerp(x[:, None, first:last], x[:, None, first + 1 : last + 1], t)  # (K, row, rows, w+2)
        shape, p1 = p1.shape, p1.div_(8).exp_().view(num_labels, -1)  # (K, R)
        p2 = p1 * p1
        p3 = p1 * p2
        p5 = p2 * p3
        p7 = p2.mul_(p5)
        pairs = torch.ones_like(p1)
        to_left, to_right = torch.zeros_like(p1), torch.zeros_like(p1)
        for phase, (left, right) in enumerate(((p7, p1), (p5, p3), (p3, p5), (p1, p7))):
            torch.mul(left.view(-1)[:-1], right.view(-1)[1:], out=pairs.view(-1)[:-1])
            sums = pairs.sum(0)  # (R,)
            scale = a[phase, :, first:last].reshape(-1)  # (R,)
            total += torch.dot(sums.log(), scale)
            if gradient is not None:
                scale = scale / sums
                to_left.addcmul_(pairs, scale * (1 - _PHASES[phase]))
                to_right.addcmul_(pairs, scale * _PHASES[phase])
        if gradient is not None:
            to_left.view(-1)[1:] += to_right.view(-1)[:-1]
            share = to_left.view(shape)
            for row, phase_weight in enumerate(_PHASES):
                gradient[:, first:last].add_(share[:, row], alpha=1 - phase_weight)
                gradient[:, first + 1 : last + 1].add_(share[:, row], alpha=phase_weight)
    if gradient is not None:
        for inner, outer in ((1, 0), (-2, -1)):
            gradient[:, inner] += gradient[:, outer]
            gradient[:, :, inner] += gradient[:, :, outer]
    return total


def neighbours(size: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `target` positions: the input positions before and after it, and its way from one to the other."""
    position = (torch.arange(target, device=device, dtype=torch.float32) + 0.5) * (size / target) - 0.5
    position = position.clamp(min=0)
    before = position.long().clamp(max=size - 1)
    return before, (before + 1).clamp(max=size - 1), position - before


def upsampled_rows(x: Tensor, place: tuple[Tensor, Tensor, Tensor], band: slice, width: int) -> Tensor:
    """Rows `band` of a map `(h, w, C)` upsampled to `width` and to the height that `place` (`neighbours`) is for."""
    top, bottom, t = place
    above, below = (x.index_select(0, near[band]) for near in (top, bottom))
    line = torch.lerp(above, below, t[band, None, None].to(x.dtype))  # (rows, w, C)
    return upsample(line[None].permute(0, 3, 1, 2), (len(line), width))[0].permute(1, 2, 0)  # (rows, W, C)


def band_rows(row_elements: int, device: torch.device) -> int:
    """Rows of a band whose rows have `row_elements` elements: on a CPU, as many as stay in the cache."""
    return max(1, (_CPU_BAND if device.type == "cpu" else _DEVICE_BAND) // row_elements)
