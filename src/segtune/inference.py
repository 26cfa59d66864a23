"""A trained network on images: predictions at the original size, by whichever protocol, and evaluation."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from segtune.checkpoint import load_model
from segtune.data.loading import read_image, read_mask
from segtune.data.transforms import TransformConfig
from segtune.errors import DataError, UsageError
from segtune.images import ArrayRaster, ImageLike, Raster, is_image, read_ahead, read_pixels, resized
from segtune.labels import LabelMap
from segtune.metrics import ConfusionMatrix
from segtune.protocol import LOGIT_STRIDE, Protocol
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.upsampling import band_rows, upsample, upsampled_confidence, upsampled_prediction
from segtune.windows import Span, UpsampledRows, blend_across, blend_down, spans

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

OnImage = Callable[[str, np.ndarray, np.ndarray, np.ndarray], None]

BAND = 256  # rows of a prediction that are made at a time


class Prediction(NamedTuple):
    """What a model answers for an image, or for a band of its rows.

    Attributes:
        labels: training ids `(H, W)`, uint8 (int32 where the model has more than 256 labels).
        confidence: the probability of each, `(H, W)` float32 in (0, 1]; None unless asked for.
    """

    labels: np.ndarray
    confidence: np.ndarray | None


class Evaluated(NamedTuple):
    """One image of a labelled dataset, with what the model answers: maps of one size."""

    id: str
    image: np.ndarray  # (H, W, C)
    labels: np.ndarray  # (H, W), may hold the ignore index
    prediction: np.ndarray  # (H, W)
    confidence: np.ndarray | None  # (H, W)


def processor_for(transforms: TransformConfig) -> SegformerImageProcessor:
    """The image processor that prepares an image as evaluation during training did; it is saved with the weights.

    Without `eval_short_side` images keep their size, apart from `eval_size_divisor`.
    """
    return SegformerImageProcessor(
        do_resize=transforms.eval_short_side is not None,
        size={"shortest_edge": transforms.eval_short_side} if transforms.eval_short_side else 512,
        size_divisor=transforms.eval_size_divisor,
        window=transforms.eval_window,
        stride=transforms.eval_stride,
        image_mean=transforms.mean,
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
    samples = (_Sample(number, read_pixels(item, segmenter.channels)) for number, item in enumerate(items))
    with evaluating(network), tqdm(total=len(items), desc="predict", disable=not progress) as bar:
        for sample, prediction in _predictions(segmenter, samples):
            masks[sample.number] = prediction.labels
            bar.update()
    return masks[0] if single else masks


class Segmenter:
    """A model, its processor and a protocol: from images to predictions.

    Args:
        model: anything whose output has `.logits` `(B, K, h/4, w/4)`, in evaluation mode (see `evaluating`).
        processor: prepares the images; one of ours.
        protocol: default is the one that the processor carries.
        batch_size: images of one size, or windows of one image, in a forward pass.
        num_labels: UsageError where the model tells another number of classes apart; None does not check.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        protocol: Protocol | None = None,
        batch_size: int = 1,
        num_labels: int | None = None,
    ) -> None:
        self.model, self.processor = model, processor
        self.protocol = Protocol.choose(processor) if protocol is None else protocol
        self.batch_size, self.num_labels = batch_size, num_labels
        self.channels = len(processor.image_mean)

    def __call__(self, image: ImageLike, confidence: bool = False) -> Prediction:
        """The prediction of one image, in memory, at its own size."""
        return _joined(list(self.bands(ArrayRaster(read_pixels(image, self.channels)), confidence)))

    @torch.inference_mode()
    def bands(self, raster: Raster, confidence: bool = False) -> Iterator[Prediction]:
        """The prediction of an image from top to bottom, 256 rows at a time; the image's logits are not kept."""
        views = [self._view(raster, scale) for scale in self.protocol.scales]
        for top in range(0, raster.height, BAND):
            maps = [view.band(top, min(top + BAND, raster.height)) for view in views]  # (flips, K, rows, w) each
            yield _decide(maps, raster.width, confidence)

    @torch.inference_mode()
    def batch(self, pixel_values: Tensor, sizes: Sequence[tuple[int, ...]], confidence: bool) -> list[Prediction]:
        """Predictions at `sizes` of prepared images `(B, C, h, w)` seen whole, one at a time at full size."""
        logits = self.forward(pixel_values)
        return [_predict_map(logits[i : i + 1], size, confidence) for i, size in enumerate(sizes)]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits `(B, K, h/4, w/4)`, float32, of `(B, C, h, w)`, computed where and as the model is."""
        weight = next(parameter for parameter in self.model.parameters() if parameter.is_floating_point())
        logits: Tensor = self.model(pixel_values=pixel_values.to(weight.device, weight.dtype)).logits
        found = max(logits.shape[1], 2)  # one logit tells two classes apart
        if self.num_labels is not None and self.num_labels != found:
            raise UsageError(
                f"the model tells {found} classes apart, the label map has {self.num_labels}: "
                "use the label map the model was trained with"
            )
        return logits.float()

    def _view(self, raster: Raster, scale: float) -> UpsampledRows:
        """The image at one scale, as rows of logits `(flips, K, rows, w)` that are computed when they are read."""
        divisor = self.processor.size_divisor
        height, width = self.processor.target_size(raster.height, raster.width)
        if scale != 1:
            height, width = (-(-max(1, round(scale * side)) // divisor) * divisor for side in (height, width))
        seen = resized(raster, (height, width), self.processor.resample)
        down, across = (spans(side, self.protocol.window, self.protocol.stride) for side in (height, width))
        strips = (self._strip(seen.read(place.start, place.stop), across) for place in down)
        return UpsampledRows(blend_down(strips, down), -(-height // LOGIT_STRIDE), raster.height)

    def _strip(self, pixels: np.ndarray, across: Sequence[Span]) -> Tensor:
        """The blended logits `(flips, K, n/4, w/4)` of one row of windows, pixels `(n, w, C)`."""

        def windows() -> Iterator[tuple[Span, Tensor]]:
            for group in _groups(across, self.batch_size):
                logits = self._window_logits([pixels[:, span.start : span.stop] for span in group])
                yield from zip(group, logits.unbind(1), strict=True)

        return blend_across(windows(), -(-pixels.shape[1] // LOGIT_STRIDE))

    def _window_logits(self, windows: Sequence[np.ndarray]) -> Tensor:
        """Of windows `(h, w, C)` of one size, as they are and, if asked for, mirrored: `(flips, B, K, h/4, w/4)`."""
        pixel_values = self.processor(
            list(windows), do_resize=False, size_divisor=1, return_tensors="pt", input_data_format="channels_last"
        )["pixel_values"]
        logits = [self.forward(pixel_values)]
        if self.protocol.flip:
            logits.append(self.forward(pixel_values.flip(-1)).flip(-1))
        return torch.stack(logits)


def _groups(across: Sequence[Span], size: int) -> Iterator[list[Span]]:
    """Neighbours of one width, at most `size` of them."""
    for _, alike in itertools.groupby(across, key=lambda span: span.stop - span.start):
        remaining = list(alike)
        yield from (remaining[i : i + size] for i in range(0, len(remaining), size))


def _decide(maps: Sequence[Tensor], width: int, confidence: bool) -> Prediction:
    """A band's prediction from the logits `(flips, K, rows, w)` of every view, a few rows at full width at a time."""
    rows = band_rows(maps[0].shape[1] * width, maps[0].device)
    parts: list[Prediction] = []
    for bands in zip(*(view.split(rows, dim=2) for view in maps), strict=True):
        if len(bands) == 1 and len(bands[0]) == 1:
            parts.append(_predict_map(bands[0], (bands[0].shape[2], width), confidence))
        else:
            parts.append(_predict_mean(bands, width, confidence))
    return _joined(parts)


def _joined(parts: Sequence[Prediction]) -> Prediction:
    """One below the other."""
    confidence = [part.confidence for part in parts if part.confidence is not None]
    labels = np.concatenate([part.labels for part in parts])
    return Prediction(labels, np.concatenate(confidence) if confidence else None)


def _predict_map(logits: Tensor, size: Sequence[int], confidence: bool) -> Prediction:
    """Of logits `(1, K, h, w)` at `size`."""
    probability = upsampled_confidence(logits, size)[0] if confidence else None
    return _as_arrays(upsampled_prediction(logits, size)[0], probability, logits.shape[1])


def _predict_mean(views: Sequence[Tensor], width: int, confidence: bool) -> Prediction:
    """Of the mean of all views' probabilities, each `(flips, K, rows, w)`; as mmseg's `SegTTAModel.merge_preds`."""
    total: Any = 0
    for view in views:
        full = upsample(view, (view.shape[2], width))  # (flips, K, rows, W)
        total = total + (full.softmax(1) if full.shape[1] > 1 else full.sigmoid()).sum(0)
    mean = total / sum(map(len, views))  # (K, rows, W)
    if len(mean) == 1:
        mean = torch.cat([1 - mean, mean])
    best, ids = mean.max(0)
    return _as_arrays(ids, best if confidence else None, len(mean))


def _as_arrays(ids: Tensor, probability: Tensor | None, num_labels: int) -> Prediction:
    labels = ids.to(torch.uint8 if num_labels <= 256 else torch.int32).cpu().numpy()
    return Prediction(labels, None if probability is None else probability.cpu().numpy())


# ---- data sets ----


def evaluate_model(
    model: nn.Module,
    dataset: datasets.Dataset,
    label_map: LabelMap,
    processor: Any,
    *,
    protocol: Protocol | None = None,
    batch_size: int = 1,
    device: str | torch.device | None = None,
    progress: bool = True,
    indices: Sequence[int] | None = None,
    on_image: OnImage | None = None,
) -> ConfusionMatrix:
    """Compare predictions with masks, pixel by pixel at the size of the stored masks; no logits are kept.

    Args:
        on_image: called with `(id, image, labels, prediction)` for every image: `(H, W, 3)` uint8, `(H, W)`, `(H, W)`.
        model, dataset, label_map, processor, protocol, batch_size, device, progress, indices: see `evaluated_images`.

    Raises:
        DataError: a file that cannot be read, or a mask that the label map does not fit; the message names the sample.
        UsageError: the model and the label map differ in the number of labels.
    """
    confusion = ConfusionMatrix(label_map.num_labels, label_map.ignore_index)
    for found in evaluated_images(
        model,
        dataset,
        label_map,
        processor,
        protocol=protocol,
        batch_size=batch_size,
        device=device,
        progress=progress,
        indices=indices,
    ):
        confusion.update(found.prediction, found.labels)
        if on_image is not None:
            on_image(found.id, found.image, found.labels, found.prediction)
    return confusion


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
    samples = read_ahead(_labelled_sample(dataset, number, label_map) for number in rows)
    with evaluating(model), tqdm(total=len(rows), desc="evaluate", disable=not progress, leave=False) as bar:
        for sample, prediction in _predictions(segmenter, samples, confidence):
            yield Evaluated(sample.id, sample.image, sample.labels, *prediction)
            bar.update()


class _Sample(NamedTuple):
    number: int
    image: np.ndarray  # (H, W, C)
    labels: Any = None  # (H, W), where there is a truth
    id: str = ""


def _labelled_sample(dataset: datasets.Dataset, number: int, label_map: LabelMap) -> _Sample:
    try:
        row = dataset[number]
        image, labels = read_image(row["image"]), label_map.encode(read_mask(row["mask"]))
        if image.shape[:2] != labels.shape:
            raise DataError(f"the image is {image.shape[:2]} (height, width), its mask {labels.shape}")
    except Exception as error:
        name = dataset.select_columns("id")[number]["id"]
        raise DataError(f"sample {name!r}: {error}") from error
    return _Sample(number, image, labels, row["id"])


def _predictions(
    segmenter: Segmenter, samples: Iterable[_Sample], confidence: bool = False
) -> Iterator[tuple[_Sample, Prediction]]:
    """Each sample with its prediction at the size of its image; the order is that of finished batches."""
    if not segmenter.protocol.is_plain:
        yield from ((sample, segmenter(sample.image, confidence)) for sample in samples)
        return
    prepared = ((sample, segmenter.processor(sample.image, return_tensors="pt")["pixel_values"]) for sample in samples)
    for batch in _batches(prepared, segmenter.batch_size):
        sizes = [sample.image.shape[:2] for sample, _ in batch]
        predictions = segmenter.batch(torch.cat([values for _, values in batch]), sizes, confidence)
        yield from zip((sample for sample, _ in batch), predictions, strict=True)


def _batches(prepared: Iterable[tuple[_Sample, Tensor]], batch_size: int) -> Iterator[list[tuple[_Sample, Tensor]]]:
    """Groups of at most `batch_size` of one size; at most four batches wait for their like."""
    waiting: dict[torch.Size, list[tuple[_Sample, Tensor]]] = {}
    for item in prepared:
        group = waiting.setdefault(item[1].shape, [])
        group.append(item)
        if len(group) >= batch_size or sum(map(len, waiting.values())) >= 4 * batch_size:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


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


def processor_of(model: nn.Module) -> SegformerImageProcessor:
    """The image processor saved beside the weights; where there is none, one that keeps the image's size."""
    name = getattr(model, "name_or_path", "")
    if name and (not os.path.isdir(name) or (Path(name) / "preprocessor_config.json").is_file()):
        try:
            return SegformerImageProcessor.from_pretrained(name)
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
