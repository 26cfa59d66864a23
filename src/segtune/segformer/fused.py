"""Two parts of the network that keep for the backward pass only what is expensive to compute again.

Autograd keeps every intermediate map. Here element-wise results and cheap products are computed a second time instead:
of 14 units (a unit is a map of C channels, at the usual Mix-FFN ratio of 4) the Mix-FFN keeps one, its input; of three
maps the end of the decode head keeps one. Both equal the plain modules up to rounding, and differentiate once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


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
        normed = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        wide = _depthwise(F.linear(normed, weight1, bias1), conv_weight, conv_bias)  # (B, H, W, E)
        ctx.save_for_backward(x, norm_weight, norm_bias, weight1, bias1, conv_weight, conv_bias, weight2)
        ctx.compute_dtype = wide.dtype
        return F.linear(F.gelu(wide), weight2, bias2)  # (B, H, W, C)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        refuse_second_derivative("the Mix-FFN")
        x, norm_weight, norm_bias, weight1, bias1, conv_weight, conv_bias, weight2 = ctx.saved_tensors
        dtype, width = ctx.compute_dtype, len(conv_weight)
        train = any(ctx.needs_input_grad[1:])  # or only pass the gradient on, as with frozen weights

        normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, ctx.eps)
        normed = normed.to(dtype)
        before = F.linear(normed, weight1.to(dtype), bias1.to(dtype))  # (B, H, W, E), as in the forward pass
        wide = _depthwise(before, conv_weight.to(dtype), conv_bias.to(dtype))  # (B, H, W, E)

        grad = grad.to(dtype).reshape(-1, grad.shape[-1])  # (M, C)
        grad_weight2 = grad.t() @ F.gelu(wide).view(-1, width) if train else None
        grad_wide = torch.ops.aten.gelu_backward((grad @ weight2.to(dtype)).view_as(wide), wide)  # (B, H, W, E)
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
        grad_before = grad_before.permute(0, 2, 3, 1).reshape(-1, width)  # (M, E)
        grad_weight1 = grad_before.t() @ normed.view(-1, normed.shape[-1]) if train else None
        grad_normed = (grad_before @ weight1.to(dtype)).view_as(x).to(x.dtype)  # (B, H, W, C)
        grad_x, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
            grad_normed, x, list(x.shape[-1:]), mean, rstd, norm_weight, norm_bias, [True, train, train]
        )
        return (
            grad_x.to(ctx.dtype),
            grad_norm_weight,
            grad_norm_bias,
            None,
            grad_weight1,
            grad_before.sum(0) if train else None,
            grad_conv_weight,
            grad_conv_bias,
            grad_weight2,
            grad.sum(0) if train else None,
        )


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A zero-padded 3x3 depthwise convolution of a map `(B, H, W, E)`."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=len(weight)).permute(0, 2, 3, 1)


class NormReluClassify(torch.autograd.Function):
    """`classifier(dropout(relu(batch_norm(x))))` of a channels-last `(B, D, H, W)` with batch statistics.

    Channel dropout multiplies whole channels, so that it goes into the classifier's weight, sample by sample.
    The running statistics are updated in place, as `nn.BatchNorm2d` does.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        noise: Tensor | None,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        """`noise` (B, D) is what dropout multiplies with; `weight` is (K, D)."""
        normed, mean, rstd = torch.native_batch_norm(
            x, norm_weight, norm_bias, running_mean, running_var, True, momentum, eps
        )
        ctx.save_for_backward(x, mean, rstd, norm_weight, norm_bias, noise, weight)
        ctx.eps = eps
        active = F.relu_(normed).permute(0, 2, 3, 1).flatten(1, 2)  # (B, N, D)
        weights = weight if noise is None else weight * noise[:, None]  # (K, D) or (B, K, D)
        logits = torch.matmul(active, weights.mT.to(active.dtype)).add_(bias)  # (B, N, K)
        return logits.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)  # (B, K, H, W)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        refuse_second_derivative("the decode head")
        x, mean, rstd, norm_weight, norm_bias, noise, weight = ctx.saved_tensors
        grad = grad.permute(0, 2, 3, 1).flatten(1, 2).to(x.dtype)  # (B, N, K)
        variance = rstd.pow(-2) - ctx.eps
        weights = (weight if noise is None else weight * noise[:, None]).to(x.dtype).expand(len(x), *weight.shape)
        grad_weight = torch.zeros_like(weight)
        grad_normed = torch.empty_like(x.permute(0, 2, 3, 1), memory_format=torch.contiguous_format)  # (B, H, W, D)
        for i in range(len(x)):  # one image at a time: less memory
            normed = F.batch_norm(x[i : i + 1], mean, variance, norm_weight, norm_bias, eps=ctx.eps)
            active = F.relu_(normed)[0].permute(1, 2, 0).flatten(0, 1)  # (N, D)
            grad_weights = grad[i].t() @ active  # (K, D)
            grad_weight += grad_weights if noise is None else grad_weights * noise[i]
            torch.mm(grad[i], weights[i], out=grad_normed[i].flatten(0, 1)).mul_(active > 0)
        grad_normed = grad_normed.permute(0, 3, 1, 2)  # (B, D, H, W)
        grad_x, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_batch_norm_backward(
            grad_normed, x, norm_weight, None, None, mean, rstd, True, ctx.eps, [True, True, True]
        )
        return (
            grad_x,
            grad_norm_weight,
            grad_norm_bias,
            None,
            None,
            None,
            None,
            None,
            grad_weight,
            grad.sum((0, 1)),
        )


def refuse_second_derivative(what: str) -> None:
    """For the backward pass of a function that differentiates once."""
    if torch.is_grad_enabled():  # create_graph=True
        raise RuntimeError(f"{what} keeps too little for a second derivative: call backward without create_graph=True")
