"""A data set under examination: its samples, what their files told, and the recipe that they are meant for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from segtune.data.config import TransformConfig
from segtune.data.index import DatasetIndex, Sample
from segtune.data.splits import SPLITS
from segtune.doctor.findings import Finding, Severity
from segtune.doctor.sample_facts import Facts, MaskFacts, Opener
from segtune.labels.label_map import LabelMap
from segtune.labels.mask_values import NO_DATA, as_color, decode_value, mask_codes

LEAST_VALUE_SHARE = 1e-4  # of all pixels, for a value to become a class of a proposed label map


@dataclass(frozen=True)
class Case:
    """A data set under examination.

    Attributes:
        facts: of every sample whose two files were found, sorted by split and id.
        label_map: the recipe's or, where it has none, what the masks suggest (`proposed_labels`).
        named: the label map is the recipe's.
        untrusted: samples whose masks hold other values than they should; they do not count in what is said of all.
    """

    opener: Opener
    facts: Sequence[Facts]
    label_map: LabelMap
    transforms: TransformConfig = field(default_factory=TransformConfig)
    named: bool = True
    untrusted: frozenset[Sample] = frozenset()

    @property
    def index(self) -> DatasetIndex:
        """What the search for samples found."""
        return self.opener.index

    @cached_property
    def masks(self) -> list[tuple[Sample, MaskFacts]]:
        """Of the samples whose mask can be read."""
        return [(facts.sample, facts.mask) for facts in self.facts if facts.mask is not None]

    @cached_property
    def splits(self) -> list[str]:
        """The splits that hold samples."""
        present = {facts.sample.split for facts in self.facts}
        return [split for split in SPLITS if split in present]

    @cached_property
    def trusted_splits(self) -> list[str]:
        """The splits of whose masks at least half hold what they should; nothing is said of classes in the others."""
        masks = [(sample.split, sample not in self.untrusted) for sample, _ in self.masks]
        trusted = {s: [is_trusted for split, is_trusted in masks if split == s] for s in self.splits}
        return [split for split, found in trusted.items() if found and 2 * sum(found) >= len(found)]

    @cached_property
    def usual_rim_share(self) -> float:
        """Of the median mask: the part of its boundaries where a value lies between those of both neighbours."""
        return float(np.median([mask.values.rim_share for _, mask in self.masks])) if self.masks else 0.0

    @cached_property
    def targets(self) -> dict[Any, int]:
        """Mask value -> training id, `num_labels` for ignored ones."""
        label_map = self.label_map
        table: Mapping[Any, int | None] = label_map.mask_colors or {}
        if label_map.ids is not None:
            table = {label_map.ignore_index: None} | dict(label_map.ids)
        table = {NO_DATA: None} | dict(table)
        return {value: label_map.num_labels if target is None else target for value, target in table.items()}

    def counts(self, mask: MaskFacts) -> dict[Any, int]:
        """Value -> pixels of a mask, ids as grey colours where the label map names colours."""
        return {self._as_named(value): pixels for value, pixels in mask.values.counts.items()}

    def _as_named(self, value: Any) -> Any:
        return value if self.label_map.mask_colors is None else as_color(value)

    def unknown(self, mask: MaskFacts) -> dict[Any, int]:
        """Value -> pixels of the values that the label map does not name."""
        return {value: pixels for value, pixels in self.counts(mask).items() if value not in self.targets}

    def labels(self, mask: np.ndarray) -> np.ndarray:
        """The training ids (H, W) of a stored mask: -1 where it is ignored, `num_labels` where it is not named."""
        number = self.label_map.num_labels
        table = {None: number, number: -1}  # unnamed, ignored
        codes, is_color = mask_codes(mask)
        found, inverse = np.unique(codes, return_inverse=True)
        targets = [self.targets.get(self._as_named(decode_value(code, is_color))) for code in found.tolist()]
        return np.array([table.get(target, target) for target in targets])[inverse].reshape(codes.shape)

    @cached_property
    def pixels(self) -> np.ndarray:
        """(masks, K + 1): pixels of each class in each mask, ignored ones last; untrusted masks have none."""
        table = np.zeros((len(self.masks), self.label_map.num_labels + 1), dtype=np.int64)
        for row, (sample, mask) in zip(table, self.masks, strict=True):
            for value, pixels in self.counts(mask).items():
                if value in self.targets and sample not in self.untrusted:
                    row[self.targets[value]] += pixels
        return table

    def pixels_of(self, split: str) -> np.ndarray:
        """(masks of the split, K + 1)."""
        return self.pixels[[sample.split == split for sample, _ in self.masks]]

    def files(self, samples: Iterable[Sample], of: Literal["image", "mask"]) -> tuple[str, ...]:
        """Below the data set's folder; of a file that holds many samples, with the sample's id."""
        found = []
        for sample in samples:
            path, part = (sample.image, sample.image_part) if of == "image" else (sample.mask, sample.mask_part)
            is_shared = part and path.stem != sample.id.rpartition("/")[2]
            found.append(self.index.below(path) + (f"#{sample.id}" if is_shared else ""))
        return tuple(found)

    def finding(
        self,
        code: str,
        severity: Severity,
        message: str,
        samples: Sequence[Sample],
        fix: str,
        numbers: Mapping[str, Any] | None = None,
        of: Literal["image", "mask"] = "mask",
        drop: Sequence[Sample] | None = None,
    ) -> Finding:
        """A finding about the masks or images of samples; all of them are to be left out unless `drop` says other."""
        numbers = {"count": len(samples)} | dict(numbers or {})
        dropped = tuple(samples if drop is None else drop)
        return Finding(code, severity, message, self.files(samples, of), numbers, (fix,), tuple(samples), dropped)


def proposed_labels(facts: Sequence[Facts], ignore_index: int) -> LabelMap:
    """A label map that names the values that the masks hold, apart from very rare ones."""
    totals: Counter[Any] = Counter()
    masks = [item.mask for item in facts if item.mask is not None]
    for mask in masks:
        totals.update({value: pixels for value, pixels in mask.values.counts.items() if value != NO_DATA})
    least = LEAST_VALUE_SHARE * sum(totals.values())
    frequent = [value for value, pixels in totals.items() if pixels >= least]
    if sum(mask.values.is_color for mask in masks) > len(masks) / 2:
        colors = sorted({color for color in map(as_color, frequent) if isinstance(color, tuple)})
        return LabelMap.from_colors({color: f"class {i}" for i, color in enumerate(colors[:256])})
    ids = sorted(int(value) for value in frequent if not isinstance(value, tuple) and float(value).is_integer()) or [0]
    if ids == [0, 255]:
        return LabelMap.from_ids({0: "background", 255: "foreground"}, ignore_index=-100)
    classes = {i: f"class {i}" for i in ids if i != ignore_index and i >= 0}
    return LabelMap.from_ids(classes or {0: "class 0"}, ignore_index=ignore_index)
