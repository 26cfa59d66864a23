"""A trained network on images: predictions at the original size, by whichever protocol, and evaluation."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from segtune.checkpoint import load_model
from segtune.data.loading import for_display, read_pair
from segtune.data.transforms import TransformConfig
from segtune.errors import DataError, UsageError
from segtune.evaluation import Evaluation
from segtune.images import ArrayRaster, ImageLike, is_image, read_ahead
from segtune.labels import LabelMap
from segtune.protocol import Protocol
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segmenter import Segmenter, joined

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

OnImage = Callable[[str, np.ndarray, np.ndarray, np.ndarray], None]


class Evaluated(NamedTuple):
    """One image of a labelled dataset, with what the model answers: maps of one size."""

    id: str
    image: np.ndarray  # (H, W, 3) uint8, see `for_display`
    labels: np.ndarray  # (H, W), may hold the ignore index
    prediction: np.ndarray  # (H, W)
    confidence: np.ndarray | None  # (H, W)


def processor_for(transforms: TransformConfig) -> SegformerImageProcessor:
    """The image processor that prepares an image as evaluation during training did; it is saved with the weights.

    Without `eval_short_side` images keep their size, apart from `eval_size_divisor`.
    """
    if isinstance(transforms.mean, str) or isinstance(transforms.std, str):
        raise UsageError("transforms.mean and std are not counted yet: take them from the recipe.yaml of a run")
    low, high = transforms.value_range or (0, 255)
    return SegformerImageProcessor(
        do_resize=transforms.eval_short_side is not None,
        size={"shortest_edge": transforms.eval_short_side} if transforms.eval_short_side else 512,
        size_divisor=transforms.eval_size_divisor,
        window=transforms.eval_window,
        stride=transforms.eval_stride,
        rescale_factor=1 / (high - low),
        image_mean=[mean + low / (high - low) for mean in transforms.mean],
        image_std=transforms.std,
    )


# ---- predictions ----


def predict(
    model: nn.Module | str | os.PathLike[str],
    images: ImageLike | Iterable[ImageLike],
    *,
    processor: Any = None,
    window: int | None = None,
    stride: int | None = None,
    tta: bool = False,
    batch_size: int = 1,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> np.ndarray | list[np.ndarray]:
    """Segment images.

    Args:
        model: a `SegformerForSemanticSegmentation`, or the folder or Hub id of one. It is put into evaluation mode
            for the call.
        images: one or several paths, PIL images or arrays `(H, W)`, `(H, W, C)` or `(C, H, W)`. The orientation that a
            camera noted in the file is applied.
        processor: prepares the images; default is the one saved beside the model and, where there is none,
            `SegformerImageProcessor(do_resize=False)`.
        window: side of the windows, a multiple of 32, in which an image is segmented and from which it is blended;
            0 for the whole image at once. Default is what the processor says.
        stride: from one window to the next; default is the processor's or three quarters of the window.
        tta: average the probabilities over six scales from 0.5 to 1.75, each with and without a flip.
        batch_size: images of one size, or windows of one image, that run at once.
        device: moves the model there first; default is where the model is or, for a path, the GPU if there is one.
        progress: show a bar on stderr.

    Returns:
        Training ids `(H, W)` at the original size, uint8 (int32 where the model has more than 256 labels): an array
        for one image, a list for several. A model with one logit answers 0 and 1.

    Raises:
        DataError: a file that is missing or no image.
        UsageError: no model at this path, no processor for this number of channels, no such window.
    """
    single = is_image(images)
    items: list[Any] = [images] if single else list(images)  # type: ignore[arg-type]
    network, processor = _prepared(model, processor, device)
    segmenter = Segmenter(network, processor, Protocol.choose(processor, window, stride, tta), batch_size)
    masks: list[np.ndarray] = [np.empty(0)] * len(items)
    rasters = read_ahead((number, segmenter.open(item)) for number, item in enumerate(items))
    with evaluating(network), tqdm(total=len(items), desc="predict", disable=not progress) as bar:
        for number, bands in segmenter.segment(rasters):
            masks[number] = joined(bands).labels
            bar.update()
    return masks[0] if single else masks


# ---- data sets ----


def evaluate_model(
    model: nn.Module,
    dataset: datasets.Dataset,
    label_map: LabelMap,
    processor: Any,
    *,
    evaluation: Evaluation | None = None,
    protocol: Protocol | None = None,
    batch_size: int = 1,
    device: str | torch.device | None = None,
    progress: bool = True,
    indices: Sequence[int] | None = None,
    on_image: OnImage | None = None,
) -> Evaluation:
    """Compare predictions with masks, pixel by pixel at the size of the stored masks; no logits are kept.

    Args:
        evaluation: what the images are added to; default is a new one of the label map's classes. A detailed one is
            given confidences too, with the temperature of the model's configuration.
        on_image: called with `(id, image, labels, prediction)` for every image: `(H, W, 3)` uint8, `(H, W)`, `(H, W)`.
        model, dataset, label_map, processor, protocol, batch_size, device, progress, indices: see `evaluated_images`.

    Raises:
        DataError: a file that cannot be read, or a mask that the label map does not fit; the message names the sample.
        UsageError: the model and the label map differ in the number of labels.
    """
    if evaluation is None:
        evaluation = Evaluation(label_map.names, label_map.ignore_index)
    for found in evaluated_images(
        model,
        dataset,
        label_map,
        processor,
        protocol=protocol,
        confidence=evaluation.detailed,
        batch_size=batch_size,
        device=device,
        progress=progress,
        indices=indices,
    ):
        evaluation.add(found.id, found.labels, found.prediction, found.confidence)
        if on_image is not None:
            on_image(found.id, found.image, found.labels, found.prediction)
    return evaluation


def evaluated_images(
    model: nn.Module,
    dataset: datasets.Dataset,
    label_map: LabelMap,
    processor: Any,
    *,
    protocol: Protocol | None = None,
    confidence: bool = False,
    batch_size: int = 1,
    device: str | torch.device | None = None,
    progress: bool = True,
    indices: Sequence[int] | None = None,
) -> Iterator[Evaluated]:
    """Every image of a labelled dataset with its labels and the model's answer, one at a time.

    Args:
        model: anything whose output has `.logits` `(B, K, h, w)`; leaves as it came, in training mode or not.
        dataset: rows with `id`, `image` and `mask`, as `load_segmentation_dataset` returns them.
        label_map: turns masks into labels; `K` is its number of labels (or 1 for its two).
        processor: prepares the images, e.g. `processor_for(transforms)`.
        protocol: default is the one that the processor carries, see `Protocol.choose`.
        confidence: also the probability of each pixel's class.
        batch_size: images of one size, or windows of one image, that run at once.
        indices: rows to use, e.g. this process's share; default is all. Images may come in another order.

    Raises:
        DataError: a file that cannot be read, or a mask that the label map does not fit; the message names the sample.
        UsageError: the model and the label map differ in the number of labels.
    """
    rows = range(len(dataset)) if indices is None else indices
    if device is not None:
        model.to(device)
    segmenter = Segmenter(model, processor, protocol, batch_size, label_map.num_labels)
    samples = read_ahead(labelled_sample(dataset, number, label_map, segmenter.form) for number in rows)
    images = ((sample, ArrayRaster(sample.image)) for sample in samples)
    with evaluating(model), tqdm(total=len(rows), desc="evaluate", disable=not progress, leave=False) as bar:
        for sample, bands in segmenter.segment(images, confidence):
            yield Evaluated(sample.id, for_display(sample.image), sample.labels, *joined(bands))
            bar.update()


class _Sample(NamedTuple):
    id: str
    image: np.ndarray  # (H, W, C)
    labels: np.ndarray  # (H, W)


def labelled_sample(dataset: datasets.Dataset, number: int, label_map: LabelMap, form: tuple[int, bool]) -> _Sample:
    """Id, image and labels of a row, see `read_pair`; DataError with its id where they cannot be read."""
    try:
        row = dataset[number]
        image, labels = read_pair(row, label_map, *form)
    except Exception as error:
        name = dataset.select_columns("id")[number]["id"]
        raise DataError(f"sample {name!r}: {error}") from error
    return _Sample(row["id"], image, labels)


# ---- models ----


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _prepared(model: Any, processor: Any, device: str | torch.device | None) -> tuple[nn.Module, Any]:
    """The model on its device and the processor that belongs to it."""
    network = model
    if isinstance(model, (str, os.PathLike)):
        network = load_model(os.fspath(model))
        device = device or best_device()
    if device is not None:
        network.to(device)
    return network, processor if processor is not None else processor_of(network)


def best_device() -> str:
    """The accelerator that is there, or the CPU."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def to_device(model: nn.Module, device: str | None) -> nn.Module:
    """The model on a device that a user has named, by default on the best there is; UsageError where it is not there."""
    try:
        return model.to(device or best_device())
    except (RuntimeError, AssertionError) as error:  # of a torch without that kind of device
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from error


def processor_of(model: nn.Module) -> SegformerImageProcessor:
    """The image processor saved beside the weights; where there is none, one that keeps the image's size."""
    name = getattr(model, "name_or_path", "")
    commit = getattr(getattr(model, "config", None), "_commit_hash", None)  # of the weights, where they are the Hub's
    if name and (not os.path.isdir(name) or (Path(name) / "preprocessor_config.json").is_file()):
        try:
            return SegformerImageProcessor.from_pretrained(name, **({"revision": commit} if commit else {}))
        except OSError as error:  # a repository on the Hub that has none, or that is out of reach
            reason = str(error).strip().splitlines()[0]
            logger.warning("%s: no preprocessor_config.json, so images keep their size (%s)", name, reason)
    channels = getattr(getattr(model, "config", None), "num_channels", 3)
    if channels != 3:
        raise UsageError(
            f"the model reads {channels} channels and has no preprocessor_config.json: pass "
            "processor=SegformerImageProcessor(do_resize=False, image_mean=..., image_std=...), one value per channel"
        )
    return SegformerImageProcessor(do_resize=False)
