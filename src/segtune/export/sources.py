"""What is exported, and the pictures that the export is compared with it on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from segtune.errors import UsageError
from segtune.export.calibration_inputs import network_inputs, spread
from segtune.export.certificate import Picture
from segtune.imageio.raster import read_ahead
from segtune.inference.evaluate import labelled_image
from segtune.inference.evaluate_checkpoint import DataSettings, OpenedCheckpoint, open_checkpoint
from segtune.inference.processor import load_processor
from segtune.inference.segmenter import Segmenter, form_of
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.loading import load_model
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation


class Source(NamedTuple):
    """A checkpoint, and the pictures that its export is compared on.

    Attributes:
        name: the checkpoint's folder or Hub id.
        pictures: gives them anew each time it is called.
        total: how many there are.
        data: in words, what they are.
        inputs: gives what int8 is calibrated on: of images of the training split, what the network is given; None where
            no data set is named.
    """

    name: str
    model: SegformerForSemanticSegmentation
    processor: SegformerImageProcessor
    pictures: Callable[[], Iterator[Picture]]
    total: int
    data: str
    inputs: Callable[[], list[np.ndarray]] | None = None


def source_of_data(checkpoint: str, data: str | DataSettings, split: str, limit: int) -> Source:
    """A checkpoint, to be compared on at most `limit` images of a split, spread over it.

    Args:
        data: a recipe, or the path of a data set whose masks hold what the checkpoint was trained on.

    Raises:
        UsageError: see `open_checkpoint`; or the split is empty.
    """
    opened = open_checkpoint(checkpoint, data, split=split, device="cpu")
    model = cast("SegformerForSemanticSegmentation", opened.model)  # of no other engine
    numbers = spread(len(opened.rows), limit)
    if not numbers:
        raise UsageError(f"the {split} split holds no image to compare the export on: name another --split")
    path = data if isinstance(data, str) else data.dataset.path
    words = f"{len(numbers)} images of the {split} split of {path}"
    pictures = partial(_labelled, opened, numbers)
    train = opened.dataset.get("train")
    inputs = None if train is None else partial(network_inputs, train, opened.label_map, opened.processor)
    return Source(checkpoint, model, opened.processor, pictures, len(numbers), words, inputs)


def source_of_images(checkpoint: str, images: Sequence[Path], limit: int) -> Source:
    """A checkpoint, to be compared on at most `limit` of some image files, spread over them.

    Raises:
        UsageError: there is no such checkpoint.
    """
    model = load_model(checkpoint, whole=True)
    processor = load_processor(model)
    chosen = [images[number] for number in spread(len(images), limit)]
    pictures = partial(_of_files, chosen, Segmenter(model, processor))
    return Source(checkpoint, model, processor, pictures, len(chosen), f"{len(chosen)} images given")


def _labelled(opened: OpenedCheckpoint, numbers: Sequence[int]) -> Iterator[Picture]:
    form = form_of(opened.processor)
    for sample in read_ahead(labelled_image(opened.rows, number, opened.label_map, form) for number in numbers):
        yield Picture(sample.id, sample.image, sample.labels)


def _of_files(paths: Sequence[Path], segmenter: Segmenter) -> Iterator[Picture]:
    for path in paths:
        raster = segmenter.open(path)
        yield Picture(os.fspath(path), raster.read(0, raster.height))
