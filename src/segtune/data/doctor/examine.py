"""Reads a data set once, in threads, and runs all checks over what was read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from segtune.data.config import DatasetConfig
from segtune.data.doctor.case import Case, proposed_labels
from segtune.data.doctor.classes import check_classes, class_table
from segtune.data.doctor.facts import gather
from segtune.data.doctor.files import check_files
from segtune.data.doctor.findings import SEVERITIES, Finding, ranked
from segtune.data.doctor.fits import check_fits
from segtune.data.doctor.mask_values import describe_causes, find_causes
from segtune.data.doctor.masks import check_masks
from segtune.data.doctor.opening import Opener
from segtune.data.doctor.pictures import check_pictures
from segtune.data.doctor.tints import check_tints
from segtune.data.doctor.twins import check_twins
from segtune.data.scan import in_threads
from segtune.data.sources import find_label_map, scan_dataset
from segtune.data.splits import SPLITS
from segtune.data.transforms import TransformConfig
from segtune.errors import UsageError
from segtune.label_values import show_value
from segtune.labels import LabelMap


@dataclass(frozen=True)
class Diagnosis:
    """A data set and what was found in it, errors first."""

    case: Case
    findings: tuple[Finding, ...]

    @property
    def samples(self) -> dict[str, int]:
        """Split -> how many samples it has, those that cannot be used among them."""
        return {split: sum(facts.sample.split == split for facts in self.case.facts) for split in self.case.splits}

    def count(self, severity: str) -> int:
        """Findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def with_findings(self, more: list[Finding]) -> Diagnosis:
        """Together with what else was found."""
        return Diagnosis(self.case, tuple(ranked([*self.findings, *more])))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what was looked at, the numbers of findings, the findings with all files, the classes."""
        case = self.case
        return {
            "path": str(case.scan.root),
            "samples": self.samples,
            **{f"{severity}s" if severity != "info" else severity: self.count(severity) for severity in SEVERITIES},
            "findings": [finding.to_dict() for finding in self.findings],
            "classes": class_table(case),
        }


def examine(config: DatasetConfig, transforms: TransformConfig) -> Diagnosis:
    """Examine the data set of a recipe; every image and mask is read once.

    Raises:
        UsageError: no such folder, or no layout that is known.
    """
    config = config.model_copy(update={"streaming": False})  # all rows are needed at hand
    scan = scan_dataset(config)
    samples = sorted([*scan.samples, *scan.rejected], key=lambda sample: (list(SPLITS).index(sample.split), sample.id))
    opener = Opener(scan, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd EXIF entries and very large pictures
        facts = in_threads(lambda sample: gather(sample, opener, transforms), samples, "examining")
    found: list[Finding] = []
    try:
        label_map, named = find_label_map(config, scan), True
    except UsageError as error:
        label_map, named = proposed_labels(facts, config.ignore_index), False
        found.append(_labels_finding(error, label_map, scan.classes))
    case = Case(opener, facts, label_map, transforms, named)
    causes = find_causes(case)
    case = replace(case, untrusted=frozenset(sample for masks in causes.values() for sample, _ in masks))
    found += describe_causes(case, causes)
    return Diagnosis(case, tuple(ranked([*found, *_all_checks(case)])))


def _all_checks(case: Case) -> Iterator[Finding]:
    for check in (check_files, check_pictures, check_masks, check_classes, check_fits, check_twins, check_tints):
        yield from check(case)


def _labels_finding(error: UsageError, proposed: LabelMap, classes: Mapping[int, str | None] | None) -> Finding:
    """There is no label map, or one that cannot be used: all other checks take the masks' values for classes.

    Args:
        classes: those that an annotation file names.
    """
    table = {i: None if target is None else proposed.names[target] for i, target in (proposed.ids or {}).items()}
    colors = {show_value(key): proposed.names[target or 0] for key, target in (proposed.mask_colors or {}).items()}
    message = f"{error}".partition(". Write ")[0]
    if classes:
        names = json.dumps([name for name in classes.values() if name])
        return Finding("labels", "error", message, mend=(f"dataset.labels={names} in another order, or leave it out",))
    line = f"dataset.labels={json.dumps(table or colors)}"
    return Finding("labels", "error", message, mend=(f"{line} with the names of the classes",))
