"""The fine-tuning loop over Accelerate, and the run folder that it writes."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import accelerate
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from pydantic import Field, field_validator, model_validator
from tqdm.auto import tqdm

import segtune
from segtune import checkpoint
from segtune.data.batches import TrainingBatches
from segtune.data.sources import save_split
from segtune.data.streaming import is_stream
from segtune.data.transforms import TrainTransform, TransformConfig
from segtune.ema import ExponentialMovingAverage
from segtune.errors import DataError, SegtuneError, UsageError
from segtune.inference import evaluate_model
from segtune.interrupts import StopRequest, ignore_interrupts, seconds
from segtune.labels import LabelMap
from segtune.metrics import ConfusionMatrix
from segtune.optim import (
    FreezeConfig,
    ScheduleName,
    adamw,
    freeze,
    parameter_groups,
    schedule_factor,
    set_learning_rate,
    train_mode,
)
from segtune.section import Section
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation, segmentation_loss, valid_pixels

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

RECIPE_FILE, SPLIT_FILE, METRICS_FILE = "recipe.yaml", "split.json", "metrics.jsonl"
_RUN_CONTENT = (RECIPE_FILE, SPLIT_FILE, METRICS_FILE, "checkpoints", "best", "final", "overlays")


class TrainingConfig(Section):
    """The `training` section of a recipe. Batch size is per process; steps are optimiser steps."""

    output_dir: str | None = Field(None, description="Run folder; null = runs/<recipe name>.")
    max_steps: int = Field(1000, ge=1, description="Optimiser steps.")
    batch_size: int = Field(8, ge=1, description="Images per micro-batch and process.")
    accumulation_steps: int = Field(1, ge=1, description="Micro-batches per optimiser step.")
    eval_batch_size: int = Field(1, ge=1, description="Images of one size evaluated together.")
    num_workers: int = Field(0, ge=0, description="Data-loading processes; the samples do not depend on it.")
    learning_rate: float = Field(6e-5, gt=0, description="Peak rate of the encoder.")
    head_lr_multiplier: float = Field(10.0, gt=0, description="The head learns at this times the rate.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's; none on norms and biases.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's.")
    warmup_steps: int | None = Field(
        None, ge=0, description="Linear warm-up; null = 5 % of max_steps, at most the paper's 1500."
    )
    warmup_start_factor: float = Field(1e-6, ge=0, le=1, description="Share of the rate that the warm-up starts from.")
    schedule: ScheduleName = Field("poly", description="poly, cosine, constant or wsd (warm-up, stable, decay).")
    power: float = Field(1.0, ge=0, description="Of the polynomial decay to 0, of poly and wsd.")
    decay_share: float = Field(0.2, gt=0, le=1, description="Part of max_steps over which wsd decays.")
    layer_decay: float = Field(1.0, gt=0, le=1, description="Each block learns at this times the rate of the next.")
    freeze: FreezeConfig = Field(FreezeConfig(), description="Parts that do not train.")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Evaluate and save an exponential moving average of the weights; null = none."
    )
    max_grad_norm: float | None = Field(None, gt=0, description="Clip the gradient to this 2-norm; null = no clipping.")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="Autocast of the forward pass.")
    gradient_checkpointing: bool = Field(False, description="Recompute each block in the backward pass: less memory.")
    seed: int = Field(0, ge=0, description="Of fresh weights, sample order, augmentation and dropout.")
    eval_every: int | None = Field(None, ge=1, description="Steps between evaluations; null = only at the end.")
    save_every: int | None = Field(
        None, ge=0, description="Steps between training states; null = a tenth of max_steps, 0 = none."
    )
    keep_last: int = Field(2, ge=1, description="Training states that are kept.")
    log_every: int = Field(10, ge=1, description="Steps between lines of metrics.jsonl.")
    device: Literal["auto", "cpu"] = Field("auto", description="auto = the accelerator that is there.")
    time_limit: str | None = Field(
        None, description="Save and stop after this time, e.g. 8h30m; the run goes on with training.resume=auto."
    )
    resume: Literal["never", "auto"] | str = Field(
        "never", description="auto = go on from the newest state in output_dir; or the path of a state."
    )
    overwrite: bool = Field(False, description="Remove the run that output_dir holds.")

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        if self.warmup_steps is not None and self.warmup_steps >= self.max_steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be below max_steps={self.max_steps}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must lie in [0, 1)")
        return self

    @field_validator("time_limit")
    @classmethod
    def _check_time_limit(cls, value: str | None) -> str | None:
        if value is not None:
            seconds(value)
        return value

    @property
    def state_every(self) -> int | None:
        """Steps between training states, resolved; None for none."""
        return (max(1, self.max_steps // 10) if self.save_every is None else self.save_every) or None

    @property
    def warmup(self) -> int:
        """Warm-up steps, resolved."""
        return min(1500, self.max_steps // 20) if self.warmup_steps is None else self.warmup_steps


class SegmentationTrainer:
    """Fine-tunes a model on samples of images and masks.

    The loss of one optimiser step is the mean over all valid pixels of the global batch, however it is divided into
    micro-batches and processes. The same seed gives the same run.

    Args:
        model: its configuration must agree with `label_map`.
        train_dataset, eval_dataset: rows with `id`, `image` and `mask` (see `load_segmentation_dataset`); without
            `eval_dataset`, nothing is evaluated and `best/` is the final model.
        transforms: augmentation of the training samples.
        processor: what evaluation and deployment do to an image; saved with the model.
        recipe: the resolved recipe's text for the run folder.
        splits: the dataset whose drawn splits are stored in the run folder.
        shuffle_buffer: rows of a streamed `train_dataset` that are shuffled together.
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
        splits: datasets.DatasetDict | None = None,
        shuffle_buffer: int = 256,
    ) -> None:
        if config.output_dir is None:
            raise UsageError("training.output_dir is not set: name the run folder, e.g. training.output_dir=runs/mine")
        if not is_stream(train_dataset) and len(train_dataset) == 0:
            raise UsageError("the training split is empty")
        self.config = config
        self.folder = Path(config.output_dir)
        self.label_map = label_map
        self.processor = processor
        self.eval_dataset = eval_dataset
        self.recipe = recipe
        self.splits = splits
        self.accelerator = make_accelerator(config)
        if config.gradient_checkpointing:
            model._set_gradient_checkpointing(True, _checkpoint_block)
        freeze(model, config.freeze)
        groups = parameter_groups(
            model, config.learning_rate, config.weight_decay, config.head_lr_multiplier, config.layer_decay
        )
        if not groups:
            raise UsageError("training.freeze leaves nothing to train")
        self.model, self.optimizer = self.accelerator.prepare(model, adamw(groups, config.betas))
        self.ema = None
        if config.ema_decay is not None:
            self.ema = ExponentialMovingAverage(self.accelerator.unwrap_model(self.model), config.ema_decay)
        self.batches = TrainingBatches(
            train_dataset,
            label_map,
            TrainTransform(transforms, label_map.ignore_index),
            config.seed,
            batch_size=config.batch_size,
            accumulation_steps=config.accumulation_steps,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            buffer=shuffle_buffer,
        )
        self.stream_state: dict[str, int] | None = None
        self.step = 0
        self.best: dict[str, Any] = {}

    # --- the loop ------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Train to `max_steps`; returns the run folder, the last step, the best and the last evaluation.

        SIGTERM, SIGINT and `time_limit` end the training after the step in progress, with a training state saved;
        "stopped" of the result then says why.
        """
        config = self.config
        self._open_run_folder()
        accelerate.utils.set_seed(config.seed + self.accelerator.process_index)
        self._resume()
        train_mode(self.model, config.freeze)
        last: dict[str, Any] = {}
        window = _Window()
        limit = seconds(config.time_limit) if config.time_limit else None
        with StopRequest(limit) as request, self._progress() as bar:
            for micro_batches in self._batches():
                set_learning_rate(self.optimizer, self._factor())
                loss, norm = self._optimizer_step(micro_batches)
                self.step += 1
                if self.ema is not None:
                    self.ema.update(self.accelerator.unwrap_model(self.model))
                window.add(loss, sum(len(batch["labels"]) for batch in micro_batches))
                bar.update()
                if self.step % config.log_every == 0 or self.step == config.max_steps:
                    self._log(window, norm, bar)
                if self._due(config.eval_every) and self.eval_dataset is not None:
                    last = self._evaluate()
                stopped = self._agree(request.reason) if self.step < config.max_steps else None
                if stopped or self._due(config.state_every, at_end=False):
                    self._save_state()
                if stopped:
                    return {**self._result(last), "stopped": stopped}
        with self._averaged():
            self._save_model("final")
            if self.eval_dataset is None:
                self._save_model("best")
        self.accelerator.wait_for_everyone()
        return self._result(last)

    def _result(self, last: dict[str, Any]) -> dict[str, Any]:
        return {"output_dir": str(self.folder), "step": self.step, "best": self.best, "last": last}

    def _agree(self, reason: str | None) -> str | None:
        """A reason to stop that any of the processes has, so that all stop at the same step."""
        if self.accelerator.num_processes == 1:
            return reason
        flag = torch.tensor(float(reason is not None), device=self.accelerator.device)
        return (reason or "another process was asked to") if self.accelerator.reduce(flag, "sum").item() else None

    def _optimizer_step(self, micro_batches: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        """accumulate -> forward -> backward -> clip -> step -> zero; returns the step's loss and gradient norm."""
        ignore_index = self.label_map.ignore_index
        valid = torch.stack([valid_pixels(batch["labels"], ignore_index) for batch in micro_batches]).sum()
        valid = self.accelerator.reduce(valid, "sum").clamp(min=1)  # of the global batch
        total = torch.zeros((), device=self.accelerator.device)
        for index, batch in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                logits = self.model(batch["pixel_values"]).logits  # (B, K, h/4, w/4)
                loss = segmentation_loss(logits, batch["labels"], ignore_index, reduction="sum") / valid
                self.accelerator.backward(loss * self.accelerator.num_processes)  # averaged over processes
            total += loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.accelerator.reduce(total, "sum"), norm

    def _batches(self) -> Iterator[list[dict[str, Any]]]:
        """The micro-batches of each remaining optimiser step, on the device."""
        config, device = self.config, self.accelerator.device
        steps = self.batches.steps(
            self.step,
            config.max_steps,
            self.stream_state,
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

    def _evaluate(self) -> dict[str, Any]:
        with self._averaged():
            scores = self.evaluate(self.eval_dataset)
            self._write({"step": self.step, "split": "val", **scores})
            mean_iou = scores["mean_iou"]
            if mean_iou is not None and mean_iou > self.best.get("mean_iou", -math.inf):
                self.best = {"step": self.step, "mean_iou": mean_iou}
                self._save_model("best")
        return scores

    def _averaged(self) -> AbstractContextManager[None]:
        """Where weights are averaged, the block sees the average."""
        return self.ema.swapped_in(self.accelerator.unwrap_model(self.model)) if self.ema else nullcontext()

    def evaluate(self, dataset: datasets.Dataset) -> dict[str, Any]:
        """Metrics of the whole `dataset`, every image counted once over all processes, as plain numbers."""
        accelerator = self.accelerator
        confusion = evaluate_model(
            accelerator.unwrap_model(self.model),
            dataset,
            self.label_map,
            self.processor,
            batch_size=self.config.eval_batch_size,
            device=accelerator.device,
            progress=accelerator.is_local_main_process,
            indices=range(accelerator.process_index, len(dataset), accelerator.num_processes),
        )
        counts = torch.as_tensor(confusion.counts, device=accelerator.device)
        confusion.counts = accelerator.reduce(counts, "sum").cpu().numpy()
        return plain_scores(confusion, self.label_map)

    # --- the run folder ------------------------------------------------------------------------------------------

    def _open_run_folder(self) -> None:
        if self.accelerator.is_main_process:
            for name in ("best", "final"):
                checkpoint.recover(self.folder / name)
            for leftover in (self.folder / "checkpoints").glob(".step-*.*"):
                checkpoint.recover(leftover.with_name(leftover.name[1:-4]))
            refuse_existing_run(self.config)
            held = run_content(self.folder)
            resuming = self.config.resume != "never" and held
            if not resuming:
                for name in held:
                    path = self.folder / name
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.recipe is not None:
                (self.folder / RECIPE_FILE).write_text(self.recipe, encoding="utf-8")
            if self.splits is not None:
                save_split(self.splits, self.folder / SPLIT_FILE)
            if not resuming:
                self._write({"environment": environment(self.accelerator)})
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        """Go on from a training state, where asked for and one is there."""
        if self.config.resume == "never":
            return
        state_folder = self._newest_state() if self.config.resume == "auto" else Path(self.config.resume)
        if state_folder is None:
            return
        if not state_folder.is_dir():
            raise UsageError(f"training.resume={state_folder} is not a folder: give auto, never or a saved state")
        state = checkpoint.load_state(state_folder, self.accelerator, self.model, self.optimizer)
        self.step, self.best = state["step"], state["best"]
        self.stream_state = self._own_stream_state(state_folder, state.get("streams"))
        if self.ema is not None:
            if "ema" not in state:
                raise UsageError(
                    f"{state_folder} was saved without training.ema_decay: resume it without, or start anew"
                )
            self.ema.load_state_dict(state["ema"])
        logger.warning("going on from step %d (%s)", self.step, state_folder)
        if self.accelerator.is_main_process:
            self._cut_metrics()

    def _own_stream_state(self, folder: Path, states: list[dict[str, int] | None] | None) -> dict[str, int] | None:
        """Where the stream of this process goes on; it can only with as many processes as before."""
        if not self.batches.streamed:
            return None
        if states is None or len(states) != self.accelerator.num_processes:
            raise UsageError(
                f"{folder} was saved by {len(states or [])} streaming processes: go on with as many, or without "
                "dataset.streaming"
            )
        return states[self.accelerator.process_index]

    def _newest_state(self) -> Path | None:
        """The newest training state that is whole; torn ones are named and removed. None: start from the beginning."""
        found: list[Path | None] = [None]
        if self.accelerator.is_main_process:
            states = checkpoint.saved_states(self.folder / "checkpoints")
            for folder in reversed(states):
                try:
                    checkpoint.check_state(folder)
                    found = [folder]
                    break
                except DataError as error:
                    logger.warning("%s: this training state is removed, the one before is taken", error)
                    shutil.rmtree(folder)
            if found == [None] and run_content(self.folder) != [RECIPE_FILE]:
                logger.warning("%s holds no training state to go on from: starting from the first step", self.folder)
        return cast("Path | None", broadcast_object_list(found)[0])

    def _cut_metrics(self) -> None:
        """Forget the lines of `metrics.jsonl` that lie after the step that the run goes on from."""
        path = self.folder / METRICS_FILE
        if path.is_file():
            kept = [line for line in checkpoint.read_json_lines(path) if line.get("step", 0) <= self.step]
            temporary = path.with_name(f".{path.name}.part")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            temporary.replace(path)

    def _save_state(self) -> None:
        folder = self.folder / "checkpoints"
        state: dict[str, Any] = {"step": self.step, "best": self.best}
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        if self.batches.streamed:
            own = [self.batches.state_after(self.step)]
            state["streams"] = self.accelerator.gather_for_metrics(own, use_gather_object=True)
        checkpoint.save_state(folder / f"step-{self.step:06d}", self.accelerator, self.model, self.optimizer, state)
        if self.accelerator.is_main_process:
            for outdated in checkpoint.saved_states(folder)[: -self.config.keep_last]:
                shutil.rmtree(outdated)
        self.accelerator.wait_for_everyone()

    def _save_model(self, name: str) -> None:
        if self.accelerator.is_main_process:
            checkpoint.save_model(self.folder / name, self.accelerator.unwrap_model(self.model), self.processor)

    def _write(self, record: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def _log(self, window: _Window, norm: torch.Tensor, bar: tqdm) -> None:
        loss, rate = window.close(self.accelerator.num_processes)
        if not math.isfinite(loss):
            raise SegtuneError(
                f"the loss is {loss} at step {self.step}: lower training.learning_rate, set training.max_grad_norm=1, "
                "or train without training.mixed_precision=fp16"
            )
        learning_rate = self.optimizer.param_groups[0]["lr"]
        epoch = self.batches.epoch(self.step)
        bar.set_postfix(loss=f"{loss:.4f}", lr=f"{learning_rate:.2e}")
        self._write(
            {
                "step": self.step,
                "epoch": round(epoch, 4),
                "loss": loss,
                "lr": learning_rate,
                "grad_norm": float(norm),
                "images_per_second": round(rate, 3),
            }
        )

    def _progress(self) -> tqdm:
        hidden = not self.accelerator.is_local_main_process
        return tqdm(total=self.config.max_steps, initial=self.step, desc="train", unit="step", disable=hidden)


class _Window:
    """Losses and images since the last line of the log."""

    def __init__(self) -> None:
        self._open()

    def _open(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.images = 0
        self.started = time.perf_counter()

    def add(self, loss: torch.Tensor, images: int) -> None:
        self.losses.append(loss)
        self.images += images

    def close(self, num_processes: int) -> tuple[float, float]:
        """Mean loss and images per second; starts the next window."""
        loss = torch.stack(self.losses).mean().item()
        rate = self.images * num_processes / max(time.perf_counter() - self.started, 1e-9)
        self._open()
        return loss, rate


def run_content(folder: Path) -> list[str]:
    """What of a run the folder holds."""
    return [name for name in _RUN_CONTENT if (folder / name).exists()]


def refuse_existing_run(config: TrainingConfig) -> None:
    """Raise UsageError where `output_dir` holds a run that the settings neither go on with nor remove."""
    held = run_content(Path(config.output_dir or ""))
    if config.output_dir and held and config.resume == "never" and not config.overwrite:
        raise UsageError(
            f"{config.output_dir} holds a run ({', '.join(held)}): choose another training.output_dir, or set "
            "training.resume=auto to go on with it or training.overwrite=true to remove it"
        )


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """The Accelerator of a run: on the CPU where nothing else is there, never one of several that ignore each other.

    Raises:
        UsageError: several processes were started, but this one believes to be alone, so that all would write into
            one folder.
    """
    on_cpu = config.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    AcceleratorState._reset_state()  # a notebook may start a second run with another precision
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=config.mixed_precision)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise UsageError(
            f"{started} processes were started, but Accelerate sees {accelerator.num_processes}: "
            "launch with `accelerate launch --config_file recipes/accelerate/<yours>.yaml -m segtune train …`"
        )
    return accelerator


def _checkpoint_block(function: Any, *args: Any) -> Any:
    return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False)


def plain_scores(confusion: ConfusionMatrix, label_map: LabelMap) -> dict[str, Any]:
    """The metrics of a confusion matrix as JSON-able numbers; None where a class is absent."""
    scores = confusion.compute()
    per_class = {
        name: {"iou": _number(iou), "accuracy": _number(accuracy)}
        for name, iou, accuracy in zip(
            label_map.names, scores["per_category_iou"], scores["per_category_accuracy"], strict=True
        )
    }
    means = {key: _number(scores[key]) for key in ("mean_iou", "mean_accuracy", "overall_accuracy")}
    return {**means, "per_class": per_class}


def _number(value: Any) -> float | None:
    value = float(value)
    return None if np.isnan(value) else value


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What a run ran on, for the first line of `metrics.jsonl`."""
    return {
        "segtune": segtune.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else str(accelerator.device),
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
    }
