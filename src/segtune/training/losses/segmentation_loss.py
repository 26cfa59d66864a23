"""The loss of training: a weighted sum of terms of the logits, upsampled to the size of the labels.

Cross-entropy and focal are sums over pixels, divided by the valid pixels of the global batch. The others look at whole
images: each is taken per image, over its valid pixels, and averaged over the images that have any. So the loss of an
optimiser step does not depend on how its batch is divided.

Letters: B batch, K labels, h w the size of the logits, H W the size of the labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segtune.data.samples import DistanceMaps
from segtune.errors import UsageError
from segtune.segformer.cross_entropy import upsampled_cross_entropy
from segtune.segformer.fused import refuse_second_derivative
from segtune.segformer.modeling_segformer import segmentation_loss, valid_pixels
from segtune.training.config import PIXEL_TERMS, REGION_TERMS, LossConfig
from segtune.training.losses.chunk_terms import ChunkTerms
from segtune.training.losses.image_terms import ImageTerms
from segtune.training.losses.loss_terms import two_logits


class SegmentationLoss:
    """The loss that a `LossConfig` describes, for logits (B, K, h, w) and labels (B, H, W) of training ids.

    Pixels equal to `ignore_index` do not count. One logit (K = 1) is the foreground of two classes: dice, tversky,
    lovasz and boundary then look at the foreground only. Computed in float32 (in float64 for such logits).

    cross_entropy never upsamples all logits. The other terms upsample one image after another on a CPU (`ImageTerms`):
    beside the logits' gradient, memory holds three tensors (K, H, W) of float32 at most, whatever the batch. Elsewhere
    they take a chunk of images at once (`ChunkTerms`), and a label that is no class makes the loss NaN.

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
        self._weights_on: dict[torch.device, Tensor] = {}

    def count(self, labels: Tensor) -> Tensor:
        """What the terms of a batch's loss are divided by; counts add up over micro-batches and processes.

        Returns:
            (2,), float64 on a CPU, else float32: the valid pixels (with class weights, the sum of theirs), and the
            images that have any.
        """
        valid, weights = self._valid(labels), self._class_weights(labels.device)
        exact = torch.float64 if labels.device.type == "cpu" else torch.float32
        if weights is None:
            pixels = valid_pixels(labels, self.ignore_index)
        else:
            of_class = weights[labels.where(valid, 0).long().clamp(max=len(weights) - 1)]  # (B, H, W)
            pixels = (of_class * valid).sum(dtype=exact)
        return torch.stack([pixels.to(exact), valid.flatten(1).any(1).sum().to(exact)])

    def __call__(
        self, logits: Tensor, labels: Tensor, counts: Tensor | None = None, distances: DistanceMaps | None = None
    ) -> Tensor:
        """The loss, or the share that this micro-batch has in it: a scalar of float32 (float64 for such logits).

        Args:
            logits: (B, K, h, w), of any floating-point type; they are upsampled to the size of the labels.
            labels: (B, H, W), training ids or `ignore_index`, of any integer type.
            counts: `count` of the labels, summed over the global batch; without it, the batch stands alone.
            distances: of the labels, for the boundary loss; without them they are computed here, on the CPU.

        Raises:
            IndexError: a label is neither a class nor `ignore_index`, on a CPU.
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
            loss = loss + _GradientOnTheWay.apply(
                logits.to(dtype), known, self._terms(logits, known, counts, distances)
            )
        return loss

    def _terms(
        self, logits: Tensor, labels: Tensor, counts: Tensor, distances: DistanceMaps | None
    ) -> ImageTerms | ChunkTerms:
        weights = self._class_weights(logits.device)
        if logits.device.type == "cpu":
            return ImageTerms(self.config, weights, self.ignore_index, counts, distances)
        if distances is None and self.config.uses("boundary"):
            distances = DistanceMaps.of_labels(labels, self.ignore_index, first=int(logits.shape[1] == 1))
        return ChunkTerms(self.config, weights, counts, distances)

    def _class_weights(self, device: torch.device) -> Tensor | None:
        """(K,), moved to a device once."""
        if self.weights is None:
            return None
        if device not in self._weights_on:
            self._weights_on[device] = self.weights.to(device)
        return self._weights_on[device]

    def _valid(self, labels: Tensor) -> Tensor:
        return (labels != self.ignore_index) & (labels >= 0)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum over pixels of the cross-entropy, which never sees all logits at full size."""
        smoothing = self.config.label_smoothing
        if self.weights is None and smoothing == 0:
            return segmentation_loss(logits, labels, self.ignore_index, reduction="sum")
        if logits.shape[1] == 1:
            logits, labels = two_logits(logits, dim=1), labels.masked_fill(labels < 0, self.ignore_index)
        weights = self._class_weights(logits.device)
        return upsampled_cross_entropy(logits, labels, self.ignore_index, weights, smoothing, reduction="sum")


class _GradientOnTheWay(torch.autograd.Function):
    """`terms(logits, labels)`, which returns a value and its gradient.

    The gradient is worked out here and not in `backward`: full-resolution tensors of some images can then be freed
    before the next ones.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, terms: ImageTerms | ChunkTerms) -> Tensor:
        total, gradient = terms(logits, labels)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("the loss")
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None
