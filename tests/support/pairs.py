"""Small images and masks in a folder, as training reads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image


def write_image(path: Path, size: tuple[int, int] = (4, 6), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(path, **options)


def write_mask(path: Path, size: tuple[int, int] = (4, 6), mask: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.arange(np.prod(size), dtype=np.uint8).reshape(size) % 2 if mask is None else mask).save(path)


def write_pairs(root: Path, names: Iterable[str], images: str = "images", masks: str = "masks") -> Path:
    for name in names:
        write_image(root / images / f"{name}.jpg")
        write_mask(root / masks / f"{name}.png")
    return root
