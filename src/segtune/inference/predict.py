"""A trained network on images: predictions at the original size, by whichever protocol, and evaluation."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from segtune.errors import UsageError
from segtune.imageio.raster import is_image, read_ahead
from segtune.imageio.read import ImageLike
from segtune.inference.processor import processor_of
from segtune.inference.protocol import InferenceProtocol
from segtune.inference.segmenter import Segmenter, joined
from segtune.segformer.loading import load_model

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)
Network = TypeVar("Network", bound=nn.Module)


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
    segmenter = Segmenter(network, processor, InferenceProtocol.choose(processor, window, stride, tta), batch_size)
    masks: list[np.ndarray] = [np.empty(0)] * len(items)
    rasters = read_ahead((number, segmenter.open(item)) for number, item in enumerate(items))
    with evaluating(network), tqdm(total=len(items), desc="predict", disable=not progress) as bar:
        for number, bands in segmenter.segment(rasters):
            masks[number] = joined(bands).labels
            bar.update()
    return masks[0] if single else masks


# ---- data sets ----


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


def to_device(model: Network, device: str | None) -> Network:
    """The model on a device that a user has named, by default on the best; UsageError where there is none such."""
    try:
        return model.to(device or best_device())
    except (RuntimeError, AssertionError) as error:  # of a torch without that kind of device
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from error
