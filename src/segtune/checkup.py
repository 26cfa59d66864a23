"""`segtune doctor`: a recipe's data set examined, and, where asked for, its model tried and a trained one consulted."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import torch

from segtune.checkpoint import build_model, load_model
from segtune.data.doctor.examine import Diagnosis, examine
from segtune.data.doctor.findings import Finding
from segtune.data.scan import Sample
from segtune.data.sources import rows_of
from segtune.dry_run import dry_run
from segtune.errors import UsageError
from segtune.inference import processor_of, to_device
from segtune.label_noise import find_label_noise
from segtune.labels import LabelMap
from segtune.losses import SegmentationLoss
from segtune.recipe import Recipe, with_channels

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
    found = find_label_noise(diagnosis.case, samples, model, processor_of(model))
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
