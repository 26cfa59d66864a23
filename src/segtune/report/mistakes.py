"""Confused classes, and mistakes near boundaries: numbers of an evaluation that only the report shows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from segtune.evaluation.evaluation import Evaluation
from segtune.evaluation.scores import ratio

LEAST_OF_CLASS, LEAST_OF_ALL = 0.01, 1e-4  # share of the pixels, below which a confusion is not worth a word


class Confused(NamedTuple):
    """Pixels of one class that are predicted as another; `share` is that of the true class's pixels."""

    truth: int
    predicted: int
    share: float
    pixels: int


def most_confused(confusion: np.ndarray, limit: int) -> list[Confused]:
    """The pairs of classes that are taken for each other most, by the share of the true class's pixels.

    Args:
        confusion: `(K, K)`; row = truth, column = prediction.
    """
    share = np.nan_to_num(ratio(confusion, confusion.sum(axis=1, keepdims=True)))
    share[np.diag_indices(len(share))] = 0
    share[(share < LEAST_OF_CLASS) | (confusion < LEAST_OF_ALL * confusion.sum())] = 0
    order = np.argsort(-share, axis=None, kind="stable")[:limit]
    places = zip(*(axis.tolist() for axis in np.unravel_index(order, share.shape)), strict=True)
    return [Confused(i, j, float(share[i, j]), int(confusion[i, j])) for i, j in places if share[i, j]]


class Region(NamedTuple):
    """A part of the images: its share of the pixels, how many of them are right, its share of all mistakes."""

    pixels: float
    accuracy: float
    mistakes: float


def regions(evaluation: Evaluation) -> dict[str, Region]:
    """The pixels near boundaries between classes of the truth, and the interior.

    Args:
        evaluation: a detailed one with confidences.

    Returns:
        "boundary" and "interior"; nan where there are no pixels, or no mistakes.
    """
    counts = np.sum([*evaluation.reliability.values()], axis=0)  # (regions, bins, 3)
    everything, near = counts[:, :, :2].sum(axis=1)  # pixels, correct
    parts = {"boundary": near, "interior": everything - near}
    wrong = everything[0] - everything[1]
    return {
        name: Region(
            *(float(ratio(*pair)) for pair in ((pixels, everything[0]), (right, pixels), (pixels - right, wrong)))
        )
        for name, (pixels, right) in parts.items()
    }
