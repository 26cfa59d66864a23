"""Acquisition: how much there is to learn from an image, as far as the model's own doubts tell.

A pixel's uncertainty is 1 minus the probability of the predicted class ("least confidence", Lewis and Gale 1994), in
units of what a model that knows nothing has. Summed over pixels, the outlines of what the model is sure of would count
most: along them every model is unsure. Regions count instead, as in region-based active learning (Kasarla et al. 2019,
Cai et al. 2021): the means of square cells, of which a morphological opening keeps what is wider than an outline.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CELLS = 256  # along the longer side of an image, at most
LEAST_SIDE = 4  # of a cell, pixels: the stride of the logits
WIDTH = 5  # cells that an uncertain place must be wide and high to count in full
THIN = 0.25  # what the rest counts: outlines, but poles and wires too
LARGEST_WEIGHT = 10.0  # of a rare class


class Uncertainty(NamedTuple):
    """The uncertainty of an image by the class that is predicted, and the pixels it is about.

    Attributes:
        sums: over the pixels that are predicted as a class, those of thin places counted by `THIN`; `(K,)`.
        pixels: that are predicted as a class; `(K,)`.
    """

    sums: np.ndarray
    pixels: np.ndarray


class UncertaintyGrid:
    """The uncertainty of an image in square cells, gathered from strips of its prediction.

    Args:
        size: (height, width) of the image.
        num_labels: K.
    """

    def __init__(self, size: tuple[int, int], num_labels: int) -> None:
        self.num_labels = num_labels
        self.side = max(LEAST_SIDE, -(-max(size) // CELLS))  # of a cell, pixels
        self.shape = (-(-size[0] // self.side), -(-size[1] // self.side))
        self.total = np.zeros(self.shape)
        self.pixels = np.zeros((*self.shape, num_labels), dtype=np.int32)
        self._top = 0

    def add(self, labels: np.ndarray, confidence: np.ndarray, missing: np.ndarray | None = None) -> None:
        """The next rows.

        Args:
            labels: predicted ids `(n, W)`.
            confidence: the probability of each, `(n, W)`.
            missing: where the image holds nothing, bool `(n, W)`; these pixels do not count.
        """
        rows = (self._top + np.arange(len(labels))) // self.side - self._top // self.side
        cells = rows[:, None] * self.shape[1] + np.arange(labels.shape[1]) // self.side  # (n, W)
        doubt = (1 - confidence) * (self.num_labels / (self.num_labels - 1))
        if missing is not None:
            cells, labels, doubt = (part[~missing] for part in (cells, labels, doubt))
        count = (int(rows[-1]) + 1) * self.shape[1]
        here = slice(self._top // self.side, self._top // self.side + count // self.shape[1])
        self.total[here] += np.bincount(cells.ravel(), doubt.ravel(), count).reshape(-1, self.shape[1])
        pairs = np.bincount((cells * self.num_labels + labels).ravel(), minlength=count * self.num_labels)
        self.pixels[here] += pairs.reshape(-1, self.shape[1], self.num_labels).astype(np.int32)
        self._top += len(rows)

    def means(self) -> np.ndarray:
        """The mean uncertainty of each cell, 0 to 1, `(h, w)`; 0 where the image holds nothing."""
        return self.total / np.maximum(self.pixels.sum(axis=2), 1)

    def counted(self) -> np.ndarray:
        """The same as it counts: in full where it is wide, the rest by `THIN`; `(h, w)`."""
        means, is_empty = self.means(), self.pixels.sum(axis=2) == 0
        # Where there is nothing, there is nothing sure either: an empty cell must not make its neighbours look thin.
        wide = np.where(is_empty, 0.0, opened(np.where(is_empty, np.inf, means), WIDTH))
        return wide + THIN * (means - wide)

    def result(self) -> Uncertainty:
        """Of the whole image, when all rows are there."""
        return Uncertainty(np.einsum("hw,hwk->k", self.counted(), self.pixels), self.pixels.sum(axis=(0, 1)))


def opened(values: np.ndarray, side: int) -> np.ndarray:
    """The grey-level opening of `(h, w)` with a square of `side`, odd: what is narrower falls to what is around it.

    Beyond its borders an image is taken to go on as it ends.
    """
    return _slid(_slid(values, side, np.minimum), side, np.maximum)


def _slid(values: np.ndarray, side: int, extreme: np.ufunc) -> np.ndarray:
    """The minimum or maximum over a square around each value."""
    for axis in (0, 1):
        padded = np.pad(values, [(side // 2, side // 2) if axis == each else (0, 0) for each in (0, 1)], mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, side, axis=axis)
        values = extreme.reduce(windows, axis=-1)
    return values


def rarity_weights(pixels: np.ndarray) -> np.ndarray:
    """A weight for each class: the square root of how many times rarer it is than the mean class, at most 10.

    Args:
        pixels: predicted as each class, in each image, `(N, K)`.
    """
    share = pixels.sum(axis=0) / max(pixels.sum(), 1)  # (K,)
    with np.errstate(divide="ignore"):
        return np.minimum(np.sqrt(1 / (len(share) * share)), LARGEST_WEIGHT)


def contributions(sums: np.ndarray, pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What each class adds to the score of each image, `(N, K)`: its weighted uncertainty for each pixel of the image.

    The sum over the classes is the score by which images are ranked.
    """
    return sums * weights / np.maximum(pixels.sum(axis=1, keepdims=True), 1)
