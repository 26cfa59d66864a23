"""Side-by-side comparisons: image | truth | prediction of a few samples, spread evenly over a split."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from segtune.files import path_inside
from segtune.labels.label_map import LabelMap
from segtune.viz.overlay import comparison

Item = TypeVar("Item")

OVERVIEW = "overview.png"
OVERVIEW_PICTURES = 6
GAP = 24  # pixels between the pictures of the overview


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, in their order, from the first one on at equal distances."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


class Comparisons:
    """Saves the comparisons of a few samples, always the same ones, while a model is evaluated on a split.

    Args:
        folder: where a sample's picture is saved under its id.
        ids: the ids of all samples that are evaluated.
        count: how many of them are saved.
        suffix: the format of the pictures, `.png` or `.jpg`.
        longest_side: pictures that are larger, in pixels, are made smaller; None saves them as they are.

    Attributes:
        folder: may be set anew between two evaluations.
        ids: the samples whose comparisons are saved.
    """

    def __init__(
        self,
        folder: Path,
        label_map: LabelMap,
        ids: Sequence[str],
        count: int,
        *,
        suffix: str = ".png",
        longest_side: int | None = None,
    ) -> None:
        self.folder, self.label_map = folder, label_map
        self.ids = evenly_spaced(ids, count)
        self.suffix, self.longest_side = suffix, longest_side

    def save(self, sample_id: str, image: np.ndarray, labels: np.ndarray, prediction: np.ndarray) -> None:
        """Save one comparison; the hook of `evaluate_model`: image (H, W, 3) uint8, labels and prediction (H, W)."""
        if sample_id not in self.ids:
            return
        picture = comparison(image, labels, prediction, self.label_map)
        if self.longest_side is not None:
            picture.thumbnail((self.longest_side, self.longest_side))
        path = self._path(sample_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90)

    def saved(self) -> Iterator[tuple[str, Path]]:
        """Ids and files of the pictures in `folder`; in a distributed run, of those on this machine's disk."""
        return ((sample_id, path) for sample_id in self.ids if (path := self._path(sample_id)).is_file())

    def save_overview(self) -> None:
        """Paste up to six of the saved pictures into one sheet of two columns, `overview.png`."""
        pictures = []
        for sample_id in evenly_spaced(self.ids, OVERVIEW_PICTURES):
            with Image.open(self._path(sample_id)) as saved:
                pictures.append(saved.convert("RGB"))
        width, height = max(p.width for p in pictures) + GAP, max(p.height for p in pictures) + GAP
        columns = min(2, len(pictures))
        sheet = Image.new("RGB", (columns * width - GAP, math.ceil(len(pictures) / columns) * height - GAP), "white")
        for index, picture in enumerate(pictures):
            sheet.paste(picture, (index % columns * width, index // columns * height))
        sheet.save(self.folder / OVERVIEW)

    def _path(self, sample_id: str) -> Path:
        return path_inside(self.folder, sample_id, suffix=self.suffix)
