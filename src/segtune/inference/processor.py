"""Image processors: the one saved beside a checkpoint, or one made from the sections of a recipe."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from torch import nn

from segtune.data.transforms import TransformConfig
from segtune.errors import UsageError
from segtune.inference.config import EvaluationConfig
from segtune.segformer.image_processing_segformer import SegformerImageProcessor

logger = logging.getLogger(__name__)


def processor_from_transforms(
    transforms: TransformConfig, evaluation: EvaluationConfig | None = None
) -> SegformerImageProcessor:
    """The image processor that prepares an image as evaluation during training did; it is saved with the weights.

    Args:
        transforms: the section gives the mean, the standard deviation and the range of the pixel values.
        evaluation: the section gives the size of the image and of the windows; by default images keep their size.
    """
    evaluation = evaluation or EvaluationConfig()
    if isinstance(transforms.mean, str) or isinstance(transforms.std, str):
        raise UsageError("transforms.mean and std are not counted yet: take them from the recipe.yaml of a run")
    low, high = transforms.value_range or (0, 255)
    return SegformerImageProcessor(
        do_resize=evaluation.short_side is not None,
        size={"shortest_edge": evaluation.short_side} if evaluation.short_side else 512,
        size_divisor=evaluation.size_divisor,
        window=evaluation.window,
        stride=evaluation.stride,
        rescale_factor=1 / (high - low),
        value_range=transforms.value_range,
        image_mean=[mean + low / (high - low) for mean in transforms.mean],
        image_std=transforms.std,
    )


def load_processor(
    model: nn.Module, default: Callable[[], SegformerImageProcessor] | None = None
) -> SegformerImageProcessor:
    """The image processor saved beside the weights of a model, at the revision that they are of.

    Args:
        model: was loaded from a checkpoint, whose folder or Hub id is its `name_or_path`.
        default: makes the processor where none was saved. Without it, that is one that keeps the image's size, which
            is warned of where the checkpoint is on the Hub.

    Raises:
        UsageError: none was saved, there is no default, and the model reads other than three channels.
    """
    name = getattr(model, "name_or_path", "")
    commit = getattr(getattr(model, "config", None), "_commit_hash", None)  # of the weights, where they are the Hub's
    if name and (not os.path.isdir(name) or (Path(name) / "preprocessor_config.json").is_file()):
        try:
            return SegformerImageProcessor.from_pretrained(name, **({"revision": commit} if commit else {}))
        except OSError as error:  # a repository on the Hub that has none, or that is out of reach
            if default is None:
                reason = str(error).strip().splitlines()[0]
                logger.warning("%s: no preprocessor_config.json, so images keep their size (%s)", name, reason)
    if default is not None:
        return default()
    channels = getattr(getattr(model, "config", None), "num_channels", 3)
    if channels != 3:
        raise UsageError(
            f"the model reads {channels} channels and has no preprocessor_config.json: pass "
            "processor=SegformerImageProcessor(do_resize=False, image_mean=..., image_std=...), one value per channel"
        )
    return SegformerImageProcessor(do_resize=False)
