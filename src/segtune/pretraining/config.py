"""What `segtune pretrain` takes: the sections of a recipe as far as they matter without labels, and `masking`.

No module of this file's imports loads torch, so that a slip is told before that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

import segtune
from segtune.config import MayChangeOnResume, StrictModel
from segtune.data.config import Side, TransformConfig
from segtune.errors import UsageError
from segtune.recipe.recipe import Recipe, with_overrides
from segtune.recipe.yaml_file import whole
from segtune.training.config import Images, ScheduleName, TrainingConfig

STRIDE = 32  # pixels of a side that the last stage sees as one

USED = {  # of the sections of a recipe, what is read here; the others speak of labels
    "dataset": {"path", "on_error"},
    "transforms": {
        "crop_size", "short_side", "scale", "horizontal_flip", "vertical_flip", "rotate90", "mean", "std",
        "value_range",
    },
    "model": {"name", "variant", "config", "input_channels"},
    "training": {
        "output_dir", "max_steps", "batch_size", "accumulation_steps", "num_workers", "learning_rate", "weight_decay",
        "betas", "warmup_steps", "warmup_start_factor", "schedule", "power", "decay_share", "max_grad_norm",
        "mixed_precision", "matmul_precision", "deterministic", "compile", "seed", "overlays", "trackers", "save_every",
        "keep_last", "log_every", "device", "time_limit", "resume", "overwrite",
    },
    "masking": {"patch_size", "ratio", "stages"},
}  # fmt: skip


class CropConfig(TransformConfig):
    """The `transforms` of a pretraining: those of a recipe, at a smaller size."""

    crop_size: Side | tuple[Side, Side] = Field(
        224, description="Size of a crop, (height, width) in pixels, multiples of 32; one number for a square."
    )


class PretrainingConfig(TrainingConfig):
    """The `training` of a pretraining: that of a recipe, with the defaults of the SimMIM paper (section 4.1)."""

    max_steps: int = Field(5000, ge=1, description="Optimizer steps.")
    batch_size: MayChangeOnResume[Images] = Field(16, description="Images per micro-batch and process.")
    learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.05, ge=0, description="AdamW's weight decay; norms and biases have none.")
    schedule: ScheduleName = Field(
        "cosine", description="How the rate falls after the warm-up; wsd = warm-up, stable, decay."
    )
    max_grad_norm: float | None = Field(5.0, gt=0, description="Clip the gradient to this 2-norm; null = no clipping.")


class MaskingConfig(StrictModel):
    """The `masking` of a pretraining: what is hidden of a picture, and from which features it is painted."""

    patch_size: Side = Field(32, description="Side of the squares that are hidden, in pixels.")
    ratio: float = Field(0.6, gt=0, lt=1, description="Share of the squares that is hidden.")
    stages: tuple[int, ...] = Field(
        (1, 2, 3, 4), min_length=1, description="Stages of the encoder, from 1 on, that the pixels are painted from."
    )


class PretrainingRecipe(Recipe):
    """Everything that determines one pretraining; `dataset.path` is a folder of pictures."""

    transforms: CropConfig = Field(CropConfig(), description="Crops and their normalisation.")
    training: PretrainingConfig = Field(PretrainingConfig(), description="Steps, optimizer, and what a run writes.")
    masking: MaskingConfig = Field(MaskingConfig(), description="What is hidden of a picture.")

    @model_validator(mode="after")
    def _check_use(self) -> PretrainingRecipe:
        unused = [f"{name}.{key}" for name, keys in self._unused() for key in keys]
        if unused:
            raise ValueError(
                f"{', '.join(unused)}: pretraining, which sees no labels, has no use for that: leave it out"
            )
        if self.model.name is not None and self.model.config:
            raise ValueError("model.config describes random weights, model.name a checkpoint: leave one of them out")
        sides = self.crop_size
        for divisor, name in ((STRIDE, "the encoder's stride"), (self.masking.patch_size, "masking.patch_size")):
            if any(side % divisor for side in sides):
                raise ValueError(f"transforms.crop_size={list(sides)} must be multiples of {divisor}, {name}")
        if self.patches[0] * self.patches[1] < 2:
            raise ValueError("masking.patch_size is the whole crop: nothing is left to see")
        return self

    def _unused(self) -> list[tuple[str, list[str]]]:
        given = {name: getattr(self, name).model_fields_set for name in type(self).model_fields}
        return [(name, sorted(keys - USED.get(name, set()))) for name, keys in given.items()]

    @property
    def crop_size(self) -> tuple[int, int]:
        """(height, width) of a crop in pixels."""
        size = self.transforms.crop_size
        return (size, size) if isinstance(size, int) else size

    @property
    def patches(self) -> tuple[int, int]:
        """Rows and columns of the squares that may be hidden of a crop."""
        height, width = self.crop_size
        return height // self.masking.patch_size, width // self.masking.patch_size

    def to_yaml(self) -> str:
        """Every field that pretraining reads, written out."""
        return whole(
            f"Every setting of one pretraining, written by segtune {segtune.__version__}",
            self.model_dump(include=USED),
        )


def load_pretraining(pictures: str, output: str | Path, overrides: Sequence[str] = ()) -> PretrainingRecipe:
    """The settings for a folder of pictures and a run folder, with overrides such as `training.max_steps=100`.

    Raises:
        UsageError: there is no such folder, or the run folder would lie in it; or lists everything wrong with the
            overrides at once.
    """
    folder, words = Path(pictures).expanduser(), [*overrides, f"training.output_dir={json.dumps(str(output))}"]
    recipe = with_overrides(PretrainingRecipe, folder, {"dataset": {"path": pictures}}, words)
    if not folder.is_dir():
        raise UsageError(f"{pictures}: there is no such folder of pictures")
    if Path(output).resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{output} lies among the pictures of {pictures}: choose another run folder")
    return recipe
