"""The fine-tuning loop, over Accelerate."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accelerate
import torch
from accelerate.utils import gather_object
from torch import nn

from segtune.config import flatten
from segtune.data.lazy_rows import sample_ids
from segtune.data.loader import TrainingBatches
from segtune.data.rare_classes import training_transform
from segtune.data.streaming import State, is_stream
from segtune.data.transforms import TransformConfig
from segtune.errors import UsageError
from segtune.evaluation.evaluation import Evaluation
from segtune.inference.evaluate import OnImage, evaluate_model
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from segtune.training import checkpoint
from segtune.training.config import TrainingConfig
from segtune.training.distributed import (
    DeferredScalars,
    environment,
    gather_full,
    is_sharded,
    make_accelerator,
    share_buffers,
)
from segtune.training.ema import ExponentialMovingAverage
from segtune.training.interrupts import StopRequest, ignore_interrupts, seconds
from segtune.training.losses import SegmentationLoss
from segtune.training.optim import adamw, freeze, parameter_groups, schedule_factor, set_learning_rate, train_mode
from segtune.training.progress import TrainingProgress
from segtune.training.run_folder import BEST, FINAL, OVERLAYS, RunFolder
from segtune.training.trackers import Trackers
from segtune.viz.comparisons import Overlays

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)


class SegmentationTrainer:
    """Fine-tunes a model on samples of images and masks.

    The loss of one optimiser step is the mean over all valid pixels of the global batch (or over its images, see
    `SegmentationLoss`), however it is divided into micro-batches and processes. The same seed gives the same run.

    Args:
        model: its configuration must agree with `label_map`.
        train_dataset: rows with `id`, `image` and `mask`, see `load_segmentation_dataset`.
        eval_dataset: the same; without it, nothing is evaluated and `best/` is the final model.
        transforms: augmentation of the training samples.
        processor: what evaluation and deployment do to an image; saved with the model.
        recipe: the resolved recipe's text for the run folder.
        settings: the same as nested mappings, for trackers; by default those of `config`.
        splits: the dataset whose drawn splits are stored in the run folder.
        shuffle_buffer: rows of a streamed `train_dataset` that are shuffled together.
        eval_batch_size: images of one size that are evaluated together.

    Attributes:
        after_evaluation: where it is set, called after each evaluation with whether best/ was written.
    """

    def __init__(
        self,
        model: SegformerForSemanticSegmentation,
        config: TrainingConfig,
        *,
        train_dataset: datasets.Dataset,
        eval_dataset: datasets.Dataset | None,
        label_map: LabelMap,
        transforms: TransformConfig,
        processor: SegformerImageProcessor,
        recipe: str | None = None,
        settings: Mapping[str, Any] | None = None,
        splits: datasets.DatasetDict | None = None,
        shuffle_buffer: int = 256,
        eval_batch_size: int = 1,
    ) -> None:
        if config.output_dir is None:
            raise UsageError("training.output_dir is not set: name the run folder, e.g. training.output_dir=runs/mine")
        if not is_stream(train_dataset) and len(train_dataset) == 0:
            raise UsageError("the training split is empty")
        _check_best_metric(config.best_metric, label_map)
        self.config = config
        self.label_map = label_map
        self.loss = SegmentationLoss(config.loss, label_map.names, label_map.ignore_index)
        self.processor = processor
        self.eval_dataset = eval_dataset
        self.eval_batch_size = eval_batch_size
        self.recipe = recipe
        self.settings = {"training": config.model_dump()} if settings is None else settings
        self.splits = splits
        self.accelerator = make_accelerator(config.device, config.mixed_precision)
        self.run = RunFolder(
            config.output_dir,
            self.accelerator,
            resume=config.resume,
            overwrite=config.overwrite,
            keep_last=config.keep_last,
        )
        self.trackers = Trackers(self.accelerator, config.trackers, self.run.path)
        self._prepare(model)
        self.batches = TrainingBatches(
            train_dataset,
            label_map,
            training_transform(transforms, train_dataset, label_map),
            config.seed,
            batch_size=config.batch_size,
            accumulation_steps=config.accumulation_steps,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            buffer=shuffle_buffer,
        )
        self.place: State | None = None  # in a stream
        ids = [] if eval_dataset is None else sample_ids(eval_dataset)
        self.overlays = Overlays(self.run.path / OVERLAYS, ids, config.overlays, label_map)
        self.step = 0
        self.best: dict[str, Any] = {}
        self.evaluations_since_best = 0
        self.stop_flag = DeferredScalars(self.accelerator.device)
        self.after_evaluation: Callable[[bool], None] | None = None

    def _prepare(self, model: SegformerForSemanticSegmentation) -> None:
        """Freeze, wrap and hand over to Accelerate what is trained."""
        config = self.config
        if config.gradient_checkpointing:
            model._set_gradient_checkpointing(True, _checkpoint_block)
        freeze(model, config.freeze)
        groups = parameter_groups(
            model, config.learning_rate, config.weight_decay, config.head_lr_multiplier, config.layer_decay
        )
        if not groups:
            raise UsageError("training.freeze leaves nothing to train")
        sharded = is_sharded(self.accelerator)
        self.unsharded = copy.deepcopy(model) if sharded else None
        optimizer = adamw(groups, config.betas)
        synchronise = config.batch_norm == "sync" and self.accelerator.num_processes > 1
        if synchronise and sharded:  # before, since shards belong to modules
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if synchronise and not sharded:  # after, since DDP does not know that our head does without torch's kernels
            nn.SyncBatchNorm.convert_sync_batchnorm(self.accelerator.unwrap_model(self.model))
        self.ema = None
        if config.ema_decay is not None:
            self.ema = ExponentialMovingAverage(self.accelerator.unwrap_model(self.model), config.ema_decay)

    # --- the loop ------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Train to `max_steps`; returns the run folder, the last step, the best and the last evaluation.

        SIGTERM, SIGINT and `time_limit` end the training after the step in progress, with a training state saved;
        "stopped" of the result then says why.
        """
        config = self.config
        state = self.run.open(self.recipe, self.splits)
        accelerate.utils.set_seed(config.seed + self.accelerator.process_index)
        if state is not None:
            self._resume(state)
        self.run.begin(self.step, environment(self.accelerator))
        train_mode(self.model, config.freeze, config.batch_norm)
        limit = seconds(config.time_limit) if config.time_limit else None
        with StopRequest(limit) as request, self._watch() as watch:
            last, stopped = self._steps(watch, request)
            if not stopped:
                with self._averaged():
                    self._save_model(FINAL)
                    if self.eval_dataset is None:
                        self._save_model(BEST)
                self.accelerator.wait_for_everyone()
        result = {"output_dir": str(self.run.path), "step": self.step, "best": self.best, "last": last}
        return {**result, "stopped": stopped} if stopped else result

    def _steps(self, watch: TrainingProgress, request: StopRequest) -> tuple[dict[str, Any], str | None]:
        """The optimiser steps that remain; returns the last evaluation and, where asked to stop before the end, why."""
        config = self.config
        last: dict[str, Any] = {}
        for micro_batches in watch.loaded(self._batches()):
            set_learning_rate(self.optimizer, self._factor())
            loss, norm = self._optimizer_step(micro_batches)
            self.step += 1
            if self.ema is not None:
                self.ema.update(self.accelerator.unwrap_model(self.model))
            watch.add(loss, norm, self.optimizer.param_groups[0]["lr"], micro_batches)
            if self._due(config.eval_every) and self.eval_dataset is not None:
                last = self._evaluate(watch)
                patience = config.early_stopping_patience
                if patience is not None and self.evaluations_since_best >= patience:
                    watch.finish(f"early: no better {config.best_metric} in {self.evaluations_since_best} evaluations")
                    return last, None
            stopped = self._agree(request.reason) if self.step < config.max_steps else None
            if stopped or self._due(config.state_every, at_end=False):
                watch.flush()
                self._save_state()
            if stopped:
                watch.finish(stopped)
                return last, stopped
        watch.flush()
        watch.finish("done")
        return last, None

    def _agree(self, reason: str | None) -> str | None:
        """A reason to stop that any of the processes has, so that all stop at the same step."""
        if self.accelerator.num_processes == 1:
            return reason
        flag = torch.full((1,), float(reason is not None), device=self.accelerator.device)
        seen = self.stop_flag.put(self.accelerator.reduce(flag, "sum"))
        return (reason or "another process was asked to") if seen and seen[0][0] else None

    def _optimizer_step(self, micro_batches: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        """accumulate -> forward -> backward -> clip -> step -> zero; returns the step's loss and gradient norm."""
        counts = torch.stack([self.loss.count(batch["labels"]) for batch in micro_batches]).sum(0)
        counts = self.accelerator.reduce(counts, "sum")  # of the global batch
        total = torch.zeros((), device=self.accelerator.device)
        for index, batch in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                logits = self.model(batch["pixel_values"]).logits  # (B, K, h/4, w/4)
                loss = self.loss(logits, batch["labels"], counts)
                self.accelerator.backward(loss * self.accelerator.num_processes)  # averaged over processes
            total += loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.accelerator.reduce(total, "sum"), gather_full(norm)

    def _batches(self) -> Iterator[list[dict[str, Any]]]:
        """The micro-batches of each remaining optimiser step, on the device."""
        config, device = self.config, self.accelerator.device
        steps = self.batches.steps(
            self.step,
            config.max_steps,
            self.place,
            num_workers=config.num_workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=ignore_interrupts,
        )
        for micro_batches in steps:
            for batch in micro_batches:
                for key in ("pixel_values", "labels"):
                    batch[key] = batch[key].to(device, non_blocking=True)
            yield micro_batches

    def _factor(self) -> float:
        config = self.config
        return schedule_factor(
            config.schedule,
            self.step,
            config.max_steps,
            config.warmup,
            config.warmup_start_factor,
            config.power,
            config.decay_share,
        )

    def _due(self, every: int | None, at_end: bool = True) -> bool:
        if self.step == self.config.max_steps:
            return at_end
        return every is not None and self.step % every == 0

    # --- evaluation ----------------------------------------------------------------------------------------------

    def _evaluate(self, watch: TrainingProgress) -> dict[str, Any]:
        """Evaluate the weights of this step, and keep them as best/ where none were better."""
        config = self.config
        watch.flush()
        with self._averaged():
            self.overlays.step = self.step
            evaluation = self.count(self.eval_dataset, self.overlays.draw)
            scores = evaluation.scores()
            watch.scores(scores, self.overlays)
            value, best = dict(flatten(scores))[config.best_metric], self.best.get(config.best_metric)
            sign = 1 if config.best_direction == "max" else -1
            is_best = value is not None and (best is None or sign * value > sign * best)
            if is_best:
                self.best = {"step": self.step, config.best_metric: value}
                self.evaluations_since_best = 0
                self._save_model(BEST)
                self.run.save_evaluation(evaluation, "val", self.step)
            else:
                self.evaluations_since_best += 1
        if self.after_evaluation is not None:
            self.after_evaluation(is_best)
        return scores

    def _averaged(self) -> AbstractContextManager[None]:
        """Where weights are averaged, the block sees the average."""
        return self.ema.swapped_in(self.accelerator.unwrap_model(self.model)) if self.ema else nullcontext()

    def _whole_model(self) -> SegformerForSemanticSegmentation:
        """The model as evaluation and best/ see it, the same in every process; sharded ones are put together."""
        model = self.accelerator.unwrap_model(self.model)
        share_buffers(model, self.accelerator)
        if self.unsharded is None:
            return model
        self.unsharded.load_state_dict(gather_full(model.state_dict()))
        return self.unsharded

    def evaluate(self, dataset: datasets.Dataset) -> dict[str, Any]:
        """Metrics of the whole `dataset`, every image counted once over all processes, as plain numbers."""
        return self.count(dataset).scores()

    def count(self, dataset: datasets.Dataset, on_image: OnImage | None = None) -> Evaluation:
        """What all processes counted of the whole `dataset`, the same in every process.

        Args:
            on_image: see `evaluate_model`; each process calls it for its share of the images.
        """
        accelerator = self.accelerator
        evaluation = evaluate_model(
            self._whole_model(),
            dataset,
            self.label_map,
            self.processor,
            batch_size=self.eval_batch_size,
            device=accelerator.device,
            progress=accelerator.is_local_main_process,
            indices=range(accelerator.process_index, len(dataset), accelerator.num_processes),
            on_image=on_image,
        )
        first, *others = gather_object([evaluation])
        for other in others:
            first.merge(other)
        return first

    # --- the run folder ------------------------------------------------------------------------------------------

    def _resume(self, folder: Path) -> None:
        state = checkpoint.load_state(folder, self.accelerator, self.model, self.optimizer)
        self.run.check_division(folder, tuple(state["division"]), self.batch_layout)
        if state["step"] >= self.config.max_steps:
            raise UsageError(f"{folder} is of step {state['step']}: training.max_steps={self.config.max_steps} is done")
        self.step = state["step"]
        self.place = self.batches.place_of(state.get("places"))
        if self.run.is_resuming:
            self.best, self.evaluations_since_best = state["best"], state["evaluations_since_best"]
        if self.ema is not None:
            if "ema" not in state:
                raise UsageError(f"{folder} was saved without training.ema_decay: resume it without, or start anew")
            self.ema.load_state_dict(state["ema"])
        logger.warning("going on from step %d (%s)", self.step, folder)

    @property
    def batch_layout(self) -> tuple[int, int, int]:
        """How the images of a step are divided."""
        return self.config.batch_size, self.config.accumulation_steps, self.accelerator.num_processes

    def _save_state(self) -> None:
        state: dict[str, Any] = {
            "step": self.step,
            "division": self.batch_layout,
            "best": self.best,
            "evaluations_since_best": self.evaluations_since_best,
        }
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        if self.batches.streamed:
            state["places"] = gather_object([self.batches.state_after(self.step)])
        self.run.save_state(self.step, self.model, self.optimizer, state)

    def _save_model(self, name: str) -> None:
        self.run.save_model(name, self._whole_model(), self.processor)

    def _watch(self) -> TrainingProgress:
        config = self.config
        self.trackers.start(self.step, self.settings)
        return TrainingProgress(
            self.run,
            self.accelerator,
            self.trackers,
            first_step=self.step,
            max_steps=config.max_steps,
            log_every=config.log_every,
            images_per_step=math.prod(self.batch_layout),
            epoch=self.batches.epoch,
            num_workers=config.num_workers,
        )


def _checkpoint_block(function: Any, *args: Any) -> Any:
    return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False)


def _check_best_metric(name: str, label_map: LabelMap) -> None:
    numbers = [key for key, _ in flatten(Evaluation(label_map.names).scores())]
    if name not in numbers:
        raise UsageError(f"training.best_metric={name} is no number of an evaluation: {', '.join(numbers)}")
