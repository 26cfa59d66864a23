"""Fast paths of the decode head: composed projections, inference over strips, a fused training step.

All rest on two facts: between the projections P_i and the fusing 1x1 convolution F there is no non-linearity, and
bilinear upsampling is linear per channel with weights that sum to one. So

    F concat_i(up(P_i x_i + b_i)) = sum_i up((F_i P_i) x_i) + sum_i F_i b_i,

where the composed matrices `F_i P_i` (D, C_i) are tiny and their products run at each stage's own resolution.

A fast path is a class: `applies` says whether it gives what the layers give, `run` computes it.

Letters: B batch, C channels, D decoder width, K labels, H W size of stage 1, N pixels of a strip. In comments, `dy` is
the gradient of the loss with respect to y.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cpu_products import linear, linear_into, weight_gradient
from .fused import (
    is_eager,
    is_idle,
    is_plain,
    is_plain_convolution,
    keeps_to_cache,
    may_fuse,
    product,
    refuse_second_derivative,
)
from .upsampling import full_precision, linear_weights, strip_rows, upsample, upsample_backward, upsampled_strip

# --- composed projections --------------------------------------------------------------------------------------------


class ComposedFusion:
    """Projections, fusing convolution and batch norm without the concatenation; a frozen norm is folded in as well.

    The weights are composed at every call, with a dozen launches of tiny products. Keeping them would need to notice
    every write to a parameter. Identity and version do not tell of writes through `.data`, and comparing values, as
    `_compose_once` does on a CPU, would make every forward pass wait for the device.
    """

    @staticmethod
    def applies(head: Any, features: Sequence[Tensor]) -> bool:
        """Whether every projection is the plain layer; adapted, quantised or hooked ones must be called."""
        return (
            may_fuse(head.config, *features)
            and is_plain_convolution(head.linear_fuse, 1, bias=False)
            and all(is_plain(mlp, "SegformerMLP") and is_plain(mlp.proj, nn.Linear) for mlp in head.linear_c)
        )

    @staticmethod
    def run(head: Any, features: Sequence[Tensor]) -> Tensor:
        """Maps `(B, H_i, W_i, C_i)`, stage 1 first, to `(B, D, H_1, W_1)`."""
        fold = _folds(head.batch_norm)
        weights, bias = compose(head, fold)
        (first, weight), *others = zip(features, weights, strict=True)
        # Smallest stage first, with the bias; the product of stage 1 adds itself to the sum of the others. What is
        # summed in place instead, autograd would copy.
        total = bias  # (D,) of a single stage, else (B·H_1·W_1, D)
        for i, (x, other) in enumerate(others[::-1]):
            x = F.linear(x, other, None if i else bias).permute(0, 3, 1, 2)  # (B, D, H_i, W_i)
            x = upsample(x, first.shape[1:3]).permute(0, 2, 3, 1).flatten(0, 2)  # (B·H_1·W_1, D)
            total = total + x if i else x
        x = torch.addmm(total, first.flatten(0, 2), weight.t())
        x = x.view(*first.shape[:3], -1).permute(0, 3, 1, 2)  # (B, D, H_1, W_1)
        return x if fold else head.batch_norm(x)


def compose(head: Any, fold: bool) -> tuple[list[Tensor], Tensor]:
    """Weights `F_i P_i` of shape (D, C_i), stage 1 first, and the bias (D,); with the batch norm if `fold`."""
    dtype = head.linear_fuse.weight.dtype
    exact = torch.promote_types(dtype, torch.float32)
    fuse, norm = head.linear_fuse.weight.flatten(1).to(exact), head.batch_norm  # (D, 4·D)
    projections = [mlp.proj for mlp in head.linear_c]
    biases = torch.cat([proj.bias.to(exact) for proj in reversed(projections)])  # stage 4 comes first, as in F
    with full_precision(fuse.device.type):
        if fold:
            # gamma (x - mean) / sqrt(variance + eps) + beta = scale x + (beta - scale mean), and x = F concat
            scale = norm.weight.to(exact) * torch.rsqrt(norm.running_var.to(exact) + norm.eps)
            shift = torch.addcmul(norm.bias.to(exact), norm.running_mean.to(exact), scale, value=-1)
            fuse = scale[:, None] * fuse
            bias = torch.addmv(shift, fuse, biases)
        else:
            bias = fuse @ biases
        parts = fuse.chunk(len(projections), dim=1)[::-1]
        weights = [part @ proj.weight.to(exact) for part, proj in zip(parts, projections, strict=True)]
    return [weight.to(dtype) for weight in weights], bias.to(dtype)


class DroppedClassifier:
    """Channel dropout in the classifier's weight, image by image, instead of in a map of D channels."""

    @staticmethod
    def applies(head: Any, x: Tensor) -> bool:
        """Whether dropout is on, and nothing observes or replaces it or the classifier."""
        dropout = head.dropout
        return (
            may_fuse(head.config, x)
            and is_plain(dropout, nn.Dropout2d)
            and not is_idle(dropout, nn.Dropout2d)
            and is_plain_convolution(head.classifier, 1)
        )

    @staticmethod
    def run(head: Any, x: Tensor) -> Tensor:
        """`(B, D, H, W)` to logits `(B, K, H, W)`."""
        noise = _channel_noise(head.dropout, x, *x.shape[:2])
        weight = head.classifier.weight.flatten(1) * noise[:, None]  # (B, K, D)
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, N, D)
        logits = torch.baddbmm(head.classifier.bias, pixels, weight.transpose(1, 2))  # (B, N, K)
        return logits.transpose(1, 2).unflatten(2, x.shape[2:])


def _channel_noise(dropout: Any, like: Tensor, batch: int, channels: int) -> Tensor:
    """What `nn.Dropout2d` multiplies the channels of each image with, `(B, D)`, drawn as it draws."""
    keep = 1 - dropout.p
    return like.new_empty((batch, channels)).bernoulli_(keep).div_(keep)


_KEPT: WeakKeyDictionary[nn.Module, tuple[float, list[Tensor], tuple[list[Tensor], Tensor]]] = WeakKeyDictionary()


def _compose_once(head: Any) -> tuple[list[Tensor], Tensor]:
    """`compose` with the batch norm, kept for as long as all that it is made of stays equal, value by value.

    The comparison with a copy is exact and costs a small part of the composition; versions of the parameters would
    cost less, but not tell of writes through `.data`.
    """
    norm, projections = head.batch_norm, [mlp.proj for mlp in head.linear_c]
    sources = [head.linear_fuse.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var]
    sources += [tensor for proj in projections for tensor in (proj.weight, proj.bias)]
    if (kept := _KEPT.get(head)) is not None:
        eps, copies, composed = kept
        if eps == norm.eps and all(map(_equal, sources, copies)):
            return composed
    composed = compose(head, fold=True)
    _KEPT[head] = norm.eps, [tensor.detach().clone() for tensor in sources], composed
    return composed


def _equal(x: Tensor, y: Tensor) -> bool:
    return x.dtype == y.dtype and x.device == y.device and torch.equal(x, y)


def _is_batch_norm(norm: nn.Module) -> bool:
    return is_plain(norm, nn.BatchNorm2d) or is_plain(norm, nn.SyncBatchNorm)


def _folds(norm: Any) -> bool:
    """Whether a norm multiplies and adds constants, which can go into the layer before it."""
    return _is_batch_norm(norm) and not norm.training and norm.running_mean is not None and norm.weight is not None


# --- inference on a CPU ----------------------------------------------------------------------------------------------


class StripDecodeHead:
    """The whole head over strips: no map of D channels at the size of stage 1 leaves the cache."""

    @staticmethod
    def applies(head: Any, features: Sequence[Tensor]) -> bool:
        """Whether all is constant and plain, nothing is recorded for a backward pass, and the device has a cache."""
        return (
            keeps_to_cache(features[0])
            and not torch.is_grad_enabled()
            and is_eager()
            and ComposedFusion.applies(head, features)
            and _folds(head.batch_norm)
            and is_idle(head.dropout, nn.Dropout2d)  # not so with a frozen batch norm in training, or to sample
            and is_plain_convolution(head.classifier, 1)
        )

    @staticmethod
    def run(head: Any, features: Sequence[Tensor]) -> Tensor:
        """Maps `(B, H_i, W_i, C_i)`, stage 1 first, to logits `(B, K, H_1, W_1)`, one plane a label."""
        first, *others = features
        height, width = first.shape[1:3]
        composed, bias = _compose_once(head)
        maps = [linear(x, weight) for x, weight in zip(others, composed[1:], strict=True)]  # (B, H_i, W_i, D)
        heights = [linear_weights(x.shape[1], height, x.device) for x in maps]
        dtype = maps[0].dtype if maps else first.dtype  # autocast's, where it is on
        weight, bias, classify_bias = (x.to(dtype) for x in (composed[0], bias, head.classifier.bias[:, None]))
        classify = head.classifier.weight.flatten(1).to(dtype)  # (K, D)
        logits = torch.empty((len(first), len(classify), height, width), dtype=dtype, device=first.device)
        rows = strip_rows(width * len(bias), first.device)
        with full_precision(first.device.type):
            for i, start in itertools.product(range(len(first)), range(0, height, rows)):
                strip = slice(start, min(start + rows, height))
                x = linear(first[i, strip].to(dtype), weight, bias)  # (rows, W_1, D)
                for other, weights in zip(maps, heights, strict=True):
                    x += upsampled_strip(other[i], weights, strip, width)
                x = F.relu_(x).flatten(0, 1)  # (rows W_1, D)
                linear_into(logits[i, :, strip].flatten(1), classify, x, classify_bias)
        return logits


# --- training --------------------------------------------------------------------------------------------------------


class FusedDecodeHead:
    """The whole head in training, with batch statistics: `SumNormClassify` after the composed projections."""

    @staticmethod
    def applies(head: Any, features: Sequence[Tensor]) -> bool:
        """Whether a backward pass may follow, the norm takes the batch's statistics, and all layers are plain."""
        norm = head.batch_norm
        return (
            torch.is_grad_enabled()
            and keeps_to_cache(features[0])
            and is_eager()
            and ComposedFusion.applies(head, features)
            and _is_batch_norm(norm)
            and (norm.training and norm.affine and norm.momentum is not None)
            and is_plain(head.dropout, nn.Dropout2d)
            and is_plain_convolution(head.classifier, 1)
        )

    @staticmethod
    def run(head: Any, features: Sequence[Tensor]) -> Tensor:
        """Maps `(B, H_i, W_i, C_i)`, stage 1 first, to logits `(B, K, H_1, W_1)`; counts the batch in the norm."""
        norm = head.batch_norm
        first, *others = features
        (weight, *weights), bias = compose(head, fold=False)
        maps = [product(x, other) for x, other in zip(others, weights, strict=True)]  # (B, H_i, W_i, D)
        idle = is_idle(head.dropout, nn.Dropout2d)
        noise = None if idle else _channel_noise(head.dropout, bias, len(first), len(bias))
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        classify = (head.classifier.weight.flatten(1), head.classifier.bias)
        head_weights = HeadWeights(weight, bias, norm.weight, norm.bias, *classify)
        logits: Tensor = SumNormClassify.apply(first, noise, norm, *head_weights, *maps)
        return logits


def _shared_by(norm: nn.Module) -> Any:
    """The group of processes whose batches a batch norm joins; None where it sees only its own."""
    if not (isinstance(norm, nn.SyncBatchNorm) and torch.distributed.is_available()):
        return None
    if not torch.distributed.is_initialized():
        return None
    group = norm.process_group or torch.distributed.group.WORLD
    return group if torch.distributed.get_world_size(group) > 1 else None


class HeadWeights(NamedTuple):
    """The weights that `SumNormClassify` reads."""

    weight: Tensor  # (D, C_1), composed, of stage 1
    bias: Tensor  # (D,), composed, of all stages
    norm_weight: Tensor  # (D,)
    norm_bias: Tensor
    classify_weight: Tensor  # (K, D)
    classify_bias: Tensor  # (K,)


class SumNormClassify(torch.autograd.Function):
    """The decode head after its projections, with batch statistics, over strips.

    `classifier(dropout(relu(batch_norm(sum of maps upsampled to the size of stage 1))))`, of which only the sum is
    kept. Channel dropout multiplies whole channels, so that it goes into the classifier's weight, sample by
    sample. The running statistics are updated in place, as `nn.BatchNorm2d` does.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, noise: Tensor | None, norm: Any, *tensors: Tensor) -> Tensor:
        """Logits `(B, K, H, W)`.

        Args:
            first: features of stage 1 `(B, H, W, C)`.
            noise: what dropout multiplies with, `(B, D)`.
            norm: the `nn.BatchNorm2d` or `nn.SyncBatchNorm`, for its settings and running statistics.
            tensors: `HeadWeights`, then the other stages, projected: `(B, H_i, W_i, D)`.
        """
        w, maps = HeadWeights(*tensors[:6]), tensors[6:]
        dtype = maps[0].dtype if maps else first.dtype  # autocast's, where it is on
        ctx.dtype, ctx.group, ctx.shapes = dtype, _shared_by(norm), [each.shape for each in maps]
        total = _sum_upsampled(first.to(dtype), w.weight.to(dtype), w.bias.to(dtype), maps)  # (B, H, W, D)
        mean, variance, count = _moments(total)
        if ctx.group is not None:
            mean, variance, count = _joined_moments(mean, variance, count, ctx.group)
        if norm.running_mean is not None and norm.running_var is not None:
            unbiased = variance * (count / (count - 1).clamp(min=1))
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)
        rstd = torch.rsqrt(variance + norm.eps)
        ctx.save_for_backward(first, noise, total, mean, rstd, count, *w)

        # gamma (x - mean) rstd + beta = x scale + shift
        scale = w.norm_weight.to(rstd.dtype) * rstd
        shift = w.norm_bias.to(rstd.dtype) - mean * scale
        b, h, width, _ = total.shape
        shape = (b, len(w.classify_weight), h, width)  # itself no view, which FSDP would warn of
        logits = torch.empty(shape, dtype=dtype, device=total.device, memory_format=torch.channels_last)
        out = logits.permute(0, 2, 3, 1)  # (B, H, W, K)
        bias = w.classify_bias.to(dtype)
        for i, strip in _strips(total):
            active = torch.addcmul(shift, total[i, strip], scale).relu_().to(dtype).flatten(0, 1)  # (N, D)
            classify = _dropped(w.classify_weight, noise, i).to(dtype)
            linear_into(out[i, strip].flatten(0, 1), active, classify, bias)
        return logits

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        refuse_second_derivative("the decode head")
        first, noise, total, mean, rstd, count, *saved = ctx.saved_tensors
        w, dtype = HeadWeights(*saved), ctx.dtype
        grad = grad.permute(0, 2, 3, 1).to(dtype)  # (B, H, W, K)
        gamma, beta = w.norm_weight.to(rstd.dtype), w.norm_bias.to(rstd.dtype)

        # With s = total, x̂ = (s - mean) rstd, z = gamma x̂ + beta, a = relu(z) and logits = Wc (noise ⊙ a) + bc, a first
        # pass over the strips takes dz and the sums that the norm needs of it.
        grad_total = torch.empty_like(total)  # (B, H, W, D), in this pass dz
        grad_classify = torch.zeros_like(w.classify_weight)
        sum_grad, sum_product = torch.zeros_like(rstd), torch.zeros_like(rstd)
        for i, strip in _strips(total):
            normed = torch.addcmul(-mean * rstd, total[i, strip], rstd)  # x̂ (rows, W, D), a second time
            active = torch.addcmul(beta, normed, gamma).relu_()
            grad_strip = grad[i, strip].flatten(0, 1)  # (N, K)
            # dWc = Σ dlogitsᵀ (noise ⊙ a): the noise is one for all pixels of an image
            grad_classify += _dropped(weight_gradient(grad_strip, active.to(dtype).flatten(0, 1)), noise, i)
            # da = dlogits (Wc ⊙ noise), and dz = da where a > 0
            out = grad_total[i, strip]
            grad_active = linear(grad_strip, _dropped(w.classify_weight, noise, i).to(dtype).t()).view_as(out)
            torch.ops.aten.threshold_backward(grad_active, active.to(dtype), 0, grad_input=out)
            # dbeta = Σ dz, dgamma = Σ dz ⊙ x̂
            sum_grad += out.sum((0, 1), dtype=rstd.dtype)
            sum_product += normed.mul_(out).sum((0, 1))

        # The batch norm's own gradient, n pixels (of all processes, where they share their statistics):
        #     ds = gamma rstd (dz - Σdz / n - x̂ Σ(dz ⊙ x̂) / n) = scale dz + slope s + offset
        # with scale = gamma rstd, slope = -scale rstd Σ(dz ⊙ x̂) / n, offset = -scale Σdz / n - mean slope.
        sums = torch.stack((sum_grad, sum_product))
        if ctx.group is not None:
            torch.distributed.all_reduce(sums, group=ctx.group)
        scale = gamma * rstd
        slope = -scale * rstd * sums[1] / count
        offset = -scale * sums[0] / count - mean * slope

        # A second pass turns dz into ds in place; stage 1 was added as W x + b: dW = dsᵀ x, db = Σ ds, dx = ds W.
        grad_first = torch.empty_like(first) if ctx.needs_input_grad[0] else None
        grad_weight, grad_bias = torch.zeros_like(w.weight), torch.zeros_like(w.weight[:, 0])
        for i, strip in _strips(total):
            out = grad_total[i, strip]
            torch.addcmul(torch.addcmul(offset, total[i, strip], slope), out, scale, out=out)
            flat = out.flatten(0, 1)  # (N, D)
            grad_weight += weight_gradient(flat, first[i, strip].to(dtype).flatten(0, 1))
            grad_bias += flat.sum(0)
            if grad_first is not None:
                grad_first[i, strip] = linear(out, w.weight.to(dtype).t()).to(first.dtype)

        # The other stages were upsampled and added: ds through the transpose of the upsampling.
        out = grad_total.permute(0, 3, 1, 2)
        grad_maps = (upsample_backward(out, (b, d, *size)).permute(0, 2, 3, 1) for b, *size, d in ctx.shapes)
        norm = (sum_product.to(w.norm_weight.dtype), sum_grad.to(w.norm_bias.dtype))
        grads = HeadWeights(grad_weight, grad_bias, *norm, grad_classify, grad.sum((0, 1, 2)))
        return grad_first, None, None, *grads, *grad_maps


def _strips(x: Tensor) -> Iterator[tuple[int, slice]]:
    """Image by image, strips of rows of `x` (B, H, W, D) that stay in the cache."""
    rows = strip_rows(x[0, 0].numel(), x.device)
    for i in range(len(x)):
        for start in range(0, x.shape[1], rows):
            yield i, slice(start, min(start + rows, x.shape[1]))


def _sum_upsampled(first: Tensor, weight: Tensor, bias: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """`first @ weight.T + bias` of `(B, H, W, C)` plus every map of `maps` at that size: `(B, H, W, D)`."""
    height, width = first.shape[1:3]
    total = first.new_empty((*first.shape[:3], len(bias)))
    heights = [linear_weights(each.shape[1], height, each.device) for each in maps]
    for i, strip in _strips(total):
        out = total[i, strip]  # (rows, W, D)
        linear_into(out.flatten(0, 1), first[i, strip].flatten(0, 1), weight, bias)
        for each, weights in zip(maps, heights, strict=True):
            out += upsampled_strip(each[i], weights, strip, width)
    return total


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel of `(B, H, W, D)`, at least in float32, and how many values they are of.

    Strips are joined by the formula of Chan, Golub and LeVeque (1979), which does not subtract large numbers.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean, squares = x.new_zeros(x.shape[-1], dtype=dtype), x.new_zeros(x.shape[-1], dtype=dtype)
    count = 0
    for i, strip in _strips(x):
        part = x[i, strip].to(dtype).flatten(0, 1)  # (N, D)
        center = part.mean(0)
        n, difference = len(part), center - mean
        # of a values with mean m and n with mean c: Σ(x - mean)² = Σ_a + Σ_n + (c - m)² a n / (a + n)
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
    # with shares p_j of the values: mean = Σ p_j m_j, variance = Σ p_j (v_j + (m_j - mean)²)
    total = counts.sum()
    shares = counts / total
    mean = (means * shares).sum(0)
    return mean, ((variances + (means - mean).square()) * shares).sum(0), total


def _dropped(x: Tensor, noise: Tensor | None, image: int) -> Tensor:
    """`x` (K, D) with the channels scaled as dropout does in one image."""
    return x if noise is None else x * noise[image]
