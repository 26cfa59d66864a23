"""Label issues: pixels where a model is sure of another class than the mask. Most are its mistakes, some the mask's.

An image where they cover much more than elsewhere is worth a look. Compare confident learning (Northcutt et al. 2021,
arXiv 1911.00068), which counts labels against confident predictions for each class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numpy as np

SURE = 0.9  # probability of the predicted class, from which the model counts as sure
STANDS_OUT = 6.0  # spreads (1.48 median absolute deviations) above the median share of an image
LEAST_SHARE = 0.05  # of the labelled pixels, for an image to be a suspect

Key = TypeVar("Key")


class LabelIssue(NamedTuple):
    """How much of a mask a model contradicts.

    Attributes:
        share: of the labelled pixels, 0 to 1.
        pair: what the mask says and what the model is sure of, most often, as training ids; None where `share` is 0.
    """

    share: float
    pair: tuple[int, int] | None


def label_issue(
    labels: np.ndarray, prediction: np.ndarray, confidence: np.ndarray, ignore_index: int = 255
) -> LabelIssue:
    """Compare a mask with what a model is sure of.

    Args:
        labels: ids or `ignore_index` `(H, W)`; ignored pixels do not count.
        prediction: ids `(H, W)`.
        confidence: probability of the prediction, 0 to 1, `(H, W)`.
    """
    valid = labels != ignore_index
    against = valid & (prediction != labels) & (confidence >= SURE)
    found = clearest_pair(labels, prediction, against)
    return LabelIssue(float(against.sum() / valid.sum()), found[0]) if found else LabelIssue(0.0, None)


def clearest_pair(labels: np.ndarray, prediction: np.ndarray, where: np.ndarray) -> tuple[tuple[int, int], int] | None:
    """The most frequent pair of a label and a prediction among the pixels `where`, and its pixels."""
    if not where.any():
        return None
    pairs = np.stack([labels[where], prediction[where]], axis=1).astype(np.int64)  # (n, 2)
    kinds, counts = np.unique(pairs, axis=0, return_counts=True)
    label, predicted = kinds[counts.argmax()].tolist()
    return (label, predicted), int(counts.max())


def suspects(doubts: Mapping[Key, LabelIssue]) -> list[Key]:
    """The images whose masks a model contradicts much more than the others', the clearest first."""
    shares = np.array([found.share for found in doubts.values()])
    usual = median_share(doubts)
    spread = 1.4826 * float(np.median(np.abs(shares - usual))) if doubts else 0.0
    return [image for image in ranked(doubts) if doubts[image].share >= max(LEAST_SHARE, usual + STANDS_OUT * spread)]


def median_share(doubts: Mapping[Key, LabelIssue]) -> float:
    """What is usual: the share that a model contradicts of the median mask."""
    return float(np.median([found.share for found in doubts.values()])) if doubts else 0.0


def ranked(doubts: Mapping[Key, LabelIssue]) -> list[Key]:
    """All images, the most doubted first, else in the order given."""
    return sorted(doubts, key=lambda image: -doubts[image].share)
