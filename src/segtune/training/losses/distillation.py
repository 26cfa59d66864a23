"""Distillation: how far a student's probabilities are from a teacher's, at the size of the labels, band by band.

Hinton, Vinyals and Dean 2015 (arXiv 1503.02531): both logits are divided by a temperature T before the softmax, and the
divergence is multiplied by T², so that its gradient keeps its size whatever T is.

Letters: B batch, K classes, h w the size of the student's logits, H W the size of the labels. `u` and `v` are the
logits of student and teacher, upsampled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segtune.segformer.fused import refuse_second_derivative
from segtune.segformer.upsampling import linear_weights, strip_rows, upsample, upsample_backward


def distillation_loss(student: Tensor, teacher: Tensor, counted: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum over the pixels that count of `T² KL(softmax(v / T) ‖ softmax(u / T))`, a scalar; no map of K planes stays.

    Args:
        student: logits `(B, K, h, w)`, of any floating-point type; computed in float32, or in float64 for such.
        teacher: logits `(B, K, h', w')` of the same classes, of any size; they get no gradient.
        counted: which pixels count, `(B, H, W)`, bool.
        temperature: T, above 0.

    Raises:
        RuntimeError: when the gradient is differentiated again.
    """
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in images or classes"
        )
    dtype = torch.promote_types(student.dtype, torch.float32)
    total: Tensor = _Divergence.apply(student.to(dtype), teacher.detach().to(dtype), counted, temperature)
    return total


class _Divergence(torch.autograd.Function):
    """The gradient is worked out with the value, so that a band of full size can be dropped before the next."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, counted: Tensor, temperature: float) -> Tensor:
        exact = torch.float64 if student.device.type == "cpu" else student.dtype
        total, gradient = student.new_zeros((), dtype=exact), torch.zeros_like(student)
        for image in range(len(student)):
            total += _add_image(student[image], teacher[image], counted[image], temperature, gradient[image])
        ctx.save_for_backward(gradient)
        return total.to(student.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("the distillation loss")
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None


def _add_image(x: Tensor, y: Tensor, counted: Tensor, temperature: float, gradient: Tensor) -> Tensor:
    """The sum of one image, logits `(K, h, w)` and `(K, h', w')`, pixels `(H, W)`; adds its gradient."""
    height, width = counted.shape
    of_x, of_y = (linear_weights(logits.shape[1], height, x.device) for logits in (x, y))
    shares = []
    for rows in torch.arange(height, device=x.device).split(strip_rows(2 * len(x) * width, x.device)):
        lines, u = _band(x, of_x, rows, width)  # (K, rows, w), (K, rows, W)
        _, v = _band(y, of_y, rows, width)
        log_q, log_p = (u / temperature).log_softmax(0), (v / temperature).log_softmax(0)
        p, here = log_p.exp(), counted[rows]
        # T² Σ_k p_k (log p_k - log q_k), whose slope is T (q_k - p_k)
        shares.append(((p * (log_p - log_q)).sum(0) * here).sum(dtype=torch.promote_types(x.dtype, torch.float64)))
        slope = (log_q.exp_() - p) * (temperature * here)
        share = upsample_backward(slope[None], (1, *lines.shape))[0]  # (K, rows, w)
        above, below, t = (weights[rows] for weights in of_x)
        t = t[:, None].to(x.dtype)
        gradient.index_add_(1, above, share * (1 - t))
        gradient.index_add_(1, below, share * t)
    return temperature**2 * torch.stack(shares).sum()


def _band(x: Tensor, weights: tuple[Tensor, Tensor, Tensor], rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Some rows of a map `(K, h, w)` at full height `(K, rows, w)`, and at full size `(K, rows, W)`."""
    above, below, t = (weight[rows] for weight in weights)
    lines = torch.lerp(x[:, above], x[:, below], t[:, None].to(x.dtype))
    return lines, upsample(lines[None], (len(rows), width))[0]
