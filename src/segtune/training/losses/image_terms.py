"""All terms but the cross-entropy on a CPU: image after image, class after class.

So only what an image shows is computed, in little memory.

Letters: B batch, K labels, h w the size of the logits, H W the size of the labels, N valid pixels of one image.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from segtune.data.samples import DistanceMaps
from segtune.labels.distance_maps import signed_distance
from segtune.segformer.upsampling import upsample, upsample_backward
from segtune.training.config import PIXEL_TERMS, REGION_TERMS, LossConfig
from segtune.training.losses.loss_terms import (
    focal_loss,
    hard_pixels,
    lovasz_loss,
    tversky_loss,
    two_logits,
    value_and_gradient,
)


class ImageTerms:
    """Sum over the images of a batch, and its gradient.

    Args:
        config: which terms, how much each weighs, and their settings.
        weights: of the classes, (K,), or None.
        ignore_index: named in an error.
        counts: by which pixels and images are divided, (2,).
        distances: of the labels, for the boundary loss; without them, they are computed here.
    """

    def __init__(
        self,
        config: LossConfig,
        weights: Tensor | None,
        ignore_index: int,
        counts: Tensor,
        distances: DistanceMaps | None,
    ) -> None:
        self.config = config
        self.weights = weights
        self.ignore_index = ignore_index
        self.counts = counts
        self.maps = None
        if distances is not None:
            places = map(tuple, distances.of.tolist())
            self.maps = dict(zip(places, distances.maps, strict=True))  # (image, class) -> (H, W)

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The sum `()`, and its gradient (B, K, h, w).

        Args:
            logits: (B, K, h, w); each image is upsampled to (H, W), and freed before the next.
            labels: (B, H, W), negative where ignored.
        """
        # Upsampling is linear, z_full = A z, so that dL / dz = A^T dL / dz_full.
        total, gradient = logits.new_zeros(()), torch.zeros_like(logits)
        size = labels.shape[1:]
        for i in range(len(logits)):
            index = (labels[i] >= 0).flatten().nonzero()[:, 0]  # (N,)
            if len(index):
                full = upsample(logits[i : i + 1].contiguous(), size)[0].flatten(1)  # (K, H W)
                full = full.index_select(1, index)  # (K, N)
                value, full = self._share_of_image(full, labels[i], i)
                total += value
                full = full.new_zeros((len(full), size.numel())).index_copy_(1, index, full)  # (K, H W)
                gradient[i] = upsample_backward(full.view(1, -1, *size), (1, *logits.shape[1:]))[0]
        return total, gradient

    def _share_of_image(self, logits: Tensor, labels: Tensor, image: int) -> tuple[Tensor, Tensor]:
        """What one image adds to the loss, and the gradient (K, N).

        Each term is differentiated on its own, by what it looks at, so that autograd keeps no graph of (K, N) tensors.

        Args:
            logits: at the valid pixels, (K, N).
            labels: of all pixels (H, W), -1 where ignored.
            image: its place in the batch.
        """
        counts = self.counts
        first = int(len(logits) == 1)  # of two classes, the foreground only
        p = (two_logits(logits, dim=0) if first else logits).log_softmax(0)  # (K, N)
        target = labels[labels >= 0]  # (N,)
        if int(target.max()) >= len(p):
            raise IndexError(f"label {target.max()} is neither one of {len(p)} classes nor {self.ignore_index}")
        total, gradient = p.new_zeros(()), torch.zeros_like(p)  # of the image's share; dL / d log p, (K, N)
        if self.config.uses(*PIXEL_TERMS):
            weights = None if self.weights is None else self.weights.to(p)[target]  # (N,)
            term = functools.partial(self._pixel_terms, weights=weights)
            total, slope = value_and_gradient(term, p.gather(0, target[None])[0])
            gradient.scatter_(0, target[None], slope[None])
        p = p.exp_()
        if self.config.uses(*REGION_TERMS):
            present = [label for label in target.unique().tolist() if label >= first]
            for label in present:
                term = functools.partial(
                    self._region_terms, is_class=target == label, labels=labels, place=(image, label)
                )
                value, slope = value_and_gradient(term, p[label])
                # The mean over the classes that the image shows, then over the images. Of p, d log p = dp / p.
                total = total + value / len(present) / counts[1]
                gradient[label] += slope * p[label] / len(present) / counts[1]
        # With log p_k = z_k - log sum_j exp z_j, d log p_k / d z_j = [k = j] - p_j, and so
        # dL / d z_j = g_j - p_j sum_k g_k, where g = dL / d log p. Of two classes from one logit, z_0 is constant.
        return total, gradient.addcmul_(p, gradient.sum(0), value=-1)[first:]

    def _pixel_terms(self, log_p: Tensor, weights: Tensor | None) -> Tensor:
        """Focal loss and OHEM, of the log-probability that each pixel gives to its own class (N,)."""
        config, counts = self.config, self.counts
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

    def _region_terms(self, p: Tensor, is_class: Tensor, labels: Tensor, place: tuple[int, int]) -> Tensor:
        """Dice, Tversky, Lovász and boundary loss of one class that the image shows.

        Args:
            p: the class's probability at the valid pixels, (N,).
            is_class: which of them have the class, bool (N,).
            labels: of all pixels (H, W), -1 where ignored.
            place: the image in the batch, and the class.
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
            loss = loss + config.boundary * (p * self._distance(labels, place).to(p)[labels >= 0]).mean()
        return loss

    def _distance(self, labels: Tensor, place: tuple[int, int]) -> Tensor:
        """The distance map of a class, (H, W)."""
        return torch.from_numpy(signed_distance(labels.numpy(), place[1])) if self.maps is None else self.maps[place]
