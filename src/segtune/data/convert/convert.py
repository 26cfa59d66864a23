"""Data set conversion: a folder or parquet files with id masks, images as they are, label map and data card.

`datasets` writes each parquet file, but plans and resumes nothing here. A conversion that was killed goes on and ends
with files that equal those of an undisturbed one byte for byte, at the cost of a sample or a shard. `Dataset.map` goes
on by cached Arrow files of whole processes, whose name is a hash of the pickled function; it keeps no counts, and would
hold the data set a second time. `push_to_hub` shards anew and embeds files itself, so that what is uploaded is not what
was checked. And folders need a journal either way: with it, both forms are resumed by one piece of code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import datasets
from datasets import Dataset, DatasetDict, Features, Image, Value

from segtune.bars import progress_bar
from segtune.data.convert.dataset_card import Count, Origin, data_card, hub_split
from segtune.data.convert.encode import EncodedSample, MaskEncoding, SampleEncoder
from segtune.data.lazy_rows import sample_ids
from segtune.errors import DataError, UsageError, listed
from segtune.files import atomic_path, path_inside, read_json_lines, write_atomic
from segtune.labels.label_map import LabelMap

LABELS, CARD = "labels.json", "README.md"
JOURNAL = ".cache/huggingface/segtune/convert.jsonl"  # where huggingface_hub keeps its own, which it does not upload
FEATURES = Features({"id": Value("string"), "image": Image(), "mask": Image()})
SHARD_BYTES = 250_000_000
SAMPLED = 16  # rows whose encoded samples tell how many rows make a shard


@dataclass(frozen=True)
class Conversion:
    """What to write, and where.

    Attributes:
        form: folder or parquet.
        tile: side of the tiles that larger images are cut into; None leaves them whole. `overlap` of neighbouring
            tiles of the training split, at least; those of other splits lie next to each other, so that each pixel
            counts once.
        workers: threads.
    """

    dataset: DatasetDict
    label_map: LabelMap
    output: Path
    form: Literal["folder", "parquet"] = "folder"
    tile: int | None = None
    overlap: int = 0
    workers: int = 1
    origin: Origin = field(default_factory=Origin)

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < 1:
            raise UsageError(f"tile={self.tile}: give the side of a tile in pixels")
        if self.overlap and (self.tile is None or not 0 <= self.overlap < self.tile):
            raise UsageError(f"overlap={self.overlap}: give a number from 0 to below tile={self.tile}")


class Unit(NamedTuple):
    """What is written at once: a sample or a shard."""

    name: str
    split: str
    run: Callable[[], tuple[list[str], Count]]  # writes files and returns their paths below the output


def convert(conversion: Conversion, progress: bool = True) -> dict[str, Count]:
    """Write a data set in one of our forms; what an earlier, interrupted call has finished is not written again.

    folder: images/<split>/<id>.<suffix> and masks/<split>/<id>.png. parquet: data/<split>-<number>-of-<count>.parquet
    with the columns id, image and mask. Beside them labels.json (`LabelMap.to_dict`) and README.md, a data card. Images
    keep their files' content, tiles are PNG. Masks of ids keep their ids; colours become training ids.

    Returns:
        What was written, by split.

    Raises:
        UsageError: the folder holds other things, or the conversion of something else.
        DataError: a sample that cannot be read, or that the label map does not fit.
    """
    target = MaskEncoding.of(conversion.label_map)
    journal = Journal(conversion.output, _settings(conversion))
    units = list((_samples if conversion.form == "folder" else _shards)(conversion, target))
    remaining = [unit for unit in units if not journal.has(unit.name)]
    with progress_bar(
        total=len(units), initial=len(units) - len(remaining), desc="convert", hidden=not progress
    ) as bar:
        for unit, (files, count) in _in_threads(remaining, conversion.workers if conversion.form == "folder" else 1):
            journal.add(unit.name, files, count)
            bar.update()
    counts = {
        split: _total(journal.count(unit.name) for unit in units if unit.split == split) for split in conversion.dataset
    }
    labels = json.dumps(target.label_map.to_dict() | conversion.origin.entries(), indent=1, ensure_ascii=False)
    write_atomic(conversion.output / LABELS, f"{labels}\n")
    card = data_card(conversion.origin, target.label_map, counts, conversion.form, conversion.tile, conversion.overlap)
    write_atomic(conversion.output / CARD, card)
    return counts


def _settings(conversion: Conversion) -> dict[str, Any]:
    """What must be equal for a conversion to be gone on with."""
    ids = {split: sample_ids(rows) for split, rows in conversion.dataset.items()}
    return {
        "form": conversion.form,
        "tile": conversion.tile,
        "overlap": conversion.overlap,
        "labels": conversion.label_map.to_dict(),
        "samples": {split: len(found) for split, found in ids.items()},
        "ids": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
    }


def _encoder(conversion: Conversion, target: MaskEncoding, split: str) -> SampleEncoder:
    overlap = conversion.overlap if split == "train" else None
    return SampleEncoder(conversion.dataset[split], conversion.label_map, target, conversion.tile, overlap)


def _count(samples: Iterable[EncodedSample]) -> Count:
    return _total(Count(1, sample.counts) for sample in samples)


def _total(counts: Iterable[Count]) -> Count:
    samples, pixels = zip(*counts, strict=True)
    return Count(sum(samples), [sum(numbers) for numbers in zip(*pixels, strict=True)])


def _in_threads(units: Iterable[Unit], workers: int) -> Iterator[tuple[Unit, tuple[list[str], Count]]]:
    """The units as they are finished; after an error those that were not begun are dropped."""
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(unit.run): unit for unit in units}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


# -- folder -----------------------------------------------------------------------------------------------------------


def _samples(conversion: Conversion, target: MaskEncoding) -> Iterator[Unit]:
    for split, rows in conversion.dataset.items():
        encode = _encoder(conversion, target, split)
        for number, sample_id in enumerate(sample_ids(rows)):
            run = partial(_write_sample, conversion.output, split, encode, number)
            yield Unit(f"{split}/{sample_id}", split, run)


def _write_sample(output: Path, split: str, encode: SampleEncoder, number: int) -> tuple[list[str], Count]:
    files, made = [], encode(number)
    for sample in made:
        for place, suffix, content in (("images", sample.suffix, sample.image), ("masks", ".png", sample.mask)):
            path = path_inside(output / place / split, sample.id, suffix=suffix)
            write_atomic(path, content)
            files.append(path.relative_to(output).as_posix())
    return files, _count(made)


# -- parquet ----------------------------------------------------------------------------------------------------------


def _shards(conversion: Conversion, target: MaskEncoding) -> Iterator[Unit]:
    for split, rows in conversion.dataset.items():
        encode = _encoder(conversion, target, split)
        count = -(-len(rows) // _rows_of_a_shard(encode, len(rows)))
        for shard in range(count):
            part = range(len(rows) * shard // count, len(rows) * (shard + 1) // count)
            name = f"data/{hub_split(split)}-{shard:05d}-of-{count:05d}.parquet"
            run = partial(_write_shard, conversion.output / name, name, encode, part, conversion.workers)
            yield Unit(name, split, run)


def _rows_of_a_shard(encode: SampleEncoder, rows: int) -> int:
    """So many rows that a shard has about 250 MB, by the encoded samples of a few."""
    sampled = range(0, rows, max(1, rows // SAMPLED))
    size = sum(len(sample.image) + len(sample.mask) for number in sampled for sample in encode(number))
    return max(1, SHARD_BYTES * len(sampled) // size)


def _write_shard(path: Path, name: str, encode: SampleEncoder, rows: range, workers: int) -> tuple[list[str], Count]:
    with ThreadPoolExecutor(workers) as pool:
        made = [sample for found in pool.map(encode, rows) for sample in found]
    if odd := next((sample for sample in made if sample.suffix == ".npy"), None):
        raise DataError(f"{odd.id!r} is no picture that parquet readers can decode: convert it to a folder")
    columns = {
        "id": [sample.id for sample in made],
        "image": [{"bytes": sample.image, "path": f"{sample.id}{sample.suffix}"} for sample in made],
        "mask": [{"bytes": sample.mask, "path": f"{sample.id}.png"} for sample in made],
    }
    with atomic_path(path) as temporary, _without_bars():
        Dataset.from_dict(columns, features=FEATURES).to_parquet(str(temporary))
    return [name], _count(made)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Ours shows the progress."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


# -- resuming ---------------------------------------------------------------------------------------------------------


class Journal:
    """A file of one JSON object a line: first the settings of the conversion, then what was finished.

    Raises:
        UsageError: the folder holds things that no conversion of these settings has written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.path = folder, folder / JOURNAL
        self.done: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            self._read(dict(settings))
        elif held := self._held():
            raise UsageError(f"{folder} holds other things ({listed(held)}): name a new folder")
        lines = [dict(settings), *({"name": name, **record} for name, record in self.done.items())]
        write_atomic(self.path, "".join(f"{json.dumps(line)}\n" for line in lines))  # without a torn last line

    def _held(self) -> list[str]:
        """What lies in the folder, apart from what a call leaves that ends at its very beginning."""
        names = {child.name for child in self.folder.iterdir()} if self.folder.exists() else set()
        return sorted(names - {Path(JOURNAL).parts[0]})

    def _read(self, settings: dict[str, Any]) -> None:
        lines = read_json_lines(self.path) or [{}]
        if other := [key for key, value in settings.items() if lines[0].get(key) != value]:
            raise UsageError(
                f"{self.folder} holds a conversion with other settings ({', '.join(other)}): name a new folder, or "
                "repeat that call to complete it"
            )
        self.done = {line.pop("name"): line for line in lines[1:]}

    def has(self, name: str) -> bool:
        """Whether it is finished and its files are still there."""
        return name in self.done and all((self.folder / file).is_file() for file in self.done[name]["files"])

    def count(self, name: str) -> Count:
        """What was finished under a name."""
        return Count(self.done[name]["samples"], self.done[name]["pixels"])

    def add(self, name: str, files: list[str], count: Count) -> None:
        """Note what was finished."""
        record = self.done[name] = {"files": files, "samples": count.samples, "pixels": count.pixels}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps({'name': name, **record})}\n")
