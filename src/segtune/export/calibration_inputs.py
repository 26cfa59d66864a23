"""What a network is given of the images of a split, by which a quantiser finds the ranges of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from segtune.errors import UsageError
from segtune.imageio.raster import ArrayRaster
from segtune.inference.evaluate import labelled_image
from segtune.inference.segmenter import LOGIT_STRIDE, Segmenter
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor

if TYPE_CHECKING:
    import datasets

CALIBRATION_IMAGES = 32


def network_inputs(
    rows: datasets.Dataset, label_map: LabelMap, processor: SegformerImageProcessor, count: int = CALIBRATION_IMAGES
) -> list[np.ndarray]:
    """What the network is given of images spread over a split: one whole image, or one window, of each.

    Returns:
        Arrays `(1, C, h, w)`, float32, normalised.

    Raises:
        UsageError: the split is streamed, or has no images.
        DataError: an image that cannot be read.
    """
    if not hasattr(rows, "__len__"):
        raise UsageError("int8 needs images of the training split, which is streamed: say dataset.streaming=false")
    if not len(rows):
        raise UsageError("int8 needs images of the training split, and it has none")
    seen = _OneInput(label_map.num_labels)
    segmenter = Segmenter(seen, processor)
    inputs = []
    for number in spread(len(rows), count):
        image = labelled_image(rows, number, label_map, segmenter.form).image
        for _ in segmenter.strips(ArrayRaster(image)):
            pass
        inputs.append(seen.take())
    return inputs


class _OneInput(nn.Module):
    """Stands in the place of a network, and keeps one of the inputs that it is given, each with the same chance."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.num_labels, self.given = num_labels, 0
        self.draw = np.random.default_rng(0)
        self.kept = torch.zeros(0)

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        for one in pixel_values.split(1):
            self.given += 1
            if self.draw.integers(self.given) == 0:
                self.kept = one
        sides = (-(-side // LOGIT_STRIDE) for side in pixel_values.shape[2:])
        return SemanticSegmenterOutput(logits=torch.zeros(len(pixel_values), self.num_labels, *sides))

    def take(self) -> np.ndarray:
        self.given = 0
        return self.kept.numpy().copy()


def spread(count: int, limit: int) -> Sequence[int]:
    """At most `limit` of `count` numbers, from the first to the last in even steps."""
    return sorted({round(number) for number in np.linspace(0, count - 1, min(count, limit))}) if count else []
