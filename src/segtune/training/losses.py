"""Segmentation losses: a weighted sum of terms of the logits, upsampled to the size of the labels.

Cross-entropy and focal are sums over pixels, divided by the valid pixels of the global batch. The others look at whole
images: each is taken per image, over its valid pixels, and averaged over the images that have any. So the loss of an
optimiser step does not depend on how its batch is divided.

Letters: B batch, K labels, h w the size of the logits, H W the size of the labels, N valid pixels of one image.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from segtune.errors import UsageError
from segtune.segformer.cross_entropy import upsampled_cross_entropy
from segtune.segformer.fused import refuse_second_derivative
from segtune.segformer.modeling_segformer import segmentation_loss, valid_pixels
from segtune.segformer.upsampling import upsample, upsample_backward
from segtune.training.config import PIXEL_TERMS, REGION_TERMS, LossConfig

# --- the terms -------------------------------------------------------------------------------------------------------


def focal_loss(log_p: Tensor, gamma: float, weights: Tensor | None = None) -> Tensor:
    """Sum over pixels of `-w (1 - p)^gamma log p` (Lin et al. 2017, arXiv 1708.02002).

    Args:
        log_p: log-probability that each pixel gives to its own class, (N,).
        weights: w of each pixel, (N,); None weighs all alike.
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


def tversky_loss(p: Tensor, is_class: Tensor, alpha: float, beta: float) -> Tensor:
    """`1 - TP / (TP + alpha FP + beta FN)` of one class with at least one pixel (Salehi et al. 2017, arXiv 1706.05721).

    Both at 0.5 it is `1 - 2 TP / (sum p + sum y)`, the Dice loss (Milletari et al. 2016, without its squares).

    Args:
        p: probability of the class (N,).
        is_class: (N,), bool.
    """
    # Soft counts: TP = sum p y, FP = sum p (1 - y) = sum p - TP, FN = sum (1 - p) y = sum y - TP.
    true = (p * is_class).sum()
    return 1 - true / (true + alpha * (p.sum() - true) + beta * (is_class.sum() - true))


def lovasz_loss(p: Tensor, is_class: Tensor) -> Tensor:
    """Lovász extension of `1 - IoU` of one class with at least one pixel, at the errors `|y - p|` (Berman et al. 2018).

    The errors in descending order, each times what its pixel, counted as wrong, adds to `1 - IoU` (arXiv 1705.08790,
    equations 8 and 9).
    """
    errors, order = (is_class.to(p.dtype) - p).abs().sort(descending=True)
    is_class = is_class[order]
    # Let the k pixels of the largest errors be wrong, c_k of them of the class, and S the pixels of the class. Then
    # 1 - IoU = 1 - I_k / U_k with I_k = S - c_k right ones and U_k = S + (k - c_k), the false positives included.
    found = is_class.cumsum(0)  # (N,): c_k
    size = found[-1]
    union = (size + torch.arange(1, len(p) + 1, device=p.device) - found).to(p.dtype)
    intersection = (size - found).to(p.dtype)
    # The step from k - 1 to k: a pixel of the class takes one from I, which adds 1 / U_k; another one adds one to U,
    # which adds I_k / (U_k - 1) - I_k / U_k = I_k / (U_k (U_k - 1)). The loss is the sum of errors times steps.
    steps = torch.where(is_class, 1 / union, intersection / (union * (union - 1)))
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
    # distance_transform_edt measures to the nearest False. A pixel inside that touches the outline is 1 away from the
    # outside and should be at 0, hence 1 - d; so there is no jump from 1 to -1 across the outline.
    distance = np.where(inside, 1 - distance_transform_edt(~outside), distance_transform_edt(~inside))
    return torch.from_numpy(distance)


# --- their weighted sum ----------------------------------------------------------------------------------------------


class SegmentationLoss:
    """The loss that a `LossConfig` describes, for logits (B, K, h, w) and labels (B, H, W) of training ids.

    Pixels equal to `ignore_index` do not count. One logit (K = 1) is the foreground of two classes: dice, tversky,
    lovasz and boundary then look at the foreground only. Computed in float32 (in float64 for such logits).

    cross_entropy never upsamples all logits. The other terms upsample one image after another: beside the logits'
    gradient, memory holds three tensors (K, H, W) of float32 at most, whatever the batch.

    Args:
        config: which terms, how much each weighs, and their settings.
        names: the names of the classes, two for one logit.
        ignore_index: the label of pixels that do not count.

    Raises:
        UsageError: class weights that do not fit the names, or that are yet to be counted.
    """

    def __init__(self, config: LossConfig, names: Sequence[str], ignore_index: int = 255) -> None:
        if isinstance(config.class_weights, str):
            raise UsageError(
                f"loss.class_weights={config.class_weights} stands for numbers that segtune.train counts; here, take "
                "those of LossConfig.counted"
            )
        self.config = config
        self.ignore_index = ignore_index
        weights = config.weights(names)
        self.weights = None if weights is None else torch.tensor(weights)  # (K,)

    def count(self, labels: Tensor) -> Tensor:
        """What the terms of a batch's loss are divided by; counts add up over micro-batches and processes.

        Returns:
            float64 (2,): the valid pixels (with class weights, the sum of theirs), and the images that have any.
        """
        valid = self._valid(labels)
        if self.weights is None:
            pixels = valid_pixels(labels, self.ignore_index)
        else:
            of_class = self.weights.to(labels.device)[labels.where(valid, 0).long()]  # (B, H, W)
            pixels = (of_class * valid).sum(dtype=torch.float64)
        return torch.stack([pixels.double(), valid.flatten(1).any(1).sum().double()])

    def __call__(self, logits: Tensor, labels: Tensor, counts: Tensor | None = None) -> Tensor:
        """The loss, or the share that this micro-batch has in it: a scalar of float32 (float64 for such logits).

        Args:
            logits: (B, K, h, w), of any floating-point type; they are upsampled to the size of the labels.
            labels: (B, H, W), training ids or `ignore_index`, of any integer type.
            counts: `count` of the labels, summed over the global batch; without it, the batch stands alone.

        Raises:
            IndexError: a label is neither a class nor `ignore_index`.
        """
        counts = self.count(labels) if counts is None else counts
        dtype = torch.promote_types(logits.dtype, torch.float32)
        # Every term is divided by a count n of the *global* batch: L = sum_i l_i / n over the micro-batches i. So their
        # shares add up to the loss of the batch, and the gradients with them. With nothing valid, 0 / inf = 0, not NaN.
        counts = counts.masked_fill(counts == 0, math.inf).to(dtype)
        loss = logits.new_zeros((), dtype=dtype)
        if self.config.uses("cross_entropy"):
            loss = loss + self.config.cross_entropy * self._cross_entropy(logits, labels) / counts[0]
        if self.config.uses(*PIXEL_TERMS, *REGION_TERMS):
            known = labels.long().where(self._valid(labels), -1)
            share = functools.partial(self._share_of_image, counts=counts)
            loss = loss + _ImageByImage.apply(logits.to(dtype), known, share)
        return loss

    def _valid(self, labels: Tensor) -> Tensor:
        return (labels != self.ignore_index) & (labels >= 0)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum over pixels of the cross-entropy, which never sees all logits at full size."""
        smoothing = self.config.label_smoothing
        if self.weights is None and smoothing == 0:
            return segmentation_loss(logits, labels, self.ignore_index, reduction="sum")
        if logits.shape[1] == 1:
            logits, labels = _two_logits(logits, dim=1), labels.masked_fill(labels < 0, self.ignore_index)
        return upsampled_cross_entropy(logits, labels, self.ignore_index, self.weights, smoothing, reduction="sum")

    def _share_of_image(self, logits: Tensor, labels: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """What one image adds to the loss, and the gradient (K, N).

        Each term is differentiated on its own, by what it looks at, so that autograd keeps no graph of (K, N) tensors.

        Args:
            logits: at the valid pixels, (K, N).
            labels: of all pixels (H, W), -1 where ignored.
        """
        first = int(len(logits) == 1)  # of two classes, the foreground only
        p = (_two_logits(logits, dim=0) if first else logits).log_softmax(0)  # (K, N)
        target = labels[labels >= 0]  # (N,)
        if int(target.max()) >= len(p):
            raise IndexError(f"label {target.max()} is neither one of {len(p)} classes nor {self.ignore_index}")
        total, gradient = p.new_zeros(()), torch.zeros_like(p)  # of the image's share; dL / d log p, (K, N)
        if self.config.uses(*PIXEL_TERMS):
            weights = None if self.weights is None else self.weights.to(p)[target]  # (N,)
            term = functools.partial(self._pixel_terms, weights=weights, counts=counts)
            total, slope = _value_and_gradient(term, p.gather(0, target[None])[0])
            gradient.scatter_(0, target[None], slope[None])
        p = p.exp_()
        if self.config.uses(*REGION_TERMS):
            present = [label for label in target.unique().tolist() if label >= first]
            for label in present:
                term = functools.partial(self._region_terms, is_class=target == label, labels=labels, label=label)
                value, slope = _value_and_gradient(term, p[label])
                # The mean over the classes that the image shows, then over the images. Of p, d log p = dp / p.
                total = total + value / len(present) / counts[1]
                gradient[label] += slope * p[label] / len(present) / counts[1]
        # With log p_k = z_k - log sum_j exp z_j, d log p_k / d z_j = [k = j] - p_j, and so
        # dL / d z_j = g_j - p_j sum_k g_k, where g = dL / d log p. Of two classes from one logit, z_0 is constant.
        return total, gradient.addcmul_(p, gradient.sum(0), value=-1)[first:]

    def _pixel_terms(self, log_p: Tensor, weights: Tensor | None, counts: Tensor) -> Tensor:
        """Focal loss and OHEM, of the log-probability that each pixel gives to its own class (N,)."""
        config = self.config
        loss = log_p.new_zeros(())
        if config.uses("focal"):
            loss = loss + config.focal * focal_loss(log_p, config.focal_gamma, weights) / counts[0]
        if config.uses("ohem"):
            hard = hard_pixels(log_p.detach(), config.ohem_threshold, config.ohem_min_kept).to(log_p.dtype)  # (N,)
            hard = hard if weights is None else hard * weights
            # The weighted mean over the hard pixels of this image, -sum(w log p) / sum(w), averaged over the images.
            # Which pixels are hard is no function to be differentiated.
            kept = hard.sum()
            loss = loss - config.ohem * (hard * log_p).sum() / kept.masked_fill(kept == 0, math.inf) / counts[1]
        return loss

    def _region_terms(self, p: Tensor, is_class: Tensor, labels: Tensor, label: int) -> Tensor:
        """Dice, Tversky, Lovász and boundary loss of one class that the image shows.

        Args:
            p: the class's probability at the valid pixels, (N,).
            is_class: which of them have the class, bool (N,).
        """
        config = self.config
        loss = p.new_zeros(())
        if config.uses("dice"):
            loss = loss + config.dice * tversky_loss(p, is_class, 0.5, 0.5)
        if config.uses("tversky"):
            loss = loss + config.tversky * tversky_loss(p, is_class, config.tversky_alpha, config.tversky_beta)
        if config.uses("lovasz"):
            loss = loss + config.lovasz * lovasz_loss(p, is_class)
        if config.uses("boundary"):
            loss = loss + config.boundary * (p * signed_distance(labels, label).to(p)[labels >= 0]).mean()
        return loss


def _two_logits(logits: Tensor, dim: int) -> Tensor:
    """One logit as those of two classes: softmax of (0, x) is (1 - sigmoid(x), sigmoid(x))."""
    return torch.cat([torch.zeros_like(logits), logits], dim)


# --- one image at a time ---------------------------------------------------------------------------------------------


class _ImageByImage(torch.autograd.Function):
    """Sum over images of `share(logits at valid pixels (K, N), labels (H, W))`, which returns a value and its gradient.

    Args:
        logits: (B, K, h, w); each image is upsampled to (H, W), and freed before the next.
        labels: (B, H, W), negative where ignored.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, share: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> Tensor:
        # The gradient is worked out here and not in `backward`: an image's full-resolution tensors can then be freed
        # before the next one's. Upsampling is linear, z_full = A z, so that dL / dz = A^T dL / dz_full.
        total, gradient = logits.new_zeros(()), torch.zeros_like(logits)
        size = labels.shape[1:]
        for i in range(len(logits)):
            index = (labels[i] >= 0).flatten().nonzero()[:, 0]  # (N,)
            if len(index):
                full = upsample(logits[i : i + 1].contiguous(), size)[0].flatten(1)  # (K, H W)
                full = full.index_select(1, index)  # (K, N)
                value, full = share(full, labels[i])
                total += value
                full = full.new_zeros((len(full), size.numel())).index_copy_(1, index, full)  # (K, H W)
                gradient[i] = upsample_backward(full.view(1, -1, *size), (1, *logits.shape[1:]))[0]
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("the loss")
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None


def _value_and_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        value = function(x)
    return value.detach(), torch.autograd.grad(value, x)[0]
