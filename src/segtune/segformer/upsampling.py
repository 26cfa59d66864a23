"""From quarter-size logits to full-size answers: the one place that owns `mode="bilinear", align_corners=False`.

The full-resolution logits never exist. The loss walks over strips (as many rows as stay in the cache): upsample a
strip, take its part of the cross-entropy and of the gradient, drop it; memory does not grow with classes times pixels.

Letters: B batch, K labels, h w the size of the logits, H W the size of the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

_CPU_STRIP, _DEVICE_STRIP = 2**19, 2**25  # elements of a strip: what stays in a CPU's cache, what fills a GPU
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
    logits = logits.detach().float().contiguous()  # a decision has no gradient
    if logits.shape[1] == 1:
        return (upsample(logits, size)[:, 0] > 0).long()  # (B, H, W)
    return torch.stack([_predict_one(image, size) for image in logits])


def upsampled_confidence(logits: Tensor, size: Sequence[int]) -> Tensor:
    """The probability of what `upsampled_prediction` answers, `(B, H, W)`, float32, in (0, 1].

    `upsample(logits, size).softmax(1).amax(1)` up to rounding, strip by strip; for K = 1, the sigmoid of the logit or
    of its negative.
    """
    logits = logits.float().contiguous()
    b, num_labels, h, _ = logits.shape
    height, width = size
    if num_labels == 1:
        return upsample(logits, size)[:, 0].abs_().sigmoid_()  # (B, H, W)
    above, below, dy = linear_weights(h, height, logits.device)
    out = logits.new_empty((b, height, width))
    for i in range(b):
        for rows in torch.arange(height, device=logits.device).split(strip_rows(num_labels * width, logits.device)):
            # bilinear is linear in height, then in width: only the strip's own rows are made
            strip = torch.lerp(logits[i][:, above[rows]], logits[i][:, below[rows]], dy[rows, None])  # (K, rows, w)
            strip = upsample(strip[None], (len(rows), width))[0]  # (K, rows, W)
            # max_k softmax(u)_k = exp(max_k u_k - log Σ_k exp(u_k))
            out[i, rows] = (strip.amax(0) - strip.logsumexp(0)).exp_()
    return out


def upsampled_at(logits: Tensor, size: Sequence[int], rows: Tensor, columns: Tensor) -> Tensor:
    """`upsample(logits, size)` of one image `(1, K, h, w)` at n pixels given by rows and columns `(n,)`: `(n, K)`."""
    # grid_sample counts from -1 to 1 over the image: the centre of pixel i of n lies at (2i + 1) / n - 1
    centers = [(2 * at + 1) / side - 1 for at, side in ((columns, size[1]), (rows, size[0]))]
    grid = torch.stack(centers, dim=-1).to(logits)[None, None]  # (1, 1, n, 2)
    values = F.grid_sample(logits, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return values[0, :, 0].T  # (n, K)


def _predict_one(x: Tensor, size: Sequence[int]) -> Tensor:
    """`(K, h, w)` -> `(H, W)`, int64; at a ratio of four in strips, which have the very weights of the whole."""
    _, h, w = x.shape
    rows = strip_rows(4 * size[1], x.device) if tuple(size) == (4 * h, 4 * w) else h
    if rows >= h:
        return _predict_strip(x, size)
    out = torch.empty(tuple(size), dtype=torch.long, device=x.device)
    for first in range(0, h, rows):
        last = min(first + rows, h)
        # a strip of the input with one row more on each side, whose own output rows are then cut off
        top, bottom = max(first - 1, 0), min(last + 1, h)
        ids = _predict_strip(x[:, top:bottom], (4 * (bottom - top), 4 * w))
        out[4 * first : 4 * last] = ids[4 * (first - top) : 4 * (last - top)]
    return out


def _predict_strip(x: Tensor, size: Sequence[int]) -> Tensor:
    """`(K, h, w)` -> `(H, W)`: the candidates upsampled one after another, the best so far kept for each pixel."""
    candidates = _candidates(x).tolist()
    if not candidates:  # not a number everywhere
        return upsample(x[None], size)[0].argmax(0)
    first, *others = candidates
    ids = torch.full(tuple(size), first, dtype=torch.long, device=x.device)
    if others:
        best = upsample(x[None, first : first + 1], size)  # (1, 1, H, W)
        score, higher = torch.empty_like(best), torch.empty_like(ids, dtype=torch.bool)
    # ascending labels and a strict comparison: of equal logits the first class wins, as in argmax
    for label in others:
        torch.ops.aten.upsample_bilinear2d.out(x[None, label : label + 1], list(size), False, out=score)
        torch.gt(score[0, 0], best[0, 0], out=higher)
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
    gradient = torch.empty_like(logits) if needs_gradient else logits.new_empty(0)
    for i in range(len(logits)):  # one image at a time: less memory
        # c = (1 - e) w_t and a = c + e/K Σ_k w_k, both 0 where a pixel does not count
        valid = labels[i] != ignore_index  # (H, W)
        target = torch.where(valid, labels[i], 0).long()
        of_target = weight[target] * valid
        c = (1 - label_smoothing) * of_target
        a = c + spread.sum() * valid
        g = gradient[i].zero_() if needs_gradient else None
        # Σ a lse(u) - Σ c u_t, with the gradients a softmax(u) and -c at the target
        total += add_normalizers(logits[i], top[i], a, g) - _add_targets(logits[i], top[i], target, c, g)
        norm += of_target.sum()
        if label_smoothing > 0:
            # -e/K Σ_k w_k u_k: summed over classes first, so that one map is upsampled in the place of K
            mean = ((logits[i] - top[i]) * spread[:, None, None]).sum(0)[None, None]  # (1, 1, h, w), never in bf16
            total -= (upsample(mean, size)[0, 0] * valid).sum(dtype=torch.float64)
            if g is not None:  # for every class the same map, times its weight
                share = upsample_backward(valid[None, None].to(mean.dtype), mean.shape)[0]  # (1, h, w)
                g.sub_(share * spread[:, None, None])
    return total.to(logits.dtype), norm, gradient


def _refuse_unknown(labels: Tensor, num_labels: int, ignore_index: int) -> None:
    outside = labels[(labels != ignore_index) & ((labels < 0) | (labels >= num_labels))]
    if outside.numel():
        raise IndexError(f"label {outside[0].item()} is neither one of {num_labels} classes nor {ignore_index}")


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


# --- parts of one image; the largest logit of each pixel, `top` (1, h, w), is taken off the others --------------------


def _add_targets(x: Tensor, top: Tensor, target: Tensor, c: Tensor, gradient: Tensor | None) -> Tensor:
    """Sum of `c u_t` over pixels `(H, W)`, u being `x - top` (K, h, w) upsampled; subtracts its gradient.

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
            highest = top[0, rows[:, None], columns].view(-1)
            total += torch.dot(_flat(x)[index].sub_(highest), share)
            if gradient is not None:
                _flat(gradient).scatter_add_(0, index, share.neg_())
    return total


def _flat(x: Tensor) -> Tensor:
    """The memory from the first to the last element of `x`, as one view."""
    span = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1
    return x.as_strided((span,), (1,))


def _add_normalizers(x: Tensor, top: Tensor, a: Tensor, gradient: Tensor | None) -> Tensor:
    """Sum of `a lse(u)` over pixels; adds its gradient.

    u is `x - top` (K, h, w) upsampled to the size of `a` (H, W).
    """
    num_labels, h, _ = x.shape
    height, width = a.shape
    above, below, dy = linear_weights(h, height, x.device)
    total = x.new_zeros((), dtype=torch.float64)
    for rows in torch.arange(height, device=x.device).split(strip_rows(num_labels * width, x.device)):
        # in height by hand, in width by the operator: only the strip's own rows are made
        t = dy[rows, None]
        upper, lower = (x[:, near[rows]] - top[:, near[rows]] for near in (above, below))  # (K, rows, w)
        strip = torch.lerp(upper, lower, t)[None]  # (1, K, rows, w)
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


def _add_normalizers_of_ratio_four(x: Tensor, top: Tensor, a: Tensor, gradient: Tensor | None) -> Tensor:
    """The same for H = 4h, W = 4w and `-80 < x - top <= 0`, with a quarter of the exponentials.

    With P = exp(p/8) and Q = exp(q/8) of two columns p and q, the four output columns between them, at
    t = 1/8, 3/8, 5/8 and 7/8, are `exp((1-t) p + t q) = P^7 Q, P^5 Q^3, P^3 Q^5, P Q^7`: products of powers. So only
    rows are interpolated before the exponential. A border of one pixel repeats the nearest value. A strip is kept as
    (K, R) with the R positions of all its rows one after another: the column q of a position is the next position,
    and what the last column of a row makes with the first one of the next has `a = 0`.
    """
    num_labels, h, w = x.shape
    t = x.new_tensor(_PHASES)[:, None, None]
    # Between the h + 2 input rows (border included) lie h + 1 gaps of four output rows each, of which the two outermost
    # at either end are outside of the map: a = 0 there. Columns alike, with one gap more that ends each row.
    a = F.pad(a, (2, 2, 2, 2)).view(h + 1, 4, w + 1, 4).permute(3, 1, 0, 2)  # (column, row, h+1, w+1)
    a = F.pad(a, (0, 1))  # (column, row, h+1, w+2)
    total = x.new_zeros((), dtype=torch.float64)
    for rows in torch.arange(h + 1, device=x.device).split(strip_rows(4 * num_labels * (w + 2), x.device)):
        # gap r lies between input rows r - 1 and r; at the ends both are the nearest row
        near = torch.cat((rows - 1, rows[-1:])).clamp(0, h - 1)
        strip = F.pad(x[:, near] - top[:, near], (1, 1), mode="replicate")  # (K, rows+1, w+2)
        # p = (1-t) upper + t lower for the four phases t of a row, then P = exp(p/8)
        p1 = torch.lerp(strip[:, None, :-1], strip[:, None, 1:], t)  # (K, row, rows, w+2)
        shape, p1 = p1.shape, p1.div_(8).exp_().view(num_labels, -1)  # (K, R)
        # P², P³, P⁵ = P² P³ and P⁷ = P² P⁵; Q is P of the next position
        p2 = p1 * p1
        p3 = p1 * p2
        p5 = p2 * p3
        p7 = p2.mul_(p5)
        pairs = torch.ones_like(p1)  # the very last position has no next one: 1, so that its logarithm is finite
        to_left, to_right = torch.zeros_like(p1), torch.zeros_like(p1)
        for phase, (left, right) in enumerate(((p7, p1), (p5, p3), (p3, p5), (p1, p7))):
            # exp(u_k) = left(position) right(next position), for all K·R positions in one sweep
            torch.mul(left.view(-1)[:-1], right.view(-1)[1:], out=pairs.view(-1)[:-1])
            # Σ a lse(u), with lse = log Σ_k exp(u_k)
            sums = pairs.sum(0)  # (R,)
            scale = a[phase, :, rows].reshape(-1)  # (R,)
            total += torch.dot(sums.log(), scale)
            if gradient is not None:
                # du_k = a exp(u_k) / Σ exp(u); as u = (1-t) p + t q, dp += (1-t) du and dq += t du
                scale = scale / sums
                to_left.addcmul_(pairs, scale * (1 - _PHASES[phase]))
                to_right.addcmul_(pairs, scale * _PHASES[phase])
        if gradient is not None:
            # q of a position is p of the next one
            to_left.view(-1)[1:] += to_right.view(-1)[:-1]
            # p = (1-t) upper + t lower: the four phases back to the rows of the strip
            share = to_left.view(shape)  # dp (K, row, rows, w+2)
            grad = torch.zeros_like(strip)
            for row, phase_weight in enumerate(_PHASES):
                grad[:, :-1].add_(share[:, row], alpha=1 - phase_weight)
                grad[:, 1:].add_(share[:, row], alpha=phase_weight)
            # the border columns are copies of their neighbours; copies of rows add up by their index
            for inner, outer in ((1, 0), (-2, -1)):
                grad[:, :, inner] += grad[:, :, outer]
            gradient.index_add_(1, near, grad[:, :, 1:-1])
    return total


def linear_weights(size: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """How `size` input positions make `target` output positions, as `upsample` does in each direction.

    Returns:
        `before`, `after` and `t`, each `(target,)`: an output is `(1 - t) x[before] + t x[after]`.
    """
    # the centre of output i lies at (i + 1/2) size / target - 1/2 of the input; before 0, the first one counts
    position = (torch.arange(target, device=device, dtype=torch.float32) + 0.5) * (size / target) - 0.5
    position = position.clamp(min=0)
    before = position.long().clamp(max=size - 1)
    return before, (before + 1).clamp(max=size - 1), position - before


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
