"""Masks made once of a model's sure pixels, in a folder that a training reads as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segtune.bars import progress_bar
from segtune.errors import DataError, UsageError
from segtune.files import name_fault, refuse_foreign, write_atomic, write_folder
from segtune.imageio.raster import FileRaster, Raster, read_ahead
from segtune.imageio.read import suffix_of, try_header
from segtune.imageio.video import is_video
from segtune.imageio.writers import mask_writer
from segtune.inference.outputs import Targets
from segtune.inference.segmenter import Segmenter, eval_mode, joined
from segtune.labels.label_map import LabelMap

IMAGES, MASKS, LABELS = "images", "masks", "classes.json"
NOTE = ".labelled.json"  # what the masks were made with; hidden, so that the folder stays a data set as any other


@dataclass
class LabelledShare:
    """How much of the pictures was labelled.

    Attributes:
        images: that have a mask.
        left_out: pictures without a sure pixel, which would teach nothing.
        labelled: the sure pixels of each class, int64 `(K,)`.
        predicted: all pixels that the model gives a class, sure or not, of all pictures, `(K,)`.
        pixels: of all pictures.
        highest: confidence of a pixel.
    """

    labelled: np.ndarray
    predicted: np.ndarray
    images: int = 0
    left_out: list[str] = field(default_factory=list)
    pixels: int = 0
    highest: float = 0.0

    @property
    def share(self) -> float:
        """Of all pixels, the labelled ones."""
        return float(self.labelled.sum() / max(self.pixels, 1))


def refuse_unfit(sources: Sequence[Path], output: Path) -> None:
    """Refuse what no picture of a training can come from, and a folder that is not to be replaced.

    Raises:
        UsageError: a video, a file of several pages, or `output` holds something else than pictures that were
            labelled: the sources, say.
        DataError: a file cannot be read.
    """
    refuse_foreign(output, NOTE, (IMAGES, MASKS, LABELS), "--output", sources)
    for source in sources:
        if is_video(source):
            raise UsageError(f"{source} is a video: save its frames as pictures first")
        header = try_header(source)
        if isinstance(header, DataError):
            raise header
        if header.frames > 1:
            raise UsageError(f"{source} has {header.frames} pages or frames: save each as a picture of its own")


def write_pseudo_labels(
    segmenter: Segmenter,
    label_map: LabelMap,
    sources: Sequence[Path],
    targets: Sequence[Targets],
    output: Path,
    min_confidence: float,
    model: str,
) -> LabelledShare:
    """Write `images/`, `masks/` and `classes.json` into a new folder, all of it or nothing.

    A mask has the training ids of pixels whose confidence (calibrated, where the checkpoint is) is at least
    `min_confidence`, and the ignore index elsewhere. The pictures are copies.

    Args:
        targets: of each source, the name below `masks/`, see `plan_targets`.
        output: a folder that is not there, or is to be replaced.
        model: its name, which the label file states as the source of the masks.

    Raises:
        DataError: a picture cannot be read, or there is no sure pixel in any.
        UsageError: the ids of the model leave no room for ignored pixels, or a picture has a name that no sample may
            have.
    """
    if unfit := [(target.name, fault) for target in targets if (fault := name_fault(target.name))]:
        raise UsageError(
            f"{unfit[0][0][:100]!r} cannot be the name of a sample: {unfit[0][1]}. Rename the picture ({len(unfit)} in "
            "all have such names)"
        )
    if not 0 <= label_map.ignore_index <= 2**16 - 1:
        raise UsageError(f"the checkpoint ignores {label_map.ignore_index}, which no mask holds: write none with it")
    classes = LabelMap.from_names(label_map.names, label_map.colors, ignore_index=label_map.ignore_index)
    counted = LabelledShare(*np.zeros((2, classes.num_labels), dtype=np.int64))

    def write(folder: Path) -> None:
        for source, target, labels, confidence in _predicted(segmenter, sources, targets):
            sure = (confidence >= min_confidence) & (confidence > 0)  # 0: the file has no data there
            counted.highest = max(counted.highest, float(confidence.max()))
            counted.pixels += labels.size
            counted.predicted += classes.count_pixels(labels)[:-1]
            if not sure.any():
                counted.left_out.append(str(source))
                continue
            name = target.mask.relative_to(output / MASKS)
            picture = (folder / IMAGES / name).with_suffix("")
            picture = picture.with_name(picture.name + suffix_of(source.name))
            for path in (picture, folder / MASKS / name):
                path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, picture)
            kept = np.where(sure, labels, classes.ignore_index)
            counted.labelled += classes.count_pixels(kept)[:-1]
            counted.images += 1
            with mask_writer(folder / MASKS / name, kept.shape, classes) as write_rows:
                write_rows(kept.astype(np.uint16 if classes.num_labels > 256 else np.uint8))
        if not counted.images:
            raise DataError(
                f"no pixel of {len(sources)} pictures reaches a confidence of {min_confidence}, the highest is "
                f"{counted.highest:.3f}: lower --min-confidence, or fit the checkpoint's temperature first "
                "(segtune calibrate)"
            )
        stated = classes.to_dict() | {"source": f"masks of the pixels that {model} is sure of (segtune label)"}
        write_atomic(folder / LABELS, json.dumps(stated, indent=1, ensure_ascii=False) + "\n")
        note = {"checkpoint": str(segmenter.model.name_or_path), "min_confidence": min_confidence}
        note |= {"temperature": segmenter.temperature, "images": counted.images}
        write_atomic(folder / NOTE, json.dumps(note, indent=1, ensure_ascii=False) + "\n")

    write_folder(output, write)
    return counted


def _predicted(
    segmenter: Segmenter, sources: Sequence[Path], targets: Sequence[Targets]
) -> Iterator[tuple[Path, Targets, np.ndarray, np.ndarray]]:
    """Each picture with the model's labels `(H, W)` and their confidence `(H, W)`, 0 where the file has no data."""

    def opened() -> Iterator[tuple[tuple[Path, Targets, Raster], Raster]]:
        for source, target in zip(sources, targets, strict=True):
            raster = segmenter.open(source, target.frame)
            yield (source, target, raster), raster

    bar = progress_bar(total=len(sources), desc="label", hidden=len(sources) < 2)
    with eval_mode(segmenter.model), bar:
        for (source, target, raster), strips in segmenter.segment(read_ahead(opened()), confidence=True):
            found = joined(strips)
            assert found.confidence is not None
            missing = raster.file.missing(0, raster.height) if isinstance(raster, FileRaster) else None
            confidence = found.confidence if missing is None else np.where(missing, 0.0, found.confidence)
            yield source, target, found.labels, confidence
            bar.update()
