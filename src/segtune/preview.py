"""What training will see: augmented samples of a recipe on one sheet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from segtune.data.batches import TrainingBatches
from segtune.data.rare_classes import training_transform
from segtune.drawing import contact_sheet

if TYPE_CHECKING:
    import datasets
    from PIL import Image

    from segtune.data.transforms import TransformConfig
    from segtune.labels import LabelMap


def preview(
    rows: datasets.Dataset | datasets.IterableDataset,
    label_map: LabelMap,
    transforms: TransformConfig,
    *,
    seed: int = 0,
    count: int = 16,
) -> Image.Image:
    """A contact sheet of the first training samples that a run with this seed sees, augmented as it sees them.

    Args:
        rows: the training split, or a stream of it.
    """
    transform = training_transform(transforms, rows, label_map)
    steps = TrainingBatches(rows, label_map, transform, seed, batch_size=1, buffer=count).steps(0, count)
    samples = []
    for (batch,) in steps:
        pixels = for_display(batch["pixel_values"][0].numpy(), transforms)
        samples.append((batch["ids"][0], pixels, batch["labels"][0].numpy()))
    return contact_sheet(samples, label_map)


def for_display(pixel_values: np.ndarray, transforms: TransformConfig) -> np.ndarray:
    """Normalised pixels (C, H, W) as (H, W, 3) uint8; of other numbers of channels the first three, or the first.

    What `transforms.value_range` declares black and white is shown so.
    """
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (transforms.mean, transforms.std))
    pixels = ((pixel_values * std + mean) * 255).round().clip(0, 255).astype(np.uint8)
    shown = pixels[:3] if len(pixels) >= 3 else pixels[[0, 0, 0]]
    return np.ascontiguousarray(shown.transpose(1, 2, 0))  # (H, W, 3)
