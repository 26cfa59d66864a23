"""Prediction of files: images and videos in, masks and what else is wanted out, one input after the other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from segtune.bars import progress_bar
from segtune.files import atomic_path, write_folder
from segtune.imageio.geotiff import Georeference
from segtune.imageio.raster import ArrayRaster, FileRaster, Raster, read_ahead
from segtune.imageio.video import VideoReader, VideoWriter, is_video
from segtune.imageio.writers import confidence_writer, id_type, mask_writer
from segtune.inference import polygons
from segtune.inference.outputs import COCO_FILE, Targets, Wanted
from segtune.inference.segmenter import STRIP, Prediction, Segmenter, eval_mode, joined
from segtune.labels.label_map import LabelMap
from segtune.viz.overlay import overlay

LONG = 2**24  # pixels of an image that gets a progress bar of its own
PICTURE_SIDE = 4096  # of an overlay; of larger images, every n-th pixel is shown

Job = tuple[Path, "Targets"]


def predict_files(
    segmenter: Segmenter,
    label_map: LabelMap,
    sources: Sequence[Path],
    targets: Sequence[Targets],
    output: Path,
    wanted: Wanted,
    *,
    in_parts: bool = False,
    progress: bool = True,
) -> int:
    """Segment images and videos and write what is wanted to `targets` (see `plan_targets`), each file all or nothing.

    The next image is read while one is segmented. Memory does not depend on the number of images; nor, with windows, on
    the height of those that are read by rows, unless polygons are wanted: they need the whole mask, a byte a pixel.

    Args:
        in_parts: the images are some of many: COCO's polygons of each are written to its target, to be joined later.
        progress: show a bar on stderr.

    Returns:
        The number of masks written, those of a video's frames counted.

    Raises:
        DataError: an input cannot be read; what was written before stays.
    """
    jobs = list(zip(sources, targets, strict=True))
    is_joined = wanted.polygons == "coco" and not in_parts
    coco = polygons.coco_file(output / COCO_FILE, label_map) if is_joined else nullcontext()
    bar = progress_bar(total=len(jobs), desc="predict", hidden=len(jobs) < 2 or not progress)
    with eval_mode(segmenter.model), bar, coco as collection:
        writer = _OutputWriter(label_map, wanted, collection)
        opened = read_ahead(_opened((job for job in jobs if not is_video(job[0])), segmenter))
        for ((source, target), raster), strips in segmenter.segment(opened, wanted.confidence is not None):
            writer.write_image(source, target, raster, strips)
            bar.update()
        for source, target in jobs:
            if is_video(source):
                writer.write_video(source, target, segmenter)
                bar.update()
    return writer.masks


def _opened(jobs: Iterable[Job], segmenter: Segmenter) -> Iterator[tuple[tuple[Job, Raster], Raster]]:
    for job in jobs:
        raster = segmenter.open(job[0], job[1].frame)
        yield (job, raster), raster


class _OutputWriter:
    """Writes what is wanted of one input after the other."""

    def __init__(self, label_map: LabelMap, wanted: Wanted, collection: polygons.CocoFile | None) -> None:
        self.label_map, self.wanted, self.collection = label_map, wanted, collection
        self.masks = 0

    def write_image(self, source: Path, target: Targets, raster: Raster, strips: Iterator[Prediction]) -> None:
        size = (raster.height, raster.width)
        georeference = raster.file.georeference if isinstance(raster, FileRaster) else None
        step = -(-max(size) // PICTURE_SIDE)
        shown: list[np.ndarray] = []
        kept: list[np.ndarray] = []
        top = 0
        with ExitStack() as stack:
            bar = stack.enter_context(_row_bar(source, size))
            write_mask = stack.enter_context(mask_writer(target.mask, size, self.label_map, georeference))
            writer = confidence_writer(target.confidence, size, georeference) if target.confidence else nullcontext()
            write_confidence = stack.enter_context(writer)
            for prediction in strips:
                labels = _without_gaps(prediction.labels, raster, top, self.label_map)
                write_mask(labels)
                if write_confidence is not None and prediction.confidence is not None:
                    write_confidence(prediction.confidence)
                if target.overlay is not None:
                    shown.append(labels[-top % step :: step, ::step].copy())
                if self.wanted.polygons is not None:
                    kept.append(labels)
                top += len(labels)
                bar.update(len(labels))
        self.masks += 1
        if target.overlay is not None:
            picture = overlay(_every(raster, step), np.concatenate(shown), self.label_map)
            with atomic_path(target.overlay) as temporary:
                picture.save(temporary, format="PNG")
        if kept:
            self._write_polygons(source, target, np.concatenate(kept), georeference)

    def _write_polygons(
        self, source: Path, target: Targets, labels: np.ndarray, georeference: Georeference | None
    ) -> None:
        wanted, (height, width) = self.wanted, labels.shape
        regions = polygons.trace(labels, self.label_map, simplify=wanted.simplify, min_region=wanted.min_region)
        if self.collection is not None:
            self.collection.add(target.name, (height, width), regions)
        if target.polygons is None:
            return
        if wanted.polygons == "geojson":
            content = polygons.geojson(regions, self.label_map, georeference)
        elif wanted.polygons == "coco":
            content = {"file_name": target.name, **polygons.coco_piece((height, width), regions)}
        else:
            image = os.path.relpath(source, target.polygons.parent)
            content = polygons.labelme(regions, self.label_map, (height, width), image)
        with atomic_path(target.polygons) as temporary, temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file)

    def write_video(self, source: Path, target: Targets, segmenter: Segmenter) -> None:
        """A mask `000000.png` for each frame and, if wanted, one video of overlays."""
        video = VideoReader(source)
        frames = read_ahead((frame, ArrayRaster(frame)) for frame in video)

        def write(folder: Path) -> None:
            with ExitStack() as stack:
                bar = stack.enter_context(
                    progress_bar(total=video.num_frames, desc=source.name, unit="frame", leave=False)
                )
                writer = None
                if target.overlay is not None:
                    writer = stack.enter_context(
                        VideoWriter(stack.enter_context(atomic_path(target.overlay)), video.rate)
                    )
                for number, (frame, strips) in enumerate(segmenter.segment(frames)):
                    labels = joined(strips).labels
                    with mask_writer(folder / f"{number:06d}.png", labels.shape, self.label_map) as write_mask:
                        write_mask(labels)
                    self.masks += 1
                    if writer is not None:
                        writer.write(np.asarray(overlay(frame, labels, self.label_map, legend=False)))
                    bar.update()

        target.mask.parent.mkdir(parents=True, exist_ok=True)
        write_folder(target.mask, write)


def _row_bar(source: Path, size: tuple[int, int]) -> AbstractContextManager[Any]:
    return progress_bar(total=size[0], desc=source.name, unit="row", leave=False, hidden=size[0] * size[1] < LONG)


def _without_gaps(labels: np.ndarray, raster: Raster, top: int, label_map: LabelMap) -> np.ndarray:
    """Labels in which pixels that the file has no data for are ignored, where their type can say so."""
    missing = raster.file.missing(top, top + len(labels)) if isinstance(raster, FileRaster) else None
    dtype = id_type(label_map)
    if missing is None or not 0 <= label_map.ignore_index <= np.iinfo(dtype).max:
        return labels
    return np.where(missing, dtype(label_map.ignore_index), labels)


def _every(raster: Raster, step: int) -> np.ndarray:
    """Each `step`-th pixel of each `step`-th row."""
    again, rows = raster.again(), STRIP * step
    strips = (again.read(top, min(top + rows, raster.height)) for top in range(0, raster.height, rows))
    return np.concatenate([strip[::step, ::step] for strip in strips])
