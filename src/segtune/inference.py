"""A trained network on images: predictions at the original size, evaluation of a data set, pictures of both."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import nn
from tqdm.auto import tqdm

from segtune.checkpoint import load_model
from segtune.data.files import read_pixels
from segtune.data.loading import for_display, read_image, read_pair
from segtune.data.transforms import TransformConfig
from segtune.errors import DataError, SegtuneError, UsageError
from segtune.labels import LabelMap
from segtune.metrics import ConfusionMatrix
from segtune.segformer.image_processing_segformer import SegformerImageProcessor, channels_last
from segtune.segformer.upsampling import upsampled_prediction

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray
OnImage = Callable[[str, np.ndarray, np.ndarray, np.ndarray], None]
Entry = tuple[str, tuple[int, int, int] | None]  # a line of the legend; no colour: ignored pixels

_PAPER, _INK, _HATCH = (255, 255, 255), (36, 41, 47), (235, 235, 235)


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
        batch_size: images that run at once, where they have the same size.
        device: moves the model there first; default is where the model is or, for a path, the GPU if there is one.
        progress: show a bar on stderr.

    Returns:
        Training ids `(H, W)` at the original size, uint8 (int32 where the model has more than 256 labels): an array
        for one image, a list for several. A model with one logit answers 0 and 1.

    Raises:
        DataError: a file that is missing or no image.
        UsageError: no model at this path, or no processor for this number of channels.
    """
    single = _is_image(images)
    items: list[Any] = [images] if single else list(images)  # type: ignore[arg-type]
    network, processor = _prepared(model, processor, device)
    form = _form_of(processor)
    masks: list[np.ndarray] = [np.empty(0)] * len(items)
    samples = (_Sample(number, _pixels(item, *form)) for number, item in enumerate(items))
    with _evaluating(network), tqdm(total=len(items), desc="predict", disable=not progress) as bar:
        for sample, prediction in _predictions(network, samples, processor, batch_size):
            masks[sample.number] = prediction
            bar.update()
    return masks[0] if single else masks


def evaluate_model(
    model: nn.Module,
    dataset: datasets.Dataset,
    label_map: LabelMap,
    processor: Any,
    *,
    batch_size: int = 1,
    device: str | torch.device | None = None,
    progress: bool = True,
    indices: Sequence[int] | None = None,
    on_image: OnImage | None = None,
) -> ConfusionMatrix:
    """Compare predictions with masks, pixel by pixel at the size of the stored masks; no logits are kept.

    Args:
        model: anything whose output has `.logits` `(B, K, h, w)`; leaves as it came, in training mode or not.
        dataset: rows with `id`, `image` and `mask`, as `load_segmentation_dataset` returns them.
        label_map: turns masks into labels; `K` is its number of labels (or 1 for its two).
        processor: prepares the images, e.g. `processor_for(transforms)`.
        indices: rows to use, e.g. this process's share; default is all.
        on_image: called with `(id, image, labels, prediction)` for every image: `(H, W, 3)` uint8, `(H, W)`, `(H, W)`.

    Raises:
        DataError: a file that cannot be read, or a mask that the label map does not fit; the message names the sample.
        UsageError: the model and the label map differ in the number of labels.
    """
    confusion = ConfusionMatrix(label_map.num_labels, label_map.ignore_index)
    rows = range(len(dataset)) if indices is None else indices
    if device is not None:
        model.to(device)
    samples = (_labelled_sample(dataset, number, label_map, processor) for number in rows)
    with _evaluating(model), tqdm(total=len(rows), desc="evaluate", disable=not progress, leave=False) as bar:
        for sample, prediction in _predictions(model, samples, processor, batch_size, label_map.num_labels):
            confusion.update(prediction, sample.labels)
            if on_image is not None:
                on_image(sample.id, for_display(sample.image), sample.labels, prediction)
            bar.update()
    return confusion


class _Sample(NamedTuple):
    number: int
    image: np.ndarray  # (H, W, C)
    labels: Any = None  # (H, W), where there is a truth
    id: str = ""


def _labelled_sample(dataset: datasets.Dataset, number: int, label_map: LabelMap, processor: Any) -> _Sample:
    try:
        row = dataset[number]
        image, labels = read_pair(row, label_map, *_form_of(processor))
    except Exception as error:
        name = dataset.select_columns("id")[number]["id"]
        raise DataError(f"sample {name!r}: {error}") from error
    return _Sample(number, image, labels, row["id"])


def _predictions(
    model: nn.Module, samples: Iterable[_Sample], processor: Any, batch_size: int, num_labels: int | None = None
) -> Iterator[tuple[_Sample, np.ndarray]]:
    """Each sample with its prediction `(H, W)` at the size of its image; the order is that of finished batches."""
    options = {"return_tensors": "pt", "input_data_format": "channels_last"}
    prepared = ((sample, processor(sample.image, **options)["pixel_values"]) for sample in samples)
    for batch in _batches(prepared, batch_size):
        sizes = [sample.image.shape[:2] for sample, _ in batch]
        masks = _segment(model, torch.cat([values for _, values in batch]), sizes, num_labels)
        yield from zip((sample for sample, _ in batch), masks, strict=True)


def _batches(
    prepared: Iterable[tuple[_Sample, torch.Tensor]], batch_size: int
) -> Iterator[list[tuple[_Sample, torch.Tensor]]]:
    """Groups of at most `batch_size` of one size; at most four batches wait for their like."""
    waiting: dict[torch.Size, list[tuple[_Sample, torch.Tensor]]] = {}
    for item in prepared:
        group = waiting.setdefault(item[1].shape, [])
        group.append(item)
        if len(group) >= batch_size or sum(map(len, waiting.values())) >= 4 * batch_size:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


@torch.inference_mode()
def _segment(
    model: nn.Module, pixel_values: torch.Tensor, sizes: Sequence[tuple[int, ...]], num_labels: int | None
) -> list[np.ndarray]:
    """`(B, C, h, w)` to `B` maps of training ids at `sizes`, one map at a time at full size."""
    weight = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    logits = model(pixel_values=pixel_values.to(weight.device, weight.dtype)).logits  # (B, K, h/4, w/4)
    found = max(logits.shape[1], 2)  # one logit tells two classes apart
    if num_labels is not None and num_labels != found:
        raise UsageError(
            f"the model tells {found} classes apart, the label map has {num_labels}: "
            "use the label map the model was trained with"
        )
    dtype = torch.uint8 if found <= 256 else torch.int32
    maps = (upsampled_prediction(logits[i : i + 1], size)[0] for i, size in enumerate(sizes))
    return [ids.to(dtype).cpu().numpy() for ids in maps]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
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


# ---- images ----


def _is_image(images: Any) -> bool:
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return images.ndim < 4
    return isinstance(images, (str, os.PathLike, Image.Image))


def _form_of(processor: Any) -> tuple[int, bool]:
    """The number of channels that a processor takes, and whether in the numbers of the file (see `read_image`)."""
    return len(processor.image_mean), bool(abs(processor.rescale_factor - 1 / 255) > 1e-12)


def _pixels(image: Any, channels: int = 3, raw: bool = False) -> np.ndarray:
    """A path, PIL image or array as `(H, W, channels)`, upright."""
    opened = _opened(image)
    if isinstance(image, (str, os.PathLike, Image.Image)):
        try:
            return read_image(opened, channels, raw)
        except SegtuneError as error:
            raise type(error)(f"{image}: {error}" if isinstance(image, (str, os.PathLike)) else str(error)) from error
    return channels_last(image, channels)


def _opened(image: Any) -> Any:
    """A path as a PIL image or array, a PIL image upright, an array as it is."""
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image)
    if not isinstance(image, (str, os.PathLike)):
        return image
    try:
        return read_pixels(Path(image))
    except FileNotFoundError as error:
        raise DataError(f"{image}: no such image") from error
    except SegtuneError:
        raise
    except Exception as error:  # decoders raise what they like
        raise DataError(f"{image}: cannot be read as an image ({error})") from error


# ---- pictures ----


def overlay(
    image: ImageLike, labels: np.ndarray, label_map: LabelMap, *, alpha: float = 0.5, legend: bool = True
) -> Image.Image:
    """Classes in their colours over an image, each region outlined; ignored pixels are grey and hatched.

    Args:
        image: a path, PIL image or array `(H, W, 3)`.
        labels: training ids or a prediction `(H, W)`; may hold `label_map.ignore_index`.
        alpha: 0 shows the image alone, 1 the colours alone.
        legend: add the names of the classes that occur below the picture.

    Returns:
        An RGB image. Images whose longer side is below 480 pixels are enlarged by a whole factor.

    Raises:
        UsageError: image and labels differ in size.
    """
    pixels, labels = _checked(image, labels)
    factor = _enlargement(labels.shape, 480)
    panel = _panel(pixels, labels, label_map, alpha, factor)
    if not legend:
        return panel
    return _page([panel], [], _entries(labels, label_map=label_map))


def comparison(image: ImageLike, labels: np.ndarray, prediction: np.ndarray, label_map: LabelMap) -> Image.Image:
    """An image, its truth and a prediction side by side, with titles and one legend; sizes as for `overlay`."""
    pixels, labels = _checked(image, labels)
    _, prediction = _checked(pixels, prediction)
    factor = _enlargement(labels.shape, 360)
    panels = [_panel(pixels, None, label_map, 0.0, factor)]
    panels += [_panel(pixels, ids, label_map, 0.6, factor) for ids in (labels, prediction)]
    return _page(panels, ["image", "truth", "prediction"], _entries(labels, prediction, label_map=label_map))


def _checked(image: ImageLike, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = for_display(_opened(image)), np.asarray(labels)
    if pixels.shape[:2] != labels.shape:
        raise UsageError(f"the image is {pixels.shape[:2]} (height, width), its labels {labels.shape}")
    return pixels, labels


def _enlargement(shape: tuple[int, ...], wanted: int) -> int:
    """The whole factor that brings the longer side to at least `wanted` pixels."""
    return -(-wanted // max(shape))


def _panel(
    pixels: np.ndarray, labels: np.ndarray | None, label_map: LabelMap, alpha: float, factor: int
) -> Image.Image:
    """One picture, `factor` times as large as `pixels` `(H, W, 3)`."""
    picture = Image.fromarray(pixels)
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    if labels is None:
        return picture
    labels = labels.repeat(factor, axis=0).repeat(factor, axis=1)  # (factor H, factor W)
    colors = Image.fromarray(label_map.colorize(labels))
    blended = np.array(Image.blend(picture, colors, alpha))  # (factor H, factor W, 3)
    thickness = max(1, max(labels.shape) // 600)
    edges = _edges(labels, thickness)
    blended[edges] = np.asarray(colors)[edges]
    ignored = labels == label_map.ignore_index
    grey = np.asarray(picture.convert("L"))[ignored]  # (ignored pixels,)
    blended[ignored] = (grey // 3 + 40)[:, None]
    blended[ignored & _stripes(labels.shape, thickness)] = _HATCH
    return Image.fromarray(blended)


def _edges(labels: np.ndarray, thickness: int) -> np.ndarray:
    """Where a pixel's class is not that of the pixel `thickness` to the right or below."""
    edges = np.zeros(labels.shape, dtype=bool)
    edges[:, :-thickness] |= labels[:, :-thickness] != labels[:, thickness:]
    edges[:-thickness] |= labels[:-thickness] != labels[thickness:]
    return edges


def _stripes(shape: tuple[int, ...], thickness: int = 1) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows + columns) % (8 * thickness) < thickness


def _entries(*maps: np.ndarray, label_map: LabelMap) -> list[Entry]:
    """Names and colours of the classes that occur, in the order of training ids; ignored pixels last, no colour."""
    present = set().union(*(np.unique(ids).tolist() for ids in maps))
    entries: list[Entry] = [
        (label_map.names[i], label_map.colors[i]) for i in range(label_map.num_labels) if i in present
    ]
    return [*entries, ("ignored", None)] if label_map.ignore_index in present else entries


def _page(panels: list[Image.Image], titles: list[str], entries: list[Entry]) -> Image.Image:
    """Panels of one size in a row, titles above, the legend below, on white paper."""
    width, height = panels[0].size
    gap = 12
    size = min(max(width // 30, 14), 30) if len(panels) == 1 else min(max(width // 20, 15), 34)
    font = ImageFont.load_default(size)
    top = 2 * size if titles else 0
    total = len(panels) * width + (len(panels) - 1) * gap
    legend = _legend(entries, total, font, size)
    page = Image.new("RGB", (max(total, legend.width), top + height + legend.height), _PAPER)
    draw = ImageDraw.Draw(page)
    for index, panel in enumerate(panels):
        page.paste(panel, (index * (width + gap), top))
        if titles:
            draw.text((index * (width + gap) + width // 2, top // 2), titles[index], _INK, font, anchor="mm")
    page.paste(legend, (0, top + height))
    return page


def _legend(entries: list[Entry], width: int, font: Any, size: int) -> Image.Image:
    """Swatches and names in equal columns, as many as fit into `width`; wider only where a single name is."""
    row = 7 * size // 4
    column = int(max((font.getlength(name) for name, _ in entries), default=0)) + 3 * size
    columns = max(1, min(len(entries), (width + size) // column))
    rows = -(-len(entries) // columns)
    legend = Image.new("RGB", (max(width, column), rows * row + size), _PAPER)
    draw = ImageDraw.Draw(legend)
    for index, (name, color) in enumerate(entries):
        x, y = index % columns * column, size // 2 + index // columns * row
        legend.paste(_swatch(color, size), (x, y + (row - size) // 2))
        draw.text((x + 3 * size // 2, y + row // 2), name, _INK, font, anchor="lm")
    return legend


def _swatch(color: tuple[int, int, int] | None, size: int) -> Image.Image:
    """A rounded square of a colour, or of the pattern of ignored pixels."""
    fill = np.full((size, size, 3), (90, 90, 90) if color is None else color, dtype=np.uint8)
    rim = tuple(int(value) * 3 // 4 for value in fill[0, 0])
    if color is None:
        fill[_stripes((size, size))] = _HATCH
    large = (4 * size, 4 * size)  # drawn larger and reduced, for smooth corners
    square, shape = Image.fromarray(fill).resize(large, Image.Resampling.NEAREST), Image.new("L", large, 0)
    box, radius = (0, 0, 4 * size - 1, 4 * size - 1), size
    ImageDraw.Draw(square).rounded_rectangle(box, radius, outline=rim, width=4)
    ImageDraw.Draw(shape).rounded_rectangle(box, radius, fill=255)
    return Image.composite(square, Image.new("RGB", large, _PAPER), shape).reduce(4)
