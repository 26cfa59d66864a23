"""Core-set selection: images that are uncertain, and of which no two say the same."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Pick(NamedTuple):
    """A chosen image, all numbers being rows of the images that were given.

    Attributes:
        image: the image itself.
        nearest: the one of those chosen before whose features are closest; None of the first one.
        distance: between the features of the two; infinite for the first one.
    """

    image: int
    nearest: int | None
    distance: float


def most_uncertain(scores: np.ndarray, count: int) -> np.ndarray:
    """The images of the highest scores `(N,)`, the highest first; of equal ones, the one that was given first."""
    return np.argsort(-scores, kind="stable")[:count]


def k_center(features: np.ndarray, candidates: np.ndarray, count: int) -> list[Pick]:
    """The greedy solution of the k-center problem (Sener and Savarese 2018, arXiv 1708.00489, algorithm 1).

    Begins with the first candidate; then the one that is farthest from all that are chosen, until there are `count`. Of
    equally far ones, the one that comes first among the candidates.

    Args:
        features: of all images, `(N, C)`.
        candidates: rows of these, in the order in which they are preferred.
    """
    pool = features[candidates].astype(np.float64)  # (P, C)
    distance, nearest = np.full(len(pool), np.inf), np.zeros(len(pool), dtype=int)
    is_free = np.ones(len(pool), dtype=bool)
    picks: list[Pick] = []
    for _ in range(min(count, len(pool))):
        place = int(np.argmax(np.where(is_free, distance, -1)))
        before = int(candidates[nearest[place]]) if picks else None
        picks.append(Pick(int(candidates[place]), before, float(distance[place])))
        is_free[place] = False
        to_it = np.linalg.norm(pool - pool[place], axis=1)
        nearest, distance = np.where(to_it < distance, place, nearest), np.minimum(distance, to_it)
    return picks
