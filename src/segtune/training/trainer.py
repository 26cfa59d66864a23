"""The fine-tuning loop, over Accelerate."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accelerate
import torch
from accelerate.utils import gather_object
from torch import nn

from segtune.data.config import TransformConfig
from segtune.data.loader import TrainingBatches
from segtune.errors import UsageError
from segtune.evaluation.evaluation import Evaluation
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from segtune.training.config import TrainingConfig
from segtune.training.distributed import (
    Agreement,
    Upload,
    compiled,
    environment,
    gather_full,
    is_sharded,
    loading_processes,
    make_accelerator,
    numerics,
    share_buffers,
)
from segtune.training.ema import ExponentialMovingAverage
from segtune.training.evaluation_loop import Validation
from segtune.training.interrupts import (
    LIMIT,
    Durations,
    Interrupted,
    StopRequest,
    ignore_interrupts,
    seconds,
    seconds_of_saving,
)
from segtune.training.losses.segmentation_loss import SegmentationLoss
from segtune.training.optim import adamw, freeze, parameter_groups, schedule_of, set_learning_rate, train_mode
from segtune.training.progress import TrainingProgress
from segtune.training.run_folder import BEST, FINAL, RunFolder
from segtune.training.teachers.guidance import Guidance

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)


class SegmentationTrainer:
    """Fine-tunes a model on samples of images and masks.

    The loss of one optimiser step is the mean over all valid pixels of the global batch (or over its images, see
    `SegmentationLoss`), however it is divided into micro-batches and processes. The same seed gives the same run; on
    CUDA, where `config.deterministic` is set.

    Args:
        model: the network to train, in place; its configuration must agree with `label_map`.
        train_dataset: the training split, rows with `id`, `image` and `mask`, see `load_segmentation_dataset`.
        eval_dataset: the validation split, the same; without it, nothing is evaluated and `best/` is the final model.
        transforms: describes the augmentation of the training samples.
        processor: prepares images for evaluation and deployment; it is saved with the model.
        recipe: is the resolved recipe's text, which is kept in the run folder.
        settings: holds the same as nested mappings, for trackers; by default those of `config`.
        splits: are all splits of the data, whose ids are kept in the run folder.
        shuffle_buffer: is the number of rows of a streamed `train_dataset` that are shuffled together.
        eval_batch_size: is the number of images of one size that are evaluated together.
        unlabelled: is rows with `id` and `image` that `config.semi` learns from, see `open_unlabelled`.

    Attributes:
        after_evaluation: is called, where it is set, after each evaluation, with whether best/ was written.

    Raises:
        UsageError: no run folder is named, the training split is empty, nothing is left to train, or `best_metric` is
            no number of an evaluation.
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
        unlabelled: datasets.Dataset | None = None,
    ) -> None:
        output_dir = config.output_dir
        if output_dir is None:
            raise UsageError("training.output_dir is not set: name the run folder, e.g. training.output_dir=runs/mine")
        self.label_map = label_map
        self.loss = SegmentationLoss(config.loss, label_map.names, label_map.ignore_index)
        self.processor = processor
        self.eval_dataset = eval_dataset
        self.recipe = recipe
        self.splits = splits
        self.accelerator = make_accelerator(config.device, config.mixed_precision)
        if config.num_workers is None:
            config = config.model_copy(update={"num_workers": loading_processes(self.accelerator.device)})
        self.config = config
        self.run = RunFolder(
            output_dir,
            self.accelerator,
            resume=config.resume,
            overwrite=config.overwrite,
            keep_last=config.keep_last,
        )
        self.validation = Validation(eval_dataset, label_map, processor, self.run, config, eval_batch_size)
        self._prepare(model)
        self.batches = TrainingBatches(
            train_dataset,
            label_map,
            transforms,
            config.seed,
            batch_size=config.micro_batch,
            accumulation_steps=config.accumulation_steps,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            buffer=shuffle_buffer,
            distances_from=int(model.config.num_labels == 1) if config.loss.uses("boundary") else None,
        )
        self.guidance = Guidance(config, label_map, processor, self.accelerator, self.ema)
        self.guidance.find_sources(transforms, self.batches.layout, unlabelled, eval_dataset)
        settings = {"training": config.model_dump()} if settings is None else settings
        self.progress = TrainingProgress(self.run, config, self.batches, settings)
        self.step = self.lines_written = 0  # the state that is gone on from, and the lines of metrics.jsonl before it
        self.last: dict[str, Any] = {}
        self.terms: dict[str, torch.Tensor] = {}  # of the last step's loss, see `Guidance`
        self.evaluation_due = False  # of this step; a run that was stopped in an evaluation goes on with it
        self.durations = Durations()
        self.first_saving = seconds_of_saving(self.model)
        self.agreed = Agreement(self.accelerator)
        self.after_evaluation: Callable[[bool], None] | None = None

    def _prepare(self, model: SegformerForSemanticSegmentation) -> None:
        """Freeze and wrap the model, and make what updates it: optimiser, learning-rate schedule, weight average."""
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
        sync_batch_norm = config.batch_norm == "sync" and self.accelerator.num_processes > 1
        # FSDP 2 registers its shards with the modules it wraps, so that these must be the final ones. DDP refuses
        # SyncBatchNorm on CPUs, not knowing that our head computes it without torch's kernels: convert behind its back.
        if sync_batch_norm and sharded:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if sync_batch_norm and not sharded:
            nn.SyncBatchNorm.convert_sync_batchnorm(self.accelerator.unwrap_model(self.model))
        self.network = compiled(self.model, self.accelerator) if config.compile else self.model
        self.schedule = schedule_of(config)
        self.ema = None
        if config.ema_decay is not None:
            self.ema = ExponentialMovingAverage(self.accelerator.unwrap_model(self.model), config.ema_decay)

    # --- the loop ------------------------------------------------------------------------------------------------

    def train(self, request: StopRequest | None = None) -> dict[str, Any]:
        """Train to `max_steps`; returns the run folder, the last step, the best and the last evaluation.

        A signal or `time_limit` ends the training after the step in progress, or in an evaluation, with a training
        state saved; "stopped" of the result then says why. Where the limit ends it before there is a best/, the weights
        lie beside that state as a checkpoint, not evaluated: "weights" of the result names its folder, else it is None.

        Args:
            request: hears signals and the time limit of the whole command; by default, those of the training.

        Raises:
            UsageError: another training is writing into the run folder, or there is nothing to go on with.
        """
        heard = self._request() if request is None else nullcontext(request)
        computed = numerics(self.accelerator.device, self.config.matmul_precision, self.config.deterministic)
        with self.run.locked(), heard as request, request.noted(), computed:
            self._open()
            with self.progress.logged_from(self.step):
                try:
                    self._steps(request)
                except Interrupted as interruption:
                    self._save_state()
                    ended = {"stopped": interruption.reason, "weights": self._save_unscored(interruption.reason)}
                    self.progress.finish(interruption.reason)
                else:
                    ended = {}
                    self._save_final()
        result = {"output_dir": str(self.run.path), "step": self.step, "best": self.validation.best, "last": self.last}
        return result | ended

    def _request(self) -> StopRequest:
        limit = self.config.time_limit
        return StopRequest(seconds(limit) if limit else None)

    def _open(self) -> None:
        """Open the run folder, and put back the state to go on from."""
        config = self.config
        state = self.run.open(self.recipe, self.splits)
        # Dropout and drop path draw from the global generator: other draws in every process. Sample order and
        # augmentation have generators of their own, which depend on seed, epoch and sample only.
        accelerate.utils.set_seed(config.seed + self.accelerator.process_index)
        if state is not None:
            self._resume(state)
        self.run.begin(self.step, environment(self.accelerator), self.lines_written)
        train_mode(self.model, config.freeze, config.batch_norm)

    def _steps(self, request: StopRequest) -> None:
        """The optimiser steps that remain.

        Raises:
            Interrupted: asked to stop before the end; the weights are those of `self.step`.
        """
        config, progress = self.config, self.progress
        self._tell_what_cannot_fit(request)
        if reason := self.agreed(request.reason):
            raise Interrupted(reason)
        ended = self._evaluate(request) if self.evaluation_due else None
        steps = progress.timed(self._batches()) if ended is None and self.step < config.max_steps else ()
        for micro_batches in steps:
            loss, norm = self._optimizer_step(micro_batches)
            progress.add(loss, norm, self.optimizer.param_groups[0]["lr"], micro_batches, self.terms)
            self.durations.add("step", time.perf_counter() - progress.step_started)
            self.evaluation_due = self._due(config.eval_every) and self.eval_dataset is not None
            if self.evaluation_due and (ended := self._evaluate(request)):
                break
            request.reserve = self._reserve(request, self.step + 1)
            if self.step < config.max_steps and (reason := self.agreed(request.reason)):
                raise Interrupted(reason)
            if self._due(config.state_every, at_end=False):
                self._save_state()
        progress.flush()
        progress.finish(ended or "done")

    def _evaluate(self, request: StopRequest) -> str | None:
        """Evaluate the weights of this step; returns why to end the run early, in words, or None.

        Raises:
            Interrupted: in the evaluation, which stays due.
        """
        request.reserve = self._reserve(request, None)
        # Processes that wait for each other's counts cannot leave alone: with several, stopping waits as well.
        at_once = request.at_once if self.accelerator.num_processes == 1 else nullcontext
        with self.durations.timed("evaluation"):
            self.last = self._validate(at_once)
        self.evaluation_due = False
        return self.validation.early_stop()

    def _reserve(self, request: StopRequest, step: int | None) -> float:
        """Seconds before the end of the time limit at which to stop: what making `step` and then saving takes."""
        # Without a best/ the weights are saved once more, see `_save_unscored`: a third of a state.
        saving = (1.5 if self.validation.best else 2.0) * self.durations.of("saving", self.first_saving)
        seconds = request.to_leave + saving
        if step is not None:
            seconds += self.durations.of("step")
            if self.eval_dataset is not None and self._due(self.config.eval_every, step=step):
                seconds += self.durations.of("evaluation")
        return seconds + (saving if (self.step if step is None else step) == self.config.max_steps else 0.0)

    def _tell_what_cannot_fit(self, request: StopRequest) -> None:
        """Warn of a time limit in which not even what comes first, a step or an evaluation, and saving fits."""
        request.reserve = self._reserve(request, None if self.evaluation_due else self.step + 1)
        next_one, known = ("evaluation", self.durations.of("evaluation")) if self.evaluation_due else ("step", 0.0)
        if request.left() < known:
            logger.warning(
                "training.time_limit=%s cannot suffice for one %s and saving: after opening the data %.0f s are left, "
                "and %.0f s are needed",
                self.config.time_limit,
                next_one,
                max(request.left() + request.reserve, 0.0),
                known + request.reserve,
            )

    def _optimizer_step(self, micro_batches: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        """accumulate -> forward -> backward -> clip -> schedule -> step -> zero.

        Args:
            micro_batches: this process's share of the global batch, on the device.

        Returns:
            The loss of the global batch and the norm of its gradient before clipping, scalars on the device.
        """
        accelerator = self.accelerator
        # The loss of a step is L = sum(l) / sum(v), summed over the pixels (v = 1 where valid) of all micro-batches
        # and processes. A mean of their means is another number where they differ in valid pixels, so that the divisor
        # is counted before the first forward pass.
        counts = torch.stack([self.loss.count(batch["labels"]) for batch in micro_batches]).sum(0)
        # What teachers say is asked for at once, since how many pixels they speak of belongs to the divisor as well.
        guided = self.guidance.prepare(micro_batches, self.step, accelerator.unwrap_model(self.model))
        counts, guided = accelerator.reduce(torch.cat((counts, guided)), "sum").split((len(counts), len(guided)))
        total, shares = torch.zeros((), device=accelerator.device), torch.zeros_like(guided)
        for index, batch in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            # Gradients of the micro-batches add up locally; they cross the network once, in the last backward pass.
            with nullcontext() if is_last else accelerator.no_sync(self.model):
                logits = self.network(self.guidance.pixel_values(batch)).logits  # (B + U, K, h/4, w/4)
                own = logits[: len(batch["labels"])]
                loss = self.loss(own, batch["labels"], counts, batch.get("distances"))
                if self.guidance.names:
                    extra, share = self.guidance(logits, batch, guided)
                    loss, shares = loss + extra, shares + share
                # DDP and FSDP average gradients over n processes; shares of the loss must be summed: sum = n · mean.
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        # Without a limit the norm is still computed, for the log, and scales nothing: min(1, inf / norm) = 1.
        norm = accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm or math.inf)
        # The rate is a function of the step alone: a resumed run needs no state of a scheduler.
        set_learning_rate(self.optimizer, self.schedule(self.step))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.ema is not None:
            self.ema.update(accelerator.unwrap_model(self.model))
        if self.guidance.names:
            self.terms = dict(zip(self.guidance.names, accelerator.reduce(shares, "sum"), strict=True))
        return accelerator.reduce(total, "sum"), gather_full(norm)

    def _batches(self) -> Iterator[list[dict[str, Any]]]:
        """The micro-batches of each remaining optimiser step, on the device."""
        config, device = self.config, self.accelerator.device
        steps = self.batches.steps(
            self.step,
            config.max_steps,
            num_workers=config.num_workers or 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=ignore_interrupts,
        )
        return map(Upload(device), self.guidance.with_unlabelled(steps, self.step))

    def _due(self, every: int | None, at_end: bool = True, step: int | None = None) -> bool:
        step = self.step if step is None else step
        if step == self.config.max_steps:
            return at_end
        return every is not None and step % every == 0

    # --- evaluation ----------------------------------------------------------------------------------------------

    def _validate(self, at_once: Callable[[], AbstractContextManager[None]]) -> dict[str, Any]:
        """Evaluate the weights of this step, and keep them as best/ where none were better."""
        self.progress.flush()  # weights that a loss of NaN has spoiled are neither evaluated nor saved
        with self._averaged():
            if self.guidance.semi is not None:
                with at_once():
                    self.guidance.calibrate(self._full_model())
            scores = self.validation.evaluate(self._full_model(), self.step, self.progress, at_once)
        if self.after_evaluation is not None:
            self.after_evaluation(self.validation.best.get("step") == self.step)
        return scores

    def _averaged(self) -> AbstractContextManager[None]:
        """Where weights are averaged, the block sees the average."""
        return self.ema.swapped_in(self.accelerator.unwrap_model(self.model)) if self.ema else nullcontext()

    def _full_model(self) -> SegformerForSemanticSegmentation:
        """The model as evaluation and best/ see it, the same in every process; shards are gathered."""
        model = self.accelerator.unwrap_model(self.model)
        share_buffers(model, self.accelerator)
        if self.unsharded is None:
            return model
        self.unsharded.load_state_dict(gather_full(model.state_dict()))
        return self.unsharded

    def evaluate(self, dataset: datasets.Dataset) -> dict[str, Any]:
        """Metrics of all of `dataset`, every image counted once over all processes, as plain numbers."""
        return self.count(dataset).scores()

    def count(self, dataset: datasets.Dataset) -> Evaluation:
        """What all processes count on all of `dataset`, the same in every process."""
        return self.validation.count(self._full_model(), dataset)

    # --- the run folder ------------------------------------------------------------------------------------------

    def _resume(self, folder: Path) -> None:
        state = self._load_state(folder)
        self.run.check_batch_layout(folder, tuple(state["batch_layout"]), self.batches.layout)
        self.evaluation_due = self.run.is_resuming and state.get("evaluation_due", False)
        if state["step"] >= self.config.max_steps and not self.evaluation_due:
            raise UsageError(f"{folder} is of step {state['step']}: training.max_steps={self.config.max_steps} is done")
        self.step = state["step"]
        self.durations.longest = dict(state.get("durations", {}))
        self.lines_written = state.get("lines_written", 0)
        self.batches.restore(state.get("stream_states"))
        self.guidance.load_state_dict(state)
        if self.run.is_resuming:  # best/ of another run stays there
            self.validation.load_state_dict(state)
            self._mend_best(folder)
        logger.warning("going on from step %d (%s)", self.step, folder)

    def _load_state(self, folder: Path) -> dict[str, Any]:
        """Weights, their average, optimiser and random generators of a training state; returns the rest of it."""
        state = self.run.load_state(folder, self.model, self.optimizer)
        if self.ema is not None:
            if "ema" not in state:
                raise UsageError(f"{folder} was saved without training.ema_decay: resume it without, or start anew")
            self.ema.load_state_dict(state["ema"])
        return state

    def _mend_best(self, folder: Path) -> None:
        """Write a best/ that is damaged anew from the training state of its step; without one, have it done without.

        Args:
            folder: the state that the run goes on from, whose weights are in place, also afterwards.
        """
        best = self.validation.best.get("step")
        if best is None or (damage := self.run.damage_of_best()) is None:
            return
        source = self.run.whole_state(best)
        if source is None:
            self.validation.best = {}
            logger.warning(
                "%s, and no training state of step %d is left: the next evaluation's is the best", damage, best
            )
            return
        self._load_state(source)
        with self._averaged():
            self.run.save_model(BEST, self._full_model(), self.processor)
        self._load_state(folder)
        logger.warning("%s: %s/ is restored from %s", damage, BEST, source)

    def _save_state(self) -> None:
        self.progress.flush()
        state: dict[str, Any] = {"step": self.step, "batch_layout": self.batches.layout}
        state |= {"evaluation_due": self.evaluation_due, "durations": dict(self.durations.longest)}
        state |= {"lines_written": self.run.lines}
        state |= self.validation.state_dict() | self.guidance.state_dict()
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        if self.batches.streamed:
            state["stream_states"] = gather_object([self.batches.state_after(self.step)])
        with self.durations.timed("saving"):
            self.run.save_state(self.step, self.model, self.optimizer, state)

    def _save_unscored(self, reason: str) -> str | None:
        """Where the time limit ends a run that has no best/, save the weights of its last step as a checkpoint.

        Who has set the limit wants what there is then. It is not final/, which says that a run is done, and it goes
        with the training state that it lies in. After a signal there may be no time for it.

        Returns:
            The folder, or None where nothing was saved.
        """
        # The processes' clocks differ, and all must take part: one that was only told to stop has another reason.
        if not any(gather_object([reason == LIMIT])) or self.validation.best or self.step == 0:
            return None
        with self._averaged():
            folder = self.run.save_unscored(self.step, self._full_model(), self.processor)
        self.accelerator.wait_for_everyone()
        return str(folder)

    def _save_final(self) -> None:
        """Save the weights of the last step as final/ and, where nothing was evaluated, as best/."""
        with self._averaged():
            model = self._full_model()
            for name in (FINAL,) if self.eval_dataset is not None else (FINAL, BEST):
                self.run.save_model(name, model, self.processor)
        self.accelerator.wait_for_everyone()


def _checkpoint_block(function: Any, *args: Any) -> Any:
    return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False)
