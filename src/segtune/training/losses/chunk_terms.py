"""The same terms as `image_terms` elsewhere than on a CPU: all classes of some images at once, with masks.

Nothing here waits for the device, and the number of launches depends neither on the classes nor on what images show.

Letters: B batch, K labels (two for one logit), h w the size of the logits, H W the size of the labels, n images of a
chunk, N = H W pixels of one image.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from segtune.data.samples import DistanceMaps
from segtune.segformer.upsampling import upsample, upsample_backward
from segtune.training.config import PIXEL_TERMS, REGION_TERMS, LossConfig
from segtune.training.losses.loss_terms import (
    focal_loss,
    hard_pixels_of_images,
    lovasz_loss,
    tversky_loss,
    two_logits,
    value_and_gradient,
)

_CHUNK = 2**25  # elements of one of the ten or so tensors (n, K, N) that are held at the same time


class ChunkTerms:
    """Sum over the images of a batch, and its gradient; NaN where a label is no class.

    Args:
        config: which terms, how much each weighs, and their settings.
        weights: of the classes, (K,), on the device, or None.
        counts: by which pixels and images are divided, (2,).
        distances: of the labels, where the boundary loss is used.
    """

    def __init__(
        self, config: LossConfig, weights: Tensor | None, counts: Tensor, distances: DistanceMaps | None
    ) -> None:
        self.config = config
        self.weights = weights
        self.counts = counts
        self.distances = distances

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The sum `()`, and its gradient (B, K, h, w).

        Args:
            logits: (B, K, h, w), float32; a chunk of images is upsampled to (H, W), and freed before the next.
            labels: (B, H, W), int64, negative where ignored.
        """
        size = labels.shape[1:]
        images = max(1, _CHUNK // (max(logits.shape[1], 2) * size.numel()))
        shares = []
        for first in range(0, len(logits), images):
            some = slice(first, min(first + images, len(logits)))
            full = upsample(logits[some], size).flatten(2)  # (n, K, N)
            total, slope = self._share_of_chunk(full, labels[some].flatten(1), some)
            slope = slope.view(*slope.shape[:2], *size)
            shares.append((total, upsample_backward(slope, logits[some].shape)))
        totals, gradients = zip(*shares, strict=True)
        return torch.stack(totals).sum(), torch.cat(gradients)

    def _share_of_chunk(self, logits: Tensor, labels: Tensor, images: slice) -> tuple[Tensor, Tensor]:
        """What some images add to the loss, and the gradient (n, K, N).

        Args:
            logits: (n, K, N).
            labels: (n, N), negative where ignored.
            images: which of the batch these are.
        """
        first = int(logits.shape[1] == 1)  # of two classes, the foreground only
        log_p = (two_logits(logits, dim=1) if first else logits).log_softmax(1)  # (n, K, N)
        valid = labels >= 0  # (n, N)
        target = labels.clamp(0, log_p.shape[1] - 1)
        # a wrong label cannot raise without a wait: it counts as NaN
        counted = torch.where(labels > target, math.nan, valid.to(log_p.dtype))  # (n, N)
        total, gradient = log_p.new_zeros(()), torch.zeros_like(log_p)  # dL / d log p
        if self.config.uses(*PIXEL_TERMS):
            of_class = counted if self.weights is None else counted * self.weights.to(log_p)[target]
            of_target = log_p.gather(1, target[:, None])[:, 0].where(valid, 0.0)  # (n, N)
            term = functools.partial(self._pixel_terms, weights=of_class, valid=valid)
            total, slope = value_and_gradient(term, of_target)
            gradient.scatter_(1, target[:, None], slope.where(valid, 0.0)[:, None])
        p = log_p.exp_()
        if self.config.uses(*REGION_TERMS):
            seen = p * counted[:, None]  # 0 where ignored
            labels_of_all = torch.arange(p.shape[1], device=p.device)[:, None]
            is_class = (target[:, None] == labels_of_all) & valid[:, None]  # (n, K, N)
            share = self._shares(is_class, first)  # (n, K)
            slope = torch.zeros_like(p)
            if self.config.uses("dice", "tversky", "lovasz"):
                term = functools.partial(self._overlap_terms, is_class=is_class, share=share)
                value, slope = value_and_gradient(term, seen)
                total = total + value
            if self.distances is not None:
                linear = self._distances(self.distances, share, counted, images)
                total, slope = total + (linear * seen).sum(), slope + linear
            gradient += slope * seen  # of p, d log p = dp / p
        # dL / d z_j = g_j - p_j sum_k g_k, where g = dL / d log p. Of two classes from one logit, z_0 is constant.
        return total, gradient.addcmul_(p, gradient.sum(1, keepdim=True), value=-1)[:, first:]

    def _pixel_terms(self, log_p: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
        """Focal loss and OHEM, of the log-probability that each pixel gives to its own class, (n, N).

        Args:
            weights: of the pixels, (n, N), 0 where ignored.
        """
        config = self.config
        loss = log_p.new_zeros(())
        if config.uses("focal"):
            loss = loss + config.focal * focal_loss(log_p, config.focal_gamma, weights) / self.counts[0]
        if config.uses("ohem"):
            hard = hard_pixels_of_images(log_p.detach(), valid, config.ohem_threshold, config.ohem_min_kept) * weights
            kept = hard.sum(-1)  # (n,)
            means = (hard * log_p).sum(-1) / kept.masked_fill(kept == 0, math.inf)
            loss = loss - config.ohem * means.sum() / self.counts[1]
        return loss

    def _shares(self, is_class: Tensor, first: int) -> Tensor:
        """What the class of an image weighs, (n, K): the mean over the classes that it shows, then over the images."""
        present = is_class.any(-1)
        present[:, :first] = False
        return present / present.sum(1, keepdim=True).clamp(min=1) / self.counts[1]

    def _overlap_terms(self, p: Tensor, is_class: Tensor, share: Tensor) -> Tensor:
        """Dice, Tversky and Lovász loss of probabilities (n, K, N)."""
        config = self.config
        loss = torch.zeros_like(share)
        if config.uses("dice"):
            loss = loss + config.dice * tversky_loss(p, is_class, 0.5, 0.5)
        if config.uses("tversky"):
            loss = loss + config.tversky * tversky_loss(p, is_class, config.tversky_alpha, config.tversky_beta)
        if config.uses("lovasz"):
            loss = loss + config.lovasz * lovasz_loss(p, is_class)
        return (loss * share).sum()

    def _distances(self, distances: DistanceMaps, share: Tensor, counted: Tensor, images: slice) -> Tensor:
        """What the boundary loss multiplies the probabilities with, (n, K, N): it is linear in them."""
        n, num_labels = share.shape
        start = sum(distances.per_image[: images.start])
        some = slice(start, start + sum(distances.per_image[images]))
        image, label = distances.of[some].unbind(1)  # (M,)
        place = (image - images.start) * num_labels + label.clamp(max=num_labels - 1)
        # the mean over the valid pixels, then as the other terms
        factor = self.config.boundary * share / counted.sum(1, keepdim=True).clamp(min=1)  # (n, K)
        maps = distances.maps[some].flatten(1).to(share.dtype) * factor.flatten().gather(0, place)[:, None]  # (M, N)
        return maps.new_zeros((n * num_labels, maps.shape[1])).index_copy_(0, place, maps).view(n, num_labels, -1)
