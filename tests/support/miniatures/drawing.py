"""What the miniatures draw: scenes of a few classes, and how a mask stores them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

Stored = int | tuple[int, int, int]
Size = tuple[int, int]  # (height, width)
SPLITS = {"train": 6, "val": 3, "test": 3}


@dataclass
class Miniature:
    """What was drawn: which class each pixel is, by (split, id), and how a mask stores it.

    Attributes:
        classes: name -> mask value; a name in brackets is of pixels that the recipe ignores.
        truth: numbers into `classes` (H, W) of each sample.
        size: (height, width).
        overrides: what the recipe's header says to change for this layout.
    """

    classes: Mapping[str, Stored]
    size: Size = (96, 128)
    overrides: tuple[str, ...] = ()
    truth: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.tints = self.rng.integers(40, 216, (len(self.classes), 3))

    def draw(
        self, split: str, identity: str, size: tuple[int, int] | None = None
    ) -> tuple[PIL.Image.Image, np.ndarray]:
        """A new sample: an image that shows where the classes lie, and its mask as stored (H, W) or (H, W, 3)."""
        truth = self.scene(size or self.size)
        self.truth[split, identity] = truth
        return self.image(truth), self.mask(truth)

    def scene(self, size: Size) -> np.ndarray:
        """Strips of all classes, one after another, with boxes of others over them."""
        height, width = size
        count = len(self.classes)
        truth = np.repeat(self.rng.permutation(count), -(-height // count))[:height, None] * np.ones((1, width), int)
        for number in self.rng.permutation(count):
            top, left = self.rng.integers(0, height - height // 5), self.rng.integers(0, width - width // 5)
            truth[top : top + height // 5, left : left + width // 5] = number
        return truth

    def image(self, truth: np.ndarray) -> PIL.Image.Image:
        noisy = self.tints[truth] + self.rng.integers(-25, 26, (*truth.shape, 3))
        return PIL.Image.fromarray(noisy.clip(0, 255).astype(np.uint8))

    def mask(self, truth: np.ndarray) -> np.ndarray:
        values = np.array(list(self.classes.values()))
        return values[truth].astype(np.int16 if values.min() < 0 else np.uint8)

    def named(self, split: str, identity: str) -> np.ndarray:
        """Names of the classes (H, W); "" where they are ignored."""
        names = ["" if name.startswith("[") else name for name in self.classes]
        return np.array(names)[self.truth[split, identity]]


def save(picture: PIL.Image.Image | np.ndarray, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture if isinstance(picture, PIL.Image.Image) else PIL.Image.fromarray(picture)).save(path, **options)


def lines(path: Path, text: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
