"""Segmentation of images by a model, a processor and a protocol: in strips of rows, and in bounded memory."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from segtune.engines.engine_network import EngineNetwork
from segtune.errors import UsageError, naming
from segtune.imageio.raster import Raster, open_raster, read_ahead, resized
from segtune.imageio.read import ImageLike
from segtune.inference.device import Precision, autocast, choose_precision
from segtune.inference.ensemble import Ensemble
from segtune.inference.protocol import LOGIT_STRIDE, InferenceProtocol
from segtune.inference.sliding_window import Span, UpsampledRows, blend_across, blend_down, spans
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.image_processing_segformer import resize as resize_image
from segtune.segformer.upsampling import strip_rows, upsample, upsampled_confidence, upsampled_prediction

STRIP = 256  # rows of a prediction that are made at a time

Key = TypeVar("Key")
Prepared = tuple[Any, tuple[int, int], Tensor]  # key, size of the image, pixel_values (1, C, h, w)
Ahead = tuple[Sequence[Any], Sequence[Callable[[], "Prediction"]]]  # keys, and what makes the prediction of each


class Prediction(NamedTuple):
    """What a model answers for an image, or for a strip of its rows.

    Attributes:
        labels: training ids `(H, W)`, uint8 (int32 where the model has more than 256 labels).
        confidence: the probability of each, `(H, W)` float32 in (0, 1]; None unless asked for.
    """

    labels: np.ndarray
    confidence: np.ndarray | None


class Segmenter:
    """A model, its processor and a protocol: from images to predictions.

    Args:
        model: anything whose output has `.logits` `(B, K, h/4, w/4)`, in evaluation mode (see `eval_mode`); or an
            `Ensemble`, whose members see images one by one.
        processor: prepares the images; those of an ensemble have their own.
        protocol: default is the one that the processor carries.
        batch_size: images of one size, or windows of one image, in a forward pass.
        num_labels: UsageError where the model tells another number of classes apart; None does not check.
        precision: in which a model of float32 weights runs, see `choose_precision`; any other, and an engine, runs as
            it is.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: SegformerImageProcessor,
        protocol: InferenceProtocol | None = None,
        batch_size: int = 1,
        num_labels: int | None = None,
        precision: Precision = "auto",
    ) -> None:
        self.model, self.processor = model, processor
        self.precision = "fp32" if isinstance(model, EngineNetwork) else precision  # which has chosen its own
        self.protocol = InferenceProtocol.choose(processor) if protocol is None else protocol
        self.batch_size, self.num_labels = batch_size, num_labels
        self.form = form_of(processor)
        # fitted on held-out images and stored with the model; confidences are those of logits divided by it
        self.temperature = getattr(getattr(model, "config", None), "calibration_temperature", 1.0)
        self.members = self._members(model) if isinstance(model, Ensemble) else [self]

    def _members(self, ensemble: Ensemble) -> list[Segmenter]:
        """One for each network; the protocol is that of all."""
        options = (self.protocol, self.batch_size, self.num_labels, self.precision)
        pairs = zip(ensemble.members, ensemble.processors, strict=True)
        members = [Segmenter(model, processor, *options) for model, processor in pairs]
        if unlike := [member for member in members if member.form != self.form]:
            raise UsageError(
                f"{unlike[0].model.name_or_path} takes other channels or values of images than {ensemble.name_or_path}"
            )
        return members

    def __call__(self, image: ImageLike, confidence: bool = False) -> Prediction:
        """The prediction of one image, in memory, at its own size."""
        return joined(self.strips(self.open(image), confidence))

    def open(self, image: ImageLike, frame: int | None = None) -> Raster:
        """A path, PIL image or array as the raster that the processor takes; of a file, the frame that is wanted.

        Raises:
            DataError: it cannot be read, or an engine takes no image of its size.
        """
        raster = open_raster(image, *self.form, frame)
        self.check_size(raster.height, raster.width, os.fspath(image) if isinstance(image, str | os.PathLike) else None)
        return raster

    def check_size(self, height: int, width: int, name: str | None = None) -> None:
        """Raise DataError, with the name of the image where it has one, where an engine takes no image of its size."""
        for member in self.members:
            if isinstance(member.model, EngineNetwork):
                for scale in self.protocol.scales:
                    with naming(name) if name else nullcontext():
                        member.model.check_size(*member._window_of(member._size_at(height, width, scale)))

    def _size_at(self, height: int, width: int, scale: float) -> tuple[int, int]:
        """(height, width) of an image at one scale, before it is cut into windows."""
        divisor = self.processor.size_divisor
        height, width = self.processor.target_size(height, width)
        if scale == 1:
            return height, width
        height, width = (-(-max(1, round(scale * side)) // divisor) * divisor for side in (height, width))
        return height, width

    def _window_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of what the network sees of an image of some size."""
        window = self.protocol.window
        return (min(size[0], window), min(size[1], window)) if window else size

    def segment(
        self, images: Iterable[tuple[Key, Raster]], confidence: bool = False
    ) -> Iterator[tuple[Key, Iterator[Prediction]]]:
        """Images to predictions, each as strips from top to bottom that are made when they are asked for.

        Images of one size are joined to batches where the protocol sees them whole; their order is then that of
        finished batches.
        """
        if not self.protocol.is_plain or len(self.members) > 1:
            yield from ((key, self.strips(raster, confidence)) for key, raster in images)
            return
        prepared = ((key, (raster.height, raster.width), self._prepared(raster)) for key, raster in images)
        batches = _batches(read_ahead(prepared), self.batch_size)
        for keys, predictions in self._one_ahead(self._whole(batch, confidence) for batch in batches):
            yield from ((key, iter([prediction()])) for key, prediction in zip(keys, predictions, strict=True))

    def _one_ahead(self, batches: Iterator[Ahead]) -> Iterator[Ahead]:
        """On a GPU, the next batch is queued before the last one is waited for: it computes while masks are written."""
        waiting: list[Ahead] = []
        for batch in batches:
            waiting.append(batch)
            if len(waiting) > (self._kind == "cuda"):
                yield waiting.pop(0)
        yield from waiting

    @torch.inference_mode()
    def strips(self, raster: Raster, confidence: bool = False) -> Iterator[Prediction]:
        """The prediction of an image from top to bottom, 256 rows at a time, its logits never in memory as a whole."""
        views = [member._view(raster, scale) for member in self.members for scale in self.protocol.scales]
        temperatures = [member.temperature for member in self.members for _ in self.protocol.scales]
        first = views[0].read(0, 1)  # (flips, K, 1, w)
        step = min(STRIP, strip_rows(first.numel() * len(views), first.device))
        for top in range(0, raster.height, STRIP):
            bottom = min(top + STRIP, raster.height)
            parts = ((row, min(row + step, bottom)) for row in range(top, bottom, step))
            maps = ([view.read(*part) for view in views] for part in parts)
            yield joined(_decide(rows, raster.width, temperatures if confidence else None) for rows in maps)

    @torch.inference_mode()
    def logits(self, raster: Raster) -> Tensor:
        """Logits `(1, K, h/4, w/4)`, float32, of a whole image as the processor resizes it, whatever the protocol."""
        return self._forward(self._prepared(raster))

    def _prepared(self, raster: Raster) -> Tensor:
        """The whole image at the size that the network sees, `(1, C, h, w)`: see `_planes`."""
        return self._planes(raster.read(0, raster.height))

    def _planes(self, images: np.ndarray | Sequence[np.ndarray], resize: bool = True) -> Tensor:
        """Images `(h, w, C)` of one size, prepared by the processor: `(B, C, h, w)`; for a device, still in bytes.

        Of bytes, a quarter is moved; `_normalized` then does on the device what the processor does on the CPU.
        """
        arrays = [images] if isinstance(images, np.ndarray) else images
        processor = self.processor
        if self._kind == "cpu" or any(array.dtype != np.uint8 for array in arrays):
            options: dict[str, Any] = {} if resize else {"do_resize": False, "size_divisor": 1}
            options |= {"return_tensors": "pt", "input_data_format": "channels_last"}
            pixel_values: Tensor = processor(list(arrays), **options)["pixel_values"]
            return pixel_values
        if resize:
            size = processor.target_size(*arrays[0].shape[:2])
            arrays = [resize_image(array, size, processor.resample) for array in arrays]
        return torch.from_numpy(np.stack([array.transpose(2, 0, 1) for array in arrays]))

    def _normalized(self, pixel_values: Tensor) -> Tensor:
        """Images as the network sees them, where and as it is: `(B, C, h, w)`."""
        weight, processor = self._weight, self.processor
        if self._kind == "cuda":
            pixel_values = pixel_values.pin_memory()  # so that the copy is queued, and not waited for
        moved = pixel_values.to(weight.device, non_blocking=True)
        if pixel_values.dtype != torch.uint8:
            return moved.to(weight.dtype)
        moved = moved.float()
        if processor.do_rescale:
            moved *= processor.rescale_factor
        if processor.do_normalize:
            mean, std = self._mean_and_std
            moved = (moved - mean) / std
        return moved.to(weight.dtype)

    @cached_property
    def _mean_and_std(self) -> Tensor:
        """`(2, C, 1, 1)`, on the device once."""
        processor, device = self.processor, self._weight.device
        return torch.tensor([processor.image_mean, processor.image_std], device=device)[:, :, None, None]

    @property
    def _weight(self) -> Tensor:
        """A parameter, which says where and in what the model computes."""
        return next(parameter for parameter in self.model.parameters() if parameter.is_floating_point())

    @property
    def _kind(self) -> str:
        """Of the device that the model is on."""
        return self._weight.device.type

    @torch.inference_mode()
    def _whole(self, batch: Sequence[Prepared], confidence: bool) -> Ahead:
        """The keys of prepared images seen whole, and for each what makes its prediction, one at a time at full size.

        The network has run, or is queued on its device.
        """
        keys, sizes, values = zip(*batch, strict=True)
        logits, temperature = self._forward(torch.cat(values)), self._temperature(confidence)
        maps = zip(logits.split(1), sizes, strict=True)
        make = _queued if self._kind == "cuda" else partial(partial, _predict_map)
        return keys, [make(one, size, temperature) for one, size in maps]

    def _temperature(self, confidence: bool) -> float | None:
        """Of the confidences; None where they are not wanted."""
        return self.temperature if confidence else None

    def _forward(self, pixel_values: Tensor) -> Tensor:
        """Logits `(B, K, h/4, w/4)`, float32, of `(B, C, h, w)` as `_planes` makes them."""
        weight, pixel_values = self._weight, self._normalized(pixel_values)
        precision = choose_precision(self.precision, weight.device) if weight.dtype == torch.float32 else "fp32"
        with autocast(precision, weight.device):
            logits: Tensor = self.model(pixel_values=pixel_values).logits
        found = max(logits.shape[1], 2)  # one logit tells two classes apart
        if self.num_labels is not None and self.num_labels != found:
            raise UsageError(
                f"the model tells {found} classes apart, the label map has {self.num_labels}: "
                "use the label map the model was trained with"
            )
        return logits.float()

    def _view(self, raster: Raster, scale: float) -> UpsampledRows:
        """The image at one scale, as rows of logits `(flips, K, rows, w)` that are computed when they are read."""
        height, width = self._size_at(raster.height, raster.width, scale)
        seen = resized(raster.again(), (height, width), self.processor.resample)
        down, across = (
            spans(side, self.protocol.window, self.protocol.stride, self._weight.device) for side in (height, width)
        )
        pixels = read_ahead(seen.read(span.start, span.stop) for span in down)
        rows_of_windows = (self._blended_row(rows, across) for rows in pixels)
        return UpsampledRows(blend_down(rows_of_windows, down), -(-height // LOGIT_STRIDE), raster.height)

    def _blended_row(self, pixels: np.ndarray, across: Sequence[Span]) -> Tensor:
        """The blended logits `(flips, K, n/4, w/4)` of one row of windows, pixels `(n, w, C)`."""

        def windows() -> Iterator[tuple[Span, Tensor]]:
            for group in _groups(across, self.batch_size):
                logits = self._window_logits([pixels[:, span.start : span.stop] for span in group])
                yield from zip(group, logits.unbind(1), strict=True)

        return blend_across(windows(), -(-pixels.shape[1] // LOGIT_STRIDE))

    def _window_logits(self, windows: Sequence[np.ndarray]) -> Tensor:
        """Of windows `(h, w, C)` of one size, as they are and, if asked for, mirrored: `(flips, B, K, h/4, w/4)`."""
        pixel_values = self._planes(windows, resize=False)
        logits = [self._forward(pixel_values)]
        if self.protocol.flip:
            logits.append(self._forward(pixel_values.flip(-1)).flip(-1))
        return torch.stack(logits)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def form_of(processor: SegformerImageProcessor) -> tuple[int, bool]:
    """The number of channels that a processor takes, and whether in the numbers of the file (see `read_image`)."""
    # A processor says which range of values was declared in training. Where it says nothing, as published checkpoints,
    # it takes 8-bit pictures if it multiplies by 1/255 (which may be stored with few digits), else the file's numbers.
    is_of_pictures = math.isclose(processor.rescale_factor, 1 / 255, rel_tol=1e-4)
    return len(processor.image_mean), processor.value_range is not None or not is_of_pictures


def _groups(across: Sequence[Span], size: int) -> Iterator[list[Span]]:
    """Neighbours of one width, at most `size` of them."""
    for _, alike in itertools.groupby(across, key=lambda span: span.stop - span.start):
        remaining = list(alike)
        yield from (remaining[i : i + size] for i in range(0, len(remaining), size))


def _decide(maps: Sequence[Tensor], width: int, temperatures: Sequence[float] | None) -> Prediction:
    """A few rows' prediction from the logits `(flips, K, rows, w)` of every view, each of which has a temperature."""
    if len(maps) == 1 and len(maps[0]) == 1:
        return _predict_map(maps[0], (maps[0].shape[2], width), temperatures[0] if temperatures else None)
    return _predict_mean(maps, width, temperatures)


def joined(strips: Iterable[Prediction]) -> Prediction:
    """Strips one below the other."""
    parts = list(strips)
    confidence = [part.confidence for part in parts if part.confidence is not None]
    labels = np.concatenate([part.labels for part in parts])
    return Prediction(labels, np.concatenate(confidence) if confidence else None)


def _predict_map(logits: Tensor, size: Sequence[int], temperature: float | None) -> Prediction:
    """Of logits `(1, K, h, w)` at `size`."""
    return _as_arrays(*_best_of_map(logits, size, temperature), logits.shape[1])


def _best_of_map(logits: Tensor, size: Sequence[int], temperature: float | None) -> tuple[Tensor, Tensor | None]:
    """Ids `(H, W)` of logits `(1, K, h, w)` at `size` and, where there is a temperature, their probabilities."""
    probability = None if temperature is None else upsampled_confidence(logits / temperature, size)[0]
    return upsampled_prediction(logits, size)[0], probability


def _queued(logits: Tensor, size: Sequence[int], temperature: float | None) -> Callable[[], Prediction]:
    """What `_predict_map` makes, queued on a GPU with its copy to the CPU; the call waits for that alone."""
    ids, probability = _best_of_map(logits, size, temperature)
    parts = [ids.to(_type_of_ids(logits.shape[1])), *([] if probability is None else [probability])]
    copies = [part.to("cpu", non_blocking=True) for part in parts]
    done = torch.cuda.Event()
    done.record()

    def wait() -> Prediction:
        done.synchronize()
        labels, *others = (copy.numpy() for copy in copies)
        return Prediction(labels, others[0] if others else None)

    return wait


def _predict_mean(views: Sequence[Tensor], width: int, temperatures: Sequence[float] | None) -> Prediction:
    """Of the mean of all views' probabilities, each `(flips, K, rows, w)`; as mmseg's `SegTTAModel.merge_preds`.

    The temperature that a model was calibrated with changes the confidences and not the decision, as for one view.
    """
    best, ids = _mean_probabilities(views, width, [1.0] * len(views)).max(0)
    if temperatures is None:
        return _as_arrays(ids, None, views[0].shape[1])
    if any(temperature != 1 for temperature in temperatures):
        best = _mean_probabilities(views, width, temperatures).gather(0, ids[None])[0]
    return _as_arrays(ids, best, views[0].shape[1])


def _mean_probabilities(views: Sequence[Tensor], width: int, temperatures: Sequence[float]) -> Tensor:
    """`(K, rows, W)`; of one logit, of both classes that it tells apart."""
    total: Any = 0
    for view, temperature in zip(views, temperatures, strict=True):
        full = upsample(view / temperature, (view.shape[2], width))  # (flips, K, rows, W)
        total = total + (full.softmax(1) if full.shape[1] > 1 else full.sigmoid()).sum(0)
    mean: Tensor = total / sum(map(len, views))
    return mean if len(mean) > 1 else torch.cat([1 - mean, mean])


def _as_arrays(ids: Tensor, probability: Tensor | None, num_labels: int) -> Prediction:
    labels = ids.to(_type_of_ids(num_labels)).cpu().numpy()
    return Prediction(labels, None if probability is None else probability.cpu().numpy())


def _type_of_ids(num_labels: int) -> torch.dtype:
    return torch.uint8 if num_labels <= 256 else torch.int32


def _batches(prepared: Iterable[Prepared], batch_size: int) -> Iterator[list[Prepared]]:
    """Groups of at most `batch_size` of one prepared size; at most four batches wait for their like."""
    waiting: dict[torch.Size, list[Prepared]] = {}
    for item in prepared:
        group = waiting.setdefault(item[2].shape, [])
        group.append(item)
        if len(group) >= batch_size or sum(map(len, waiting.values())) >= 4 * batch_size:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()
