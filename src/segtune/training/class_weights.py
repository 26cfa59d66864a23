"""Class weights of the loss: counted from how often a class occurs, or given by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from segtune.errors import UsageError

CountedWeights = Literal["inverse", "median_frequency", "effective_number"]


def counted_weights(kind: CountedWeights, pixels: np.ndarray, beta: float | None = None) -> np.ndarray:
    """Weights of classes by their pixels in a set of images.

    - `inverse`: 1 / n_c, n_c being the pixels of class c; scaled so that the weights average to 1.
    - `median_frequency`: median(f) / f_c, where f_c is the share of class c in the images that show it (Eigen & Fergus
      2015, arXiv 1411.4734).
    - `effective_number`: (1 - beta) / (1 - beta^n_c), scaled so that the weights average to 1 (Cui et al. 2019,
      arXiv 1901.05555). Without `beta`, it is (N - 1) / N with N the median of n_c: classes below it weigh nearly as
      in `inverse`, classes above it nearly the same. A fixed beta such as 0.9999 is for counts of thousands; of pixels
      there are millions, and all classes would weigh the same.

    Args:
        pixels: pixels of each class in each image, integer (images, K); ignored pixels are not among them.

    Returns:
        float64 (K,). A class without pixels weighs 1 and does not count in averages and medians.
    """
    totals = pixels.sum(axis=0).astype(np.float64)  # (K,)
    present = totals > 0
    weights = np.ones(len(totals))
    if not present.any():
        return weights
    n = totals[present]
    if kind == "median_frequency":
        # f_c = n_c / (pixels of the images that show c): a class that fills a few images is no rare class.
        shown = (pixels.sum(axis=1, keepdims=True) * (pixels > 0)).sum(axis=0)[present]
        weights[present] = np.median(n / shown) / (n / shown)
        return weights
    if kind == "inverse":
        raw = 1 / n
    else:
        log_beta = np.log1p(-1 / max(np.median(n), 2)) if beta is None else np.log(beta)
        # 1 / (1 - beta^n) = -1 / expm1(n log beta), which keeps its digits where beta^n is close to 1; the factor
        # 1 - beta is the same for all classes and cancels in the scaling.
        raw = -1 / np.expm1(n * log_beta)
    weights[present] = raw / raw.mean()
    return weights


def named_weights(given: Mapping[str, float] | Sequence[float], names: Sequence[str]) -> list[float]:
    """The weight of each class of `names`, given as a list of all or by name; a class that is not named weighs 1.

    Raises:
        UsageError: a name that is no class, a list of another length, or only weights of 0.
    """
    if isinstance(given, Mapping):
        for name in given:
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"the classes are {', '.join(names)}"
                raise UsageError(f"loss.class_weights names {name!r}, which is no class: {hint}")
        weights = [float(given.get(name, 1.0)) for name in names]
    else:
        weights = [float(weight) for weight in given]
        if len(weights) != len(names):
            raise UsageError(
                f"loss.class_weights has {len(weights)} numbers for {len(names)} classes: {', '.join(names)}"
            )
    if not any(weights):
        raise UsageError("loss.class_weights are all 0: nothing would be learned")
    return weights
