"""Containment: a data set names its own things only: ids that can be names of files, and files of its own folder.

Ids become names of files in runs, overlays and conversions, and annotations, tables and cells of parquet files name
images and masks. All of that may come from somebody else. Every source passes through here before a row is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, IterableDataset
from huggingface_hub.constants import HF_HUB_CACHE

from segtune.data.config import DatasetConfig
from segtune.data.index import DatasetIndex, Sample
from segtune.errors import DataError
from segtune.files import name_fault, points_inside

RENAME = "Ids name files in runs and conversions: rename these samples"
ALLOW = "Put the files below dataset.path; or set dataset.allow_outside=true, if you trust whoever wrote these paths"
OUTSIDE = "files outside the data set's folder are named"


def contain(index: DatasetIndex, config: DatasetConfig) -> None:
    """Take samples out of the index whose id cannot name a file, or whose files lie elsewhere; note them as problems.

    Where the recipe itself names a folder of images or masks, that may lie anywhere.
    """
    faults = {sample.id: fault for sample in index.samples + index.rejected if (fault := name_fault(sample.id))}
    shown = {id_: f"{id_[:100]!r} ({fault})" for id_, fault in faults.items()}
    index.report("id_unsafe", "ids that cannot be the name of a file", shown, RENAME)
    outside: dict[str, str] = {}
    if index.tables is None and not config.allow_outside:
        is_inside = _insider(_places(index.root, config))
        for sample in index.samples + index.rejected:
            away = {str(path): repr(str(path)) for path in _files(sample) if not is_inside(path)}
            outside |= away
            faults |= dict.fromkeys([sample.id] if away else [], OUTSIDE)
        index.report("file_outside", OUTSIDE, outside, ALLOW)
    if faults:
        index.samples = [sample for sample in index.samples if sample.id not in faults]
        index.rejected = [sample for sample in index.rejected if sample.id not in faults]


def refuse_outside(path: Path, root: Path, config: DatasetConfig, named_by: Path) -> None:
    """Refuse a file that another one names, before it is opened.

    Raises:
        DataError: it lies outside `root`.
    """
    if not config.allow_outside and not _is_below(_places(root, config), path):
        raise DataError(f"{named_by}: {OUTSIDE}: {str(path)!r}. {ALLOW}")


def contain_cells(table: Dataset, where: str, config: DatasetConfig) -> None:
    """Refuse a table whose cells of pictures name files instead of holding them, where these are not its own.

    Args:
        table: with the columns "image" and "mask".
        where: the data set's folder, or its name on the Hub.

    Raises:
        DataError: names the row and the path.
    """
    if config.allow_outside:
        return
    for name in ("image", "mask"):
        if isinstance(table.features.get(name), datasets.Image):
            cells = table.with_format("arrow").select_columns(name)
            rows = 0
            for batch in cells.iter(1000):
                for number, path in _named_paths(batch[name]):
                    _refuse_path(path, where, f"row {rows + number}, column {name!r}")
                rows += len(batch)


def contained_stream(stream: IterableDataset, where: str, config: DatasetConfig) -> IterableDataset:
    """The rows of a stream, each checked when it is read: its id, and cells that name files; raises DataError there.

    Args:
        stream: with undecoded pictures in "image" and "mask".
        where: see `contain_cells`.
    """

    def checked(row: dict[str, Any]) -> dict[str, Any]:
        described = f"row {row.get('id', '')!r}"
        if "id" in row and (fault := name_fault(str(row["id"]))):
            raise DataError(f"{where}, {described[:100]}: the id cannot be the name of a file: {fault}. {RENAME}")
        for name in ("image", "mask"):
            cell = row.get(name)
            path = cell.get("path") if isinstance(cell, Mapping) and cell.get("bytes") is None else None
            if path and not config.allow_outside:
                _refuse_path(path, where, f"{described}, column {name!r}")
        return row

    return stream.map(checked, features=stream.features)


def _named_paths(column: Any) -> Iterable[tuple[int, str]]:
    """The rows of an Arrow column of pictures that have a path and no bytes, with the path."""
    for start, chunk in _chunks(column):
        lacks_bytes, paths = chunk.field("bytes").is_null().to_pylist(), chunk.field("path").to_pylist()
        for number, (is_path, path) in enumerate(zip(lacks_bytes, paths, strict=True), start):
            if is_path and path:
                yield number, path


def _chunks(column: Any) -> Iterable[tuple[int, Any]]:
    start = 0
    for chunk in getattr(column, "chunks", [column]):
        yield start, chunk
        start += len(chunk)


def _refuse_path(path: str, where: str, described: str) -> None:
    if path.startswith((f"hf://datasets/{where}@", f"hf://datasets/{where}/")):
        return  # a file of the same repository, not yet downloaded
    caches = [
        Path(HF_HUB_CACHE) / f"datasets--{where.replace('/', '--')}",
        Path(datasets.config.DOWNLOADED_DATASETS_PATH),
    ]
    if "://" in path or not _is_below([Path(where), *caches], Path(path)):
        raise DataError(f"{where}, {described}: {OUTSIDE}: {path[:200]!r}. {ALLOW}")


def _places(root: Path, config: DatasetConfig) -> list[Path]:
    """The data set's folder, and folders that the recipe names beside it."""
    folder = root.parent if root.is_file() else root
    named = [text.partition("{")[0] for text in (config.images, config.masks) if text]
    return [folder, *(folder / text for text in named if text)]


def _insider(places: Sequence[Path]) -> Callable[[Path], bool]:
    """`_is_below` for many files, of which most lie in few folders."""
    known: dict[str, bool] = {}

    def is_inside(path: Path) -> bool:
        text = str(path)
        if ".." in text:
            return _is_below(places, path)
        folder = os.path.dirname(text)
        if folder not in known:
            known[folder] = _is_below(places, path.parent)
        return known[folder] or _is_below(places, path)

    return is_inside


def _is_below(places: Sequence[Path], path: Path) -> bool:
    return any(points_inside(place, path) for place in places)


def _files(sample: Sample) -> tuple[Path, Path]:
    return sample.image, sample.mask
