"""Temperature scaling: one number, fitted to images that a model was not trained on, makes its confidences honest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from segtune.bars import progress_bar
from segtune.errors import DataError, UsageError
from segtune.evaluation.calibration import TemperatureFit
from segtune.files import MODEL_MANIFEST, update_manifest, write_atomic
from segtune.imageio.raster import ArrayRaster, read_ahead
from segtune.inference.evaluate import labelled_image
from segtune.inference.segmenter import Segmenter, eval_mode
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.upsampling import upsampled_at

if TYPE_CHECKING:
    import datasets

PIXELS = 200_000  # that the temperature is fitted to, spread over the images


class NothingLabelledError(DataError):
    """All pixels that a temperature could be fitted to are ignored."""


def fit_temperature(
    model: nn.Module,
    dataset: datasets.Dataset,
    label_map: LabelMap,
    processor: SegformerImageProcessor,
    *,
    pixels: int = PIXELS,
    progress: bool = True,
) -> TemperatureFit:
    """Fit the temperature to a random sample of the labelled pixels; images are seen whole, one at a time.

    Args:
        model: its output has `.logits` `(1, K, h, w)`; it is put into evaluation mode for the call.
        dataset: rows with `id`, `image` and `mask`.
        pixels: how many, over all images; drawn by the number of the image, the same in each run.

    Raises:
        DataError: a mask that the label map does not fit.
        NothingLabelledError: there is no labelled pixel at all.
    """
    fit, share = TemperatureFit(), max(1, -(-pixels // max(len(dataset), 1)))
    segmenter = Segmenter(model, processor)
    samples = read_ahead(labelled_image(dataset, number, label_map, segmenter.form) for number in range(len(dataset)))
    bar = progress_bar(samples, desc="calibrate", total=len(dataset), hidden=not progress, leave=False)
    with eval_mode(model):
        for number, (_, image, labels) in enumerate(bar):
            positions = np.flatnonzero(labels != label_map.ignore_index)
            picked = np.random.default_rng(number).permutation(positions)[:share]
            rows, columns = (torch.from_numpy(at) for at in np.divmod(picked, labels.shape[1]))
            logits = segmenter.logits(ArrayRaster(image)).cpu()
            fit.add(upsampled_at(logits, labels.shape, rows, columns).numpy(), labels.reshape(-1)[picked])
    if not fit.pixels:
        raise NothingLabelledError("there is no labelled pixel to fit the temperature to")
    return fit


def config_file(checkpoint: str) -> Path:
    """The `config.json` of a checkpoint's folder; UsageError where it is no folder on this disk."""
    path = Path(checkpoint) / "config.json"
    if not path.is_file():
        raise UsageError(f"{checkpoint} is no folder with a config.json to store the temperature in")
    return path


def store_temperature(config: Path, temperature: float) -> None:
    """Write the temperature into a `config.json`, as `calibration_temperature`; everything else stays."""
    content = json.loads(config.read_text(encoding="utf-8")) | {"calibration_temperature": temperature}
    write_atomic(config, json.dumps(content, indent=2, sort_keys=True) + "\n")
    update_manifest(config, MODEL_MANIFEST)
