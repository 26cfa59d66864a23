"""Lazy rows: the samples of a data set as rows that read and draw their files when they are asked for."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL.Image
from datasets import Dataset, Features, Image, IterableDataset, Value

from segtune.data.annotations.shapes import OnTop, draw
from segtune.data.formats import labelme, yolo
from segtune.data.index import Sample
from segtune.errors import DataError, naming
from segtune.imageio.encoded import may_be_stretched
from segtune.imageio.read import (
    PICTURES,
    WITH_FRAMES,
    Pixels,
    Window,
    channels_at_end,
    read_errors,
    read_file,
    read_mask,
    read_picture,
)

Rows = TypeVar("Rows", Dataset, IterableDataset)

MOST_PIXELS = 2**28  # of a mask that is drawn without its image at hand
REFERENCE = {"path": Value("string"), "part": Value("string")}


@dataclass(frozen=True)
class Reader:
    """Reads the references of a data set's rows: a transform for `Dataset.with_transform`.

    A reference is a path and, as JSON, which part of the file is meant or what is to be drawn: "window" [top, left,
    height, width]; "frame", a page from 0; of an image, the "size" [height, width] that it is given; "shapes" on a
    picture of "size"; "files" {class: path}; "join" [paths]; "segments" {number: mask value} of a panoptic PNG.

    Attributes:
        values: class -> mask value, for formats that name classes instead, or number them in their own way (YOLO).
        on_top: see `draw`.
        one_hot: masks are arrays of one channel for each mask value.
        nodata: what a raster calls its nodata value counts like any other value in masks.
    """

    values: Mapping[str, int] = field(default_factory=dict)
    on_top: OnTop = "later"
    one_hot: bool = False
    nodata: bool = False

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        return {
            name: [self._read(name, cell) if isinstance(cell, dict) and "part" in cell else cell for cell in cells]
            for name, cells in batch.items()
        }

    def _read(self, name: str, cell: Mapping[str, str]) -> Pixels:
        with naming(cell["path"]):
            return (self.read_image if name == "image" else self.read_mask)(**cell)

    def read_image(self, path: str, part: str | None) -> Pixels:
        """A picture, or an array (H, W, C)."""
        what, window = _part(part)
        frame = what.get("frame")
        if path.endswith(".json"):
            with read_errors(path):
                embedded = labelme.embedded_image(Path(path))
            return window.crop(embedded) if window else embedded
        if "size" not in what:
            return read_file(Path(path), window, frame)
        resized = _resize(read_file(Path(path), frame=frame), what["size"])
        return window.crop(resized) if window else resized

    def read_mask(self, path: str, part: str | None) -> Pixels:
        """Ids (H, W) or colours (H, W, 3), as a picture or an array."""
        what, window = _part(part)
        if not what.keys() - {"frame"} and not self.one_hot and not path.endswith((".json", ".txt")):
            mask = read_file(Path(path), window, what.get("frame"))
            return np.ma.getdata(mask) if self.nodata and isinstance(mask, np.ma.MaskedArray) else mask
        if "shapes" in what or path.endswith((".txt", ".json")):
            with read_errors(path):  # annotations come from many tools: whatever their shapes raise is their fault
                return self._draw(Path(path), what, window)
        mask = self._compose(Path(path), what)  # (H, W)
        return window.crop(mask) if window else mask

    def _compose(self, path: Path, what: Mapping[str, Any]) -> np.ndarray:
        if "files" in what:
            return self._join(what["files"])
        if "join" in what:
            return _union([Path(name) for name in what["join"]])
        if "segments" in what:
            return _panoptic(np.asarray(read_file(path)), what["segments"])
        return _from_one_hot(np.asarray(read_file(path, frame=what.get("frame"))))

    def _draw(self, path: Path, what: Mapping[str, Any], window: Window | None) -> np.ndarray:
        size = tuple(what.get("size", ()))
        if "shapes" in what:
            return draw(what["shapes"], size, self.on_top, window)
        if path.suffix == ".txt":
            return draw(yolo.read_shapes(path, size, self.values), size, self.on_top, window)
        shapes, stated = labelme.read_shapes(path, self.values, size)
        if (all(size) and stated != size) or math.prod(stated) > MOST_PIXELS:
            raise DataError(f"it is drawn on {stated} (height, width), its image is {size}")
        return draw(shapes, stated, self.on_top, window)

    def _join(self, files: Mapping[str, str]) -> np.ndarray:
        """One mask of several that hold a class each; where they overlap, the class with the larger value counts."""
        joined = np.empty((0, 0), np.int32)
        for name in sorted(files, key=lambda name: self.values[name]):
            covered = _covered(Path(files[name]))
            joined = np.zeros(covered.shape, np.int32) if not joined.size else joined
            if joined.shape != covered.shape:
                raise DataError(f"{files[name]} is {covered.shape} (height, width), others are {joined.shape}")
            joined[covered] = self.values[name]
        return joined


def to_dataset(samples: Sequence[Sample], reader: Reader) -> Dataset:
    """Rows "id", "image" and "mask"; columns of plain pictures are `datasets.Image`, others are read by `reader`."""
    images = [(str(sample.image), sample.image_part) for sample in samples]
    masks = [(str(sample.mask), sample.mask_part) for sample in samples]
    columns: dict[str, list[Any]] = {"id": [sample.id for sample in samples]}
    features: dict[str, Any] = {"id": Value("string")}
    pictures = PICTURES - WITH_FRAMES
    for name, cells in (("image", images), ("mask", masks)):
        plain = all(not part and os.path.splitext(path)[1].lower() in pictures for path, part in cells)
        if name == "mask":
            plain = plain and not reader.one_hot and not any(may_be_stretched(sample.mask) for sample in samples)
        columns[name] = [path if plain else {"path": path, "part": part} for path, part in cells]
        features[name] = Image() if plain else REFERENCE
    dataset = Dataset.from_dict(columns, features=Features(features))
    return dataset.with_transform(reader) if REFERENCE in features.values() else dataset


def sample_ids(rows: Dataset) -> list[str]:
    """The ids of rows, without reading their files (as `rows["id"]` would where a `Reader` reads them)."""
    return list(rows.select_columns("id")["id"])


def _resize(image: Pixels, size: tuple[int, int]) -> PIL.Image.Image:
    """A picture in another size (height, width), each pixel a weighted mean of what it covers."""
    if not isinstance(image, PIL.Image.Image):
        raise DataError(f"an array of shape {image.shape}: dataset.resize_images is for pictures")
    if image.mode in ("1", "P"):
        image = image.convert("RGB")
    return image.resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR)


def _covered(path: Path) -> np.ndarray:
    """Where a mask of one class is not 0 (H, W)."""
    pixels = read_file(path)
    array = np.asarray(pixels.convert("L") if isinstance(pixels, PIL.Image.Image) and pixels.mode != "1" else pixels)
    if array.ndim != 2 or len(np.unique(array)) > 2:
        raise DataError(f"{path}: the mask of one class holds 0 and one other value, not {len(np.unique(array))}")
    return array != 0


def _union(paths: Sequence[Path]) -> np.ndarray:
    """One mask of several of one image, which do not contradict each other: 0, or black, is what a mask leaves open."""
    joined = np.array(read_mask(read_file(paths[0])))
    for path in paths[1:]:
        mask = np.asarray(read_mask(read_file(path)))
        if mask.shape != joined.shape:
            raise DataError(f"{path} is {mask.shape}, {paths[0].name} is {joined.shape}")
        covers, covered = (part.reshape(*part.shape[:2], -1).any(axis=-1) for part in (mask, joined))  # (H, W)
        differs = (mask != joined).reshape(*mask.shape[:2], -1).any(axis=-1) & covers & covered
        if differs.any():
            raise DataError(
                f"{path} gives {int(differs.sum())} pixels another value than {paths[0].name}: make one mask of both"
            )
        joined[covers] = mask[covers]
    return joined


def _from_one_hot(array: np.ndarray) -> np.ndarray:
    """The number of the channel that is set (H, W), masked where none is, of (H, W, K) or (K, H, W)."""
    channels = channels_at_end(array) != 0  # (H, W, K)
    counts = channels.sum(axis=-1)  # (H, W)
    if channels.ndim != 3 or counts.max() > 1:
        several = f"{int((counts > 1).sum())} pixels have several channels set" if channels.ndim == 3 else "one channel"
        raise DataError(f"an array {array.shape} is no one-hot mask: {several}")
    return np.ma.masked_array(channels.argmax(axis=-1), counts == 0) if not counts.all() else channels.argmax(axis=-1)


def _panoptic(picture: np.ndarray, segments: Mapping[str, int | None]) -> np.ndarray:
    """Mask values (H, W) of COCO's panoptic PNG, whose colours are numbers R + 256 G + 65536 B; 0 is ignored."""
    numbers = picture[:, :, :3].astype(np.int64) @ [1, 256, 65536]  # (H, W)
    found, inverse = np.unique(numbers, return_inverse=True)
    if unknown := [number for number in found.tolist() if number and str(number) not in segments]:
        raise DataError(f"the picture holds segment {unknown[0]}, which its annotation does not list")
    values = [segments.get(str(number)) for number in found.tolist()]
    labels = np.array([value or 0 for value in values], np.int32)[inverse].reshape(numbers.shape)
    ignored = np.array([value is None for value in values])[inverse].reshape(numbers.shape)
    return np.ma.masked_array(labels, ignored) if ignored.any() else labels


def undecoded(rows: Rows) -> Rows:
    """The same rows, with pictures of "image" and "mask" as their bytes or paths."""
    for name in ("image", "mask"):
        feature = rows.features.get(name)
        if isinstance(feature, Image) and feature.decode:
            rows = rows.cast_column(name, Image(decode=False))
    return rows


def decoded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `undecoded` ones with its pictures read.

    `rows[number]` of rows that are not undecoded gives the same, but lets through whatever a decoder raises.

    Raises:
        ReadError: one of them cannot be read.
    """
    return {
        name: _decoded(cell, name) if isinstance(cell, dict) and "bytes" in cell else cell for name, cell in row.items()
    }


def _decoded(cell: dict[str, Any], name: str) -> PIL.Image.Image:
    path, content = cell["path"], cell["bytes"]
    if content is None and "://" in path:
        with read_errors(path):
            return Image().decode_example({"path": path, "bytes": None})
    return read_picture(path or name, content)


def _part(text: str | None) -> tuple[dict[str, Any], Window | None]:
    """What a reference says about the part of its file that is meant, and the window of that."""
    what = json.loads(text) if text else {}
    window = what.pop("window", None)
    return what, Window(*window) if window else None
