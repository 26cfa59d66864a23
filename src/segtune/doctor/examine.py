"""Reads a data set once, in threads, and runs all checks over what was read."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from segtune.data.config import DatasetConfig
from segtune.data.dataset import find_label_map, rows_of, scan_dataset
from segtune.data.index import Sample, in_threads
from segtune.data.splits import SPLITS
from segtune.data.transforms import TransformConfig
from segtune.doctor.case import Case, proposed_labels
from segtune.doctor.check_alignment import check_fits
from segtune.doctor.check_classes import check_classes, class_table
from segtune.doctor.check_colors import check_tints
from segtune.doctor.check_duplicates import check_twins
from segtune.doctor.check_files import check_files
from segtune.doctor.check_images import check_pictures
from segtune.doctor.check_label_issues import find_label_issues
from segtune.doctor.check_masks import check_masks
from segtune.doctor.check_values import describe_causes, find_causes
from segtune.doctor.dry_run import dry_run
from segtune.doctor.findings import SEVERITIES, Finding, ranked
from segtune.doctor.sample_facts import Opener, gather
from segtune.errors import UsageError
from segtune.inference.device import to_device
from segtune.inference.processor import load_processor
from segtune.labels.label_map import LabelMap
from segtune.labels.mask_values import show_value
from segtune.recipe.recipe import Recipe, with_channels
from segtune.segformer.loading import load_model
from segtune.training.losses import SegmentationLoss
from segtune.training.model import build_model


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


logger = logging.getLogger(__name__)


def diagnose(
    recipe: Recipe, *, try_model: bool = False, checkpoint: str | None = None, device: str | None = None
) -> Diagnosis:
    """Examine the data set of a recipe.

    Args:
        try_model: also run the recipe's model for a step, and let it learn a few samples by heart.
        checkpoint: a trained model that is asked which masks it doubts.

    Raises:
        UsageError: no such data set; a checkpoint that is missing or has other labels.
    """
    trained = to_device(load_model(checkpoint), device) if checkpoint else None
    diagnosis = examine(recipe.dataset, recipe.transforms)
    more: list[Finding] = []
    if try_model:
        more += _try_model(recipe, diagnosis, device)
    if checkpoint and trained is not None:
        more += _ask(checkpoint, trained, diagnosis)
    return diagnosis.with_findings(more)


def _try_model(recipe: Recipe, diagnosis: Diagnosis, device: str | None) -> list[Finding]:
    samples = [sample for sample in usable(diagnosis) if sample.split == "train"]
    if not samples:
        return [Finding("dry-run", "error", "no sample of train can be used, so that the model was not tried")]
    label_map = diagnosis.case.label_map
    rows = rows_of(replace(diagnosis.case.scan, samples=samples), recipe.dataset)["train"]
    recipe = with_channels(recipe, rows)
    try:
        model = build_model(recipe.model, label_map, seed=recipe.training.seed)
    except UsageError as error:
        if recipe.model.name is None:
            raise
        logger.warning("%s; the model is tried with random weights", error)
        plain = recipe.model.model_copy(update={"name": None, "lora": None})
        model = build_model(plain, label_map, seed=recipe.training.seed)
    pixels = diagnosis.case.pixels_of("train")[:, :-1]
    loss = SegmentationLoss(
        recipe.training.loss.counted(pixels, label_map.names), label_map.names, label_map.ignore_index
    )
    torch.manual_seed(recipe.training.seed)  # dropout
    return dry_run(to_device(model, device), rows, label_map, recipe.transforms, loss, recipe.training.batch_size)


def _ask(checkpoint: str, model: Any, diagnosis: Diagnosis) -> list[Finding]:
    own, names = LabelMap.from_config(model.config).names, diagnosis.case.label_map.names
    if own != names:
        raise UsageError(f"--checkpoint {checkpoint} has the labels {', '.join(own)}; the data has {', '.join(names)}")
    samples = usable(diagnosis)
    found = find_label_issues(diagnosis.case, samples, model, load_processor(model))
    return [found] if found else []


def usable(diagnosis: Diagnosis) -> list[Sample]:
    """The samples that no finding wants left out while it is not mended, and whose files fit the label map."""
    dropped = {sample for finding in diagnosis.findings for sample in finding.drop} | diagnosis.case.untrusted
    return [sample for sample in diagnosis.case.scan.samples if sample not in dropped]


def write_split(diagnosis: Diagnosis, path: Path) -> dict[str, int]:
    """Write a `dataset.split_file` of the usable samples; returns how many each split has.

    Raises:
        UsageError: the file is there already.
    """
    check_split(path)
    samples = usable(diagnosis)
    splits = {split: [s.id for s in samples if s.split == split] for split in diagnosis.case.splits}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(splits, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {split: len(ids) for split, ids in splits.items()}


def check_split(path: Path) -> None:
    """Raises UsageError where a split file would overwrite another file."""
    if path.exists():
        raise UsageError(f"--split-file {path} is there already: name another file")
