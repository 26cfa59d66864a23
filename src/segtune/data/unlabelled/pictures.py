"""Unlabelled pictures: a folder of them as rows, without those that are in the labelled data, in whichever split."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from segtune.data.config import DatasetConfig, TransformConfig, refuse_missing_folder
from segtune.data.containment import RENAME
from segtune.data.index import DatasetIndex, Sample, in_threads
from segtune.data.lazy_rows import Reader, decoded, sample_ids, to_dataset, undecoded
from segtune.data.splits import all_names, split_names
from segtune.data.streaming import is_stream
from segtune.data.tiles import without_tile
from segtune.errors import DataError, listed, naming
from segtune.files import name_fault
from segtune.imageio.read import ReadError, is_picture, read_image, stem_of, try_header
from segtune.imageio.walk import walk_files

logger = logging.getLogger(__name__)

FRAMES = "Unlabelled files hold one picture each: save their pages to files of their own"


def open_unlabelled(
    config: DatasetConfig, splits: Mapping[str, Any], transforms: TransformConfig | None = None
) -> Dataset:
    """The pictures below `config.unlabelled` as rows "id" and "image", sorted by id.

    Left out, and counted in the log, are copies of labelled pictures of all splits, by their pixels or their id, their
    masks, and copies of each other: what is measured on val and test must not be learned, labelled or not. Pictures
    that were compressed again are no copies in this sense.

    Args:
        splits: the labelled rows. Those of a stream cannot be compared, which is told.
        transforms: of the recipe, with the mean in numbers: which channels and values a picture must have.

    Raises:
        UsageError: there is no such folder.
        DataError: it holds no picture that is not labelled; or ids that can name no file, files of several pages, of
            other channels, or unreadable ones (with `config.on_error=skip` these are left out).
    """
    assert config.unlabelled is not None
    root = refuse_missing_folder(config.unlabelled)
    compared = {split: found for split, found in splits.items() if not is_stream(found)}
    masks = {path for found in compared.values() for path in _mask_files(found)}
    index, left = _scan(root, masks)
    index.raise_or_skip(config.on_error)
    rows = to_dataset(index.samples, Reader()).select_columns(["id", "image"])
    if len(compared) < len(splits):
        logger.warning("dataset.unlabelled: a streamed split is not compared with the unlabelled pictures")
    kept, reasons = _not_labelled(rows, compared, config, transforms)
    reasons |= {"that are masks": left}
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    if not kept:
        raise DataError(f"{root} holds no picture to learn from without labels ({told or 'there is none'})")
    logger.info("%s: %d unlabelled pictures%s", root, len(kept), f"; left out: {told}" if told else "")
    return rows.select(kept)


def _scan(root: Path, masks: set[str]) -> tuple[DatasetIndex, int]:
    """The pictures below a folder, and how many of them are masks of labelled ones."""
    index = DatasetIndex(root, "unlabelled")
    pictures = [path for path in walk_files(root) if is_picture(path.name)]
    paths = [path for path in pictures if os.path.realpath(path) not in masks]
    headers = in_threads(try_header, paths, "read headers")
    unsafe, several, unreadable = {}, {}, {}
    for path, header in zip(paths, headers, strict=True):
        name = stem_of(path.relative_to(root).as_posix())
        if fault := name_fault(name):
            unsafe[index.below(path)] = f"{name[:100]!r} ({fault})"
        elif isinstance(header, ReadError):
            unreadable[index.below(path)] = f"{index.below(path)} ({header.reason})"
        elif header.frames > 1:
            several[index.below(path)] = index.below(path)
        else:
            index.samples.append(Sample(name, "train", path, path, header.size))
    index.report("id_unsafe", "ids that cannot be the name of a file", unsafe, RENAME)
    index.report("several_frames", "files with several pages or frames", several, FRAMES)
    index.report("unreadable", "pictures that cannot be read", unreadable, "Replace or remove these files")
    index.samples.sort(key=lambda sample: (sample.id, str(sample.image)))
    return index, len(pictures) - len(paths)


def _mask_files(rows: Dataset) -> Iterator[str]:
    """The real paths of the masks of labelled rows, where they are files."""
    if len(rows):
        column = undecoded(rows.select_columns("mask")).with_format("arrow")[:]["mask"]
        yield from map(os.path.realpath, filter(None, column.combine_chunks().field("path").to_pylist()))


def _not_labelled(
    rows: Dataset, splits: Mapping[str, Dataset], config: DatasetConfig, transforms: TransformConfig | None
) -> tuple[list[int], dict[str, int]]:
    """The rows that may be learned from, and how many were left out for which reason."""
    reasons: dict[str, int] = {}
    ids: dict[str, str] = {}
    contents: dict[str, str] = {}
    for split in ("train", "val", "test"):  # the last one counts where several have a picture: the worse leak is told
        if split in splits:
            found = splits[split]
            ids |= dict.fromkeys(map(without_tile, sample_ids(found)), split)
            digests = _digests(found)
            if error := next((digest for digest in digests if isinstance(digest, DataError)), None):
                raise DataError(f"{error}: it is compared with the unlabelled pictures") from error
            contents |= dict.fromkeys(map(str, digests), split)
    folders = {name.lower() for name in all_names(split_names(config.splits))}
    kept: list[int] = []
    seen: set[str] = set()
    found_here = _digests(rows, transforms)
    faults = [str(digest) for digest in found_here if isinstance(digest, DataError)]
    if faults and config.on_error == "raise":
        raise DataError(
            f"dataset.unlabelled={config.unlabelled}: pictures that cannot be learned from ({len(faults)}): "
            f"{listed(faults)}. Replace or remove these files, or leave them out by dataset.on_error=skip"
        )
    if faults:
        logger.warning("%s: skipped pictures that cannot be learned from: %s", config.unlabelled, listed(faults))
    for number, (name, digest) in enumerate(zip(sample_ids(rows), found_here, strict=True)):
        if isinstance(digest, DataError):
            continue
        named = next((ids[text] for text in _readings(name, folders) if text in ids), None)
        if digest in contents:
            reason = f"with the pixels of one in {contents[digest]}"
        elif named is not None:
            reason = f"with the id of one in {named}"
        elif digest in seen:
            reason = "copies of each other"
        else:
            kept.append(number)
            seen.add(digest)
            continue
        reasons[reason] = reasons.get(reason, 0) + 1
    return kept, reasons


def _readings(name: str, folders: set[str]) -> Iterator[str]:
    """An id as it is, and without the folder of a split in front, which ids of labelled samples do not have."""
    yield name
    first, _, rest = name.partition("/")
    if rest and first.lower() in folders:
        yield rest


def _digests(rows: Dataset, transforms: TransformConfig | None = None) -> list[str | DataError]:
    """Of the pixels of each picture: the same whatever file they are stored in; or what hinders their use."""
    images = undecoded(rows.select_columns("image"))
    return in_threads(_digest_of(images, transforms), range(len(images)), "compare pictures")


def _digest_of(images: Dataset, transforms: TransformConfig | None) -> Callable[[int], str | DataError]:
    def digest(number: int) -> str | DataError:
        try:
            picture = decoded(images[number])["image"]
            if transforms is not None:
                with naming(images.with_format("arrow")[number]["image"].to_pylist()[0]["path"] or "a picture"):
                    read_image(picture, len(transforms.mean), transforms.value_range is not None)
        except DataError as error:
            return error
        pixels = np.ascontiguousarray(np.ma.getdata(np.asarray(picture)))
        return hashlib.blake2b(
            repr((pixels.shape, pixels.dtype)).encode() + pixels.tobytes(), digest_size=16
        ).hexdigest()

    return digest


def ids_digest(rows: Dataset) -> str:
    """A digest of the ids of rows, which says whether a run that goes on sees the same pictures."""
    return hashlib.sha256("\n".join(sample_ids(rows)).encode()).hexdigest()[:16]


def describe(rows: Dataset, number: int) -> str:
    """A row for an error message."""
    row = rows.with_format("arrow")[number].to_pylist()[0]
    return f"unlabelled picture {row['id']!r} ({listed([row['image']['path']])})"
