"""Self-training on unlabelled pictures: a mean teacher labels weak views, strong views are learned where it is sure.

The teacher is the moving average of the weights (Tarvainen and Valpola 2017, arXiv 1703.01780). As in FixMatch (Sohn et
al. 2020, arXiv 2001.07685), a pixel counts where its confidence reaches a threshold, and the loss is divided by all
pixels, sure or not, so that the term grows as the teacher becomes sure.

Letters: U unlabelled samples of a micro-batch, M of them with a partner, h w their size.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from segtune.inference.calibrate import NothingLabelledError, fit_temperature
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import segmentation_loss
from segtune.segformer.upsampling import upsampled_confidence, upsampled_prediction
from segtune.training.config import SemiConfig

if TYPE_CHECKING:
    import datasets


logger = logging.getLogger(__name__)


class SelfTraining:
    """The term of `training.semi`.

    Args:
        config: its settings.
        max_steps: of the run, of which its ramp takes a share by default.
        eval_dataset: the labelled rows on which confidences are calibrated; None leaves them as they are.
        processor: prepares these.

    Attributes:
        temperature: what the teacher's logits are divided by before the softmax; None before the first calibration.
    """

    def __init__(
        self,
        config: SemiConfig,
        max_steps: int,
        label_map: LabelMap,
        processor: SegformerImageProcessor,
        eval_dataset: datasets.Dataset | None,
    ) -> None:
        self.config, self.label_map, self.processor, self.eval_dataset = config, label_map, processor, eval_dataset
        self.start_step = max_steps // 10 if config.start_step is None else config.start_step
        self.ramp_steps = max_steps // 5 if config.ramp_steps is None else config.ramp_steps
        self.temperature: float | None = None if eval_dataset is not None else 1.0

    def weight(self, step: int) -> float:
        """Of the term at a step: 0 before it starts, then `w exp(-5 (1 - t)²)` with t from 0 to 1 over the ramp."""
        if step < self.start_step:
            return 0.0
        t = min((step - self.start_step + 1) / max(self.ramp_steps, 1), 1.0)
        return self.config.weight * math.exp(-5 * (1 - t) ** 2)

    def calibrate(self, model: nn.Module) -> None:
        """Fit the temperature of a teacher to 200,000 labelled pixels of the validation split, or all there are."""
        if self.eval_dataset is None:
            return
        try:
            fit = fit_temperature(model, self.eval_dataset, self.label_map, self.processor, progress=False)
        except NothingLabelledError:
            logger.warning(
                "training.semi: no pixel of the validation split is labelled: confidences are not calibrated"
            )
            self.temperature, self.eval_dataset = 1.0, None
        else:
            self.temperature = fit.temperature()

    @torch.no_grad()
    def label(self, teacher: nn.Module, views: dict[str, Any]) -> None:
        """Add the labels `(U, h, w)` of the strong views, `ignore_index` where the teacher is not sure, as "labels".

        Also "counted", the number of pixels that are no padding, whatever the teacher says of them.

        Args:
            teacher: in evaluation mode.
            views: as `UnlabelledViews` makes them, on the device.
        """
        ignored = self.label_map.ignore_index
        labels, real = self._sure(teacher, views["weak"]), views["real"]
        if len(views["partner"]):
            partner, of = self._sure(teacher, views["partner"]), views["partner_of"]
            rows, columns = (torch.arange(side, device=labels.device) for side in labels.shape[1:])
            top, bottom, left, right = views["boxes"].unbind(1)  # (M,)
            inside = (rows >= top[:, None]) & (rows < bottom[:, None])  # (M, h)
            inside = inside[:, :, None] & ((columns >= left[:, None]) & (columns < right[:, None]))[:, None]
            labels, real = labels.clone(), real.clone()
            labels[of] = torch.where(inside, partner, labels[of])
            real[of] = torch.where(inside, views["partner_real"], real[of])
        views["labels"] = labels.masked_fill(~real, ignored)
        views["counted"] = real.sum()

    def _sure(self, teacher: nn.Module, pixel_values: Tensor) -> Tensor:
        """Training ids `(n, h, w)` of weak views, `ignore_index` where the calibrated confidence is too low."""
        logits = teacher(pixel_values=pixel_values).logits.float()
        size = pixel_values.shape[2:]
        confidence = upsampled_confidence(logits / (self.temperature or 1.0), size)
        unsure = confidence < self.config.min_confidence
        return upsampled_prediction(logits, size).masked_fill(unsure, self.label_map.ignore_index)

    def loss(self, logits: Tensor, views: dict[str, Any]) -> Tensor:
        """The summed cross-entropy of strong views' logits `(U, K, h/4, w/4)` and what `label` added."""
        return segmentation_loss(logits, views["labels"], self.label_map.ignore_index, reduction="sum")
