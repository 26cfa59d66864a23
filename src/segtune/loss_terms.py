"""Losses of one image beside the cross-entropy, at its N valid pixels; `losses` weighs, adds and averages them."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor


def focal_loss(log_p: Tensor, gamma: float, weights: Tensor | None = None) -> Tensor:
    """Sum over pixels of `-w (1 - p)^gamma log p` (Lin et al. 2017, arXiv 1708.02002).

    Args:
        log_p: of the pixels' own classes, (N,).
        weights: of the pixels, (N,).
    """
    loss = -log_p * (-log_p.expm1()).clamp(min=torch.finfo(log_p.dtype).tiny) ** gamma
    return (loss if weights is None else loss * weights).sum()


def hard_pixels(log_p: Tensor, threshold: float, min_kept: float) -> Tensor:
    """Which pixels give their class a probability below `threshold`, (N,) bool; at least a share `min_kept` of them.

    The rule of mmseg's `OHEMPixelSampler`, which takes `min_kept` as a number of pixels and over the batch: 100,000 of
    a crop of 512×1024 are 0.19. It divides the loss by all pixels of the batch, we by the hard ones.

    Args:
        log_p: of the pixels' own classes, (N,).
    """
    count = math.ceil(min_kept * len(log_p))
    return (log_p < math.log(threshold)) | (log_p <= log_p.kthvalue(count).values)


def tversky_loss(p: Tensor, is_class: Tensor, alpha: float, beta: float) -> Tensor:
    """`1 - TP / (TP + alpha FP + beta FN)` of one class with at least one pixel (Salehi et al. 2017, arXiv 1706.05721).

    Both at 0.5 it is `1 - 2 TP / (sum p + sum y)`, the Dice loss (Milletari et al. 2016, without its squares).

    Args:
        p: probability of the class (N,).
        is_class: (N,), bool.
    """
    true = (p * is_class).sum()
    return 1 - true / (true + alpha * (p.sum() - true) + beta * (is_class.sum() - true))


def lovasz_loss(p: Tensor, is_class: Tensor) -> Tensor:
    """Lovász extension of `1 - IoU` of one class with at least one pixel, at the errors `|y - p|` (Berman et al. 2018).

    The errors in descending order, each times what its pixel, counted as wrong, adds to `1 - IoU` (arXiv 1705.08790,
    equations 8 and 9).
    """
    errors, order = (is_class.to(p.dtype) - p).abs().sort(descending=True)
    is_class = is_class[order]
    found = is_class.cumsum(0)  # (N,): pixels of the class among the wrong ones
    size = found[-1]
    union = (size + torch.arange(1, len(p) + 1, device=p.device) - found).to(p.dtype)
    left = (size - found).to(p.dtype)
    steps = torch.where(is_class, 1 / union, left / (union * (union - 1)))
    return (errors * steps).sum()


def signed_distance(labels: Tensor, label: int) -> Tensor:
    """Distance in pixels to the outline of a class: positive outside, 0 or negative inside, (H, W) float64.

    The map of the boundary loss (Kervadec et al. 2019, arXiv 1812.07032), whose loss is the mean of `p` times this.
    Negative labels are neither inside nor outside. A class that fills all of the image has no outline: zeros.
    """
    ids = labels.cpu().numpy()
    inside, outside = ids == label, (ids != label) & (ids >= 0)
    if not outside.any():
        return torch.zeros(labels.shape, dtype=torch.float64)
    distance = np.where(inside, 1 - distance_transform_edt(~outside), distance_transform_edt(~inside))
    return torch.from_numpy(distance)
