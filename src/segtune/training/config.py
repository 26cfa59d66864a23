"""The `model` and `training` sections of a recipe: the network, its loss, steps, batches, and what a run writes.

No module of this file's imports loads torch, so that a recipe is checked before that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from segtune.config import MAX_BATCH_SIZE, MayChangeOnResume, StrictModel, is_quick
from segtune.errors import UsageError
from segtune.training.class_weights import CountedWeights, counted_weights, named_weights
from segtune.training.interrupts import seconds

AUTO = "auto"  # of training.batch_size
DEFAULT_IMAGES = 8  # of an optimizer step with it, where the recipe does not say
RECIPE_FILE = "recipe.yaml"  # of a run folder; here, since commands look for it before they import torch

ScheduleName = Literal["poly", "cosine", "constant", "wsd"]
BatchNormMode = Literal["local", "sync", "frozen"]
TrackerName = Literal["tensorboard", "trackio", "wandb", "mlflow"]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Images = Annotated[int, Field(ge=1, le=MAX_BATCH_SIZE)]

PIXEL_TERMS = ("focal", "ohem")  # need the probability that a pixel gives to its own class
REGION_TERMS = ("dice", "tversky", "lovasz", "boundary")  # need the probability of one class at all pixels
_WEIGHTED = ("cross_entropy", *PIXEL_TERMS)  # what class weights act on
_TERMS = (*_WEIGHTED, *REGION_TERMS)
_OPTION_OF = {  # option -> the term that reads it
    "label_smoothing": "cross_entropy",
    "focal_gamma": "focal",
    "ohem_threshold": "ohem",
    "ohem_min_kept": "ohem",
    "tversky_alpha": "tversky",
    "tversky_beta": "tversky",
}


class LossConfig(StrictModel):
    """The `training.loss` of a recipe: how much each term weighs, and what the terms need.

    Terms that are not named weigh 0. Where none is named, the loss is the cross-entropy.
    """

    cross_entropy: Weight = Field(0.0, description="Cross-entropy; binary cross-entropy for one logit.")
    focal: Weight = Field(0.0, description="Focal loss (Lin et al. 2017).")
    ohem: Weight = Field(0.0, description="Cross-entropy of the hardest pixels of each image.")
    dice: Weight = Field(0.0, description="1 - Dice coefficient of each class in an image.")
    tversky: Weight = Field(0.0, description="1 - Tversky index of each class in an image (Salehi et al. 2017).")
    lovasz: Weight = Field(0.0, description="Lovász-softmax, a surrogate of the IoU (Berman et al. 2018).")
    boundary: Weight = Field(
        0.0,
        description="Distance to the true outline in pixels (Kervadec et al. 2019); 0.01 beside another term.",
    )
    class_weights: CountedWeights | dict[str, Weight] | list[Weight] | None = Field(
        None,
        description="Weights of the classes in cross_entropy, focal and ohem: by name, as a list, or counted from the "
        "training masks.",
    )
    effective_number_beta: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Beta of the effective number of pixels; null = from the median number of pixels of a class.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Part of the target of cross_entropy that is spread over all classes."
    )
    focal_gamma: float = Field(2.0, ge=0, allow_inf_nan=False, description="How much easy pixels count less.")
    ohem_threshold: float = Field(0.7, gt=0, le=1, description="A pixel is hard below this probability of its class.")
    ohem_min_kept: float = Field(0.1, gt=0, le=1, description="Share of an image's valid pixels kept at least.")
    tversky_alpha: float = Field(0.3, ge=0, allow_inf_nan=False, description="Weight of false positives.")
    tversky_beta: float = Field(0.7, gt=0, allow_inf_nan=False, description="Weight of false negatives.")

    @model_validator(mode="before")
    @classmethod
    def _default(cls, values: Any) -> Any:
        if isinstance(values, dict) and not any(term in values for term in _TERMS):
            return {**values, "cross_entropy": 1.0}
        return values

    @model_validator(mode="after")
    def _check(self) -> LossConfig:
        if not self.uses(*_TERMS):
            raise ValueError(f"every term weighs 0: give one of {', '.join(_TERMS)} a weight")
        for option, term in _OPTION_OF.items():
            if getattr(self, option) != type(self).model_fields[option].default and not self.uses(term):
                raise ValueError(f"{option} belongs to {term}, which weighs 0")
        if self.class_weights is not None and not self.uses(*_WEIGHTED):
            raise ValueError(f"class_weights belong to {', '.join(_WEIGHTED)}, which all weigh 0")
        if self.effective_number_beta is not None and self.class_weights != "effective_number":
            raise ValueError("effective_number_beta belongs to class_weights: effective_number")
        return self

    def uses(self, *terms: str) -> bool:
        """Whether any of the terms weighs more than 0."""
        return any(getattr(self, term) > 0 for term in terms)

    def weights(self, names: Sequence[str]) -> list[float] | None:
        """The weight of each class; None where all count alike, or where they are yet to be counted.

        Raises:
            UsageError: the class weights do not fit the names.
        """
        given = self.class_weights
        return None if given is None or isinstance(given, str) else named_weights(given, names)

    def counted(self, pixels: np.ndarray, names: Sequence[str]) -> LossConfig:
        """The same with class weights in numbers, of six digits, where they are to be counted.

        Args:
            pixels: the number of pixels of each class in each training image (images, K).
        """
        if not isinstance(self.class_weights, str):
            return self
        weights = counted_weights(self.class_weights, pixels, self.effective_number_beta)
        numbers = {name: float(f"{weight:.6g}") for name, weight in zip(names, weights, strict=True)}
        return self.model_copy(update={"class_weights": numbers, "effective_number_beta": None})


class FreezeConfig(StrictModel):
    """What does not learn. A frozen stage also runs as in evaluation: without drop path and dropout."""

    encoder: bool = Field(False, description="Every stage of the encoder.")
    stages: tuple[int, ...] = Field((), description="Stages from 1 on, each with its patch embedding and norm.")


class LoraConfig(StrictModel):
    """The `model.lora` section of a recipe: low-rank updates of frozen weights; the decode head trains as usual."""

    rank: int = Field(8, ge=1, description="Rank of the update of each adapted matrix.")
    alpha: float | None = Field(None, gt=0, description="The update is scaled by alpha / rank; null = twice the rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Probability of dropout on the input of the update.")
    targets: tuple[str, ...] = Field(
        ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
        min_length=1,
        description="Linear layers that are adapted, by the end of their path.",
    )
    also_train: tuple[str, ...] = Field(
        (),
        description="Modules besides the decode head that train in full and are stored with the adapter, by their "
        "path, e.g. segformer.encoder.patch_embeddings.0.proj.",
    )


class ModelConfig(StrictModel):
    """The `model` section of a recipe."""

    name: str | None = Field(
        None, description="Checkpoint folder or Hub id (user/name, or user/name@revision) to start from; null = random."
    )
    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5"] = Field("b0", description="Architecture for random weights.")
    num_labels: Literal[1] | None = Field(
        None,
        description="1 = one logit and a binary loss, for a label map of two classes; null = a logit for each class of "
        "the label map (dataset.labels).",
    )
    config: dict[str, Any] = Field(
        {}, description="Fields of SegformerConfig that differ from the preset; a checkpoint keeps those of its stages."
    )
    lora: LoraConfig | None = Field(None, description="Train low-rank updates and the head only; null = all weights.")
    input_channels: Literal["inflate", "average", "random"] = Field(
        "inflate", description="How the first convolution of a checkpoint takes another number of channels."
    )

    @model_validator(mode="after")
    def _check_fields(self, info: ValidationInfo) -> ModelConfig:
        owned = {"num_labels", "id2label", "label2id", "label_map", "semantic_loss_ignore_index"} & set(self.config)
        if owned:
            raise ValueError(f"config sets {', '.join(sorted(owned))}, which the label map decides")
        if self.config and not is_quick(info):
            from segtune.segformer.configuration_segformer import STAGE_FIELDS, SegformerConfig

            for name in self.config.keys() & set(STAGE_FIELDS[1:]):
                if not isinstance(self.config[name], (list, tuple)):
                    raise ValueError(f"config.{name} = {self.config[name]!r}: give one value for each stage, as a list")
            try:
                SegformerConfig.from_variant(self.variant, **self.config)
            except TypeError as error:
                raise ValueError(str(error)) from None
        if self.lora is not None and self.name is None:
            raise ValueError("lora adapts a checkpoint: name one, such as name=nvidia/mit-b0")
        return self


class DistillConfig(StrictModel):
    """The `training.distill` of a recipe: a teacher whose probabilities are learned beside the labels."""

    teacher: str = Field(
        description="Checkpoint folder or Hub id (user/name, or user/name@revision), of segtune or of any model for "
        "semantic segmentation of transformers; its classes are matched by name."
    )
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="Weight of the divergence beside the loss.")
    temperature: float = Field(
        2.0, gt=0, allow_inf_nan=False, description="What the logits of both are divided by before the softmax."
    )
    cache: MayChangeOnResume[str | None] = Field(
        None,
        description="Folder that keeps the teacher's logits of each crop, for crops that come again: fixed ones, or "
        "another run with the same data, transforms and seed; null = none.",
    )


class SemiConfig(StrictModel):
    """The `training.semi` of a recipe: the averaged weights label unlabelled pictures, where they are sure."""

    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="Weight of the term after its ramp.")
    min_confidence: float = Field(
        0.9,
        ge=0,
        lt=1,
        description="Pixels count where the averaged weights' probability, calibrated on the validation split, is at "
        "least this.",
    )
    ratio: int = Field(1, ge=1, le=64, description="Unlabelled pictures for each labelled one of a step.")
    cutmix: float = Field(
        0.5, ge=0, le=1, description="Probability that a strong view gets a box of another unlabelled picture."
    )
    start_step: int | None = Field(
        None, ge=0, description="Step from which on unlabelled pictures are seen; null = a tenth of max_steps."
    )
    ramp_steps: int | None = Field(
        None,
        ge=0,
        description="Steps in which the weight rises to its full size, as exp(-5 (1 - t)^2); null = a fifth of "
        "max_steps.",
    )


class TrainingConfig(StrictModel):
    """The `training` section of a recipe. Batch size is per process; steps are optimizer steps."""

    output_dir: MayChangeOnResume[str | None] = Field(None, description="Run folder; null = runs/<recipe name>.")
    max_steps: int = Field(1000, ge=1, description="Optimizer steps.")
    batch_size: MayChangeOnResume[Images | Literal["auto"]] = Field(
        8,
        description="Images per micro-batch and process; auto = the most that fit into the memory, found by trying "
        "before the first step, with as many accumulation_steps as effective_batch_size takes.",
    )
    accumulation_steps: MayChangeOnResume[int] = Field(1, ge=1, description="Micro-batches per optimizer step.")
    effective_batch_size: MayChangeOnResume[Images | None] = Field(
        None,
        description="With batch_size=auto, the images of an optimizer step, of all processes together; null = 8. Where "
        "the processes cannot divide it evenly, each takes one more, and learning_rate grows by the square root.",
    )
    num_workers: MayChangeOnResume[int | None] = Field(
        None,
        ge=0,
        le=1024,
        description="Data-loading processes, on which the samples do not depend; null = on CUDA one for each core but "
        "one, at most 8, elsewhere none: there the cores compute.",
    )
    loss: LossConfig = Field(LossConfig(), description="What is minimised; by default the cross-entropy.")
    distill: DistillConfig | None = Field(None, description="Learn from a larger network as well; null = none.")
    semi: SemiConfig | None = Field(
        None, description="Learn from the pictures of dataset.unlabelled as well; needs ema_decay; null = not."
    )
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
    matmul_precision: Literal["auto", "highest", "high", "medium"] = Field(
        "auto",
        description="Matrix products of float32: highest = exact, high = TF32 on GPUs that have it, medium = bfloat16 "
        "where PyTorch can; auto = high on CUDA, highest elsewhere.",
    )
    deterministic: bool = Field(
        False, description="On CUDA, take only operations that give the same bits in every run; slower."
    )
    compile: bool = Field(False, description="Compile the training step's network with torch.compile.")
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
    device: MayChangeOnResume[Literal["auto", "cpu", "cuda", "mps"]] = Field(
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
        if self.semi is not None and self.ema_decay is None:
            raise ValueError("semi needs averaged weights, which label the pictures: set ema_decay, such as 0.99")
        if self.semi is not None and (self.semi.start_step or 0) >= self.max_steps:
            raise ValueError(f"semi.start_step={self.semi.start_step} must be below max_steps={self.max_steps}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must lie in [0, 1)")
        if self.batch_size == AUTO and self.accumulation_steps != 1:
            raise ValueError(
                f"accumulation_steps={self.accumulation_steps} follow from batch_size=auto: leave them out, and say "
                "with effective_batch_size how many images a step takes"
            )
        if self.batch_size != AUTO and self.effective_batch_size is not None:
            raise ValueError(
                f"effective_batch_size={self.effective_batch_size} belongs to batch_size=auto; with a number, a step "
                "takes batch_size x accumulation_steps images of each process"
            )
        return self

    @field_validator("time_limit")
    @classmethod
    def _check_time_limit(cls, value: str | None) -> str | None:
        if value is not None:
            seconds(value)
        return value

    @property
    def micro_batch(self) -> int:
        """`batch_size` as a number.

        Raises:
            UsageError: it is yet to be found.
        """
        if self.batch_size == AUTO:
            raise UsageError("training.batch_size=auto stands for a number that segtune.train finds: here, give one")
        return int(self.batch_size)

    @property
    def images_wanted(self) -> int:
        """Images of an optimizer step of all processes that `batch_size=auto` aims at."""
        return self.effective_batch_size or DEFAULT_IMAGES

    @property
    def state_every(self) -> int | None:
        """Steps between training states, resolved; None for none."""
        return (max(1, self.max_steps // 10) if self.save_every is None else self.save_every) or None

    @property
    def warmup(self) -> int:
        """Warm-up steps, resolved."""
        return min(1500, self.max_steps // 20) if self.warmup_steps is None else self.warmup_steps


def scaled_rate(rate: float, images: int, wanted: int) -> float:
    """The learning rate for steps of `images`, where `rate` is meant for `wanted` of them.

    rate · sqrt(images / wanted), the rule of adaptive optimisers (Malladi et al. 2022, arXiv 2205.10287).
    """
    return rate if images == wanted else float(f"{rate * math.sqrt(images / wanted):.6g}")
