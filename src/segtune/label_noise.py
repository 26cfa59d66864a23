"""After a run: where a trained model is sure of another class than the mask says.

Most such pixels are the model's mistakes; images where they cover much more than usual are worth a look. Compare
confident learning (Northcutt et al. 2021), which counts labels against confident predictions per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from segtune.data.doctor.case import Case
from segtune.data.doctor.findings import Finding, count, percent
from segtune.data.files import Pixels
from segtune.data.loading import read_image, read_mask
from segtune.data.scan import Sample
from segtune.labels import LabelMap
from segtune.segformer.upsampling import upsampled_confidence, upsampled_prediction

SURE = 0.9  # probability of the predicted class, from which the model counts as sure
STANDS_OUT = 6.0  # spreads (1.48 median absolute deviations) above the median share of an image
LEAST_SHARE = 0.05  # of the labelled pixels, for an image to be a suspect
LISTED = 20  # images that are named where none stands out


class Doubt(NamedTuple):
    """How much of an image's mask the model contradicts, and where it most often does."""

    share: float
    labelled: str
    predicted: str


@torch.inference_mode()
def doubt(model: nn.Module, image: Pixels, mask: Pixels, label_map: LabelMap, processor: Any) -> Doubt:
    """Compare one mask with what a model (in evaluation mode) is sure of."""
    labels = torch.from_numpy(label_map.encode(read_mask(mask)).astype(np.int64))  # (H, W)
    weight = next(model.parameters())
    pixels = read_image(image, len(processor.image_mean))  # (H, W, C)
    pixel_values = processor(pixels, return_tensors="pt")["pixel_values"].to(weight.device, weight.dtype)
    logits = model(pixel_values=pixel_values).logits  # (1, K, h, w)
    prediction = upsampled_prediction(logits, labels.shape)[0].cpu()  # (H, W)
    sure = upsampled_confidence(logits, labels.shape)[0].cpu() >= SURE
    valid = labels != label_map.ignore_index
    against = valid & sure & (prediction != labels)
    pairs, counts = torch.stack([labels[against], prediction[against]]).unique(dim=1, return_counts=True)  # (2, P)
    if not len(counts):
        return Doubt(0.0, "", "")
    labelled, predicted = (label_map.names[int(i)] for i in pairs[:, counts.argmax()])
    return Doubt(float(against.sum() / valid.sum()), labelled, predicted)


def find_label_noise(case: Case, samples: Sequence[Sample], model: nn.Module, processor: Any) -> Finding | None:
    """Rank masks by how much of them a trained model contradicts; None without samples."""
    model.eval()
    doubts = {}
    for sample in tqdm(samples, "label noise", leave=False):
        image, mask = case.opener.image(sample)[0], case.opener.mask(sample)[0]
        doubts[sample] = doubt(model, image, mask, case.label_map, processor)
    if not doubts:
        return None
    ordered = sorted(doubts, key=lambda sample: -doubts[sample].share)
    shares = np.array([found.share for found in doubts.values()])
    usual = float(np.median(shares))
    spread = 1.4826 * float(np.median(np.abs(shares - usual)))
    suspects = [s for s in ordered if doubts[s].share >= max(LEAST_SHARE, usual + STANDS_OUT * spread)]
    worst = doubts[ordered[0]]
    clearest = f"{percent(worst.share)} of the pixels, mostly {worst.predicted} where the mask says {worst.labelled}"
    told = f"the model is sure of another class in {percent(usual)} of the pixels of the median mask"
    return case.finding(
        "label-noise",
        "warning" if suspects else "info",
        f"{told}; {count(len(suspects), 'mask')} of {len(ordered)} {'stands' if len(suspects) == 1 else 'stand'} out"
        + (f", the clearest with {clearest}" if worst.share else ""),
        suspects or ordered[:LISTED],
        "mask",
        ("look at these masks first",),
        {"shares": {sample.id: round(doubts[sample].share, 5) for sample in ordered}},
        drop=(),
    )
