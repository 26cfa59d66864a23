"""Cross-entropy of upsampled logits, without a map of K planes at full size that stays in memory.

The gradient is computed on the way, so that a strip or a chunk of full size can be dropped before the next. On a CPU:
strips that stay in the cache; elsewhere: chunks of the batch with plain operations, or, on CUDA, Triton's kernels.

Letters: B batch, K labels, h w the size of the logits, H W the size of the labels. `u` are logits, upsampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from .upsampling import (
    PHASES,
    chunks,
    fold_border,
    has_kernels,
    linear_weights,
    strip_rows,
    upsample,
    upsample_backward,
    with_border,
)

_LARGEST_SPREAD = 80.0  # exp(-80) is a normal float32


def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """`F.cross_entropy(upsample(logits), labels)` without its memory; the gradient is computed on the way.

    A label that is neither a class nor `ignore_index` raises on a CPU. Other devices would have to be waited for: there
    it makes the loss and the gradient NaN.

    Args:
        logits: `(B, K, h, w)`, floating point; computed in float32.
        labels: `(B, H, W)`, integer, of any size; pixels equal to `ignore_index` do not count.
        weight: one factor for each class, `(K,)`.
        label_smoothing: share of the target that is spread over all classes, in [0, 1].
        reduction: `"mean"` over valid pixels (over their weights, if given), 0 where there is none; or `"sum"`.

    Raises:
        IndexError: a label is neither a class nor `ignore_index`, on a CPU.
        RuntimeError: when the gradient is differentiated again.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction={reduction!r} must be 'mean' or 'sum'")
    if weight is not None:
        weight = weight.to(logits.device, torch.float32)
    needs_gradient = logits.requires_grad and torch.is_grad_enabled()
    total, norm, _ = _cross_entropy(logits, labels, weight, ignore_index, label_smoothing, needs_gradient)
    return total if reduction == "sum" else total / norm.clamp(min=torch.finfo(torch.float32).tiny)


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
    """The summed loss `()`, what the mean divides by `()`, and the gradient of the sum `(B, K, h, w)`; all float32.

    With lse the log of the sum of exponentials, t the target and e the smoothing, a pixel's loss is
    `a lse - c u_t - e/K sum_k w_k u_k` where `c = (1 - e) w_t` and `a = c + e/K sum_k w_k`. The terms in u are linear
    in the logits; only lse, and its gradient `a softmax(u)`, need every class at every pixel.
    """
    if has_kernels(logits):
        from .triton_kernels import cross_entropy

        return cross_entropy(logits, labels, weight, ignore_index, label_smoothing, needs_gradient)
    by_strips_or_chunks = _in_strips if logits.device.type == "cpu" else _in_chunks
    return by_strips_or_chunks(logits.float(), labels, weight, ignore_index, label_smoothing, needs_gradient)


@_cross_entropy.register_fake
def _(
    logits: Tensor, labels: Tensor, weight: Any, ignore_index: int, label_smoothing: float, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    total = logits.new_empty((), dtype=torch.float32)
    return total, torch.empty_like(total), _empty_gradient(logits, needs_gradient)


def _empty_gradient(logits: Tensor, needs_gradient: bool) -> Tensor:
    """With the strides of the logits."""
    if needs_gradient:
        return torch.empty_like(logits, dtype=torch.float32)
    return logits.new_empty(0, dtype=torch.float32)


def _keep_gradient(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(output[1], output[2])


def _scale_gradient(ctx: Any, grad_total: Tensor, *_: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():  # create_graph=True
        raise RuntimeError(
            "the upsampled cross-entropy has no second derivative: use F.cross_entropy(upsample(logits, size), labels)"
        )
    (gradient,) = ctx.saved_tensors
    return (gradient * grad_total).to(ctx.dtype), None, None, None, None, None


_cross_entropy.register_autograd(_scale_gradient, setup_context=_keep_gradient)


# --- on a CPU: one image at a time, in strips -------------------------------------------------------------------------


def _in_strips(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    num_labels, size = logits.shape[1], labels.shape[1:]
    if torch.empty_like(logits, device="meta").stride() != logits.stride():
        logits = logits.contiguous()  # of a slice with gaps; the gradient has the strides of the logits
    weight = logits.new_ones(num_labels) if weight is None else weight
    _refuse_unknown(labels, num_labels, ignore_index)
    spread = label_smoothing / num_labels * weight  # (K,)
    # u = up(x - top), where top is each input pixel's largest logit: up is linear and top the same for all classes, so
    # that softmax(up(x)) = softmax(u); and no u exceeds 0, so that nothing overflows
    top = logits.amax(1, keepdim=True)  # (B, 1, h, w)
    fast = tuple(size) == (4 * logits.shape[2], 4 * logits.shape[3]) and logits.numel() > 0
    # its products of exponentials must not underflow to 0, of which it takes the logarithm
    fast = fast and (logits.amin(1, keepdim=True) - top).amin().item() > -_LARGEST_SPREAD
    add_normalizers = _add_normalizers_of_ratio_four if fast else _add_normalizers
    total, norm = logits.new_zeros((), dtype=torch.float64), logits.new_zeros(())
    gradient = _empty_gradient(logits, needs_gradient)
    for i in range(len(logits)):  # one image at a time: less memory
        # c = (1 - e) w_t and a = c + e/K Σ_k w_k, both 0 where a pixel does not count
        valid = labels[i] != ignore_index  # (H, W)
        target = torch.where(valid, labels[i], 0).long()
        of_target = weight[target] * valid
        c = (1 - label_smoothing) * of_target
        a = c + spread.sum() * valid
        g = gradient[i].zero_() if needs_gradient else None
        # Σ a lse(u) - Σ c u_t, with the gradients a softmax(u) and -c at the target
        x = logits[i] - top[i]  # (K, h, w)
        total += add_normalizers(x, a, g) - _add_targets(x, target, c, g)
        norm += of_target.sum()
        if label_smoothing > 0:
            # -e/K Σ_k w_k u_k: summed over classes first, so that one map is upsampled in the place of K
            mean = (x * spread[:, None, None]).sum(0)[None, None]  # (1, 1, h, w), never in bf16
            total -= (upsample(mean, size)[0, 0] * valid).sum(dtype=torch.float64)
            if g is not None:  # for every class the same map, times its weight
                share = upsample_backward(valid[None, None].to(mean.dtype), mean.shape)[0]  # (1, h, w)
                g.sub_(share * spread[:, None, None])
    return total.to(logits.dtype), norm, gradient


def _refuse_unknown(labels: Tensor, num_labels: int, ignore_index: int) -> None:
    outside = labels[(labels != ignore_index) & ((labels < 0) | (labels >= num_labels))]
    if outside.numel():
        raise IndexError(f"label {outside[0].item()} is neither one of {num_labels} classes nor {ignore_index}")


# Parts of one image; of x (K, h, w), the largest logit of each pixel is taken off.


def _add_targets(x: Tensor, target: Tensor, c: Tensor, gradient: Tensor | None) -> Tensor:
    """Sum of `c u_t` over pixels `(H, W)`, u being x upsampled; subtracts its gradient.

    `gradient` has the strides of `x`.
    """
    _, h, w = x.shape
    above, below, dy = linear_weights(h, target.shape[0], x.device)
    left, right, dx = linear_weights(w, target.shape[1], x.device)
    # u_t of a pixel is the sum of four input pixels of plane t, each times its share: gather them from flat memory,
    # and scatter the shares back as the gradient, without a map of K planes
    of_label, of_row, of_column = x.stride()
    base = target * of_label  # (H, W)
    total = x.new_zeros((), dtype=torch.float64)
    for rows, row_weight in ((above, 1 - dy), (below, dy)):
        for columns, column_weight in ((left, 1 - dx), (right, dx)):
            index = (base + (rows * of_row)[:, None] + columns * of_column).view(-1)  # (H W)
            share = (c * row_weight[:, None] * column_weight).view(-1)
            total += torch.dot(_flat(x)[index], share)
            if gradient is not None:
                _flat(gradient).scatter_add_(0, index, share.neg_())
    return total


def _flat(x: Tensor) -> Tensor:
    """The memory from the first to the last element of `x`, as one view."""
    span = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1
    return x.as_strided((span,), (1,))


def _add_normalizers(x: Tensor, a: Tensor, gradient: Tensor | None) -> Tensor:
    """Sum of `a lse(u)` over pixels; adds its gradient.

    u is x (K, h, w) upsampled to the size of `a` (H, W).
    """
    num_labels, h, _ = x.shape
    height, width = a.shape
    above, below, dy = linear_weights(h, height, x.device)
    total = x.new_zeros((), dtype=torch.float64)
    for rows in torch.arange(height, device=x.device).split(strip_rows(num_labels * width, x.device)):
        # in height by hand, in width by the operator: only the strip's own rows are made
        t = dy[rows, None]
        strip = torch.lerp(x[:, above[rows]], x[:, below[rows]], t)[None]  # (1, K, rows, w)
        u = upsample(strip, (len(rows), width))[0]  # (K, rows, W)
        lse = u.logsumexp(0)  # (rows, W)
        total += (lse * a[rows]).sum()
        if gradient is not None:
            # du = a softmax(u) = a exp(u - lse), back through the width, then to the rows above and below
            u.sub_(lse).exp_().mul_(a[rows])
            share = upsample_backward(u[None], strip.shape)[0]  # (K, rows, w)
            gradient.index_add_(1, above[rows], share * (1 - t))
            gradient.index_add_(1, below[rows], share * t)
    return total


def _add_normalizers_of_ratio_four(x: Tensor, a: Tensor, gradient: Tensor | None) -> Tensor:
    """The same for H = 4h, W = 4w and `-80 < x <= 0`, with a quarter of the exponentials.

    With P = exp(p/8) and Q = exp(q/8) of two columns p and q, the four output columns between them, at
    t = 1/8, 3/8, 5/8 and 7/8, are `exp((1-t) p + t q) = P^7 Q, P^5 Q^3, P^3 Q^5, P Q^7`: products of powers. So only
    rows are interpolated before the exponential. A border of one pixel repeats the nearest value. A strip is kept as
    (K, R) with the R positions of all its rows one after another: the column q of a position is the next position,
    and what the last column of a row makes with the first one of the next has `a = 0`.
    """
    num_labels, h, w = x.shape
    t = x.new_tensor(PHASES)[:, None, None]
    # Between the h + 2 input rows (border included) lie h + 1 gaps of four output rows each, of which the two outermost
    # at either end are outside of the map: a = 0 there. Columns alike, with one gap more that ends each row.
    a = F.pad(a, (2, 2, 2, 2)).view(h + 1, 4, w + 1, 4).permute(3, 1, 0, 2)  # (column, row, h+1, w+1)
    a = F.pad(a, (0, 1))  # (column, row, h+1, w+2)
    step = min(strip_rows(4 * num_labels * (w + 2), x.device), h + 1)
    # Every strip computes in the memory of the first one, which is still in the cache.
    work = [x.new_empty(4 * num_labels * step * (w + 2)) for _ in range(5 if gradient is None else 6)]
    total = x.new_zeros((), dtype=torch.float64)
    for first in range(0, h + 1, step):
        rows = min(step, h + 1 - first)
        strip, inside = with_border(x, first, rows)  # (K, rows+1, w+2)
        shape = (num_labels, 4, rows, w + 2)
        p1, p3, p5, p7, pairs, *grad = (flat[: math.prod(shape)].view(num_labels, -1) for flat in work)  # (K, R)
        # p = (1-t) upper + t lower for the four phases t of a row, then P = exp(p/8)
        torch.lerp(strip[:, None, :-1] / 8, strip[:, None, 1:] / 8, t, out=p1.view(shape)).exp_()
        # P², P³, P⁵ = P² P³ and P⁷ = P² P⁵; Q is P of the next position
        torch.mul(p1, p1, out=p7)
        torch.mul(p1, p7, out=p3)
        torch.mul(p3, p7, out=p5)
        p7.mul_(p5)
        pairs = pairs[:, :-1]  # the very last position has no next one, and a = 0
        for phase, (left, right) in enumerate(((p7, p1), (p5, p3), (p3, p5), (p1, p7))):
            # exp(u_k) = left(position) right(next position)
            torch.mul(left[:, :-1], right[:, 1:], out=pairs)
            # Σ a lse(u), with lse = log Σ_k exp(u_k)
            sums = pairs.sum(0)  # (R-1,)
            scale = a[phase, :, first : first + rows].reshape(-1)[:-1]
            total += torch.dot(sums.log(), scale)
            if gradient is not None:
                # du_k = a exp(u_k) / Σ exp(u); as u = (1-t) p + t q, dp += (1-t) du and dq += t du
                scale = scale / sums
                of_left, of_right = scale * (1 - PHASES[phase]), scale * PHASES[phase]
                if phase == 0:
                    torch.mul(pairs, of_left, out=grad[0][:, :-1])
                    grad[0][:, -1].zero_()
                else:
                    grad[0][:, :-1].addcmul_(pairs, of_left)
                grad[0][:, 1:].addcmul_(pairs, of_right)
        if gradient is not None:
            # p = (1-t) upper + t lower: the four phases back to the rows of the strip
            share = grad[0].view(shape)  # dp (K, row, rows, w+2)
            back = strip.zero_()
            for row, phase_weight in enumerate(PHASES):
                back[:, :-1].add_(share[:, row], alpha=1 - phase_weight)
                back[:, 1:].add_(share[:, row], alpha=phase_weight)
            fold_border(back, inside)
            gradient[:, max(first - 1, 0) : first + rows].add_(back[:, inside, 1:-1])
    return total


# --- elsewhere: chunks of the batch, plain operations, nothing that waits for the device ------------------------------


def _in_chunks(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    num_labels, size = logits.shape[1], labels.shape[1:]
    # without the largest logit of each input pixel, see `_in_strips`; the labels last in memory, since softmax wants so
    x = (logits - logits.amax(1, keepdim=True)).contiguous(memory_format=torch.channels_last)
    labels = labels.long()
    valid, target = labels != ignore_index, labels.clamp(0, num_labels - 1)  # (B, H, W)
    of_target = valid.float() if weight is None else weight[target]
    of_target = torch.where(target == labels, of_target, torch.nan).where(valid, 0.0)
    spread, share = None, x.new_zeros(())
    if label_smoothing > 0:
        spread = label_smoothing / num_labels * (x.new_ones(num_labels) if weight is None else weight)  # (K,)
        share = spread.sum()
    c = (1 - label_smoothing) * of_target
    a = c + share * valid
    gradient = _empty_gradient(logits, needs_gradient)
    images, parts = chunks(x.shape, size)
    total = x.new_zeros(())
    for some in images:
        g = gradient[some] if needs_gradient else None
        total += _add_chunk(x[some], target[some], c[some], a[some], parts, g)
    if spread is not None:
        of_every = spread[:, None, None]
        mean = (x * of_every).sum(1, keepdim=True)  # (B, 1, h, w)
        total -= (upsample(mean, size)[:, 0] * valid).sum()
        if needs_gradient:
            gradient -= upsample_backward(valid[:, None].float(), mean.shape) * of_every
    return total, of_target.sum(), gradient


def _add_chunk(
    x: Tensor, target: Tensor, c: Tensor, a: Tensor, parts: Sequence[slice], gradient: Tensor | None
) -> Tensor:
    """Sum of `a lse(u) - c u_t` over pixels `(n, H, W)`; writes its gradient.

    Args:
        x: logits `(n, K, h, w)`.
        parts: which labels are upsampled together. Where that is not all of them, they are so twice: for lse, and for
            the gradient.
    """
    size, is_whole = target.shape[1:], len(parts) == 1
    of_target, sums = torch.zeros_like(c), []
    for some in parts:
        u = upsample(x[:, some], size).permute(0, 2, 3, 1)  # (n, H, W, K)
        p, lse = _softmax(u)
        index, c_here = _targets_among(some, x.shape[1], target, c)
        of_target.addcmul_(c_here, u.gather(-1, index)[..., 0])
        sums.append(lse)
        del u
    lse = sums[0] if is_whole else torch.stack(sums).logsumexp(0)
    if gradient is not None:
        for some, part in zip(parts, sums, strict=True):
            if not is_whole:
                p, _ = _softmax(upsample(x[:, some], size).permute(0, 2, 3, 1))
            # du = a softmax(u), and -c at the target; a pixel has one target, so that nothing needs to add up
            p.mul_((a if is_whole else a * (part - lse).exp())[..., None])
            index, c_here = _targets_among(some, x.shape[1], target, c)
            p.scatter_(-1, index, p.gather(-1, index) - c_here[..., None])
            gradient[:, some] = upsample_backward(p.permute(0, 3, 1, 2), x[:, some].shape)
    return torch.addcmul(-of_target, a, lse).sum()


def _softmax(u: Tensor) -> tuple[Tensor, Tensor]:
    """Of `(n, H, W, K)` the softmax, and the log of the sum of exponentials `(n, H, W)`."""
    p = u.softmax(-1)
    # p_k = exp(u_k - lse) of any class; that of the largest, at least 1 / K, has a logarithm
    highest, index = p.max(-1, keepdim=True)
    return p, (u.gather(-1, index) - highest.log())[..., 0]


def _targets_among(some: slice, num_labels: int, target: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The target's place `(n, H, W, 1)` among some of the labels, and c `(n, H, W)`, 0 where it is none of them."""
    if some.stop - some.start == num_labels:
        return target[..., None], c
    index = target - some.start
    place = index.clamp(0, some.stop - some.start - 1)
    return place[..., None], c.where(place == index, 0.0)
