"""What the checks look at: the samples of one data set, what their files told, and the recipe they are meant for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from segtune.data.index import DatasetIndex, Sample
from segtune.data.splits import SPLITS
from segtune.data.transforms import TransformConfig
from segtune.doctor.findings import Finding, Severity
from segtune.doctor.sample_facts import NO_DATA, Facts, MaskFacts, Opener, pack, shown
from segtune.labels.label_map import LabelMap

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
    def targets(self) -> dict[int, int]:
        """Code of a mask value -> training id, `num_labels` for ignored ones."""
        label_map = self.label_map
        if label_map.ids is not None:
            table: Mapping[Any, int | None] = {label_map.ignore_index: None} | dict(label_map.ids)
        else:
            table = {pack(color): target for color, target in (label_map.mask_colors or {}).items()}
        table = {NO_DATA: None} | dict(table)
        return {code: label_map.num_labels if target is None else target for code, target in table.items()}

    def codes(self, mask: MaskFacts) -> dict[Any, int]:
        """Code -> pixels of a mask, grey values as colours where the label map names colours."""
        if self.label_map.mask_colors is None or mask.values.is_color:
            return dict(mask.values.counts)
        return {pack((v, v, v)) if 0 <= v <= 255 else v: n for v, n in mask.values.counts.items()}

    def unknown(self, mask: MaskFacts) -> dict[Any, int]:
        """Code -> pixels of the values that the label map does not name."""
        return {code: pixels for code, pixels in self.codes(mask).items() if code not in self.targets}

    @cached_property
    def pixels(self) -> np.ndarray:
        """(masks, K + 1): pixels of each class in each mask, ignored ones last; untrusted masks have none."""
        table = np.zeros((len(self.masks), self.label_map.num_labels + 1), dtype=np.int64)
        for row, (sample, mask) in zip(table, self.masks, strict=True):
            for code, pixels in self.codes(mask).items():
                if code in self.targets and sample not in self.untrusted:
                    row[self.targets[code]] += pixels
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
        of: Literal["image", "mask"],
        fix: tuple[str, ...],
        numbers: Mapping[str, Any] | None = None,
        drop: Sequence[Sample] | None = None,
    ) -> Finding:
        """A finding about the images or masks of samples; all of them are to be left out unless `drop` says other."""
        numbers = {"count": len(samples)} | dict(numbers or {})
        dropped = tuple(samples if drop is None else drop)
        return Finding(code, severity, message, self.files(samples, of), numbers, fix, tuple(samples), dropped)


def proposed_labels(facts: Sequence[Facts], ignore_index: int) -> LabelMap:
    """A label map that names the values that the masks hold, apart from very rare ones."""
    totals: Counter[Any] = Counter()
    colors = 0
    masks = [item.mask for item in facts if item.mask is not None]
    for mask in masks:
        totals.update({code: pixels for code, pixels in mask.values.counts.items() if code != NO_DATA})
        colors += mask.values.is_color
    least = LEAST_VALUE_SHARE * sum(totals.values())
    values = sorted(v for v, pixels in totals.items() if pixels >= least and float(v).is_integer()) or [0]
    if colors > len(masks) / 2:
        return LabelMap.from_colors({shown(code, True): f"class {i}" for i, code in enumerate(values[:256])})
    if values == [0, 255]:
        return LabelMap.from_ids({0: "background", 255: "foreground"}, ignore_index=-100)
    classes = {int(value): f"class {int(value)}" for value in values if value != ignore_index and value >= 0}
    return LabelMap.from_ids(classes or {0: "class 0"}, ignore_index=ignore_index)
