"""After a run: where a trained model is sure of another class than the mask says.

Most such pixels are the model's mistakes; images where they cover much more than usual are worth a look. Compare
confident learning (Northcutt et al. 2021), which counts labels against confident predictions per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from segtune.data.doctor.case import Case
from segtune.data.doctor.findings import Finding, count, percent
from segtune.data.files import Pixels
from segtune.data.loading import read_mask
from segtune.data.scan import Sample
from segtune.inference import evaluating
from segtune.labels import LabelMap
from segtune.segmenter import Segmenter

SURE = 0.9  # probability of the predicted class, from which the model counts as sure
STANDS_OUT = 6.0  # spreads (1.48 median absolute deviations) above the median share of an image
LEAST_SHARE = 0.05  # of the labelled pixels, for an image to be a suspect
LISTED = 20  # images that are named where none stands out


class Doubt(NamedTuple):
    """How much of an image's mask the model contradicts, and where it most often does."""

    share: float
    labelled: str
    predicted: str


def doubt(segmenter: Segmenter, image: Pixels, mask: Pixels, label_map: LabelMap) -> Doubt:
    """Compare one mask with what a model is sure of."""
    labels = label_map.encode(read_mask(mask)).astype(np.int64)  # (H, W)
    prediction, confidence = segmenter(image, confidence=True)  # (H, W) each
    assert confidence is not None
    valid = labels != label_map.ignore_index
    against = valid & (confidence >= SURE) & (prediction != labels)
    if not against.any():
        return Doubt(0.0, "", "")
    pairs = np.stack([labels[against], prediction[against]], axis=1)  # (N, 2)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    labelled, predicted = (label_map.names[i] for i in found[counts.argmax()].tolist())
    return Doubt(float(against.sum() / valid.sum()), labelled, predicted)


def find_label_noise(case: Case, samples: Sequence[Sample], model: nn.Module, processor: Any) -> Finding | None:
    """Rank masks by how much of them a trained model contradicts; None without samples."""
    segmenter = Segmenter(model, processor, num_labels=case.label_map.num_labels)
    doubts = {}
    with evaluating(model):
        for sample in tqdm(samples, "label noise", leave=False):
            image, mask = case.opener.image(sample)[0], case.opener.mask(sample)[0]
            doubts[sample] = doubt(segmenter, image, mask, case.label_map)
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
