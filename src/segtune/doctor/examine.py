"""Data set diagnosis: reads every file once, runs all checks over what was read, and may ask a model.

`examine` is the one way in; commands and pages show its `Diagnosis`.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from segtune.data.checks import check_nodata
from segtune.data.class_names import refuse_one_class
from segtune.data.config import DatasetConfig, TransformConfig
from segtune.data.dataset import find_label_map, rows_of, scan_dataset
from segtune.data.index import DatasetIndex, Sample, in_threads
from segtune.data.splits import SPLITS, write_split_file
from segtune.doctor.case import Case, proposed_labels
from segtune.doctor.check_alignment import check_alignment
from segtune.doctor.check_classes import check_classes, class_table
from segtune.doctor.check_colors import check_colors
from segtune.doctor.check_duplicates import check_duplicates
from segtune.doctor.check_files import check_files
from segtune.doctor.check_images import check_images
from segtune.doctor.check_label_issues import find_label_issues
from segtune.doctor.check_masks import check_masks
from segtune.doctor.check_values import describe_causes, find_causes
from segtune.doctor.dry_run import dry_run
from segtune.doctor.findings import SEVERITIES, Finding, ranked
from segtune.doctor.sample_facts import Opener, read_facts
from segtune.errors import DataError, UsageError
from segtune.inference.device import to_device
from segtune.inference.processor import load_processor
from segtune.labels.label_map import LabelMap
from segtune.labels.mask_values import show_value
from segtune.recipe.recipe import Recipe, with_channels
from segtune.segformer.loading import load_model
from segtune.training.config import AUTO
from segtune.training.losses.segmentation_loss import SegmentationLoss
from segtune.training.model import build_model

logger = logging.getLogger(__name__)


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

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what was looked at, the numbers of findings, the findings with all files, the classes."""
        case = self.case
        return {
            "path": str(case.index.root),
            "samples": self.samples,
            **{f"{severity}s" if severity != "info" else severity: self.count(severity) for severity in SEVERITIES},
            "findings": [finding.to_dict() for finding in self.findings],
            "classes": class_table(case),
        }


def examine(
    recipe: Recipe, *, try_model: bool = False, checkpoint: str | None = None, device: str | None = None
) -> Diagnosis:
    """Examine the data set of a recipe; every image and mask is read once.

    Args:
        try_model: the recipe's model also runs for a step, and learns a few samples by heart.
        checkpoint: names a trained model, which is asked for masks with label issues.
        device: runs the models; None takes the best there is.

    Raises:
        UsageError: no such folder, or no layout that is known; a checkpoint that is missing or has other labels.
    """
    trained = to_device(load_model(checkpoint), device) if checkpoint else None  # before the data: it may be missing
    diagnosis = _examine_data(recipe.dataset, recipe.transforms)
    more: list[Finding] = []
    if try_model:
        more += _try_model(recipe, diagnosis, device)
    if checkpoint and trained is not None:
        more += _find_issues(checkpoint, trained, diagnosis)
    return replace(diagnosis, findings=tuple(ranked([*diagnosis.findings, *more])))


def _examine_data(config: DatasetConfig, transforms: TransformConfig) -> Diagnosis:
    config = config.model_copy(update={"streaming": False})  # all rows are needed at hand
    index = scan_dataset(config)
    samples = sorted(
        [*index.samples, *index.rejected], key=lambda sample: (list(SPLITS).index(sample.split), sample.id)
    )
    opener = Opener(index, config)
    found: list[Finding] = []
    label_map, fault = _label_map(config, index)
    if label_map:
        check_nodata(index, label_map, config.nodata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd EXIF entries and very large pictures
        facts = in_threads(lambda sample: read_facts(sample, opener, transforms, label_map), samples, "examining")
    named = label_map is not None
    label_map = label_map or proposed_labels(facts, config.ignore_index)
    if fault and facts:  # without samples there is nothing that a label map could be made of
        found.append(_labels_finding(fault, label_map, index.classes))
    case = Case(opener, facts, label_map, transforms, named)
    causes = find_causes(case)
    case = replace(case, untrusted=frozenset(sample for masks in causes.values() for sample, _ in masks))
    found += describe_causes(case, causes)
    return Diagnosis(case, tuple(ranked([*found, *_all_checks(case)])))


def _label_map(config: DatasetConfig, index: DatasetIndex) -> tuple[LabelMap | None, UsageError | None]:
    try:
        label_map = find_label_map(config, index)
        refuse_one_class(label_map, config.path)
        return label_map, None
    except UsageError as error:
        return None, error
    except DataError:  # there is no sample to propose labels from: the problems of the index say why
        return None, None


def _all_checks(case: Case) -> Iterator[Finding]:
    for check in (
        check_files,
        check_images,
        check_masks,
        check_classes,
        check_alignment,
        check_duplicates,
        check_colors,
    ):
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
        return Finding("labels", "error", message, fix=(f"dataset.labels={names} in another order, or leave it out",))
    line = f"dataset.labels={json.dumps(table or colors)}"
    return Finding("labels", "error", message, fix=(f"{line} with the names of the classes",))


def _try_model(recipe: Recipe, diagnosis: Diagnosis, device: str | None) -> list[Finding]:
    samples = [sample for sample in usable(diagnosis) if sample.split == "train"]
    if not samples:
        return [Finding("dry-run", "error", "no sample of train can be used, so that the model was not tried")]
    label_map = diagnosis.case.label_map
    rows = rows_of(replace(diagnosis.case.index, samples=samples), recipe.dataset)["train"]
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
    # Where the largest batch is yet to be found, one image is what must fit.
    batch_size = 1 if recipe.training.batch_size == AUTO else recipe.training.micro_batch
    return dry_run(to_device(model, device), rows, label_map, recipe.transforms, loss, batch_size)


def _find_issues(checkpoint: str, model: Any, diagnosis: Diagnosis) -> list[Finding]:
    own, names = LabelMap.from_config(model.config).names, diagnosis.case.label_map.names
    if own != names:
        raise UsageError(f"--checkpoint {checkpoint} has the labels {', '.join(own)}; the data has {', '.join(names)}")
    samples = usable(diagnosis)
    found = find_label_issues(diagnosis.case, samples, model, load_processor(model))
    return [found] if found else []


def usable(diagnosis: Diagnosis) -> list[Sample]:
    """The samples that no finding wants left out while it is not fixed, and whose files fit the label map."""
    dropped = {sample for finding in diagnosis.findings for sample in finding.drop} | diagnosis.case.untrusted
    return [sample for sample in diagnosis.case.index.samples if sample not in dropped]


def save_usable_split(diagnosis: Diagnosis, path: Path) -> dict[str, int]:
    """Write a `dataset.split_file` of the usable samples; returns how many each split has.

    Raises:
        UsageError: the file is there already.
    """
    refuse_split_file(path)
    samples = usable(diagnosis)
    splits = {split: [s.id for s in samples if s.split == split] for split in diagnosis.case.splits}
    write_split_file(path, splits)
    return {split: len(ids) for split, ids in splits.items()}


def refuse_split_file(path: Path) -> None:
    """Raises UsageError where a split file would overwrite another file."""
    if path.exists():
        raise UsageError(f"--split-file {path} is there already: name another file")
