"""Evaluation in blocks of images: counted by several processes or one command after another, each block once."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segtune.data.lazy_rows import sample_ids
from segtune.errors import UsageError
from segtune.evaluation.evaluation import Evaluation
from segtune.imageio.read import for_display
from segtune.inference.evaluate import OnImage, evaluated_images
from segtune.inference.parallel.processes import Processes, WorkFolder

MOST_BLOCKS, LARGEST_BLOCK = 256, 64  # images are blocks of one where there are few, so that processes get as many


class SharedCount(NamedTuple):
    """Where counts of images are kept: beside the file of all of them, the same one in all processes.

    Attributes:
        result: the file of the whole evaluation.
        resume: whether to go on from counts that are there, and to take the file of all where that is.
    """

    result: Path
    processes: Processes
    resume: bool = False

    @property
    def folder(self) -> Path:
        """Of the counts of some images, until all are there."""
        return self.result.with_name(f".{self.result.name}.parts")

    def earlier(self, about: Mapping[str, Any], boundary_width: float, ids: Sequence[str]) -> Evaluation | None:
        """The evaluation that is in the file; None where there is none to go on from.

        Raises:
            UsageError: it is of something else.
        """
        if not (self.resume and self.result.exists()):
            return None
        found = Evaluation.load(self.result)
        theirs = {name: found.about.get(name) for name in about} | {"boundary width": found.boundary_width}
        ours = {**about, "boundary width": boundary_width}
        if differing := [f"{name} {theirs[name]}, now {ours[name]}" for name in ours if theirs[name] != ours[name]]:
            raise UsageError(f"{self.result} was counted with {differing[0]}: remove it, or name another file")
        if sorted(found.counts.ids) != sorted(ids):
            raise UsageError(f"{self.result} is of other images: remove it, or name another file")
        return found


def blocks_of(count: int) -> list[range]:
    """Positions of `count` images in blocks, the same for any number of processes: another number may go on."""
    size = max(1, min(LARGEST_BLOCK, -(-count // MOST_BLOCKS)))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def count_blocks(
    rows: Any,
    make: Callable[[], Evaluation],
    shared: SharedCount,
    settings: dict[str, Any],
    on_image: OnImage | None = None,
    **options: Any,
) -> Evaluation | None:
    """Count the blocks of this process's share that are missing; the process that ends last adds all of them up.

    Counts are whole numbers, so that their sums do not depend on who counted what.

    Args:
        rows: of the split, see `evaluated_images`.
        make: a new, empty evaluation.
        settings: what the counts depend on, see `WorkFolder`.
        on_image: see `evaluate_model`; called for the images that this process counts.
        options: model, label_map, processor and so on, see `evaluated_images`.

    Returns:
        None unless this process ended last and all blocks are there.

    Raises:
        UsageError: blocks of its share are there and may not be gone on from, or were counted in another way.
        DataError: see `evaluate_model`.
    """
    folder, ids = shared.folder, sample_ids(rows)
    blocks = blocks_of(len(ids))
    files = [folder / f"{number:06d}.npz" for number in range(len(blocks))]
    share = shared.processes.share(range(len(blocks)))
    there = [number for number in share if files[number].exists()]
    if there and not shared.resume:
        raise UsageError(f"{folder} holds counts of an earlier command: say --resume, or remove it")
    images = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
    work = WorkFolder(folder, shared.processes, settings | {"images": images}, "counts")
    work.begin()
    missing = [number for number in share if number not in set(there)]
    _count(rows, make, {number: blocks[number] for number in missing}, files, ids, on_image, **options)
    if not work.end(lambda: all(file.exists() for file in files)):
        return None
    first, *others = map(Evaluation.load, files)
    for other in others:
        first.merge(other)
    shutil.rmtree(folder)
    return first


def _count(
    rows: Any,
    make: Callable[[], Evaluation],
    blocks: dict[int, range],
    files: Sequence[Path],
    ids: Sequence[str],
    on_image: OnImage | None,
    **options: Any,
) -> None:
    """Write each block when its images are counted, which come in the order of finished batches."""
    block_of = {ids[position]: number for number, block in blocks.items() for position in block}
    open_blocks: dict[int, Evaluation] = {}
    positions = [position for block in blocks.values() for position in block]
    if not positions:
        return
    for found in evaluated_images(dataset=rows, indices=positions, **options):
        number = block_of[found.id]
        evaluation = open_blocks.setdefault(number, make())
        evaluation.add(found.id, found.labels, found.prediction, found.confidence)
        if on_image is not None:
            on_image(found.id, for_display(found.image), found.labels, found.prediction)
        if len(evaluation) == len(blocks[number]):
            open_blocks.pop(number).save(files[number])
