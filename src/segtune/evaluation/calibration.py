"""Calibration: expected calibration error and temperature scaling. Is a confidence of 0.9 right nine times in ten?

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599). A confidence is the probability
of the predicted class; a pixel is right when that is the reference's class.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from segtune.evaluation.boundary import WIDTH, from_one, margin, pixels_of
from segtune.evaluation.scores import ratio

BINS = 15  # of equal width over confidences from 0 to 1; the upper limit belongs to a bin only in the last
REGIONS = ("all", "boundary")
UNIT = 1 << 20  # sums of confidences are kept as integers of this part of 1, so that their order does not matter

# Inverse temperatures at which the slope of the likelihood is followed: from 1/20 to 20, 9 % apart.
_INVERSE = np.geomspace(1 / 20, 20, 71)


def reliability_counts(
    prediction: np.ndarray,
    labels: np.ndarray,
    confidence: np.ndarray,
    num_labels: int,
    ignore_index: int = 255,
    width: float = WIDTH,
) -> np.ndarray:
    """Pixels by confidence, for one image.

    Args:
        prediction: ids `(H, W)`.
        labels: ids or `ignore_index` `(H, W)`; ignored pixels do not count.
        confidence: probability of the prediction, 0 to 1, `(H, W)`.
        width: what counts as the boundary: pixels within this share of the diagonal of another class of the reference.

    Returns:
        int64 `(2, BINS, 3)`: for the regions `REGIONS` and each bin, pixels, correct pixels, and the sum of
        confidences in units of 1 / `UNIT`.
    """
    ignored = labels == ignore_index
    near = margin(from_one(labels, ignored, num_labels), pixels_of(width, labels.shape))
    codes = np.minimum(confidence * np.float32(BINS), BINS - 1).astype(np.uint8)  # (H, W)
    codes = codes << 2 | (prediction == labels).view(np.uint8) << 1 | near.view(np.uint8)
    codes, sure = codes[~ignored], confidence[~ignored]
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
    """The temperature T for which `softmax(logits / T)` has the least negative log-likelihood (NLL), as a stream.

    The NLL is convex in 1/T, and all that is kept of the pixels is its value and slope at fixed temperatures; where the
    slope vanishes between two of them is found by interpolation. T lies between 1/20 and 20.
    """

    def __init__(self) -> None:
        self.pixels = 0
        self._sums = np.zeros((2, len(_INVERSE)))  # of the NLL and of its slope in 1/T

    def add(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Take account of pixels: logits `(n, K)`, or `(n, 1)` of a binary model, and their classes `(n,)`."""
        logits = np.asarray(logits, dtype=np.float64)
        if logits.shape[1] == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)  # (n, 2)
        logits = logits - logits.max(axis=1, keepdims=True)
        truth = logits[np.arange(len(logits)), labels]  # (n,)
        for index, inverse in enumerate(_INVERSE):
            weights = np.exp(inverse * logits)  # (n, K)
            norm = weights.sum(axis=1)
            self._sums[0, index] += (np.log(norm) - inverse * truth).sum()
            self._sums[1, index] += ((weights * logits).sum(axis=1) / norm - truth).sum()
        self.pixels += len(logits)

    def nll(self, temperature: float) -> float:
        """Mean negative log-likelihood of a pixel, in nats; a cubic between the temperatures that are followed."""
        inverse = min(max(1 / temperature, _INVERSE[0]), _INVERSE[-1])
        at = min(int(np.searchsorted(_INVERSE, inverse, side="right")), len(_INVERSE) - 1)
        (before, after), (slope, next_slope) = self._sums[:, at - 1 : at + 1]
        width = _INVERSE[at] - _INVERSE[at - 1]
        t = (inverse - _INVERSE[at - 1]) / width
        value = before + t * t * (3 - 2 * t) * (after - before)
        value += width * t * (1 - t) * ((1 - t) * slope - t * next_slope)
        return float(value / max(self.pixels, 1))

    def temperature(self) -> float:
        """The best temperature; 1 where no pixel was seen."""
        if not self.pixels:
            return 1.0
        slope = self._sums[1]
        above = int(np.argmax(slope >= 0)) if slope[-1] >= 0 else len(slope) - 1
        if above == 0 or slope[above] < 0:
            return float(1 / _INVERSE[above])  # the best is beyond the range
        step = slope[above - 1] / (slope[above - 1] - slope[above])
        low, high = np.log(_INVERSE[above - 1 : above + 1])
        return float(np.exp(-(low + step * (high - low))))
