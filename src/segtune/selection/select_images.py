"""The selection of images to label next: a survey of the pool, the choice, its page, and files for a tool."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segtune.bars import progress_bar
from segtune.files import write_atomic, write_folder
from segtune.inference.segmenter import Segmenter, eval_mode
from segtune.labels.label_map import LabelMap
from segtune.selection.acquisition import UncertaintyGrid
from segtune.selection.choice import Choice, Chosen, choose
from segtune.selection.page import SHOWN, Figure, figure, page, write_selection_page
from segtune.selection.preannotate import Form, PreAnnotated, check_names, flat_names, write_annotations
from segtune.selection.selection_files import PAGE, RECORD, TABLE
from segtune.selection.survey import missing_rows, survey
from segtune.training.run_lock import locked


@dataclass(frozen=True)
class Selection:
    """What is selected, and what became of the others; see `Choice`.

    Attributes:
        faults: of images that could not be read, by their paths.
        annotations: the folder for the annotation tool; None where none is wanted.
    """

    choice: Choice
    faults: dict[str, str]
    page: Path
    annotations: Path | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, as selection.json has it."""
        return {
            "page": str(self.page),
            "annotations": None if self.annotations is None else str(self.annotations),
            "images": len(self.choice.scores),
            "selected": [image.to_dict() for image in self.choice.images],
            "unreadable": self.faults,
        }


def select_images(
    segmenter: Segmenter,
    label_map: LabelMap,
    sources: Sequence[Path],
    output: Path,
    number: int,
    *,
    breadth: int = 2,
    form: Form | None = None,
    resume: bool = False,
    model: str = "",
) -> Selection:
    """Choose images of a pool and write `selection.html`, `selection.json` and, for a tool, a folder of its name.

    Memory does not grow with the images of the pool but by some hundred numbers of each.

    Args:
        segmenter: its model is a `PooledFeatures`; the classes are those of `label_map`.
        breadth: see `choice.choose`.
        resume: see `survey`.
        model: the checkpoint's name.

    Raises:
        DataError: no image can be read.
        UsageError: another process writes into `output`, or a name of an image is none for a tool.
    """
    if form is not None:
        check_names(label_map)
    with locked(output, what="selection", option="--output"):
        pool = survey(segmenter, sources, label_map.num_labels, output / RECORD, resume=resume)
        choice = choose(pool, label_map, number, breadth)
        figures: list[Figure] = []
        predicted = _predicted(segmenter, label_map, choice.images, figures)
        selection = Selection(choice, pool.faults, output / PAGE, None if form is None else output / form.tool)

        def write_choice() -> None:
            write_atomic(output / TABLE, json.dumps(selection.to_dict(), indent=2, ensure_ascii=False) + "\n")
            written = f"Predictions as a start for {form.tool}: {selection.annotations}" if form else None
            write_selection_page(output / PAGE, page(model, choice, figures, pool.faults, written))

        if form is None:
            for _ in predicted:
                pass
            write_choice()
            return selection
        names = flat_names(image.path for image in choice.images)

        def write(folder: Path) -> None:
            write_annotations(folder, predicted, names, label_map, form, model)
            write_choice()  # before the folder has its name: one that has is never gone on with

        write_folder(output / form.tool, write)
        return selection


def _predicted(
    segmenter: Segmenter, label_map: LabelMap, images: Sequence[Chosen], figures: list[Figure]
) -> Iterator[PreAnnotated]:
    """The chosen images with their predictions, one at a time; of the first ones, figures for the page are added."""
    features: Any = segmenter.model
    with (
        eval_mode(segmenter.model),
        progress_bar(images, desc="chosen", unit="image", hidden=len(images) < 2) as bar,
    ):
        for image in bar:
            labels, grid = _looked_at_again(segmenter, image.path, label_map)
            features.take()
            if len(figures) < SHOWN:
                raster = segmenter.open(image.path)
                figures.append(figure(image, raster, labels, grid.means(), label_map))
            mean = float(grid.total.sum() / max(grid.pixels.sum(), 1))
            yield PreAnnotated(image.path, labels, 1 - mean)


def _looked_at_again(segmenter: Segmenter, path: Path, label_map: LabelMap) -> tuple[np.ndarray, UncertaintyGrid]:
    """The prediction of an image, `(H, W)`, in which what is missing is ignored, and its uncertainty."""
    raster = segmenter.open(path)
    grid, parts, top = UncertaintyGrid((raster.height, raster.width), label_map.num_labels), [], 0
    for _, strips in segmenter.segment([(path, raster)], confidence=True):
        for labels, confidence in strips:
            assert confidence is not None
            missing = missing_rows(raster, top, top + len(labels))
            grid.add(labels, confidence, missing)
            top += len(labels)
            if missing is not None:
                labels = np.where(missing, np.int32(label_map.ignore_index), labels)
            parts.append(labels)
    return np.concatenate(parts), grid
