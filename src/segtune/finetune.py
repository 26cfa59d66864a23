"""Fine-tuning as a recipe says: data, checks, training, report and push."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from typing import Any

from segtune.data.checks import check_masks
from segtune.data.dataset import open_dataset
from segtune.data.streaming import is_stream
from segtune.errors import SegtuneError, UsageError
from segtune.hub.push import RunPush
from segtune.inference.processor import processor_from_transforms
from segtune.recipe.recipe import Recipe, refuse_another_run, resolved, with_channels
from segtune.report.gather import of_training
from segtune.report.page import write_report
from segtune.training.model import build_model
from segtune.training.run_folder import refuse_existing_run
from segtune.training.trainer import SegmentationTrainer

logger = logging.getLogger(__name__)


def train(recipe: Recipe) -> dict[str, Any]:
    """Builds what the recipe names, checks the data, trains, and pushes the run where the recipe says so.

    Returns what `SegmentationTrainer.train` returns and, under "splits", the names of the data's splits; under
    "report", the path of its page, or None where that could not be written; under "pushed", where the run was pushed,
    its URL on the Hub or None. A run that was stopped early is to go on first.
    """
    training = recipe.training
    if training.output_dir is not None:
        refuse_existing_run(training.output_dir, training.resume, training.overwrite)
    dataset, label_map = open_dataset(recipe.dataset)
    loss = recipe.training.loss
    loss.weights(label_map.names)  # refuses unknown classes before masks are read
    if "train" not in dataset:
        raise UsageError(f"dataset.path = {recipe.dataset.path}: no training images, only {', '.join(dataset)}")
    if "val" not in dataset:
        logger.warning("no validation split: the last weights count as the best (dataset.val_fraction draws one)")
    counted, pixels = isinstance(loss.class_weights, str), None
    if recipe.dataset.check_masks or counted:
        pixels = check_masks(_at_hand(recipe, dataset), label_map)
        if counted:
            recipe = recipe.with_changes("training", loss=loss.counted(pixels["train"][:, :-1], label_map.names))
    recipe = with_channels(recipe, dataset["train"])
    if training.output_dir is not None:
        refuse_another_run(recipe)  # with what was counted
    trainer = SegmentationTrainer(
        build_model(recipe.model, label_map, seed=recipe.training.seed),
        recipe.training,
        train_dataset=dataset["train"],
        eval_dataset=dataset.get("val"),
        label_map=label_map,
        transforms=recipe.transforms,
        processor=processor_from_transforms(recipe.transforms, recipe.evaluation),
        recipe=resolved(recipe).to_yaml(),
        settings=recipe.model_dump(),
        splits=None if recipe.dataset.streaming else dataset,
        shuffle_buffer=recipe.dataset.shuffle_buffer,
        eval_batch_size=recipe.evaluation.batch_size,
    )
    push = _push_beside(recipe, trainer)
    result = {**trainer.train(), "splits": list(dataset)}
    if training.report and "stopped" not in result and trainer.accelerator.is_main_process:
        result["report"] = _write_report(trainer, dataset, pixels)
    if push is not None and "stopped" in result:
        push.wait()
    elif push is not None:
        result["pushed"] = push.finish()
    return result


def _push_beside(recipe: Recipe, trainer: SegmentationTrainer) -> RunPush | None:
    """What pushes the run of the main process while it goes on, where the recipe says so."""
    if recipe.hub.push is None or not trainer.accelerator.is_main_process:
        return None
    push = RunPush(trainer.run.path, recipe.hub, recipe.model.name)
    push.check()
    trainer.after_evaluation = push.after_evaluation
    return push


def _write_report(
    trainer: SegmentationTrainer, dataset: Mapping[str, Any], pixels: Mapping[str, Any] | None
) -> str | None:
    """Write the report of a run that is done; returns its path, or None where that failed, which is only told."""
    run = trainer.run.path
    try:
        options: dict[str, Any] = {"pixels": pixels, "batch_size": trainer.validation.batch_size}
        facts = of_training(run, dataset, trainer.label_map, device=trainer.accelerator.device, **options)
        write_report(facts, facts.place.page)
    except Exception as error:  # whatever it is, the run is done; a bug is told with its traceback
        reason, command = f"{type(error).__name__}: {error}", shlex.join(["segtune", "report", str(run)])
        is_bug = not isinstance(error, (SegtuneError, OSError))
        logger.warning("the run is done, but has no report (%s); %s writes it", reason, command, exc_info=is_bug)
        return None
    return str(facts.place.page)


def _at_hand(recipe: Recipe, dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The splits whose masks can be read before the first step: all but a streamed one."""
    if recipe.dataset.streaming and isinstance(recipe.training.loss.class_weights, str):
        raise UsageError(
            "training.loss.class_weights are counted from rows at hand: give numbers, or set dataset.streaming=false"
        )
    return {split: rows for split, rows in dataset.items() if not is_stream(rows)}
