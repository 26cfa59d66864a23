"""Crops of pictures of which random squares are to be hidden."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segtune.data.augmentations import Stream
from segtune.data.samples import Key
from segtune.data.unlabelled.views import UnlabelledCrops
from segtune.pretraining.config import PretrainingRecipe

if TYPE_CHECKING:
    import datasets

MASKED = 11  # sets the draws of these samples apart from those of others with the same seed


class MaskedCrops(UnlabelledCrops):
    """Crops and their hidden squares, by (epoch, index); the same for the same seed, epoch and index.

    Args:
        rows: with the columns "id" and "image".
        recipe: whose transforms and masking hold.
    """

    def __init__(self, rows: datasets.Dataset, recipe: PretrainingRecipe) -> None:
        super().__init__(rows, recipe.transforms, recipe.training.seed)
        self.patches, self.ratio = recipe.patches, recipe.masking.ratio

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Any]:
        """A batch of B crops.

        Returns:
            "pixel_values" `(B, C, h, w)` float32, normalised; "mask" `(B, h/p, w/p)` bool, the hidden squares of side
            p; "real" `(B, h, w)` bool, what is no padding; "ids".
        """
        samples = [self._sample(*key[:2]) for key in keys]
        batch: dict[str, Any] = {
            name: torch.from_numpy(np.stack([sample[name] for sample in samples]))
            for name in ("pixel_values", "mask", "real")
        }
        return batch | {"ids": [sample["id"] for sample in samples]}

    def _sample(self, epoch: int, index: int) -> dict[str, Any]:
        geometry, squares = Stream.several((self.seed, epoch, index, MASKED), 2)
        name, pixels = self.cropped(index, geometry)
        view, is_real = self.finished(pixels)
        mask = random_squares(self.patches, self.ratio, squares.numpy)
        return {"pixel_values": view, "real": is_real, "mask": mask, "id": name}


def random_squares(patches: tuple[int, int], ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Which squares of a grid `(rows, columns)` are hidden, bool: of n squares ⌈n · ratio⌉, but never all of them."""
    total = math.prod(patches)
    mask = np.zeros(total, dtype=bool)
    mask[rng.permutation(total)[: min(math.ceil(total * ratio), total - 1)]] = True
    return mask.reshape(patches)
