"""The terms of the loss, of probabilities; whose gradients are those that autograd finds.

Letters: N pixels of one image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def focal_loss(log_p: Tensor, gamma: float, weights: Tensor | None = None) -> Tensor:
    """Sum over pixels of `-w (1 - p)^gamma log p` (Lin et al. 2017, arXiv 1708.02002).

    Args:
        log_p: log-probability that each pixel gives to its own class, of any shape.
        weights: w of each pixel, of the same shape; None weighs all alike.
    """
    # 1 - p = -expm1(log p) keeps its digits where p is close to 1. Below gamma = 1 the slope gamma (1 - p)^(gamma - 1)
    # is infinite at p = 1: the clamp keeps a certain pixel's gradient finite.
    loss = -log_p * (-log_p.expm1()).clamp(min=torch.finfo(log_p.dtype).tiny) ** gamma
    return (loss if weights is None else loss * weights).sum()


def hard_pixels(log_p: Tensor, threshold: float, min_kept: float) -> Tensor:
    """Which pixels give their class a probability below `threshold`, (N,) bool; at least a share `min_kept` of them.

    The rule of mmseg's `OHEMPixelSampler`, which takes `min_kept` as a number of pixels and over the batch: 100,000 of
    a crop of 512×1024 are 0.19. It divides the loss by all pixels of the batch, we by the hard ones.

    Args:
        log_p: log-probability that each pixel gives to its own class, (N,).
    """
    count = math.ceil(min_kept * len(log_p))
    # kthvalue is the count-th smallest; "<=" keeps at least `count` pixels, and all of those that are equally hard.
    return (log_p < math.log(threshold)) | (log_p <= log_p.kthvalue(count).values)


def hard_pixels_of_images(log_p: Tensor, valid: Tensor, threshold: float, min_kept: float) -> Tensor:
    """`hard_pixels` of several images, without a wait for the device: (n, N), bool.

    Args:
        log_p: log-probability that each pixel gives to its own class, (n, N).
        valid: which pixels count, (n, N), bool.
    """
    ordered = log_p.masked_fill(~valid, math.inf).sort(-1).values
    count = (min_kept * valid.sum(-1, keepdim=True)).ceil().long()
    kept = log_p <= ordered.gather(-1, (count - 1).clamp(min=0))
    return valid & ((log_p < math.log(threshold)) | kept)


def tversky_loss(p: Tensor, is_class: Tensor, alpha: float, beta: float) -> Tensor:
    """`1 - TP / (TP + alpha FP + beta FN)` of classes with at least one pixel (Salehi et al. 2017, arXiv 1706.05721).

    Both at 0.5 it is `1 - 2 TP / (sum p + sum y)`, the Dice loss (Milletari et al. 2016, without its squares).

    Args:
        p: probability of the class, (..., N); 0 at pixels that do not count.
        is_class: (..., N), bool.

    Returns:
        (...): of a class without a pixel a finite number, with a finite gradient.
    """
    # Soft counts: TP = sum p y, FP = sum p (1 - y) = sum p - TP, FN = sum (1 - p) y = sum y - TP.
    true = (p * is_class).sum(-1)
    union = true + alpha * (p.sum(-1) - true) + beta * (is_class.sum(-1) - true)
    return 1 - true / union.clamp(min=torch.finfo(p.dtype).tiny)


def lovasz_loss(p: Tensor, is_class: Tensor) -> Tensor:
    """Lovász extension of `1 - IoU` of classes with at least one pixel, at the errors `|y - p|` (Berman et al. 2018).

    The errors in descending order, each times what its pixel, counted as wrong, adds to `1 - IoU` (arXiv 1705.08790,
    equations 8 and 9). Arguments and result as those of `tversky_loss`.
    """
    errors, order = (is_class.to(p.dtype) - p).abs().sort(descending=True)
    is_class = is_class.gather(-1, order)
    # Let the k pixels of the largest errors be wrong, c_k of them of the class, and S the pixels of the class. Then
    # 1 - IoU = 1 - I_k / U_k with I_k = S - c_k right ones and U_k = S + (k - c_k), the false positives included.
    found = is_class.cumsum(-1)  # (..., N): c_k
    size = found[..., -1:]
    union = (size + torch.arange(1, p.shape[-1] + 1, device=p.device) - found).to(p.dtype)
    intersection = (size - found).to(p.dtype)
    # The step from k - 1 to k: a pixel of the class takes one from I, which adds 1 / U_k; another one adds one to U,
    # which adds I_k / (U_k - 1) - I_k / U_k = I_k / (U_k (U_k - 1)). The loss is the sum of errors times steps.
    # With a pixel of the class U_k (U_k - 1) is at least 2 there.
    steps = torch.where(is_class, 1 / union, intersection / (union * (union - 1)).clamp(min=1))
    return (errors * steps).sum(-1)


def two_logits(logits: Tensor, dim: int) -> Tensor:
    """One logit as those of two classes: softmax of (0, x) is (1 - sigmoid(x), sigmoid(x))."""
    return torch.cat([torch.zeros_like(logits), logits], dim)


def value_and_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """A function's value at `x` and its gradient, both detached."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        value = function(x)
    return value.detach(), torch.autograd.grad(value, x)[0]
