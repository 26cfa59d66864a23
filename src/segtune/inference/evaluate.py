"""Evaluation of a model: its predictions against the masks of a data set, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from segtune.bars import progress_bar
from segtune.data.lazy_rows import decoded, undecoded
from segtune.data.samples import read_pair
from segtune.errors import DataError
from segtune.evaluation.evaluation import Evaluation
from segtune.imageio.raster import ArrayRaster, read_ahead
from segtune.imageio.read import for_display
from segtune.inference.device import Precision
from segtune.inference.protocol import InferenceProtocol
from segtune.inference.segmenter import Segmenter, eval_mode, joined
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor

if TYPE_CHECKING:
    import datasets

OnImage = Callable[[str, np.ndarray, np.ndarray, np.ndarray], None]


class EvaluatedImage(NamedTuple):
    """One image of a labelled dataset, with what the model answers: maps of one size."""

    id: str
    image: np.ndarray  # (H, W, C) as read; see `for_display`
    labels: np.ndarray  # (H, W), may hold the ignore index
    prediction: np.ndarray  # (H, W)
    confidence: np.ndarray | None  # (H, W)


def evaluate_model(
    model: nn.Module,
    dataset: datasets.Dataset,
    label_map: LabelMap,
    processor: SegformerImageProcessor,
    *,
    evaluation: Evaluation | None = None,
    on_image: OnImage | None = None,
    **options: Any,
) -> Evaluation:
    """Compare predictions with masks, pixel by pixel at the size of the stored masks; no logits are kept.

    Args:
        evaluation: what the images are added to; default is a new one of the label map's classes. A detailed one is
            given confidences too, with the temperature of the model's configuration.
        on_image: called with `(id, image, labels, prediction)` for every image: `(H, W, 3)` uint8, `(H, W)`, `(H, W)`.
        model, dataset, label_map, processor, options: see `evaluated_images`.

    Raises:
        DataError: a file that cannot be read, or a mask that the label map does not fit; the message names the sample.
        UsageError: the model and the label map differ in the number of labels.
    """
    if evaluation is None:
        evaluation = Evaluation(label_map.names, label_map.ignore_index)
    options["confidence"] = evaluation.detailed
    for found in evaluated_images(model, dataset, label_map, processor, **options):
        evaluation.add(found.id, found.labels, found.prediction, found.confidence)
        if on_image is not None:
            on_image(found.id, for_display(found.image), found.labels, found.prediction)
    return evaluation


def evaluated_images(
    model: nn.Module,
    dataset: datasets.Dataset,
    label_map: LabelMap,
    processor: SegformerImageProcessor,
    *,
    protocol: InferenceProtocol | None = None,
    confidence: bool = False,
    batch_size: int = 1,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    progress: bool = True,
    indices: Sequence[int] | None = None,
) -> Iterator[EvaluatedImage]:
    """Every image of a labelled dataset with its labels and the model's answer, one at a time.

    Args:
        model: anything whose output has `.logits` `(B, K, h, w)`; leaves as it came, in training mode or not.
        dataset: rows with `id`, `image` and `mask`, as `load_segmentation_dataset` returns them.
        label_map: turns masks into labels; `K` is its number of labels (or 1 for its two).
        processor: prepares the images, e.g. `processor_from_transforms(transforms)`.
        protocol: default is the one that the processor carries, see `InferenceProtocol.choose`.
        confidence: also the probability of each pixel's class.
        batch_size: images of one size, or windows of one image, that run at once.
        precision: in which the model runs, see `choose_precision`.
        indices: rows to use, e.g. this process's share; default is all. Images may come in another order.

    Raises:
        DataError: a file that cannot be read, or a mask that the label map does not fit; the message names the sample.
        UsageError: the model and the label map differ in the number of labels.
    """
    dataset, rows = undecoded(dataset), range(len(dataset)) if indices is None else indices
    if device is not None:
        model.to(device)
    segmenter = Segmenter(model, processor, protocol, batch_size, label_map.num_labels, precision)
    samples = read_ahead(labelled_image(dataset, number, label_map, segmenter.form) for number in rows)
    images = ((sample, _raster(sample, segmenter)) for sample in samples)
    with eval_mode(model), progress_bar(total=len(rows), desc="evaluate", hidden=not progress, leave=False) as bar:
        for sample, strips in segmenter.segment(images, confidence):
            yield EvaluatedImage(sample.id, sample.image, sample.labels, *joined(strips))
            bar.update()


def _raster(sample: LabelledImage, segmenter: Segmenter) -> ArrayRaster:
    """The image of a sample; DataError with its id where an engine takes no image of its size."""
    raster = ArrayRaster(sample.image)
    segmenter.check_size(raster.height, raster.width, f"sample {sample.id!r}")
    return raster


class LabelledImage(NamedTuple):
    id: str
    image: np.ndarray  # (H, W, C)
    labels: np.ndarray  # (H, W)


def labelled_image(
    dataset: datasets.Dataset, number: int, label_map: LabelMap, form: tuple[int, bool]
) -> LabelledImage:
    """Id, image and labels of a row, see `read_pair`; DataError with its id where they cannot be read."""
    try:
        row = decoded(undecoded(dataset)[number])
        return LabelledImage(row["id"], *read_pair(row, label_map, *form))
    except DataError as error:
        name = dataset.select_columns("id")[number]["id"]
        raise error.named(f"sample {name!r}") from error
