"""Calibration: expected calibration error and temperature scaling. Is a confidence of 0.9 right nine times in ten?

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599). A confidence is the probability
of the predicted class; a pixel is right when that is the reference's class.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from segtune.evaluation.boundary import WIDTH, from_one, margin, pixels_of
from segtune.evaluation.scores import ratio

BINS = 15  # of equal width over confidences from 0 to 1; the upper limit belongs to a bin only in the last
REGIONS = ("all", "boundary")
UNIT = 1 << 20  # sums of confidences are kept as integers of this part of 1, so that their order does not matter

LIMIT = 20.0  # of a temperature, and of its inverse


def reliability_counts(
    prediction: np.ndarray,
    labels: np.ndarray,
    confidences: np.ndarray,
    num_labels: int,
    ignore_index: int = 255,
    width: float = WIDTH,
) -> np.ndarray:
    """Pixels by confidence, for one image.

    Args:
        prediction: ids `(H, W)`.
        labels: ids or `ignore_index` `(H, W)`; ignored pixels do not count.
        confidences: probability of the prediction, 0 to 1, `(H, W)`.
        width: what counts as the boundary: pixels within this share of the diagonal of another class of the reference.

    Returns:
        int64 `(2, BINS, 3)`: for the regions `REGIONS` and each bin, pixels, correct pixels, and the sum of
        confidences in units of 1 / `UNIT`.
    """
    ignored = labels == ignore_index
    near = margin(from_one(labels, ignored, num_labels), pixels_of(width, labels.shape))
    codes = np.minimum(confidences * np.float32(BINS), BINS - 1).astype(np.uint8)  # (H, W)
    codes = codes << 2 | (prediction == labels).view(np.uint8) << 1 | near.view(np.uint8)
    codes, sure = codes[~ignored], confidences[~ignored]
    pixels = np.bincount(codes, minlength=4 * BINS).reshape(BINS, 2, 2)  # (bins, right or not, near or not)
    total = np.rint(np.bincount(codes, weights=sure, minlength=4 * BINS) * UNIT).astype(np.int64).reshape(BINS, 2, 2)
    columns = np.stack([pixels.sum(axis=1), pixels[:, 1], total.sum(axis=1)])  # (columns, bins, near or not)
    return np.stack([columns.sum(axis=-1).T, columns[..., 1].T])  # (2, BINS, 3)


def calibration_scores(counts: np.ndarray) -> dict[str, Any]:
    """The reliability curve and the calibration errors of summed counts `(2, BINS, 3)`, by region.

    Returns:
        For each of `REGIONS`: `ece`, the mean distance of confidence and accuracy over pixels (expected calibration
        error), `mce`, the largest of a bin, `confidence` and `accuracy` overall, and `bins`: `pixels`, `confidence`
        and `accuracy` of each bin. nan where there are no pixels.
    """
    scores = {}
    for name, region in zip(REGIONS, counts, strict=True):
        pixels, correct, total = region.T
        accuracy, confidence = ratio(correct, pixels), ratio(total / UNIT, pixels)
        gap = np.abs(np.nan_to_num(accuracy - confidence))
        scores[name] = {
            "ece": ratio((gap * pixels).sum(), pixels.sum()),
            "mce": gap.max() if pixels.any() else np.nan,
            "confidence": ratio(total.sum() / UNIT, pixels.sum()),
            "accuracy": ratio(correct.sum(), pixels.sum()),
            "bins": {"pixels": pixels, "confidence": confidence, "accuracy": accuracy},
        }
    return scores


class TemperatureFit:
    """The temperature T for which `softmax(logits / T)` has the least negative log-likelihood (NLL).

    With m the largest logit of a pixel, its NLL is `log Σ_k exp((z_k - m) / T) + (m - z_label) / T`, so that `z_k - m`
    and `m - z_label` are kept of each. The NLL is convex in 1/T, and its minimum is looked for between 1/20 and 20.
    """

    def __init__(self) -> None:
        self.pixels = 0
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []  # float32 (n, K), (n,)

    def add(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Take account of pixels: logits `(n, K)`, or `(n, 1)` of a binary model, and their classes `(n,)`."""
        if logits.shape[1] == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)  # (n, 2)
        below = (logits - logits.max(axis=1, keepdims=True)).astype(np.float32)  # (n, K)
        self._parts.append((below, -below[np.arange(len(below)), labels]))
        self.pixels += len(logits)

    def nll(self, temperature: float) -> float:
        """Mean negative log-likelihood of a pixel, in nats."""
        total = 0.0
        for below, missed in self._parts:
            total += np.log(np.exp(below / temperature).sum(axis=1)).sum(dtype=np.float64)
            total += missed.sum(dtype=np.float64) / temperature
        return float(total / max(self.pixels, 1))

    def temperature(self) -> float:
        """The best temperature; 1 where no pixel was seen."""
        from scipy.optimize import minimize_scalar  # takes a while to import, and only a fit needs it

        if not self.pixels:
            return 1.0
        low, high = -math.log(LIMIT), math.log(LIMIT)
        options = {"bounds": (low, high), "method": "bounded", "options": {"xatol": 1e-4}}
        found = minimize_scalar(lambda exponent: self.nll(math.exp(exponent)), **options).x
        return min(map(math.exp, (low, found, high)), key=self.nll)  # an end, where the best lies beyond it
