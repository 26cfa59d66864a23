"""Three parts of the network that keep for the backward pass only what is expensive to compute again.

Autograd keeps every intermediate map. Here element-wise results and cheap products are computed a second time instead:
of 14 units (a unit is a map of C channels, at the usual Mix-FFN ratio of 4) the Mix-FFN keeps one, its input; the
projections of the attention keep their input and results; of its full-size maps of D channels the decode head keeps
one. All equal the plain modules up to rounding, and differentiate once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .upsampling import band_rows, neighbours, upsample_backward, upsampled_rows


class MixFFN(torch.autograd.Function):
    """`dense2(gelu(dwconv(dense1(layer_norm(x)))))` of a map `(B, H, W, C)`; M = B·H·W, E = ratio·C."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        weight1: Tensor,
        bias1: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor,
        weight2: Tensor,
        bias2: Tensor,
    ) -> Tensor:
        ctx.dtype, ctx.eps = x.dtype, eps
        x = x.to(norm_weight.dtype)
        ctx.save_for_backward(x, norm_weight, norm_bias, weight1, bias1, conv_weight, conv_bias, weight2)
        out = mix_ffn(x, norm_weight, norm_bias, eps, weight1, bias1, conv_weight, conv_bias, weight2, bias2)
        ctx.compute_dtype = out.dtype
        return out  # (B, H, W, C)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        refuse_second_derivative("the Mix-FFN")
        x, norm_weight, norm_bias, weight1, bias1, conv_weight, conv_bias, weight2 = ctx.saved_tensors
        dtype, width = ctx.compute_dtype, len(conv_weight)
        train = any(ctx.needs_input_grad[1:])  # or only pass the gradient on, as with frozen weights
        grad_x = torch.empty_like(x)
        sums: list[Tensor] = []
        for part in _groups_of_images(x, width):
            normed, mean, rstd = torch.native_layer_norm(x[part], x.shape[-1:], norm_weight, norm_bias, ctx.eps)
            normed = normed.to(dtype)
            before = F.linear(normed, weight1.to(dtype), bias1.to(dtype))  # (b, H, W, E), as in the forward pass
            wide = _depthwise(before, conv_weight.to(dtype), conv_bias.to(dtype))  # (b, H, W, E)

            grad_out = grad[part].to(dtype).reshape(-1, grad.shape[-1])  # (M, C)
            grad_weight2 = grad_out.t() @ F.gelu(wide).view(-1, width) if train else None
            grad_wide = (grad_out @ weight2.to(dtype)).view_as(wide)
            grad_wide = torch.ops.aten.gelu_backward(grad_wide, wide)
            del wide
            grad_before, grad_conv_weight, grad_conv_bias = torch.ops.aten.convolution_backward(
                grad_wide.permute(0, 3, 1, 2),
                before.permute(0, 3, 1, 2),
                conv_weight.to(dtype),
                [width],
                [1, 1],
                [1, 1],
                [1, 1],
                False,
                [0, 0],
                width,
                [True, train, train],
            )
            del grad_wide, before
            grad_before = grad_before.permute(0, 2, 3, 1).reshape(-1, width)  # (M, E)
            grad_normed = (grad_before @ weight1.to(dtype)).view_as(x[part]).to(x.dtype)  # (b, H, W, C)
            grad_x[part], grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
                grad_normed, x[part], list(x.shape[-1:]), mean, rstd, norm_weight, norm_bias, [True, train, train]
            )
            if train:
                grad_conv_weight = grad_conv_weight.flatten(1).view(conv_weight.shape)  # in the strides of the weight
                grad_weight1 = grad_before.t() @ normed.view(-1, normed.shape[-1])
                linear1, conv = (grad_weight1, grad_before.sum(0)), (grad_conv_weight, grad_conv_bias)
                sums = _add(sums, grad_norm_weight, grad_norm_bias, *linear1, *conv, grad_weight2, grad_out.sum(0))
        norm, others = (sums[:2], sums[2:]) if train else ([None] * 2, [None] * 6)
        return grad_x.to(ctx.dtype), *norm, None, *others


def mix_ffn(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight1: Tensor,
    bias1: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    weight2: Tensor,
    bias2: Tensor,
) -> Tensor:
    """The same without autograd: on a CPU over bands of rows, whose wide maps stay in the cache.

    A band sees one row more on each side, as the convolution does.
    """
    height = x.shape[1]
    rows = band_rows(x.shape[2] * len(weight1), x.device)
    if x.device.type != "cpu" or rows >= len(x) * height:
        normed = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        return F.linear(F.gelu(_depthwise(F.linear(normed, weight1, bias1), conv_weight, conv_bias)), weight2, bias2)
    device = x.device.type
    out = torch.empty_like(x, dtype=torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None)
    weight2, bias2 = weight2.to(out.dtype).t(), bias2.to(out.dtype)
    for i in range(len(x)):
        for first in range(0, height, rows):
            last = min(first + rows, height)
            top, bottom = max(first - 1, 0), min(last + 1, height)
            normed = F.layer_norm(x[i : i + 1, top:bottom], x.shape[-1:], norm_weight, norm_bias, eps)
            wide = _depthwise(F.linear(normed, weight1, bias1), conv_weight, conv_bias)  # (1, rows + 2, W, E)
            wide = F.gelu(wide[0, first - top : last - top]).flatten(0, 1)  # (rows W, E)
            torch.addmm(bias2, wide, weight2, out=out[i, first:last].flatten(0, 1))
    return out


def _groups_of_images(x: Tensor, width: int) -> Iterator[slice]:
    """Slices of the batch `(B, H, W, C)`: the images whose maps of `width` channels fill one band, at least one."""
    images = band_rows(x.shape[1] * x.shape[2] * width, x.device)
    return (slice(start, start + images) for start in range(0, len(x), images))


def _add(sums: list[Tensor], *terms: Any) -> list[Tensor]:
    return [total.add_(term) for total, term in zip(sums, terms, strict=True)] if sums else list(terms)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A zero-padded 3x3 depthwise convolution of a map `(B, H, W, E)`."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=len(weight)).permute(0, 2, 3, 1)


class NormQueryKeyValue(torch.autograd.Function):
    """Query, and key and value side by side, of a block: of the layer norm's and the reduction's maps none is kept.

    `query(n)` and `key|value(layer_norm(sr(n)))` with `n = layer_norm(x)`; for R = 1 `key|value(n)`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        query_weight: Tensor,
        query_bias: Tensor,
        key_value_weight: Tensor,
        key_value_bias: Tensor,
        ratio: int,
        *reduction: Any,
    ) -> tuple[Tensor, Tensor]:
        """`(B, H, W, C)` to the query `(B, N, C)` and key and value `(B, N/R², 2·C)`.

        Args:
            key_value_weight: `(2·C, C)`.
            reduction: for R > 1, weight `(C, R²·C)` and bias of the convolution as a matrix, its layer norm's weight,
                bias and eps.
        """
        dtype = x.dtype
        x = x.to(norm_weight.dtype)
        normed = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        reduced = normed.flatten(1, 2)  # (B, N, C)
        if ratio > 1:
            weight, bias, reduced_norm_weight, reduced_norm_bias, reduced_eps = reduction
            reduced = F.linear(windows(normed, ratio), weight, bias)  # (B, N/R², C)
            reduced = F.layer_norm(reduced, x.shape[-1:], reduced_norm_weight, reduced_norm_bias, reduced_eps)
        query = F.linear(normed.flatten(1, 2), query_weight, query_bias)
        ctx.save_for_backward(x, norm_weight, norm_bias, query_weight, key_value_weight, *reduction[:4])
        ctx.settings = dtype, query.dtype, eps, ratio, reduction[4] if ratio > 1 else 0.0
        return query, F.linear(reduced, key_value_weight, key_value_bias)

    @staticmethod
    def backward(ctx: Any, grad_query: Tensor, grad_key_value: Tensor) -> Any:
        refuse_second_derivative("the attention's projections")
        x, norm_weight, norm_bias, query_weight, key_value_weight, *reduction = ctx.saved_tensors
        dtype, compute_dtype, eps, ratio, reduced_eps = ctx.settings
        c = x.shape[-1]
        normed, mean, rstd = torch.native_layer_norm(x, [c], norm_weight, norm_bias, eps)  # (B, H, W, C)
        values = normed.to(compute_dtype)
        grad_query = grad_query.to(compute_dtype).reshape(-1, c)  # (M, C)
        grad_key_value = grad_key_value.to(compute_dtype).reshape(-1, 2 * c)  # (M/R², 2·C)
        grad_reduced = grad_key_value @ key_value_weight.to(compute_dtype)  # (M/R², C)
        grad_normed = (grad_query @ query_weight.to(compute_dtype)).view_as(x)
        grads_reduction: list[Any] = []
        if ratio == 1:
            reduced = values.view(-1, c)
            grad_normed += grad_reduced.view_as(x)
        else:
            weight, bias, reduced_norm_weight, reduced_norm_bias = reduction
            columns = windows(values, ratio)  # (B, N/R², R²·C)
            before = F.linear(columns, weight.to(compute_dtype), bias.to(compute_dtype)).to(x.dtype)
            reduced, reduced_mean, reduced_rstd = torch.native_layer_norm(
                before, [c], reduced_norm_weight, reduced_norm_bias, reduced_eps
            )
            reduced = reduced.to(compute_dtype).view(-1, c)
            grad_before, grad_reduced_norm_weight, grad_reduced_norm_bias = torch.ops.aten.native_layer_norm_backward(
                grad_reduced.view_as(before).to(x.dtype),
                before,
                [c],
                reduced_mean,
                reduced_rstd,
                reduced_norm_weight,
                reduced_norm_bias,
                [True, True, True],
            )
            grad_before = grad_before.to(compute_dtype).view(-1, c)
            grad_weight = grad_before.t() @ columns.view(len(grad_before), -1)
            del columns
            add_windows(grad_normed, (grad_before @ weight.to(compute_dtype)), ratio)
            grads_reduction = [
                grad_weight,
                grad_before.sum(0),
                grad_reduced_norm_weight,
                grad_reduced_norm_bias,
                None,
            ]
        grad_x, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
            grad_normed.to(x.dtype), x, [c], mean, rstd, norm_weight, norm_bias, [True, True, True]
        )
        return (
            grad_x.to(dtype),
            grad_norm_weight,
            grad_norm_bias,
            None,
            grad_query.t() @ values.view(-1, c),
            grad_query.sum(0),
            grad_key_value.t() @ reduced,
            grad_key_value.sum(0),
            None,
            *grads_reduction,
        )


def windows(x: Tensor, ratio: int) -> Tensor:
    """Windows of R x R pixels of `(B, H, W, C)`, leaving out a remainder, as rows `(B, N/R², R²·C)`."""
    b, h, w, c = x.shape
    rows, columns = h // ratio, w // ratio
    x = x[:, : rows * ratio, : columns * ratio].reshape(b, rows, ratio, columns, ratio, c)
    return x.transpose(2, 3).reshape(b, rows * columns, ratio * ratio * c)


def add_windows(x: Tensor, values: Tensor, ratio: int) -> None:
    """Add `values`, laid out as `windows(x)` is, to `x` (B, H, W, C)."""
    b, h, w, c = x.shape
    rows, columns = h // ratio, w // ratio
    target = x[:, : rows * ratio, : columns * ratio].unflatten(2, (columns, ratio)).unflatten(1, (rows, ratio))
    target += values.view(b, rows, columns, ratio, ratio, c).transpose(2, 3)  # (B, rows, R, columns, R, C)


class SumNormClassify(torch.autograd.Function):
    """The decode head after its projections, with batch statistics, in bands of rows.

    `classifier(dropout(relu(batch_norm(sum of maps upsampled to the size of stage 1))))`, of which only the sum is
    kept. Channel dropout multiplies whole channels, so that it goes into the classifier's weight, sample by
    sample. The running statistics are updated in place, as `nn.BatchNorm2d` does.
    """

    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        group: Any,
        noise: Tensor | None,
        classify_weight: Tensor,
        classify_bias: Tensor,
        *maps: Tensor,
    ) -> Tensor:
        """Logits `(B, K, H, W)`.

        Args:
            first: features of stage 1 `(B, H, W, C)`; `weight` (D, C) and `bias` (D,) project them.
            group: the processes that share their statistics, as in `nn.SyncBatchNorm`; None: this one alone.
            noise: what dropout multiplies with, `(B, D)`.
            classify_weight, classify_bias: `(K, D)` and `(K,)`.
            maps: the other stages, projected: `(B, H_i, W_i, D)`.
        """
        dtype = maps[0].dtype if maps else first.dtype  # autocast's, where it is on
        ctx.dtype, ctx.group, ctx.shapes = dtype, group, [each.shape for each in maps]
        total = _sum_upsampled(first.to(dtype), weight.to(dtype), bias.to(dtype), maps)  # (B, H, W, D)
        mean, variance, count = _moments(total)
        if group is not None:
            mean, variance, count = _joined_moments(mean, variance, count, group)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (count / (count - 1).clamp(min=1))).to(running_var.dtype), momentum)
        rstd = torch.rsqrt(variance + eps)
        ctx.save_for_backward(first, weight, total, mean, rstd, count, norm_weight, norm_bias, noise, classify_weight)

        scale = norm_weight.to(rstd.dtype) * rstd
        shift = norm_bias.to(rstd.dtype) - mean * scale
        b, h, w, _ = total.shape
        shape = (b, len(classify_weight), h, w)  # itself no view, which FSDP would warn of
        logits = torch.empty(shape, dtype=dtype, device=total.device, memory_format=torch.channels_last)
        rows = logits.permute(0, 2, 3, 1)  # (B, H, W, K)
        last_bias = classify_bias.to(dtype)
        for i, band in _bands(total):
            active = torch.addcmul(shift, total[i, band], scale).relu_().to(dtype).flatten(0, 1)  # (N, D)
            weights = _dropped(classify_weight, noise, i).to(dtype)
            torch.addmm(last_bias, active, weights.t(), out=rows[i, band].flatten(0, 1))
        return logits

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        refuse_second_derivative("the decode head")
        first, weight, total, mean, rstd, count, norm_weight, norm_bias, noise, classify_weight = ctx.saved_tensors
        dtype = ctx.dtype
        grad = grad.permute(0, 2, 3, 1).to(dtype)  # (B, H, W, K)
        gamma, beta = norm_weight.to(rstd.dtype), norm_bias.to(rstd.dtype)

        grad_total = torch.empty_like(total)  # (B, H, W, D): first the gradient of what the norm puts out
        grad_classify = torch.zeros_like(classify_weight)
        sum_grad, sum_product = torch.zeros_like(rstd), torch.zeros_like(rstd)
        for i, band in _bands(total):
            normed = torch.addcmul(-mean * rstd, total[i, band], rstd)  # (rows, W, D)
            active = torch.addcmul(beta, normed, gamma).relu_()
            grad_band = grad[i, band].flatten(0, 1)  # (N, K)
            grad_classify += _dropped(grad_band.t() @ active.to(dtype).flatten(0, 1), noise, i)
            out = grad_total[i, band]
            torch.mm(grad_band, _dropped(classify_weight, noise, i).to(dtype), out=out.flatten(0, 1))
            torch.ops.aten.threshold_backward(out, active.to(dtype), 0, grad_input=out)
            sum_grad += out.sum((0, 1), dtype=rstd.dtype)
            sum_product += normed.mul_(out).sum((0, 1))

        # the batch norm's own gradient, in place: gamma rstd (g - mean(g) - normed mean(g normed))
        sums = torch.stack((sum_grad, sum_product))
        if ctx.group is not None:
            torch.distributed.all_reduce(sums, group=ctx.group)
        scale = gamma * rstd
        slope = -scale * rstd * sums[1] / count
        offset = -scale * sums[0] / count - mean * slope
        grad_first = torch.empty_like(first) if ctx.needs_input_grad[0] else None
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(weight[:, 0])
        for i, band in _bands(total):
            out = grad_total[i, band]
            out.copy_(torch.addcmul(torch.addcmul(offset, total[i, band], slope), out, scale))
            flat = out.flatten(0, 1)  # (N, D)
            grad_weight += flat.t() @ first[i, band].to(dtype).flatten(0, 1)
            grad_bias += flat.sum(0)
            if grad_first is not None:
                grad_first[i, band] = (out @ weight.to(dtype)).to(first.dtype)
        channels_first = grad_total.permute(0, 3, 1, 2)
        grad_maps = (upsample_backward(channels_first, (b, d, h, w)).permute(0, 2, 3, 1) for b, h, w, d in ctx.shapes)
        return (
            grad_first,
            grad_weight,
            grad_bias,
            sum_product.to(norm_weight.dtype),
            sum_grad.to(norm_bias.dtype),
            None,
            None,
            None,
            None,
            None,
            None,
            grad_classify,
            grad.sum((0, 1, 2)),
            *grad_maps,
        )


def _bands(x: Tensor) -> Iterator[tuple[int, slice]]:
    """Image by image, bands of rows of `x` (B, H, W, D) that stay in the cache."""
    rows = band_rows(x[0, 0].numel(), x.device)
    for i in range(len(x)):
        for start in range(0, x.shape[1], rows):
            yield i, slice(start, min(start + rows, x.shape[1]))


def _sum_upsampled(first: Tensor, weight: Tensor, bias: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """`first @ weight.T + bias` of `(B, H, W, C)` plus every map of `maps` at that size: `(B, H, W, D)`."""
    height, width = first.shape[1:3]
    total = first.new_empty((*first.shape[:3], len(bias)))
    places = [neighbours(each.shape[1], height, each.device) for each in maps]
    for i, band in _bands(total):
        out = total[i, band]  # (rows, W, D)
        torch.addmm(bias, first[i, band].flatten(0, 1), weight.t(), out=out.flatten(0, 1))
        for each, place in zip(maps, places, strict=True):
            out += upsampled_rows(each[i], place, band, width)
    return total


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel of `(B, H, W, D)`, at least in float32, and how many values they are of.

    Bands are joined by the formula of Chan, Golub and LeVeque (1979), which does not subtract large numbers.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean, squares = x.new_zeros(x.shape[-1], dtype=dtype), x.new_zeros(x.shape[-1], dtype=dtype)
    count = 0
    for i, band in _bands(x):
        part = x[i, band].to(dtype).flatten(0, 1)  # (N, D)
        center = part.mean(0)
        n, difference = len(part), center - mean
        squares += torch.linalg.vector_norm(part - center, dim=0).square_() + difference.square() * (
            count * n / (count + n)
        )
        mean += difference * (n / (count + n))
        count += n
    return mean, squares / count, mean.new_full((), count)


def _joined_moments(mean: Tensor, variance: Tensor, count: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What `_moments` of all values of all processes would return."""
    own = torch.cat((mean, variance, count.view(1)))  # (2·D + 1,)
    parts = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, own, group=group)
    means, variances, counts = torch.stack(parts).split((len(mean), len(mean), 1), dim=1)  # (processes, D) and (…, 1)
    total = counts.sum()
    shares = counts / total
    mean = (means * shares).sum(0)
    return mean, ((variances + (means - mean).square()) * shares).sum(0), total


def _dropped(x: Tensor, noise: Tensor | None, image: int) -> Tensor:
    """`x` (K, D) with the channels scaled as dropout does in one image."""
    return x if noise is None else x * noise[image]


def refuse_second_derivative(what: str) -> None:
    """For the backward pass of a function that differentiates once."""
    if torch.is_grad_enabled():  # create_graph=True
        raise RuntimeError(f"{what} keeps too little for a second derivative: call backward without create_graph=True")
