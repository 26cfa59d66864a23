"""Segmentation scores: IoU, accuracy, precision, recall, Dice and kappa out of counts of pixels.

Everything here takes three counts a class, the last axis being the classes: `correct` (pixels of the class that are
predicted as it), `reference` (pixels of the class) and `prediction` (pixels predicted as it). A class without the
pixels that a score divides by is absent: nan in arrays, left out of means, None in JSON.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def ratio(part: Any, whole: Any) -> np.ndarray:
    """`part / whole`, nan where `whole` is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without nan; nan where nothing else is there."""
    present = ~np.isnan(values)
    return ratio(np.where(present, values, 0).sum(axis=-1), present.sum(axis=-1))


def class_scores(correct: np.ndarray, reference: np.ndarray, prediction: np.ndarray) -> dict[str, np.ndarray]:
    """`iou`, `accuracy`, `precision`, `recall` and `dice` of each class, float64.

    The accuracy of a class is its recall: semantic segmentation uses both words. IoU and Dice are absent where the
    class is neither in the reference nor predicted, recall where it is not in the reference, precision where it is
    not predicted.
    """
    recall = ratio(correct, reference)
    return {
        "iou": ratio(correct, reference + prediction - correct),
        "accuracy": recall,
        "precision": ratio(correct, prediction),
        "recall": recall,
        "dice": ratio(2 * correct, reference + prediction),
    }


def overall_scores(correct: np.ndarray, reference: np.ndarray, prediction: np.ndarray) -> dict[str, np.ndarray]:
    """Scores over all classes: means of the classes' scores, and scores of all pixels together.

    `overall_accuracy` is the share of correct pixels, `frequency_weighted_iou` weights the IoU of a class with its
    pixels (Long et al. 2015, arXiv 1411.4038), `kappa` is Cohen's (1960): the accuracy beyond what two independent
    labellings with these frequencies would reach, over the most that it could be.
    """
    of_class = class_scores(correct, reference, prediction)
    pixels = reference.sum(axis=-1)
    accuracy = ratio(correct.sum(axis=-1), pixels)
    frequency = ratio(reference, pixels[..., None])
    chance = (frequency * ratio(prediction, pixels[..., None])).sum(axis=-1)
    return {
        "mean_iou": mean(of_class["iou"]),
        "mean_accuracy": mean(of_class["accuracy"]),
        "overall_accuracy": accuracy,
        "mean_precision": mean(of_class["precision"]),
        "mean_dice": mean(of_class["dice"]),
        "frequency_weighted_iou": np.where(np.isnan(accuracy), np.nan, np.nansum(frequency * of_class["iou"], axis=-1)),
        "kappa": ratio(accuracy - chance, 1 - chance),
    }


def of_confusion(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`correct`, `reference` and `prediction` `(…, K)` of confusion matrices `(…, K, K)` (row = reference)."""
    return confusion.diagonal(axis1=-2, axis2=-1), confusion.sum(axis=-1), confusion.sum(axis=-2)


def plain(value: Any) -> Any:
    """Arrays and numbers, in dicts and lists, as JSON takes them; nan becomes None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and np.isnan(value) else value
