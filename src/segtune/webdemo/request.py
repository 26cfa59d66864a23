"""One request of the web demo: pictures in, the files of `segtune predict` out, within limits."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from segtune.errors import DataError
from segtune.imageio.raster import Raster, shown
from segtune.imageio.read import ARRAYS, PICTURES, TIFFS, read_file, read_header
from segtune.inference.outputs import COCO_FILE, Wanted, plan_targets
from segtune.inference.predict_files import predict_files
from segtune.inference.protocol import InferenceProtocol
from segtune.inference.segmenter import Key, Prediction, Segmenter
from segtune.labels.label_map import LabelMap
from segtune.viz.numbers import count

LARGEST_WHOLE = 2048**2  # pixels of a picture that is seen at once, unless the checkpoint or a command says otherwise
WINDOW = 1024  # of larger ones
SHOWN = 1024  # pixels of the longer side of a picture in the page

Tell = Callable[[float, str], None]  # how much is done, from 0 to 1, and of what


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        megabytes: of a file (2^20 bytes).
        megapixels: of a picture (10^6 pixels).
        seconds: that a request computes.
        pictures: in a request.
    """

    megabytes: float = 50.0
    megapixels: float = 50.0
    seconds: float = 300.0
    pictures: int = 100

    def check(self, path: Path) -> None:
        """Refuse a file by its size and its header, before anything of it is decoded.

        Raises:
            DataError: it is too large, or no picture.
        """
        if path.suffix.lower() not in PICTURES | TIFFS | ARRAYS:
            raise DataError(f"{path.name}: the name has no ending of a picture, such as .png or .jpg")
        size = path.stat().st_size / 2**20
        if size > self.megabytes:
            raise DataError(f"{path.name} has {size:,.1f} MB: at most {self.megabytes:g} are taken")
        height, width = read_header(path).size
        if height * width > self.megapixels * 1e6:
            raise DataError(
                f"{path.name} has {width:,} x {height:,} pixels: at most {self.megapixels:g} million are taken"
            )


class Share(NamedTuple):
    """A class of a mask: its training id, and its part of the pixels, from 0 to 1."""

    id: int
    part: float


@dataclass(frozen=True)
class Segmented:
    """What came of a picture.

    Attributes:
        name: of the picture.
        files: the mask first, then overlay, confidence and polygons, as far as they were wanted.
        size: (height, width).
        shares: of the classes that occur, the largest first; pixels without data are in none.
        protocol: how the picture was seen, such as "whole" or "slide 1024 stride 768".
    """

    name: str
    files: list[Path]
    size: tuple[int, int]
    shares: list[Share]
    protocol: str


class WatchedSegmenter(Segmenter):
    """A segmenter that says how far it is, cuts large pictures into windows, and stops after some seconds.

    Args:
        of: whose model, processor and protocol it takes.
        total: pictures of the request.
        may_cut: use windows for pictures of more than `LARGEST_WHOLE` pixels where the protocol has none.
    """

    def __init__(self, of: Segmenter, total: int, may_cut: bool, seconds: float, tell: Tell) -> None:
        super().__init__(of.model, of.processor, of.protocol, of.batch_size, of.num_labels, of.precision)
        self.total, self.may_cut, self.tell = total, may_cut, tell
        self.seconds, self.end = seconds, time.monotonic() + seconds
        self.done = 0
        self.protocols: list[str] = []

    def segment(
        self, images: Iterable[tuple[Key, Raster]], confidence: bool = False
    ) -> Iterator[tuple[Key, Iterator[Prediction]]]:
        """As `Segmenter.segment`, one picture after the other, in their order."""
        for key, raster in images:
            chosen = self._chosen(raster)
            self.protocols.append(str(chosen.protocol))
            self._look(0.0)
            for _, strips in Segmenter.segment(chosen, [(key, raster)], confidence):
                yield key, self._watched(strips, raster.height)
            self.done += 1

    def _chosen(self, raster: Raster) -> Segmenter:
        height, width = self.processor.target_size(raster.height, raster.width)
        if not (self.may_cut and self.protocol.is_plain and height * width > LARGEST_WHOLE):
            return self
        windows = InferenceProtocol(WINDOW)
        return Segmenter(self.model, self.processor, windows, self.batch_size, self.num_labels, self.precision)

    def _watched(self, strips: Iterable[Prediction], height: int) -> Iterator[Prediction]:
        rows = 0
        for strip in strips:
            rows += len(strip.labels)
            self._look(rows / height)
            yield strip

    def _look(self, part: float) -> None:
        if time.monotonic() > self.end:
            raise DataError(f"this takes longer than {self.seconds:g} s: give a smaller picture, or fewer of them")
        number = f"picture {self.done + 1} of {self.total}" if self.total > 1 else "segmenting"
        self.tell((self.done + part) / self.total, number)


def segment_files(
    segmenter: Segmenter,
    label_map: LabelMap,
    uploads: Sequence[Path],
    folder: Path,
    wanted: Wanted,
    limits: Limits,
    *,
    may_cut: bool = True,
    tell: Tell = lambda part, what: None,
) -> tuple[Path, list[Segmented]]:
    """Segment uploaded pictures and write what `segtune predict` writes.

    Args:
        folder: where a new folder of this request is made, with a name that nobody guesses.
        may_cut: see `WatchedSegmenter`.

    Returns:
        The folder of the written files, and what came of each picture.

    Raises:
        DataError: too many pictures, or one that is too large or cannot be read, by its name as it was uploaded; or
            it takes too long. Nothing that was written stays.
    """
    if len(uploads) > limits.pictures:
        raise DataError(f"{count(len(uploads), 'picture')}: at most {limits.pictures} are taken at once")
    place = folder / secrets.token_hex(16)
    inputs, output = place / "in", place / "masks"
    with ExitStack() as failed:
        failed.callback(shutil.rmtree, place, ignore_errors=True)
        inputs.mkdir(parents=True)
        try:
            sources = [_linked(upload, inputs) for upload in uploads]
            for source in sources:
                limits.check(source)
            targets = plan_targets(sources, output, wanted)
            watched = WatchedSegmenter(segmenter, len(sources), may_cut, limits.seconds, tell)
            predict_files(watched, label_map, sources, targets, output, wanted)
        except DataError as error:
            raise DataError(str(error).replace(f"{inputs}{os.sep}", "")) from error
        found = [
            _segmented(target.name, target.paths, label_map, protocol)
            for target, protocol in zip(targets, watched.protocols, strict=True)
        ]
        failed.pop_all()
    shutil.rmtree(inputs, ignore_errors=True)
    if wanted.polygons == "coco":
        for one in found:
            one.files.append(output / COCO_FILE)
    return output, found


def _linked(upload: Path, folder: Path) -> Path:
    """The upload under its own name, or the next free one, in a folder."""
    target, number = folder / upload.name, 1
    while target.exists():
        number += 1
        target = folder / f"{upload.stem}-{number}{upload.suffix}"
    try:
        os.link(upload, target)
    except OSError:
        shutil.copyfile(upload, target)
    return target


def _segmented(name: str, files: list[Path], label_map: LabelMap, protocol: str) -> Segmented:
    ids = read_ids(files[0], label_map)
    counts = label_map.count_pixels(ids)
    order = np.argsort(-counts, kind="stable")
    shares = [Share(int(i), float(counts[i] / ids.size)) for i in order if counts[i]]
    return Segmented(name, files, (ids.shape[0], ids.shape[1]), shares, protocol)


def read_ids(mask: Path, label_map: LabelMap) -> np.ndarray:
    """The training ids `(H, W)` of a mask that was written; pixels without data have the ignore index."""
    pixels = read_file(mask)
    ids = np.asarray(pixels.filled(label_map.ignore_index) if isinstance(pixels, np.ma.MaskedArray) else pixels)
    return ids[:, :, 0] if ids.ndim == 3 else ids


def about(one: Segmented, label_map: LabelMap) -> dict[str, Any]:
    """What programs are told of a picture: its size, how it was seen, and its classes, the largest first."""
    height, width = one.size
    classes = [
        {"id": share.id, "name": label_map.names[share.id], "color": color(label_map, share.id), "share": share.part}
        for share in one.shares
    ]
    return {"name": one.name, "height": height, "width": width, "protocol": one.protocol, "classes": classes}


def color(label_map: LabelMap, label: int) -> str:
    """Of a class, as CSS writes it: '#1f77b4'."""
    return "#{:02x}{:02x}{:02x}".format(*label_map.colors[label])


def small_picture(picture: Path) -> np.ndarray:
    """A picture for the page: `(h, w, 3)` uint8, its longer side at most `SHOWN`."""
    image = Image.fromarray(shown(picture))
    image.thumbnail((SHOWN, SHOWN), Image.Resampling.BOX)
    return np.asarray(image)


def sampled(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Ids `(H, W)` at the size (height, width) of a picture in the page: those in the middle of each of its pixels."""
    rows, columns = (
        (np.arange(small) * 2 + 1) * full // (2 * small) for small, full in zip(size, ids.shape, strict=True)
    )
    return np.ascontiguousarray(ids[np.ix_(rows, columns)])


def colored(picture: np.ndarray, ids: np.ndarray, label_map: LabelMap, chosen: Iterable[int]) -> np.ndarray:
    """The chosen classes in their colours over a picture `(h, w, 3)`, which shows through a little."""
    colors = label_map.colorize(ids).astype(np.float32)
    blended = np.rint(0.35 * picture + 0.65 * colors).astype(np.uint8)
    return np.where(np.isin(ids, list(chosen))[:, :, None], blended, picture)
