"""Side-by-side comparisons: image | truth | prediction of a few samples, spread evenly over a split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from segtune.errors import printable
from segtune.evaluation.confusion import count_pairs
from segtune.evaluation.scores import class_scores, mean, of_confusion
from segtune.files import path_inside
from segtune.labels.label_map import LabelMap
from segtune.viz.numbers import number
from segtune.viz.overlay import comparison, comparison_panels, overview_sheet

Item = TypeVar("Item")

OVERVIEW = "overview.jpg"  # the pictures beside it are PNGs, so that no sample is called so
OVERVIEW_PICTURES = 6
PANEL_SIDE = 420  # pixels, at most, of a picture in the overview


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
        overview: keep, of up to six samples, what `save_overview` shows.

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
        overview: bool = False,
    ) -> None:
        self.folder, self.label_map = folder, label_map
        self.ids = evenly_spaced(ids, count)
        self.suffix, self.longest_side = suffix, longest_side
        self._shown = evenly_spaced(self.ids, OVERVIEW_PICTURES) if overview else []
        self._cells: dict[str, tuple[str, str, list[Image.Image]]] = {}
        self._present: set[int] = set()

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
        if sample_id in self._shown:
            self._keep(sample_id, image, labels, prediction)

    def _keep(self, sample_id: str, image: np.ndarray, labels: np.ndarray, prediction: np.ndarray) -> None:
        panels = comparison_panels(image, labels, prediction, self.label_map)
        for panel in panels:
            panel.thumbnail((PANEL_SIDE, PANEL_SIDE))
        counts = count_pairs(prediction, labels, self.label_map.num_labels, self.label_map.ignore_index)
        score = float(mean(class_scores(*of_confusion(counts))["iou"]))
        note = f": mIoU {number(score)}" if score == score else ": not labelled"
        self._cells[sample_id] = (printable(sample_id), note, panels)
        self._present |= {*np.unique(labels).tolist(), *np.unique(prediction).tolist()}

    def saved(self) -> Iterator[tuple[str, Path]]:
        """Ids and files of the pictures in `folder`; in a distributed run, of those on this machine's disk."""
        return ((sample_id, path) for sample_id in self.ids if (path := self._path(sample_id)).is_file())

    def absent(self) -> set[str]:
        """Of the samples that the overview shows, those that were not given to `save`."""
        return set(self._shown) - self._cells.keys()

    def save_overview(self) -> None:
        """Put up to six of the comparisons on one sheet, `overview.jpg`: names, scores of the images, one legend."""
        cells = [self._cells[sample_id] for sample_id in self._shown]
        sheet = overview_sheet(cells, np.array(sorted(self._present)), self.label_map)
        sheet.save(self.folder / OVERVIEW, quality=92, subsampling=0)

    def _path(self, sample_id: str) -> Path:
        return path_inside(self.folder, sample_id, suffix=self.suffix)
