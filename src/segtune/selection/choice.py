"""The choice from a surveyed pool: of the most uncertain images the most different ones, and why each is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segtune.labels.label_map import LabelMap
from segtune.selection.acquisition import contributions, rarity_weights
from segtune.selection.core_set import k_center, most_uncertain
from segtune.selection.survey import Pool

NAMED = 3  # classes that are named as reasons
LEAST = 0.05  # of the score, for a class to be named


class Reason(NamedTuple):
    """A class that an image is doubted in: its share of the image's score, and the weight of its rarity."""

    name: str
    share: float
    weight: float


class Chosen(NamedTuple):
    """An image that is chosen, and why.

    Attributes:
        path: the image.
        score: its weighted uncertainty, the mean over its pixels.
        rank: by the score in the whole pool, from 1.
        reasons: the classes that the score is made of, the largest share first.
        nearest: the image chosen before it that its features are closest to; None of the first.
        distance: between the features of the two, in units of the mean distance of the pool's images to their mean.
    """

    path: Path
    score: float
    rank: int
    reasons: tuple[Reason, ...]
    nearest: Path | None
    distance: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "image": str(self.path),
            "score": round(self.score, 6),
            "rank": self.rank,
            "classes": {reason.name: round(reason.share, 4) for reason in self.reasons},
            "nearest": None if self.nearest is None else str(self.nearest),
            "distance": None if self.distance is None else round(self.distance, 4),
        }


class ClassRow(NamedTuple):
    """A class in the pool: its colour, the weight of its rarity, its share of the predicted pixels in the pool and in
    the choice, and its share of the choice's scores."""

    name: str
    color: tuple[int, int, int]
    weight: float
    in_pool: float
    in_choice: float
    of_score: float


class Choice(NamedTuple):
    """What is chosen of a pool.

    Attributes:
        images: in the order in which they were chosen.
        classes: what is said of each class.
        scores: of all images of the pool, the highest first.
        candidates: how many of these the choice was made from.
    """

    images: list[Chosen]
    classes: list[ClassRow]
    scores: list[float]
    candidates: int


def choose(pool: Pool, label_map: LabelMap, number: int, breadth: int) -> Choice:
    """Choose images of a pool.

    Args:
        number: of images to choose; all, where there are not so many.
        breadth: the choice is made among `breadth * number` most uncertain images: 1 is by uncertainty alone.
    """
    pixels, features = pool.table("pixels"), pool.table("features")
    weights = rarity_weights(pixels)  # (K,)
    parts = contributions(pool.table("sums"), pixels, weights)  # (N, K)
    scores = parts.sum(axis=1)
    order = most_uncertain(scores, len(scores))
    ranks = np.empty(len(order), dtype=int)
    ranks[order] = np.arange(1, len(order) + 1)
    spread = float(np.linalg.norm(features - features.mean(axis=0), axis=1).mean()) or 1.0
    picks = k_center(features, order[: breadth * number], number)
    images = [
        Chosen(
            pool.images[pick.image].path,
            float(scores[pick.image]),
            int(ranks[pick.image]),
            _reasons(parts[pick.image], weights, label_map),
            None if pick.nearest is None else pool.images[pick.nearest].path,
            None if pick.nearest is None else pick.distance / spread,
        )
        for pick in picks
    ]
    chosen = [pick.image for pick in picks]
    rows = zip(
        label_map.names,
        label_map.colors,
        weights.tolist(),
        *(_shares(table) for table in (pixels, pixels[chosen], parts[chosen])),
        strict=True,
    )
    found = [ClassRow(*row) for row in rows]
    return Choice(images, found, scores[order].tolist(), min(breadth * number, len(scores)))


def _reasons(parts: np.ndarray, weights: np.ndarray, label_map: LabelMap) -> tuple[Reason, ...]:
    """The classes that make most of a score, from their parts `(K,)`."""
    shares = parts / max(float(parts.sum()), 1e-12)
    first = [index for index in most_uncertain(shares, NAMED).tolist() if shares[index] >= LEAST]
    return tuple(Reason(label_map.names[i], float(shares[i]), float(weights[i])) for i in first)


def _shares(table: np.ndarray) -> list[float]:
    """Of each class in the sum over images, from `(n, K)`."""
    total = table.sum(axis=0)
    shares: list[float] = (total / max(float(total.sum()), 1e-12)).tolist()
    return shares
