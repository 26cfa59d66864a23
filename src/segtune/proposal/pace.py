"""Pace: how long a step and an evaluation take here, measured on a few of the very ones that a run would make."""

from __future__ import annotations

import logging
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from segtune.data.dataset import open_dataset
from segtune.inference.evaluate import evaluate_model
from segtune.inference.processor import processor_from_transforms
from segtune.labels.label_map import LabelMap
from segtune.recipe.recipe import Recipe, with_channels
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.loading import without_bars
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from segtune.training.auto_batch import TrialSteps, find_batch
from segtune.training.config import AUTO, TrainingConfig
from segtune.training.distributed import loading_processes, make_accelerator
from segtune.training.interrupts import seconds_of_saving
from segtune.training.model import build_model

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

TIMED = 4  # steps, after one that is not timed: it allocates and chooses kernels
IMAGES = 4  # of val, likewise


@dataclass(frozen=True)
class Pace:
    """What a run takes.

    Attributes:
        step: seconds of an optimiser step, with the loading of its samples.
        image: seconds of an image in an evaluation; 0 where there is no val split.
        saving: seconds of saving the weights and the state of the optimiser.
        training: the configuration, with the batch that was found.
    """

    step: float
    image: float
    saving: float
    training: TrainingConfig


def measure(recipe: Recipe) -> Pace:
    """Make a few steps of a recipe, and segment a few images, on this machine.

    Raises:
        UsageError, DataError: see `finetune.train`.
    """
    with without_bars():
        rows, label_map = open_dataset(recipe.dataset)
        recipe = with_channels(recipe, rows["train"])
        training = recipe.training
        if isinstance(training.loss.class_weights, str):  # numbers of them take no other time
            training = training.model_copy(update={"loss": training.loss.model_copy(update={"class_weights": None})})
        model = build_model(recipe.model, label_map, seed=training.seed)
        processor = processor_from_transforms(recipe.transforms, recipe.evaluation)
        options = {"shuffle_buffer": recipe.dataset.shuffle_buffer}
        if training.batch_size == AUTO:
            training = find_batch(model, training, rows["train"], label_map, recipe.transforms, processor, **options)
        accelerator = make_accelerator(training.device, training.mixed_precision)
        trials = TrialSteps(
            model, training, rows["train"], label_map, recipe.transforms, processor, accelerator, **options
        )
        workers = loading_processes(accelerator.device) if training.num_workers is None else training.num_workers
        took = trials.seconds(training.micro_batch, training.accumulation_steps, 1 + TIMED, workers)[1:]
        image = 0.0
        if "val" in rows:
            image = _evaluation(recipe, model, rows["val"], label_map, processor, accelerator.device)
    logger.debug("steps took %s s, an image of val %.3f s", took, image)
    found = recipe.training.model_copy(
        update={key: getattr(training, key) for key in ("batch_size", "accumulation_steps", "learning_rate")}
    )
    found = found.model_copy(update={"effective_batch_size": None})
    return Pace(statistics.mean(took), image, seconds_of_saving(model), found)


def _evaluation(
    recipe: Recipe,
    model: SegformerForSemanticSegmentation,
    rows: datasets.Dataset,
    label_map: LabelMap,
    processor: SegformerImageProcessor,
    device: torch.device,
) -> float:
    """Seconds of an image in an evaluation."""
    batch = recipe.evaluation.batch_size
    timed = 0.0
    for count in (batch, min(IMAGES * batch, len(rows))):  # the first one is not timed
        began = time.perf_counter()
        evaluate_model(
            model,
            rows.select(range(min(count, len(rows)))),
            label_map,
            processor,
            batch_size=batch,
            device=device,
            precision="fp32" if recipe.training.mixed_precision == "no" else recipe.training.mixed_precision,
            progress=False,
        )
        timed = (time.perf_counter() - began) / min(count, len(rows))
    return timed
