"""The `evaluation` section of a recipe: at what size, and in which windows, an image is segmented."""

from __future__ import annotations

from pydantic import Field, model_validator

from segtune.config import MAX_BATCH_SIZE, MayChangeOnResume, StrictModel
from segtune.inference.protocol import InferenceProtocol


class EvaluationConfig(StrictModel):
    """The `evaluation` section of a recipe: the protocol under which images are segmented.

    It holds for the evaluations of training. All but `batch_size` is saved with the checkpoint, and so holds for every
    later evaluation and prediction too. How often training evaluates is a matter of its schedule:
    `training.eval_every`.
    """

    short_side: int | None = Field(
        None, ge=1, description="Images are resized to this short side, in pixels; null = they keep their own size."
    )
    size_divisor: int = Field(
        1, ge=1, description="Sides of images are rounded up to a multiple of this number of pixels."
    )
    window: int | None = Field(
        None,
        ge=1,
        description="Side of the windows that are segmented one by one and blended (mmseg's slide), a multiple of 32 "
        "pixels; null = the whole image at once (mmseg's whole).",
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="Pixels from one window to the next, a multiple of 4; null = three quarters of the window.",
    )
    batch_size: MayChangeOnResume[int] = Field(
        1, ge=1, le=MAX_BATCH_SIZE, description="Images of one size that are evaluated together."
    )

    @model_validator(mode="after")
    def _check(self) -> EvaluationConfig:
        InferenceProtocol(self.window, self.stride)
        return self
