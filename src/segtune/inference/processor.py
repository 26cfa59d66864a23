"""Image processors: the one saved beside a checkpoint, or one made from the sections of a recipe."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch import nn
from transformers.utils import cached_file

from segtune.data.config import TransformConfig
from segtune.errors import DataError, UsageError
from segtune.hub_errors import answers_later, fault_of_hub, offline_if_out_of_reach, patiently
from segtune.inference.config import EvaluationConfig
from segtune.segformer.checkpoint_files import PROCESSOR, check_download, check_saved, read_json
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
        DataError: see `read_processor`; or the Hub does not hand it out now.
    """
    path = _saved_processor(getattr(model, "name_or_path", ""), model, is_told=default is None)
    if path is not None:
        return read_processor(path)
    if default is not None:
        return default()
    channels = getattr(getattr(model, "config", None), "num_channels", 3)
    if channels != 3:
        raise UsageError(
            f"the model reads {channels} channels and has no preprocessor_config.json: pass "
            "processor=SegformerImageProcessor(do_resize=False, image_mean=..., image_std=...), one value per channel"
        )
    return SegformerImageProcessor(do_resize=False)


def read_processor(path: Path) -> SegformerImageProcessor:
    """The image processor of a `preprocessor_config.json`.

    Raises:
        DataError: it is damaged, or has values that make no sense; the message names it.
    """
    content = read_json(path)
    try:
        processor: SegformerImageProcessor = SegformerImageProcessor.from_dict(content)
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
    return processor


def _saved_processor(name: str, model: nn.Module, *, is_told: bool) -> Path | None:
    """The `preprocessor_config.json` beside a model's weights; None where none is there, or the Hub is out of reach.

    Args:
        is_told: warn of a repository on the Hub that gives none.
    """
    if not name:
        return None
    if os.path.isdir(name):
        check_saved(Path(name), [PROCESSOR])  # the weights were compared when they were loaded
        path = Path(name) / PROCESSOR
        return path if os.path.lexists(path) else None  # a link into nowhere is damage, not absence
    commit = getattr(getattr(model, "config", None), "_commit_hash", None)  # of the weights
    try:
        found = _cached(name, commit)
    except OSError as error:
        if answers_later(error):  # so that it may well be there
            raise DataError(f"{name}: its {PROCESSOR} cannot be fetched: {fault_of_hub(error)}") from error
        if is_told:
            reason = str(error).strip().splitlines()[0]
            logger.warning("%s: no preprocessor_config.json, so images keep their size (%s)", name, reason)
        return None
    check_download(Path(found).parent, [PROCESSOR])
    return Path(found)


def _cached(name: str, commit: str | None) -> str:
    """The file of the Hub's cache, fetched where it is not there; what is at hand of a commit needs no request."""
    if commit is not None:
        with suppress(OSError):
            return str(cached_file(name, PROCESSOR, revision=commit, local_files_only=True))
    with offline_if_out_of_reach():
        where = {"revision": commit} if commit else {}
        return str(patiently(lambda: cached_file(name, PROCESSOR, **where), f"{name}, {PROCESSOR}"))
