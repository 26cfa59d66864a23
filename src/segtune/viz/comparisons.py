"""TODO."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from segtune.labels.label_map import LabelMap
from segtune.viz.overlay import comparison


class Comparisons:
    """Saves image | truth | prediction of some samples, spread evenly over a split, and one sheet of six of them."""

    def __init__(self, folder: Path, label_map: LabelMap, ids: Sequence[str], limit: int) -> None:
        self.folder, self.label_map = folder, label_map
        self.ids = _spread(ids, limit)

    def save(self, sample_id: str, image: np.ndarray, labels: np.ndarray, prediction: np.ndarray) -> None:
        """The hook of `evaluate_model`: image (H, W, 3), labels and prediction (H, W)."""
        if sample_id in self.ids:
            path = self._path(sample_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            comparison(image, labels, prediction, self.label_map).save(path)

    def save_overview(self) -> None:
        """Pastes up to six of the saved pictures into one sheet of two columns."""
        pictures = []
        for sample_id in _spread(self.ids, OVERVIEW_PICTURES):
            with Image.open(self._path(sample_id)) as saved:
                pictures.append(saved.convert("RGB"))
        width, height = max(p.width for p in pictures) + GAP, max(p.height for p in pictures) + GAP
        columns = min(2, len(pictures))
        sheet = Image.new("RGB", (columns * width - GAP, math.ceil(len(pictures) / columns) * height - GAP), "white")
        for index, picture in enumerate(pictures):
            sheet.paste(picture, (index % columns * width, index // columns * height))
        sheet.save(self.folder / OVERVIEW)

    def _path(self, sample_id: str) -> Path:
        return self.folder / f"{sample_id}.png"


def _spread(ids: Sequence[str], limit: int) -> list[str]:
    count = min(limit, len(ids))
    return [ids[index * len(ids) // count] for index in range(count)]


class Overlays:
    """image | truth | prediction of the same few samples at every evaluation, in `overlays/step-000100/NAME.jpg`.

    Args:
        folder: `overlays` of the run.
        ids: of all samples that are evaluated; `count` of them, evenly spread, are drawn.
    """

    def __init__(self, folder: Path, ids: Sequence[str], count: int, label_map: LabelMap) -> None:
        self.folder = folder
        self.label_map = label_map
        chosen = min(count, len(ids))
        self.ids = [ids[index * len(ids) // chosen] for index in range(chosen)]
        self.step = 0

    def draw(self, sample_id: str, image: np.ndarray, labels: np.ndarray, prediction: np.ndarray) -> None:
        """The hook of `evaluate_model`: image (H, W, C), labels and prediction (H, W)."""
        if sample_id in self.ids:
            path = self._path(sample_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = comparison(_visible(image), labels, prediction, self.label_map)
            picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
            picture.save(path, quality=90)

    def drawn(self) -> Iterator[tuple[str, Path]]:
        """The samples whose pictures of this step are on this machine's disk."""
        return ((sample_id, path) for sample_id in self.ids if (path := self._path(sample_id)).is_file())

    def _path(self, sample_id: str) -> Path:
        return self.folder / f"step-{self.step:06d}" / f"{sample_id}.jpg"


def _visible(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the first three channels, or the first one as grey, of an image that is no RGB picture."""
    if image.shape[-1] == 3 and image.dtype == np.uint8:
        return image
    channels = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)  # (H, W, 3)
    low, high = np.nanmin(channels), np.nanmax(channels)
    return ((channels - low) / max(high - low, 1e-9) * 255).astype(np.uint8)


OVERVIEW = "overview.png"


OVERVIEW_PICTURES = 6


GAP = 24  # pixels between the pictures of the overview


_LONGEST_SIDE = 1800  # pixels of a picture
