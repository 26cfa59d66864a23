"""What commands do before their work: open a split, load a checkpoint, refuse what would be lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segtune.errors import UsageError

if TYPE_CHECKING:
    from segtune.data.config import DatasetConfig
    from segtune.labels.label_map import LabelMap
    from segtune.recipe.recipe import Recipe
    from segtune.segformer.image_processing_segformer import SegformerImageProcessor


def is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # set by accelerate launch and torchrun


def hide_bars_of_libraries() -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # one for each checkpoint that is read or written


def open_data(dataset: DatasetConfig, split: str | None) -> tuple[Any, LabelMap]:
    """The rows of a data set by split, `split` at hand even where training streams it, and its label map."""
    from segtune.data.dataset import open_dataset

    return open_dataset(dataset.model_copy(update={"streaming": dataset.streaming and split != "train"}))


def open_split(dataset: DatasetConfig, split: str) -> tuple[Any, LabelMap]:
    """The rows of one split of a data set, at hand, and its label map."""
    from segtune.data.splits import choose_split

    opened, label_map = open_data(dataset, split)
    return opened[choose_split(split, opened, dataset.path)], label_map


def load_checkpoint(checkpoint: str, device: str | None) -> Any:
    from segtune.inference.predict import to_device
    from segtune.segformer.loading import load_model

    hide_bars_of_libraries()
    return to_device(load_model(checkpoint), device)


def load_processor(checkpoint: str, recipe: Recipe) -> SegformerImageProcessor:
    """The one saved with the checkpoint, else what the recipe says."""
    from segtune.inference.processor import processor_from_transforms
    from segtune.segformer.image_processing_segformer import SegformerImageProcessor
    from segtune.segformer.loading import split_revision

    source, revision = split_revision(checkpoint)
    try:
        return SegformerImageProcessor.from_pretrained(source, **({"revision": revision} if revision else {}))
    except OSError:
        return processor_from_transforms(recipe.transforms, recipe.evaluation)


def check_same_labels(checkpoint: str, config: Any, path: str, label_map: LabelMap) -> None:
    from segtune.labels.label_map import LabelMap

    own = LabelMap.from_config(config)
    if own.names != label_map.names:
        raise UsageError(
            f"the labels disagree: {checkpoint} has {own.num_labels} ({', '.join(own.names)}), {path} has "
            f"{label_map.num_labels} ({', '.join(label_map.names)}); dataset.labels can name the checkpoint's"
        )


def refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise UsageError(f"{path} exists already; name another file, or say --force to overwrite it")
