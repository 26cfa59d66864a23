"""Survey of a pool of images: the uncertainty and the features of each, in one pass over all that can be resumed.

What is known of an image is a line of a file, so that a survey that was stopped, or a second choice from the same pool,
looks at no image twice.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segtune.bars import progress_bar
from segtune.errors import DataError, UsageError
from segtune.files import read_json_lines
from segtune.imageio.raster import ArrayRaster, FileRaster, Raster, read_ahead
from segtune.inference.parallel.processes import refuse_other_settings, settings_note, weights_digest
from segtune.inference.segmenter import Segmenter, eval_mode
from segtune.selection.acquisition import CELLS, LEAST_SIDE, THIN, WIDTH, UncertaintyGrid
from segtune.selection.encoder_features import PooledFeatures

logger = logging.getLogger(__name__)

FIELDS = ("sums", "pixels", "features")


class Surveyed(NamedTuple):
    """What a survey knows of an image; see `acquisition.Uncertainty` and `encoder_features.PooledFeatures`."""

    path: Path
    sums: np.ndarray
    pixels: np.ndarray
    features: np.ndarray


@dataclass
class Pool:
    """The images of a survey that could be read, in their order, and the faults of the others by their paths."""

    images: list[Surveyed] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)

    def table(self, name: str) -> np.ndarray:
        """One of `FIELDS` of all images, `(N, …)`."""
        return np.stack([getattr(image, name) for image in self.images])


def survey(
    segmenter: Segmenter, sources: Sequence[Path], num_labels: int, record: Path, *, resume: bool = False
) -> Pool:
    """Look at all images of a pool, each once; the next one is read while one is looked at.

    Args:
        segmenter: its model is a `PooledFeatures`.
        num_labels: that the model tells apart.
        record: the file with a line for each image; written anew unless `resume` is set.

    Raises:
        UsageError: the record was made with other weights or another protocol.
        DataError: no image could be read.
    """
    known = _known(record, settings_of(segmenter), num_labels) if resume else {}
    fresh = [path for path in sources if _row_of(path, known) is None]
    pool = Pool()
    with _appended(record, settings_of(segmenter), bool(known)) as file:
        for path, row in _looked_at(segmenter, fresh, num_labels, pool.faults, len(sources) - len(fresh)):
            known[str(path)] = row
            file.write(json.dumps(row) + "\n")
    readable = [path for path in sources if str(path) in known and str(path) not in pool.faults]
    pool.images = [_surveyed(path, known[str(path)]) for path in readable]
    if not pool.images:
        raise DataError(f"none of the {len(sources)} images can be read: {next(iter(pool.faults.values()))}")
    return pool


def _surveyed(path: Path, row: Mapping[str, Any]) -> Surveyed:
    return Surveyed(path, *(np.array(row[name], np.float64) for name in FIELDS))


def settings_of(segmenter: Segmenter) -> dict[str, Any]:
    """What a survey depends on."""
    network = segmenter.model.network if isinstance(segmenter.model, PooledFeatures) else segmenter.model
    return {
        "weights": weights_digest(network),
        "protocol": str(segmenter.protocol),
        "precision": segmenter.precision,
        "temperature": segmenter.temperature,
        "cells": [CELLS, LEAST_SIDE, WIDTH, THIN],
    }


# --- the record ------------------------------------------------------------------------------------------------------


def _known(record: Path, settings: Mapping[str, Any], num_labels: int) -> dict[str, dict[str, Any]]:
    """The rows of an earlier survey by their paths; of images that have changed since, `_row_of` takes none."""
    if not record.exists():
        return {}
    rows = read_json_lines(record)
    if not rows:
        return {}
    refuse_other_settings(json.dumps(rows[0]).encode(), settings, "notes of images", str(record))
    whole = [row for row in rows[1:] if _is_whole(row, num_labels)]
    widths = Counter(len(row["features"]) for row in whole)
    usual = max(widths, key=widths.__getitem__, default=0)
    kept = {str(row["image"]): row for row in whole if len(row["features"]) == usual}
    if len(kept) < len(rows) - 1:
        logger.warning("%s: %d lines are damaged, their images are looked at again", record, len(rows) - 1 - len(kept))
    return kept


def _is_whole(row: Mapping[str, Any], num_labels: int) -> bool:
    """Whether a line holds what is written of an image."""
    tables = [row.get(name) for name in FIELDS]
    numbers = all(isinstance(table, list) and all(map(_is_finite, table)) for table in tables)
    return numbers and {"image", "stamp"} <= row.keys() and [len(row[name]) for name in FIELDS[:2]] == [num_labels] * 2


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _row_of(path: Path, known: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """What is known of an image, unless its file has changed."""
    row = known.get(str(path))
    if row is not None and row["stamp"] != _stamp(path):
        del known[str(path)]
        return None
    return row


def _stamp(path: Path) -> list[int] | None:
    with suppress(OSError):
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    return None


def _appended(record: Path, settings: Mapping[str, Any], goes_on: bool) -> Any:
    """The record, open to append rows to; with its first line, and without the half line that a kill leaves."""
    record.parent.mkdir(parents=True, exist_ok=True)
    if goes_on:
        content = record.read_bytes()
        os.truncate(record, content.rfind(b"\n") + 1)
    else:
        record.write_text(json.dumps(json.loads(settings_note(settings))) + "\n", encoding="utf-8")
    return record.open("a", encoding="utf-8", buffering=1)


# --- the images ------------------------------------------------------------------------------------------------------


class _Opened(NamedTuple):
    path: Path
    stamp: list[int] | None
    raster: Raster


def _looked_at(
    segmenter: Segmenter, sources: Sequence[Path], num_labels: int, faults: dict[str, str], before: int
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each image that can be read, with its row; the faults of the others are noted."""
    features: Any = segmenter.model
    bar = progress_bar(total=before + len(sources), initial=before, desc="select", unit="image")
    with eval_mode(segmenter.model), bar:
        opened = read_ahead(_opened(segmenter, sources, faults, bar))
        for image, strips in segmenter.segment(opened, confidence=True):
            grid, top = UncertaintyGrid((image.raster.height, image.raster.width), num_labels), 0
            try:
                for labels, confidence in strips:
                    assert confidence is not None
                    grid.add(labels, confidence, missing_rows(image.raster, top, top + len(labels)))
                    top += len(labels)
            except DataError as error:
                faults[str(image.path)] = str(error)
                logger.warning("left out: %s", error)
                features.take()  # of a part of the image
                bar.update()
                continue
            pooled = features.take(1 if segmenter.protocol.is_plain else None)
            found = grid.result()
            row = {
                "sums": found.sums.tolist(),
                "pixels": found.pixels.tolist(),
                "features": pooled.tolist(),
            }
            yield image.path, {"image": str(image.path), "stamp": image.stamp, **row}
            bar.update()


def _opened(
    segmenter: Segmenter, sources: Sequence[Path], faults: dict[str, str], bar: Any
) -> Iterator[tuple[_Opened, Raster]]:
    """The images that can be opened; where the protocol sees them whole, they are read here, so that faults show."""
    for path in sources:
        stamp = _stamp(path)
        try:
            raster = segmenter.open(path)
            whole = ArrayRaster(raster.read(0, raster.height)) if segmenter.protocol.is_plain else raster
        except UsageError:
            raise
        except (DataError, OSError) as error:
            faults[str(path)] = str(error)
            logger.warning("left out: %s", error)
            bar.update()
            continue
        yield _Opened(path, stamp, raster), whole


def missing_rows(raster: Raster, top: int, bottom: int) -> np.ndarray | None:
    """Where rows of an image hold nothing, bool `(bottom - top, W)`; None where everything is there."""
    return raster.file.missing(top, bottom) if isinstance(raster, FileRaster) else None
