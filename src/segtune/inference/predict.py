"""Prediction: images in, masks of class ids at the original size out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from segtune.bars import progress_bar
from segtune.engines.engine_network import Engine, open_engine
from segtune.imageio.raster import is_image, read_ahead
from segtune.imageio.read import ImageLike
from segtune.inference.device import Precision, to_device
from segtune.inference.open_network import open_network, refuse_device
from segtune.inference.processor import load_processor
from segtune.inference.protocol import InferenceProtocol
from segtune.inference.segmenter import Segmenter, eval_mode, joined
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation


def predict(
    model: nn.Module | str | os.PathLike[str],
    images: ImageLike | Iterable[ImageLike],
    *,
    processor: SegformerImageProcessor | None = None,
    window: int | None = None,
    stride: int | None = None,
    tta: bool = False,
    batch_size: int = 1,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    engine: Engine = "torch",
    progress: bool = False,
) -> np.ndarray | list[np.ndarray]:
    """Segment images.

    Args:
        model: a `SegformerForSemanticSegmentation`, or the folder or Hub id of one. It is put into evaluation mode
            for the call. With an engine also an exported folder or file; to keep what an engine compiled from call to
            call, pass what `segtune.engines.engine_network.open_engine` returns.
        images: one or several paths, PIL images or arrays `(H, W)`, `(H, W, C)` or `(C, H, W)`. The orientation that a
            camera noted in the file is applied.
        processor: prepares the images; default is the one saved beside the model and, where there is none,
            `SegformerImageProcessor(do_resize=False)`.
        window: side of the windows, a multiple of 32, in which an image is segmented and from which it is blended;
            0 for the whole image at once. Default is what the processor says.
        stride: pixels from one window to the next; default is the processor's or three quarters of the window.
        tta: average the probabilities over six scales from 0.5 to 1.75, each with and without a flip.
        batch_size: images of one size, or windows of one image, that run at once.
        device: moves the model there first; default is where the model is or, for a path, the GPU if there is one.
        precision: in which a model of float32 weights runs: "fp32", "bf16" or "fp16"; "auto" is half precision on GPUs
            that have units for it, float32 elsewhere. An engine has its own, see `open_engine`.
        engine: what runs the network: "torch", or on a CPU "openvino" or "onnxruntime".
        progress: show a bar on stderr.

    Returns:
        Training ids `(H, W)` at the original size, uint8 (int32 where the model has more than 256 labels): an array
        for one image, a list for several. A model with one logit answers 0 and 1.

    Raises:
        DataError: a file that is missing or no image.
        UsageError: no model at this path, no processor for this number of channels, no such window, device or engine,
            or the package of the engine is missing.
    """
    single = is_image(images)
    items: list[Any] = [images] if single else list(images)  # type: ignore[arg-type]
    network = _opened(model, device, engine, precision)
    processor = load_processor(network) if processor is None else processor
    protocol = InferenceProtocol.choose(processor, window, stride, tta)
    segmenter = Segmenter(network, processor, protocol, batch_size, precision=precision)
    masks: list[np.ndarray] = [np.empty(0)] * len(items)
    rasters = read_ahead((number, segmenter.open(item)) for number, item in enumerate(items))
    with eval_mode(network), progress_bar(total=len(items), desc="predict", hidden=not progress) as bar:
        for number, strips in segmenter.segment(rasters):
            masks[number] = joined(strips).labels
            bar.update()
    return masks[0] if single else masks


def _opened(
    model: nn.Module | str | os.PathLike[str], device: str | torch.device | None, engine: Engine, precision: Precision
) -> nn.Module:
    """The model, loaded if it is a path; a loaded one goes to the best device, another one stays where it is."""
    if isinstance(model, (str, os.PathLike)):
        network: nn.Module = open_network(model, device, engine, precision, option="device")
        return network
    if engine != "torch" and isinstance(model, SegformerForSemanticSegmentation):
        refuse_device(engine, device, "device")
        return open_engine(model, engine, precision)
    return model if device is None else to_device(model, device, "device")
