"""The page of a selection: each chosen image with its prediction, where the model is unsure, and why it was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from segtune.imageio.raster import Raster, shown
from segtune.labels.label_map import LabelMap
from segtune.selection.choice import Choice, Chosen
from segtune.viz.charts import Axis, Frame
from segtune.viz.html import check_page, data_url, render, write_page
from segtune.viz.numbers import count, number, percent
from segtune.viz.overlay import overlay

COMMAND = "select"
SHOWN = 100  # images on a page, the first that were chosen
SIDE = 400  # of a picture, pixels
QUALITY = 80  # of the JPEG
LISTED_FAULTS = 20
POINTS = 400  # of the line of the pool's scores
ROWS = 256  # of an image that are read at a time
# From sure to unsure: dark to light, so that it reads in grey as well.
SCALE = ((13, 16, 40), (84, 25, 109), (180, 54, 91), (240, 128, 47), (252, 240, 160))


class Figure(NamedTuple):
    """The pictures of a chosen image, as data URLs, and why it was chosen, in words."""

    image: Chosen
    name: str
    picture: str
    prediction: str
    doubt: str
    reasons: list[str]


def write_selection_page(path: Path, text: str) -> None:
    """Write the page; an earlier one is replaced.

    Raises:
        UsageError: the file is there and is something else.
    """
    check_page(path, COMMAND, "--output")
    write_page(path, text)


def page(
    checkpoint: str,
    choice: Choice,
    figures: Sequence[Figure],
    faults: dict[str, str],
    written: str | None = None,
) -> str:
    """The whole page, as HTML.

    Args:
        figures: of the first `SHOWN` images of the choice.
        faults: of images that could not be read, by their paths.
        written: what was written for an annotation tool, and where.
    """
    mean_of_chosen = float(np.mean([image.score for image in choice.images]))
    tiles = [
        (f"{len(choice.images):,}", f"chosen of {count(len(choice.scores), 'image')}"),
        (number(mean_of_chosen), "mean score of the choice"),
        (number(float(np.mean(choice.scores))), "mean score of the pool"),
        (f"{len(faults):,}", "left out, cannot be read"),
    ]
    return render(
        "selection/templates/page.html",
        command=COMMAND,
        title=f"{count(len(choice.images), 'image')} to label next",
        checkpoint=checkpoint,
        tiles=tiles,
        choice=choice,
        figures=figures,
        classes=sorted(choice.classes, key=lambda row: -row.of_score),
        frame=_frame(choice),
        curve=_thinned_scores(choice.scores),
        places=[(image.rank, image.score) for image in choice.images],
        legend=[(row.name, row.color) for row in choice.classes if row.in_choice],
        scale=[f"rgb({red}, {green}, {blue})" for red, green, blue in SCALE],
        faults=list(faults.values())[:LISTED_FAULTS],
        more_faults=max(0, len(faults) - LISTED_FAULTS),
        written=written,
    )


def _thinned_scores(scores: Sequence[float]) -> list[tuple[int, float]]:
    """At most `POINTS` of the scores, which are sorted, with their ranks."""
    return [(rank + 1, scores[rank]) for rank in range(0, len(scores), -(-len(scores) // POINTS))]


def _frame(choice: Choice) -> Frame:
    """Of the scores of all images by their rank."""
    across = Axis("rank by score in the pool").over([0.0, float(len(choice.scores))])
    return Frame(across, Axis("score").over([0.0, choice.scores[0]]), 560, 240)


def figure(image: Chosen, raster: Raster, labels: np.ndarray, doubt: np.ndarray, label_map: LabelMap) -> Figure:
    """What is shown of a chosen image.

    Args:
        raster: the image.
        labels: its prediction `(H, W)`.
        doubt: the uncertainty of its cells `(h, w)`, 0 to 1.
    """
    step = max(1, max(labels.shape) // (2 * SIDE))
    pixels = shown(_thinned(raster, step))
    colored = overlay(pixels, labels[::step, ::step], label_map, legend=False)
    picture = _fitted(Image.fromarray(pixels), Image.Resampling.BOX)
    return Figure(
        image,
        image.path.name,
        data_url(picture, "jpeg", quality=QUALITY),
        data_url(_fitted(colored.convert("RGB"), Image.Resampling.BOX), "jpeg", quality=QUALITY),
        data_url(_heat(doubt, picture.size), "png", optimize=True),
        why(image),
    )


def why(image: Chosen) -> list[str]:
    """Why an image was chosen, in words."""
    reasons = ", ".join(
        f"{reason.name} {percent(reason.share)}" + (f" (rare: ×{reason.weight:.1f})" if reason.weight >= 1.5 else "")
        for reason in image.reasons
    )
    found = [f"score {number(image.score)}, rank {image.rank:,} of the pool"]
    found += [f"unsure of {reasons}"] if reasons else []
    if image.nearest is None:
        return [*found, "the most uncertain of all"]
    return [*found, f"{number(image.distance, 2)} from the closest chosen before it, {image.nearest.name}"]


def _thinned(raster: Raster, step: int) -> np.ndarray:
    """Each `step`-th pixel of each `step`-th row."""
    again, rows = raster.again(), ROWS * step
    strips = (again.read(top, min(top + rows, raster.height)) for top in range(0, raster.height, rows))
    return np.concatenate([strip[::step, ::step] for strip in strips])


def _fitted(picture: Image.Image, resample: Image.Resampling) -> Image.Image:
    """The picture, at most `SIDE` pixels wide and high."""
    picture = picture.copy()
    picture.thumbnail((SIDE, SIDE), resample)
    return picture


def _heat(doubt: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The uncertainty of cells in the colours of `SCALE`, at `size` (width, height)."""
    levels = np.linspace(0, 255, len(SCALE))
    table = np.stack([np.interp(np.arange(256), levels, channel) for channel in zip(*SCALE, strict=True)], axis=1)
    cells = Image.fromarray((doubt.clip(0, 1) * 255).round().astype(np.uint8))
    cells = cells.resize(size, Image.Resampling.NEAREST)
    cells.putpalette(table.round().astype(np.uint8).tobytes())
    return cells
