"""The `training` section of a recipe: steps, batches, optimizer, schedule, and what a run writes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from segtune.config import MayChangeOnResume, StrictModel
from segtune.training.interrupts import seconds
from segtune.training.losses import LossConfig
from segtune.training.optim import BatchNormMode, FreezeConfig, ScheduleName
from segtune.training.trackers import TrackerName


class TrainingConfig(StrictModel):
    """The `training` section of a recipe. Batch size is per process; steps are optimizer steps."""

    output_dir: MayChangeOnResume[str | None] = Field(None, description="Run folder; null = runs/<recipe name>.")
    max_steps: int = Field(1000, ge=1, description="Optimizer steps.")
    batch_size: MayChangeOnResume[int] = Field(8, ge=1, description="Images per micro-batch and process.")
    accumulation_steps: MayChangeOnResume[int] = Field(1, ge=1, description="Micro-batches per optimizer step.")
    num_workers: MayChangeOnResume[int] = Field(
        0, ge=0, description="Data-loading processes; the samples do not depend on their number."
    )
    loss: LossConfig = Field(LossConfig(), description="What is minimised; by default the cross-entropy.")
    learning_rate: float = Field(6e-5, gt=0, description="Peak learning rate of the encoder.")
    head_lr_multiplier: float = Field(10.0, gt=0, description="The head learns at this many times the rate.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay; norms and biases have none.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's two decay rates, each in [0, 1).")
    warmup_steps: int | None = Field(
        None, ge=0, description="Steps of linear warm-up; null = 5 % of max_steps, at most the paper's 1500."
    )
    warmup_start_factor: float = Field(1e-6, ge=0, le=1, description="Share of the rate that the warm-up starts from.")
    schedule: ScheduleName = Field(
        "poly", description="How the rate falls after the warm-up; wsd = warm-up, stable, decay."
    )
    power: float = Field(1.0, ge=0, description="Exponent of the polynomial decay to 0 of poly and wsd.")
    decay_share: float = Field(0.2, gt=0, le=1, description="Part of max_steps over which wsd decays.")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Each block learns at this many times the rate of the next block."
    )
    freeze: FreezeConfig = Field(FreezeConfig(), description="Parts of the network that do not train.")
    batch_norm: BatchNormMode = Field(
        "local",
        description="Statistics of the head's batch norm: local = of each micro-batch of a process; sync = of a "
        "micro-batch over all processes; frozen = the stored ones, which stay as they are.",
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Evaluate and save an exponential moving average of the weights; null = none."
    )
    max_grad_norm: float | None = Field(None, gt=0, description="Clip the gradient to this 2-norm; null = no clipping.")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="Autocast of the forward pass.")
    gradient_checkpointing: MayChangeOnResume[bool] = Field(
        False, description="Recompute each block in the backward pass, which takes less memory."
    )
    seed: int = Field(0, ge=0, description="Seed of fresh weights, sample order, augmentation and dropout.")
    eval_every: int | None = Field(None, ge=1, description="Steps between evaluations; null = only at the end.")
    best_metric: str = Field(
        "mean_iou", description="Number of an evaluation that decides what is best/; also per_class/NAME/iou."
    )
    best_direction: Literal["max", "min"] = Field("max", description="Whether more or less of it is better.")
    early_stopping_patience: MayChangeOnResume[int | None] = Field(
        None, ge=1, description="Evaluations in a row without a better one that end the run; null = none do."
    )
    overlays: MayChangeOnResume[int] = Field(
        4, ge=0, description="Samples that are drawn at each evaluation: image | truth | prediction."
    )
    report: MayChangeOnResume[bool] = Field(
        True, description="Write report.html at the end, of best/ on the validation split."
    )
    trackers: MayChangeOnResume[tuple[TrackerName, ...]] = Field(
        (), description="Experiment trackers that numbers and overlays are sent to as well."
    )
    save_every: MayChangeOnResume[int | None] = Field(
        None, ge=0, description="Steps between training states; null = a tenth of max_steps, 0 = none."
    )
    keep_last: MayChangeOnResume[int] = Field(2, ge=1, description="Number of training states that are kept.")
    log_every: MayChangeOnResume[int] = Field(10, ge=1, description="Steps between lines of metrics.jsonl.")
    device: MayChangeOnResume[Literal["auto", "cpu"]] = Field(
        "auto", description="Where the run computes; auto = the accelerator that is there."
    )
    time_limit: MayChangeOnResume[str | None] = Field(
        None,
        description="Save and end within this time from the start of the command, e.g. 8h30m; the run goes on with "
        "training.resume=auto.",
    )
    resume: MayChangeOnResume[Literal["never", "auto"] | str] = Field(
        "never", description="auto = go on from the newest state in output_dir; or the path of a state."
    )
    overwrite: MayChangeOnResume[bool] = Field(False, description="Remove the run that output_dir holds.")

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
