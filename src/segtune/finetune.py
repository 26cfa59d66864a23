"""Fine-tuning as a recipe says: data, checks, training, report and push."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from segtune.data.checks import check_masks
from segtune.data.class_names import refuse_one_class
from segtune.data.dataset import open_dataset
from segtune.data.streaming import is_stream
from segtune.data.unlabelled.pictures import open_unlabelled
from segtune.errors import SegtuneError, UsageError
from segtune.hub.push import RunPush
from segtune.inference.processor import processor_from_transforms
from segtune.recipe.recipe import Recipe, refuse_another_run, resolved, with_channels, with_stored_batch
from segtune.report.gather import of_training
from segtune.report.page import write_report
from segtune.segformer.loading import without_bars
from segtune.training.auto_batch import find_batch
from segtune.training.config import AUTO
from segtune.training.distributed import check_device
from segtune.training.interrupts import LIMIT, Interrupted, StopRequest, seconds
from segtune.training.model import build_model
from segtune.training.run_folder import refuse_existing_run
from segtune.training.run_lock import locked
from segtune.training.trainer import SegmentationTrainer

logger = logging.getLogger(__name__)

PUSH_GRACE = 5.0  # seconds that a push has to end in once the run was stopped


def train(recipe: Recipe, started: float | None = None, source: Path | None = None) -> dict[str, Any]:
    """Builds what the recipe names, checks the data, trains, and pushes the run where the recipe says so.

    Args:
        started: since when `training.time_limit` counts, by `time.monotonic`; by default from now.
        source: the file that the recipe was read from; `training.overwrite` leaves it, should it lie in the run folder.

    Returns:
        What `SegmentationTrainer.train` returns and, under "splits", the names of the data's splits; under "report",
        the path of its page, or None where that could not be written; under "pushed", where the run was pushed, its URL
        on the Hub or None; under "left", the commands that do what was left when a signal or the time limit came after
        the last step. A run that was stopped early is to go on first.

    Raises:
        Interrupted: a signal or the time limit came before the first step.
    """
    training = recipe.training
    limit = seconds(training.time_limit) if training.time_limit else None
    with without_bars(), _locked(training.output_dir), StopRequest(limit, started) as request:
        try:
            trainer, dataset, pixels = _prepare(recipe)
            trainer.run.source = source
            push = _push_beside(recipe, trainer)
        except Interrupted as interruption:
            if interruption.reason == LIMIT:
                raise Interrupted(
                    f"training.time_limit={training.time_limit} is over before the first step: opening and checking "
                    "the data took all of it. Give more time, or check the masks once with `segtune doctor` and set "
                    "dataset.check_masks=false"
                ) from None
            raise
        with request.noted():
            result = {**trainer.train(request), "splits": list(dataset)}
            if "stopped" in result:
                if push is not None:
                    _await(push, request)
                return result
            return result | _finish(trainer, dataset, pixels, push, request)


def _locked(output_dir: str | None) -> AbstractContextManager[None]:
    """The lock of the run folder from the beginning, so that a second training does not read its data in vain."""
    # Accelerate, which knows the main process, is set up later; launchers say it in the environment.
    is_main = os.environ.get("RANK", "0") == "0"
    return locked(output_dir) if output_dir is not None and is_main else nullcontext()


def _finish(
    trainer: SegmentationTrainer,
    dataset: Mapping[str, Any],
    pixels: Mapping[str, Any] | None,
    push: RunPush | None,
    request: StopRequest,
) -> dict[str, Any]:
    """Report and push of a run whose weights are all saved: what a signal or the time limit leaves of that."""
    result: dict[str, Any] = {}
    run, config = str(trainer.run.path), trainer.config
    left = [["segtune", "report", run]] if config.report and trainer.accelerator.is_main_process else []
    left += [["segtune", "push", run]] if push is not None else []
    request.reserve = request.to_leave
    try:
        with request.at_once():
            if left and left[0][1] == "report":
                if request.left() < trainer.durations.of("evaluation"):  # which it repeats, and draws pictures
                    raise Interrupted(LIMIT)
                result["report"] = _write_report(trainer, dataset, pixels)
                del left[0]
            if push is not None:
                result["pushed"] = push.finish()
                left.clear()
    except Interrupted as interruption:
        logger.warning("%s: the run is done, left is %s", interruption.reason, " and ".join(map(shlex.join, left)))
        result["left"] = left
        if interruption.reason != LIMIT:
            result["stopped"] = interruption.reason
    return result


def _await(push: RunPush, request: StopRequest) -> None:
    """Give a push that is under way some seconds: as many as a signal's sender grants, or the time limit leaves."""
    request.reserve = request.to_leave
    with suppress(Interrupted), StopRequest(min(PUSH_GRACE, max(request.left(), 0.1))):
        push.wait()


def _prepare(
    recipe: Recipe,
) -> tuple[SegmentationTrainer, Mapping[str, Any], Mapping[str, Any] | None]:
    """Open and check the data; returns the trainer, the splits and the pixels of each class in their masks."""
    training = recipe.training
    check_device(training.device, training.mixed_precision)
    if training.output_dir is not None:
        refuse_existing_run(training.output_dir, training.resume, training.overwrite)
    dataset, label_map = open_dataset(recipe.dataset)
    refuse_one_class(label_map, recipe.dataset.path)
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
    recipe = with_stored_batch(with_channels(recipe, dataset["train"]))
    unlabelled = None
    if recipe.dataset.unlabelled is not None:
        unlabelled = open_unlabelled(recipe.dataset, dataset, recipe.transforms)
    if training.output_dir is not None:
        refuse_another_run(recipe)  # with what was counted
    model = build_model(recipe.model, label_map, seed=recipe.training.seed)
    processor = processor_from_transforms(recipe.transforms, recipe.evaluation)
    if recipe.training.batch_size == AUTO:
        options = {"shuffle_buffer": recipe.dataset.shuffle_buffer}
        found = find_batch(model, recipe.training, dataset["train"], label_map, recipe.transforms, processor, **options)
        recipe = recipe.model_copy(update={"training": found})
    trainer = SegmentationTrainer(
        model,
        recipe.training,
        train_dataset=dataset["train"],
        eval_dataset=dataset.get("val"),
        label_map=label_map,
        transforms=recipe.transforms,
        processor=processor,
        recipe=resolved(recipe).to_yaml(),
        settings=recipe.model_dump(),
        splits=None if recipe.dataset.streaming else dataset,
        shuffle_buffer=recipe.dataset.shuffle_buffer,
        eval_batch_size=recipe.evaluation.batch_size,
        unlabelled=unlabelled,
    )
    return trainer, dataset, pixels


def _push_beside(recipe: Recipe, trainer: SegmentationTrainer) -> RunPush | None:
    """What pushes the run of the main process while it goes on, where the recipe says so."""
    if recipe.hub.push is None or not trainer.accelerator.is_main_process:
        return None
    distill = recipe.training.distill
    push = RunPush(trainer.run.path, recipe.hub, recipe.model.name, None if distill is None else distill.teacher)
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
        write_report(facts, facts.subject.page)
    except Exception as error:  # whatever it is, the run is done; a bug is told with its traceback
        reason, command = f"{type(error).__name__}: {error}", shlex.join(["segtune", "report", str(run)])
        is_bug = not isinstance(error, (SegtuneError, OSError))
        logger.warning("the run is done, but has no report (%s); %s writes it", reason, command, exc_info=is_bug)
        return None
    return str(facts.subject.page)


def _at_hand(recipe: Recipe, dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The splits whose masks can be read before the first step: all but a streamed one."""
    if recipe.dataset.streaming and isinstance(recipe.training.loss.class_weights, str):
        raise UsageError(
            "training.loss.class_weights are counted from rows at hand: give numbers, or set dataset.streaming=false"
        )
    return {split: rows for split, rows in dataset.items() if not is_stream(rows)}
