"""Prediction of a process's share of many files, from where an earlier command was stopped, to one result of all."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from segtune.files import read_json
from segtune.imageio.video import is_video
from segtune.inference.outputs import COCO_FILE, Targets, Wanted, refuse_existing
from segtune.inference.parallel.processes import Processes, WorkFolder, weights_digest
from segtune.inference.polygons import coco_file
from segtune.inference.predict_files import predict_files
from segtune.inference.segmenter import Segmenter
from segtune.labels.label_map import LabelMap

WORK = ".predict"  # in the folder of the masks
PIECES = "coco"


class Predicted(NamedTuple):
    """What all processes have made.

    Attributes:
        masks: that are there, those of a video's frames counted.
        before: images and videos of which everything was there before this process began, of its share.
    """

    masks: int
    before: int


def predict_share(
    segmenter: Segmenter,
    label_map: LabelMap,
    sources: Sequence[Path],
    targets: Sequence[Targets],
    output: Path,
    wanted: Wanted,
    processes: Processes,
    *,
    resume: bool = False,
) -> Predicted | None:
    """Write what is missing of this process's share; the process that ends last joins what belongs to all.

    What is there is whole, since every file gets its name at its end: an image is done when all that is wanted of it
    is there. The list of images must be the same in all processes.

    Args:
        sources, targets, output, wanted: see `predict_files`; of all images.
        resume: images of which everything is there are left as they are.

    Returns:
        None unless this process ended last and everything is there.

    Raises:
        UsageError: files of its share are there and `resume` is not set, or they were made with other weights.
        DataError: see `predict_files`.
    """
    coco = output / COCO_FILE if wanted.polygons == "coco" else None
    needed = list(targets)
    if coco and not (resume and _names_of(coco) == [target.name for target in targets]):
        pieces = output / WORK / PIECES
        needed = [each._replace(polygons=pieces / f"{each.name}-{each.frame or 0}.json") for each in targets]
    share = processes.share(list(zip(sources, needed, strict=True)))
    if not resume:
        refuse_existing([path for _, target in share for path in target.paths] + ([coco] if coco else []), "--resume")
    work = WorkFolder(output / WORK, processes, mask_settings(segmenter, wanted), "masks")
    work.begin()
    missing = [(source, target) for source, target in share if not _is_whole(target)]
    if missing:
        predict_files(
            segmenter,
            label_map,
            [source for source, _ in missing],
            [target for _, target in missing],
            output,
            wanted,
            in_parts=True,
            progress=processes.local == 0,
        )
    if not work.end(lambda: all(map(_is_whole, needed))):
        return None
    if coco and needed != list(targets):
        _join(coco, label_map, needed)
        shutil.rmtree(output / WORK / PIECES)
    masks = sum(_frames(target) if is_video(source) else 1 for source, target in zip(sources, targets, strict=True))
    return Predicted(masks, len(share) - len(missing))


def mask_settings(segmenter: Segmenter, wanted: Wanted) -> dict[str, Any]:
    """What masks and polygons depend on."""
    own: dict[str, Any] = {"weights": weights_digest(segmenter.model), "protocol": str(segmenter.protocol)}
    polygons = {"--simplify": wanted.simplify, "--min-region": wanted.min_region} if wanted.polygons else {}
    engine = getattr(segmenter.model, "engine", "torch")
    return own | {"precision": segmenter.precision, "engine": engine} | polygons


def _is_whole(target: Targets) -> bool:
    return all(path.exists() for path in target.paths)


def _frames(target: Targets) -> int:
    return sum(path.suffix == ".png" for path in target.mask.iterdir())


def _names_of(coco: Path) -> list[str]:
    """The images of a COCO file; none where there is no such file."""
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        return [image["file_name"] for image in read_json(coco)["images"]]
    return []


def _join(coco: Path, label_map: LabelMap, targets: Sequence[Targets]) -> None:
    with coco_file(coco, label_map) as collection:
        for target in targets:
            assert target.polygons is not None
            collection.add_piece(read_json(target.polygons))
