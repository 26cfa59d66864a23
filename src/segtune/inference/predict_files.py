"""`segtune predict`: files in, masks and what else is wanted out, one image after the other."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from segtune.errors import UsageError, listed
from segtune.files import atomic_path, write_folder
from segtune.imageio.geotiff import Georeference
from segtune.imageio.raster import ArrayRaster, FileRaster, Raster, is_georeferenced, read_ahead
from segtune.imageio.video import VideoReader, VideoWriter, is_video
from segtune.imageio.writers import confidence_writer, mask_writer
from segtune.inference import polygons
from segtune.inference.polygons import PolygonFormat
from segtune.inference.predict import evaluating
from segtune.inference.segmenter import BAND, Prediction, Segmenter
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
) -> int:
    """Segments images and videos and writes what is wanted to `targets` (see `plan_targets`), each file all or nothing.

    The next image is read while one is segmented. Memory does not depend on the number of images; nor, with windows, on
    the height of those that are read by rows, unless polygons are wanted: they need the whole mask, a byte a pixel.

    Returns:
        The number of masks written, those of a video's frames counted.

    Raises:
        DataError: an input cannot be read; what was written before stays.
    """
    jobs = list(zip(sources, targets, strict=True))
    coco = polygons.coco_file(output / COCO_FILE, label_map) if wanted.polygons == "coco" else nullcontext()
    bar = tqdm(total=len(jobs), desc="predict", disable=len(jobs) < 2)
    with evaluating(segmenter.model), bar, coco as collection:
        files = _Files(label_map, wanted, collection)
        opened = read_ahead(_opened((job for job in jobs if not is_video(job[0])), segmenter))
        for ((source, target), raster), bands in segmenter.segment(opened, wanted.confidence is not None):
            files.write_image(source, target, raster, bands)
            bar.update()
        for source, target in jobs:
            if is_video(source):
                files.write_video(source, target, segmenter)
                bar.update()
    return files.masks


def _opened(jobs: Iterable[Job], segmenter: Segmenter) -> Iterator[tuple[tuple[Job, Raster], Raster]]:
    for job in jobs:
        raster = segmenter.open(job[0])
        yield (job, raster), raster


class _Files:
    """Writes what is wanted of one input after the other."""

    def __init__(self, label_map: LabelMap, wanted: Wanted, collection: polygons.CocoFile | None) -> None:
        self.label_map, self.wanted, self.collection = label_map, wanted, collection
        self.masks = 0

    def write_image(self, source: Path, target: Targets, raster: Raster, bands: Iterator[Prediction]) -> None:
        size = (raster.height, raster.width)
        place = raster.file.georeference if isinstance(raster, FileRaster) else None
        step = -(-max(size) // PICTURE_SIDE)
        shown: list[np.ndarray] = []
        kept: list[np.ndarray] = []
        top = 0
        with ExitStack() as stack:
            bar = stack.enter_context(_row_bar(source, size))
            write_mask = stack.enter_context(mask_writer(target.mask, size, self.label_map, place))
            writer = confidence_writer(target.confidence, size, place) if target.confidence else nullcontext()
            write_confidence = stack.enter_context(writer)
            for prediction in bands:
                labels = _without_gaps(prediction.labels, raster, top, self.label_map.ignore_index)
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
            self._write_polygons(source, target, np.concatenate(kept), place)

    def _write_polygons(self, source: Path, target: Targets, labels: np.ndarray, place: Georeference | None) -> None:
        wanted, (height, width) = self.wanted, labels.shape
        regions = polygons.trace(labels, self.label_map, simplify=wanted.simplify, min_region=wanted.min_region)
        if self.collection is not None:
            self.collection.add(target.name, (height, width), regions)
        if target.polygons is None:
            return
        if wanted.polygons == "geojson":
            content = polygons.geojson(regions, self.label_map, place)
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
                bar = stack.enter_context(tqdm(total=video.num_frames, desc=source.name, unit="frame", leave=False))
                writer = None
                if target.overlay is not None:
                    writer = stack.enter_context(
                        VideoWriter(stack.enter_context(atomic_path(target.overlay)), video.rate)
                    )
                for number, (frame, bands) in enumerate(segmenter.segment(frames)):
                    labels = np.concatenate([band.labels for band in bands])
                    with mask_writer(folder / f"{number:06d}.png", labels.shape, self.label_map) as write_mask:
                        write_mask(labels)
                    self.masks += 1
                    if writer is not None:
                        writer.write(np.asarray(overlay(frame, labels, self.label_map, legend=False)))
                    bar.update()

        target.mask.parent.mkdir(parents=True, exist_ok=True)
        write_folder(target.mask, write)


def _row_bar(source: Path, size: tuple[int, int]) -> tqdm:
    return tqdm(total=size[0], desc=source.name, unit="row", leave=False, disable=size[0] * size[1] < LONG)


def _without_gaps(labels: np.ndarray, raster: Raster, top: int, ignore_index: int) -> np.ndarray:
    """Labels in which pixels that the file has no data for are ignored, where their type can say so."""
    missing = raster.file.missing(top, top + len(labels)) if isinstance(raster, FileRaster) else None
    if missing is None or not 0 <= ignore_index <= np.iinfo(labels.dtype).max:
        return labels
    return np.where(missing, labels.dtype.type(ignore_index), labels)


def _every(raster: Raster, step: int) -> np.ndarray:
    """Each `step`-th pixel of each `step`-th row."""
    again, rows = raster.again(), BAND * step
    bands = (again.read(top, min(top + rows, raster.height)) for top in range(0, raster.height, rows))
    return np.concatenate([band[::step, ::step] for band in bands])


IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".npy", ".npz", ".png", ".tif", ".tiff", ".webp"})
COCO_FILE = "annotations.coco.json"


@dataclass(frozen=True)
class Wanted:
    """What `segtune predict` writes beside the masks.

    Attributes:
        overlay: the classes in their colours over the image.
        confidence: probabilities as 8-bit PNG or 32-bit TIFF.
        polygons: in this format; `simplify` and `min_region` as for `polygons.trace`.
    """

    overlay: bool = False
    confidence: Literal["png", "tif"] | None = None
    polygons: PolygonFormat | None = None
    simplify: float = 0.0
    min_region: int = 0


def find_images(patterns: Iterable[str]) -> list[Path]:
    """The images of files, folders (not their sub-folders) and globs (`**` included), each once, in this order.

    Raises UsageError for a pattern without any image.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        elif path.is_file():
            matches = [path]
        else:
            matches = sorted(file for file in map(Path, glob.glob(pattern, recursive=True)) if file.is_file())
        if not matches:
            raise UsageError(f"{pattern}: {'no images in this folder' if path.is_dir() else 'no such image'}")
        for match in matches:
            found.setdefault(os.path.abspath(match), match)
    return list(found.values())


class Targets(NamedTuple):
    """The files that come of one input; None for what is not wanted.

    Attributes:
        name: of the input, its path below the folder that all inputs have in common.
        mask: of a video, a folder of masks.
    """

    name: str
    mask: Path
    overlay: Path | None = None
    confidence: Path | None = None
    polygons: Path | None = None

    @property
    def paths(self) -> list[Path]:
        return [path for path in self[1:] if path is not None]


def plan_targets(sources: Sequence[Path], output: Path, wanted: Wanted, overwrite: bool = False) -> list[Targets]:
    """Where everything goes: the paths of the inputs below the folder that all have in common, with other endings.

    `a.jpg` and `a.bmp` of one folder become `a.jpg.png` and `a.bmp.png`. A mask is a PNG; of a georeferenced TIFF, a
    TIFF; of a video, a folder.

    Raises:
        UsageError: something would lie in a folder of inputs, would be written twice, or exists.
    """
    absolute = [Path(os.path.abspath(path)) for path in sources]
    common = os.path.commonpath([path.parent for path in absolute])
    names = [path.relative_to(common) for path in absolute]
    stems = [name.with_suffix("") for name in names]
    uses = Counter(stems)
    targets = [
        _targets(source, name, output / (stem if uses[stem] == 1 else name), wanted)
        for source, stem, name in zip(absolute, stems, names, strict=True)
    ]
    written = [path for target in targets for path in target.paths]
    if wanted.polygons == "coco":
        written.append(output / COCO_FILE)
    counts = Counter(written)
    if twice := next((path for path in written if counts[path] > 1), None):
        raise UsageError(f"{twice} would be written twice: predict these images one after the other")
    folders = {path.parent.resolve() for path in absolute}
    if clash := next((path for path in written if path.parent.resolve() in folders), None):
        raise UsageError(f"--output {output}: {clash} would lie among the input images; name another folder")
    there = [path for path in written if path.exists()]
    if there and not overwrite:
        raise UsageError(
            f"{listed(there, 1)} exist{'s' * (len(there) == 1)} already; name another folder, or say --overwrite"
        )
    return targets


def _targets(source: Path, name: Path, base: Path, wanted: Wanted) -> Targets:
    def beside(ending: str, is_wanted: bool = True) -> Path | None:
        return base.with_name(base.name + ending) if is_wanted else None

    if is_video(source):
        if wanted.confidence or wanted.polygons:
            raise UsageError(f"{source}: --confidence and --polygons are for images, this is a video")
        return Targets(name.as_posix(), base, beside("_overlay.mp4", wanted.overlay))
    mask = base.with_name(base.name + (".tif" if is_georeferenced(source) else ".png"))
    endings = {"geojson": ".geojson", "labelme": ".json"}
    return Targets(
        name.as_posix(),
        mask,
        beside("_overlay.png", wanted.overlay),
        beside(f"_confidence.{wanted.confidence}", wanted.confidence is not None),
        beside(endings.get(wanted.polygons or "", ""), wanted.polygons in endings),
    )
