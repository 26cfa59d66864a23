"""Pictures of predictions: classes in their colours over the image, truth and prediction side by side, legends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segtune.data.loader import TrainingBatches
from segtune.errors import UsageError
from segtune.imageio.raster import shown
from segtune.imageio.read import ImageLike
from segtune.labels.label_map import LabelMap

if TYPE_CHECKING:
    import datasets
    from PIL import Image

    from segtune.data.config import TransformConfig
    from segtune.labels.label_map import LabelMap

Entry = tuple[str, tuple[int, int, int] | None]  # a line of the legend; no colour: ignored pixels

TITLES = ["image", "truth", "prediction"]
_CELL = 256  # pixels of the longer side of a picture on a contact sheet
_PAPER, _INK, _HATCH = (255, 255, 255), (36, 41, 47), (235, 235, 235)


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
    panels = comparison_panels(image, labels, prediction, label_map)
    return _page(panels, TITLES, _entries(labels, prediction, label_map=label_map))


def comparison_panels(
    image: ImageLike, labels: np.ndarray, prediction: np.ndarray, label_map: LabelMap
) -> list[Image.Image]:
    """The three pictures of a `comparison`, without titles and legend."""
    pixels, labels = _checked(image, labels)
    _, prediction = _checked(pixels, prediction)
    factor = _enlargement(labels.shape, 360)
    panels = [_panel(pixels, None, label_map, 0.0, factor)]
    return panels + [_panel(pixels, ids, label_map, 0.6, factor) for ids in (labels, prediction)]


def overview_sheet(
    cells: Sequence[tuple[str, str, list[Image.Image]]], present: np.ndarray, label_map: LabelMap
) -> Image.Image:
    """Comparisons in two columns, below each the sample's name and what is said of it; one legend for all of them.

    Args:
        cells: name, note and panels, see `comparison_panels`; panels of a cell have one size.
        present: the training ids that occur in any of them, the ignore index among them.
    """
    gap, between, size, font = 8, 28, 20, ImageFont.load_default(20)
    columns = min(2, len(cells))
    width = max(sum(panel.width for panel in panels) + 2 * gap for *_, panels in cells)
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(panels[0].height for *_, panels in row) for row in rows]
    total, line = columns * (width + between) - between, 2 * size
    legend = _legend(_entries(present, label_map=label_map), total, font, size)
    top = 2 * size
    page = Image.new("RGB", (max(total, legend.width), top + sum(heights) + line * len(rows) + legend.height), _PAPER)
    draw = ImageDraw.Draw(page)
    for column, (*_, panels) in enumerate(rows[0]):
        for index, title in enumerate(TITLES):
            x = column * (width + between) + index * (panels[0].width + gap) + panels[0].width // 2
            draw.text((x, top // 2), title, _INK, font, anchor="mm")
    for row, height in zip(rows, heights, strict=True):
        for column, (name, note, panels) in enumerate(row):
            left = column * (width + between)
            for index, panel in enumerate(panels):
                page.paste(panel, (left + index * (panel.width + gap), top))
            room = width - int(font.getlength(note)) - size
            draw.text((left, top + height + size), f"{_shortened(name, font, room)}{note}", _INK, font, anchor="lm")
        top += height + line
    page.paste(legend, (0, top))
    return page


def contact_sheet(samples: Sequence[tuple[str, np.ndarray, np.ndarray]], label_map: LabelMap) -> Image.Image:
    """Named samples in a grid, each as it is and with its classes blended in; one legend below.

    Args:
        samples: name, image `(H, W, 3)` uint8 and labels `(H, W)`, all of one size.
    """
    gap, line, font = 12, 20, ImageFont.load_default(13)
    factor = _enlargement(samples[0][2].shape, _CELL)
    cells = []
    for name, image, labels in samples:
        panels = [_panel(image, None, label_map, 0.0, factor), _panel(image, labels, label_map, 0.6, factor)]
        for panel in panels:
            panel.thumbnail((_CELL, _CELL))
        cells.append((name, panels))
    width, height = cells[0][1][0].size
    columns = round(math.sqrt(len(cells)))
    total = columns * (2 * width + gap) - gap
    rows = -(-len(cells) // columns)
    legend = _legend(
        _entries(*(labels for _, _, labels in samples), label_map=label_map), total, ImageFont.load_default(18), 18
    )
    page = Image.new("RGB", (max(total, legend.width), rows * (height + line) + legend.height), _PAPER)
    draw = ImageDraw.Draw(page)
    for number, (name, panels) in enumerate(cells):
        x, y = number % columns * (2 * width + gap), number // columns * (height + line)
        for index, panel in enumerate(panels):
            page.paste(panel, (x + index * width, y))
        draw.text((x + 2, y + height + line // 2), _shortened(name, font, 2 * width), _INK, font, anchor="lm")
    page.paste(legend, (0, rows * (height + line)))
    return page


def _shortened(text: str, font: Any, width: int) -> str:
    """The end of a text that fits."""
    while font.getlength(text) > width:
        text = f"…{text[2:]}"
    return text


def _checked(image: ImageLike, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = shown(image), np.asarray(labels)
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
    size = min(max(width // 30, 14), max(30, width // 60)) if len(panels) == 1 else min(max(width // 20, 15), 34)
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
    steps = TrainingBatches(rows, label_map, transforms, seed, batch_size=1, buffer=count).steps(0, count)
    samples = []
    for (batch,) in steps:
        pixels = denormalize(batch["pixel_values"][0].numpy(), transforms)
        samples.append((batch["ids"][0], pixels, batch["labels"][0].numpy()))
    return contact_sheet(samples, label_map)


def denormalize(pixel_values: np.ndarray, transforms: TransformConfig) -> np.ndarray:
    """Normalised pixels (C, H, W) as (H, W, 3) uint8; of other numbers of channels the first three, or the first.

    What `transforms.value_range` declares black and white is shown so.
    """
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (transforms.mean, transforms.std))
    pixels = ((pixel_values * std + mean) * 255).round().clip(0, 255).astype(np.uint8)
    shown = pixels[:3] if len(pixels) >= 3 else pixels[[0, 0, 0]]
    return np.ascontiguousarray(shown.transpose(1, 2, 0))  # (H, W, 3)
