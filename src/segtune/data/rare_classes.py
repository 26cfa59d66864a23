"""Rare classes: which ones they are, crops around them, and the samples that copy-paste takes them from."""

from __future__ import annotations

import difflib
import logging
import random
from collections.abc import Sized
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from segtune.data.config import TransformConfig
from segtune.data.lazy_rows import decoded, undecoded
from segtune.data.samples import CroppedReader, open_pair
from segtune.data.transforms import TrainTransform
from segtune.errors import UsageError
from segtune.imageio.read import read_mask
from segtune.labels.label_map import LabelMap

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

COUNTED_MASKS = 100  # of these, spread evenly over the training samples, "auto" counts the pixels
RARE_SHARE = 0.25  # of an equal share of the pixels
SOURCE_TRIES = 20


def training_transform(
    config: TransformConfig, dataset: datasets.Dataset | datasets.IterableDataset, label_map: LabelMap
) -> TrainTransform:
    """The augmentation that a recipe describes, for the training samples of a data set or of a stream.

    Raises:
        UsageError: `config.rare_classes` names a class that the label map does not have, or what is asked for needs
            rows at hand and this is a stream.
    """
    if not config.rare_crop and not config.copy_paste:
        return TrainTransform(config, label_map.ignore_index)
    if not isinstance(dataset, Sized) and (config.copy_paste or config.rare_classes == "auto"):
        raise UsageError(
            "transforms.copy_paste and rare_classes=auto read other rows than the one at hand: set "
            "dataset.streaming=false, or copy_paste=0 and the names of the rare classes"
        )
    rare_ids = find_rare_ids(config, dataset, label_map)
    if not config.copy_paste:
        return TrainTransform(config, label_map.ignore_index, rare_ids)
    sources = PasteSources(dataset, label_map, rare_ids, len(config.mean), config.value_range is not None)
    return TrainTransform(config, label_map.ignore_index, rare_ids, sources)


def find_rare_ids(config: TransformConfig, dataset: Any, label_map: LabelMap) -> list[int]:
    """Training ids of the rare classes: those that the recipe names, else those with few pixels (never none)."""
    if config.rare_classes != "auto":
        return [_id_of(name, label_map) for name in config.rare_classes]
    masks = undecoded(dataset.select_columns(["mask"]))
    rows = range(0, len(masks), max(1, len(masks) // COUNTED_MASKS))
    counts = np.zeros(label_map.num_labels, dtype=np.int64)
    for row in rows:
        counts += label_map.count_pixels(label_map.encode(read_mask(decoded(masks[row])["mask"], label_map.by_color)))[
            :-1
        ]
    found = np.flatnonzero(counts).tolist()
    if not found:
        raise UsageError(f"transforms.rare_classes: there is no labelled pixel in {len(rows)} masks")
    shares = counts / counts.sum()
    rare = [i for i in found if shares[i] < RARE_SHARE / label_map.num_labels] or [min(found, key=lambda i: counts[i])]
    shown = ", ".join(f"{label_map.names[i]} ({shares[i]:.2%})" for i in rare)
    logger.info("rare classes, by pixels of %d masks: %s", len(rows), shown)
    return rare


def _id_of(name: str, label_map: LabelMap) -> int:
    if name in label_map.names:
        return label_map.names.index(name)
    close = difflib.get_close_matches(name, label_map.names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(label_map.names)}"
    raise UsageError(f"transforms.rare_classes names {name!r}, which is no class; {hint}")


@dataclass
class PasteSources:
    """Draws training samples that hold a rare class.

    What is in a mask is noted when it is first read. The draws do not depend on what was noted, so that every worker
    process gives the same samples.

    Attributes:
        channels: of the images, and `raw` likewise: see `read_image`.
        held: row -> the rare classes in it, of the rows that were read.
    """

    dataset: datasets.Dataset
    label_map: LabelMap
    rare_ids: list[int]
    channels: int = 3
    raw: bool = False
    held: dict[int, frozenset[int]] = field(default_factory=dict)

    @cached_property
    def _masks(self) -> datasets.Dataset:
        return undecoded(self.dataset.select_columns(["mask"]))

    @cached_property
    def _rows(self) -> datasets.Dataset:
        return undecoded(self.dataset)

    def __call__(self, rng: random.Random) -> tuple[CroppedReader, CroppedReader] | None:
        """An image (H, W, C) with its labels (H, W): one of 20 drawn, with a class drawn from the rare ones.

        Where none of the 20 has that class, the first one with another rare class; None where there is no such.
        """
        wanted = rng.choice(self.rare_ids)
        drawn = [rng.randrange(len(self.dataset)) for _ in range(SOURCE_TRIES)]
        second = None
        for index in drawn:
            held = self._held(index)
            if wanted in held:
                return self._read(index)
            second = index if held and second is None else second
        return None if second is None else self._read(second)

    def _held(self, index: int) -> frozenset[int]:
        if index not in self.held:
            labels = self.label_map.encode(read_mask(decoded(self._masks[index])["mask"], self.label_map.by_color))
            self.held[index] = frozenset(i for i in self.rare_ids if (labels == i).any())
        return self.held[index]

    def _read(self, index: int) -> tuple[CroppedReader, CroppedReader]:
        return open_pair(decoded(self._rows[index]), self.label_map, self.channels, self.raw)
