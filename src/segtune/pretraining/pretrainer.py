"""Pretraining of an encoder on pictures without labels: data, loop, and what a run writes."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segtune.data.unlabelled.pictures import ids_digest, open_unlabelled
from segtune.data.unlabelled.views import UnlabelledBatches
from segtune.errors import UsageError
from segtune.inference.processor import processor_from_transforms
from segtune.pretraining.config import STRIDE, PretrainingRecipe
from segtune.pretraining.masked_crops import MaskedCrops
from segtune.pretraining.masked_image_model import MaskedImageModel, absolute_error, hidden_pixels
from segtune.pretraining.reconstructions import save_reconstructions
from segtune.recipe.recipe import refuse_another_run, with_channels
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.loading import load_model, without_bars
from segtune.segformer.modeling_segformer import SegformerDropPath, SegformerModel
from segtune.training.distributed import (
    Agreement,
    Upload,
    check_device,
    compiled,
    environment,
    is_sharded,
    loading_processes,
    make_accelerator,
    numerics,
)
from segtune.training.interrupts import (
    Durations,
    Interrupted,
    StopRequest,
    ignore_interrupts,
    seconds,
    seconds_of_saving,
)
from segtune.training.model import set_input_channels
from segtune.training.optim import adamw, parameter_groups, schedule_of, set_learning_rate
from segtune.training.progress import TrainingProgress
from segtune.training.run_folder import FINAL, RunFolder, refuse_existing_run
from segtune.training.run_lock import locked

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)


def pretrain(recipe: PretrainingRecipe, started: float | None = None) -> dict[str, Any]:
    """Open the pictures, train, and save the encoder as final/ of the run folder.

    Args:
        started: since when `training.time_limit` counts, by `time.monotonic`; by default from now.

    Returns:
        "output_dir", "step", "reconstructions", the path of a picture or None, and "stopped", why, where a signal
        or the time limit came before the last step: everything is then saved.

    Raises:
        UsageError: the settings do not fit the run in the folder, the checkpoint or the machine.
        DataError: there is nothing to learn from.
        Interrupted: a signal or the time limit came before the first step.
    """
    config = recipe.training
    output, limit = str(config.output_dir), seconds(config.time_limit) if config.time_limit else None
    is_main = os.environ.get("RANK", "0") == "0"  # said by launchers; Accelerate is set up later
    with (
        without_bars(),
        locked(output) if is_main else nullcontext(),
        StopRequest(limit, started) as request,
    ):
        check_device(config.device, config.mixed_precision)
        refuse_existing_run(output, config.resume, config.overwrite)
        rows = open_unlabelled(recipe.dataset.model_copy(update={"unlabelled": recipe.dataset.path}), {})
        recipe = with_channels(recipe, rows)
        refuse_another_run(recipe)
        pretrainer = Pretrainer(recipe, rows, build_network(recipe))
        with request.noted():
            return pretrainer.train(request)


def build_network(recipe: PretrainingRecipe) -> MaskedImageModel:
    """The network to train: an encoder of random weights or of a checkpoint, and fresh heads, drawn from the seed.

    Raises:
        UsageError: the checkpoint is not there or is no SegFormer, its last stage does not see 32 pixels as one, or it
            has no such stages.
    """
    model, channels = recipe.model, len(recipe.transforms.mean)
    with torch.random.fork_rng(devices=[]):  # drawn on the CPU, and apart from the draws of others
        torch.default_generator.manual_seed(recipe.training.seed)
        if model.name is None:
            fields = {**model.config, "num_channels": channels}
            encoder = SegformerModel(SegformerConfig.from_variant(model.variant, **fields))
        else:
            encoder = load_model(model.name).segformer
            set_input_channels(encoder, channels, model.input_channels)
        strides, depth = encoder.config.strides, encoder.config.num_encoder_blocks
        if math.prod(strides) != STRIDE:
            raise UsageError(f"strides={list(strides)}: segtune pretrain needs an encoder of stride {STRIDE}")
        if outside := [stage for stage in recipe.masking.stages if not 1 <= stage <= depth]:
            raise UsageError(f"masking.stages names stage {outside[0]}, but the encoder has the stages 1 to {depth}")
        encoder.name_or_path = encoder.config.name_or_path = ""  # no longer that checkpoint
        return MaskedImageModel(encoder, recipe.masking.stages)


class Pretrainer:
    """Trains an encoder to paint what is hidden of pictures.

    The loss of a step is the mean over the hidden values of the global batch, however it is divided into micro-batches
    and processes. The same seed gives the same run, and one that was stopped goes on exactly.

    Args:
        rows: pictures, with `id` and `image`.
        network: is trained in place.

    Raises:
        UsageError: FSDP was asked for.
    """

    def __init__(self, recipe: PretrainingRecipe, rows: datasets.Dataset, network: MaskedImageModel) -> None:
        config = recipe.training
        self.accelerator = accelerator = make_accelerator(config.device, config.mixed_precision)
        if is_sharded(accelerator):
            raise UsageError("segtune pretrain does not go with FSDP: several GPUs each take the whole network")
        if config.num_workers is None:
            config = config.model_copy(update={"num_workers": loading_processes(accelerator.device)})
        self.recipe, self.config = recipe, config
        self.run = RunFolder(
            str(config.output_dir),
            accelerator,
            resume=config.resume,
            overwrite=config.overwrite,
            keep_last=config.keep_last,
        )
        self.processor = processor_from_transforms(recipe.transforms)
        for module in network.modules():
            if isinstance(module, SegformerDropPath):
                module.p = 0.0  # half of the input is gone as it is; the configuration keeps the rate of fine-tuning
        groups = parameter_groups(network, config.learning_rate, config.weight_decay, head_lr_multiplier=1.0)
        self.model, self.optimizer = accelerator.prepare(network, adamw(groups, config.betas))
        self.schedule = schedule_of(config)
        self.network = compiled(self.model, accelerator) if config.compile else self.model
        self.crops, self.pictures = MaskedCrops(rows, recipe), ids_digest(rows)
        layout = (config.micro_batch, config.accumulation_steps, accelerator.num_processes)
        self.batches = UnlabelledBatches(self.crops, layout, 1, accelerator.process_index, config.seed)
        self.progress = TrainingProgress(self.run, config, self.batches, recipe.model_dump())
        self.step = 0
        self.reconstructions: Path | None = None
        self.durations = Durations()
        self.first_saving = seconds_of_saving(network)
        self.agreed = Agreement(accelerator)

    def train(self, request: StopRequest) -> dict[str, Any]:
        """Train to `max_steps`; see `pretrain` for what is returned.

        Raises:
            UsageError: there is nothing to go on with, or its images of a step were others.
        """
        stopped = None
        computed = numerics(self.accelerator.device, self.config.matmul_precision, self.config.deterministic)
        with self.run.locked(), computed:
            lines = self._open()
            self.run.begin(self.step, environment(self.accelerator), lines)
            self.model.train()
            with self.progress.logged_from(self.step):
                try:
                    self._steps(request)
                except Interrupted as interruption:
                    stopped = interruption.reason
                    self._save_state()
                    self.progress.finish(stopped)
                else:
                    self._save_final()
        result = {
            "output_dir": str(self.run.path),
            "step": self.step,
            "reconstructions": self.reconstructions and str(self.reconstructions),
        }
        return {**result, "stopped": stopped} if stopped else result

    def _open(self) -> int:
        """Open the run folder and put back the state to go on from; returns the lines of its metrics."""
        stored = self.recipe.with_changes("training", resume="never", overwrite=False)
        folder = self.run.open(stored.to_yaml(), None)
        torch.manual_seed(self.config.seed + self.accelerator.process_index)
        if folder is None:
            return 0
        state = self.run.load_state(folder, self.model, self.optimizer)
        self.run.check_batch_layout(folder, tuple(state["batch_layout"]), self.batches.layout)
        if self.run.is_resuming and state["pictures"] != self.pictures:
            raise UsageError(
                f"{folder}: the pictures are not those that the run began with: put them back, or start anew"
            )
        if state["step"] >= self.config.max_steps:
            raise UsageError(f"{folder} is of step {state['step']}: training.max_steps={self.config.max_steps} is done")
        self.step = state["step"]
        self.durations.longest = dict(state["durations"])
        logger.warning("going on from step %d (%s)", self.step, folder)
        return int(state["lines_written"])

    def _steps(self, request: StopRequest) -> None:
        """The steps that remain.

        Raises:
            Interrupted: asked to stop before the end; the weights are those of `self.step`.
        """
        config, progress = self.config, self.progress
        request.reserve = self._reserve(request)
        if reason := self.agreed(request.reason):
            raise Interrupted(reason)
        for micro_batches in progress.timed(self._micro_batches()):
            loss, norm = self._optimizer_step(micro_batches)
            progress.add(loss, norm, self.optimizer.param_groups[0]["lr"], micro_batches)
            self.durations.add("step", time.perf_counter() - progress.step_started)
            request.reserve = self._reserve(request)
            if self.step < config.max_steps and (reason := self.agreed(request.reason)):
                raise Interrupted(reason)
            if config.state_every and self.step < config.max_steps and self.step % config.state_every == 0:
                self._save_state()
        progress.flush()
        progress.finish("done")

    def _reserve(self, request: StopRequest) -> float:
        """Seconds before the end of the time limit at which to stop: what one more step and saving take."""
        return request.to_leave + self.durations.of("step") + 1.5 * self.durations.of("saving", self.first_saving)

    def _micro_batches(self) -> Iterator[list[dict[str, Any]]]:
        device = self.accelerator.device
        steps = self.batches.steps(
            self.step,
            self.config.max_steps,
            self.config.num_workers or 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=ignore_interrupts,
        )
        return map(Upload(device), steps)

    def _optimizer_step(self, micro_batches: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """One step on this process's share of the global batch; returns the loss and the norm of its gradient."""
        accelerator, config = self.accelerator, self.config
        hidden = [hidden_pixels(batch["mask"], batch["pixel_values"]) & batch["real"] for batch in micro_batches]
        channels = micro_batches[0]["pixel_values"].shape[1]
        count = accelerator.reduce(torch.stack([each.sum() for each in hidden]).sum() * channels, "sum").clamp(min=1)
        total = torch.zeros((), device=accelerator.device)
        for index, (batch, counted) in enumerate(zip(micro_batches, hidden, strict=True)):
            is_last = index == len(micro_batches) - 1
            with nullcontext() if is_last else accelerator.no_sync(self.model):
                painted = self.network(batch["pixel_values"], batch["mask"])  # (B, C, H, W)
                loss = absolute_error(painted, batch["pixel_values"], counted) / count
                accelerator.backward(loss * accelerator.num_processes)  # gradients of processes are averaged
            total += loss.detach()
        norm = accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm or math.inf)
        set_learning_rate(self.optimizer, self.schedule(self.step))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return accelerator.reduce(total, "sum"), norm

    def _save_state(self) -> None:
        self.progress.flush()
        state: dict[str, Any] = {"step": self.step, "batch_layout": self.batches.layout, "pictures": self.pictures}
        state |= {"durations": dict(self.durations.longest), "lines_written": self.run.lines}
        with self.durations.timed("saving"):
            self.run.save_state(self.step, self.model, self.optimizer, state)

    def _save_final(self) -> None:
        """Save the encoder, and what the whole network paints of a few pictures."""
        network = self.accelerator.unwrap_model(self.model)
        self.run.save_model(FINAL, network.segformer, self.processor)
        if self.accelerator.is_main_process:
            count, device = self.config.overlays, self.accelerator.device
            transforms = self.recipe.transforms
            self.reconstructions = save_reconstructions(self.run.path, network, self.crops, transforms, count, device)
        self.accelerator.wait_for_everyone()
