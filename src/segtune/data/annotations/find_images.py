"""Annotated images: those that an annotation file names, wherever they lie below the data set's folder."""

from __future__ import annotations

import json
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segtune.data.annotations.coverage import ends_of_each
from segtune.data.annotations.shapes import Shape
from segtune.data.annotations.tally import CROWD, MARKED, RULES, UNUSABLE, Fate, Tally
from segtune.data.config import DatasetConfig
from segtune.data.index import DatasetIndex, Sample, in_threads
from segtune.data.splits import all_names, split_names
from segtune.errors import DataError, UsageError, listed
from segtune.imageio.read import Header, ReadError, is_picture, stem_of, try_header
from segtune.imageio.walk import walk_folders

logger = logging.getLogger(__name__)

TOGETHER = 128  # images whose shapes are looked at together: calls of NumPy for each one would cost more than the work

ShapesOf = Callable[[Sequence[Sample], Sequence[tuple[int, int]]], Sequence[Sequence[Shape] | DataError]]
Look = tuple[Sequence[Shape], Sequence[Fate | None] | DataError]


class AnnotatedImages:
    """Finds the images of an annotation file, by the end of their path, and collects the samples for an index.

    Attributes:
        tally: of the index.
        samples: with the size that the annotation states, or (0, 0).
        parts: of their masks, see `lazy_rows.Reader`.

    Raises:
        UsageError: `dataset.images` is no folder below the index's root.
    """

    def __init__(self, index: DatasetIndex, config: DatasetConfig) -> None:
        self.index = index
        self.tally = tally_of(index)
        self.samples: list[Sample] = []
        self.parts: list[Mapping[str, Any]] = []
        self._missing: dict[str, str] = {}
        self._several: dict[str, str] = {}
        self._by_name: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        names = all_names(split_names(config.splits))
        places = dict.fromkeys(index.root / (config.images or "").replace("{split}", name) for name in names)
        if not any(place.is_dir() for place in places):
            raise UsageError(f"dataset.images={config.images!r} is no folder below {index.root}")
        for place in places:
            for parent, _, files in walk_folders(place):
                for name in filter(is_picture, files):
                    self._by_name.setdefault(_plain(name), []).append(parent / name)

    def find(self, name: str, near: Path, hints: Collection[str] = ()) -> list[Path]:
        """The images whose path ends with `name`, however its letters are composed in Unicode.

        Where those are several: the ones with its folders, then with its capitals, then in a folder that `hints` name
        (lower case), and of them the closest to `near`.
        """
        given = unicodedata.normalize("NFC", name.replace("\\", "/"))
        wanted = given.lower().removeprefix("./")
        found = self._by_name.get(wanted.rpartition("/")[2], [])
        if len(found) > 1:
            found = [
                path for path in found if _plain(path.as_posix()).endswith(f"/{wanted}".replace("//", "/"))
            ] or found
        if len(found) > 1:
            own = given.rpartition("/")[2]
            found = [path for path in found if unicodedata.normalize("NFC", path.name) == own] or found
        if len(found) > 1:
            scores = [_closeness(path, near, hints) for path in found]
            found = [path for path, score in zip(found, scores, strict=True) if score == max(scores)]
        return found

    def find_stem(self, stem: str, near: Path) -> list[Path]:
        """The images of a name without suffix; where those are several, the closest to `near`."""
        if not self._by_stem:
            for name, paths in self._by_name.items():
                self._by_stem.setdefault(stem_of(name), []).extend(paths)
        found = self._by_stem.get(_plain(stem), [])
        scores = [_closeness(path, near, ()) for path in found]
        return [path for path, score in zip(found, scores, strict=True) if score == max(scores)]

    def only(self, name: str, found: Sequence[Path]) -> Path | None:
        """The one image that was found; else None, and the name is noted."""
        if len(found) == 1:
            return found[0]
        if found:
            self._several[name] = f"{name} ({', '.join(map(str, found[:3]))})"
        else:
            self._missing[name] = name
        return None

    def add(self, sample: Sample, part: Mapping[str, Any]) -> None:
        """Collect a sample, whose mask is that part of its file."""
        self.samples.append(sample)
        self.parts.append(part)

    def lose(self, name: str, part: Mapping[str, Any]) -> None:
        """Count the annotations of an image that `only` has not found."""
        self.tally.end(UNUSABLE, name, count=_length(part))

    def finish(self, shapes_of: ShapesOf | None = None) -> None:
        """Give the index the samples, and the images that are not there, or several times, as problems.

        Args:
            shapes_of: see `keep_annotated`.
        """
        fix = "Put the images below dataset.path, or name their folder in dataset.images"
        self.index.report("image_missing", "annotated images that are not there", self._missing, fix)
        self.index.report("image_twice", "annotated images that are there several times", self._several, fix)
        self._report_shared()
        self._remark_left_out()
        keep_annotated(self.index, self.samples, self.parts, shapes_of)

    def _remark_left_out(self) -> None:
        """Tell of images beside the annotated ones that no annotation names."""
        taken = {sample.image for sample in self.samples}
        folders = {path.parent for path in taken}
        left = sorted(path for paths in self._by_name.values() for path in paths if path not in taken)
        left = [path for path in left if path.parent in folders]
        if left and not self._missing and not self._several:
            shown = listed([self.index.below(path) for path in left], 3)
            self.index.remarks.append(f"images without annotations are left out ({len(left)}): {shown}")
            logger.warning("%s: %s", self.index.root, self.index.remarks[-1])

    def _report_shared(self) -> None:
        """Several annotated names that came out as one file: the wrong one for all but one of them."""
        names: dict[Path, list[str]] = {}
        for sample in self.samples:
            names.setdefault(sample.image, []).append(f"{sample.split}: {sample.id}")
        shared = {
            self.index.below(path): f"{self.index.below(path)} ({', '.join(known[:3])})"
            for path, known in names.items()
            if len(known) > 1
        }
        fix = "Names in one file with the folders that they are in, and images in these: each entry needs its own image"
        self.index.report("image_shared", "images that several entries name", shared, fix)


def tally_of(index: DatasetIndex) -> Tally:
    """The tally of an index of annotations, which has one from here on."""
    index.tally = index.tally or Tally()
    return index.tally


def keep_annotated(
    index: DatasetIndex,
    samples: Sequence[Sample],
    parts: Sequence[Mapping[str, Any]],
    shapes_of: ShapesOf | None = None,
) -> None:
    """Give the index the samples whose images can be read and have the annotated size, and count their shapes.

    Args:
        samples: with the size that the annotation states, or (0, 0).
        parts: of their masks, see `lazy_rows.Reader`; the size is added here. Their "shapes" were given to the tally.
        shapes_of: reads the shapes of samples whose parts have none, since they are read again when their rows are: of
            the samples and the (height, width) of their pictures. They are given to the tally here.
    """
    faults: dict[str, dict[str, str]] = {"unreadable": {}, "size_mismatch": {}, "annotation_unreadable": {}}
    tally, names = tally_of(index), index.classes or {}
    pairs = list(zip(samples, parts, strict=True))
    headers = in_threads(_image_header, samples, "reading headers")
    sizes = [header if isinstance(header, ReadError) else header.size for header in headers]
    looks = _looks(pairs, sizes, shapes_of)
    for (sample, part), header, size, (shapes, ends) in zip(pairs, headers, sizes, looks, strict=True):
        if "shapes" not in part:
            tally.give(len(shapes))
        tally.images[sample.split] += 1
        tally.annotated[sample.split] += bool(shapes or part.get("segments"))
        if isinstance(size, tuple) and not isinstance(ends, DataError) and (0 in sample.size or sample.size == size):
            text = json.dumps({**part, "size": size}, separators=(",", ":"))
            frames = (getattr(header, "frames", 1), 1)
            index.samples.append(sample._replace(size=size, mask_part=text, frames=frames))
            _count(index, sample, shapes, ends)
            for value in part.get("segments", {}).values():
                tally.end(CROWD if value is None else None, "", names.get(value) or "")
            continue
        name, where = index.below(sample.image), index.below(sample.mask)
        if isinstance(size, ReadError):
            faults["unreadable"][name] = f"{name} ({size.reason})"
        elif isinstance(ends, DataError):
            reason = str(ends)
            faults["annotation_unreadable"][name] = reason if where in reason else f"{where}: {name}: {reason}"
        else:
            faults["size_mismatch"][name] = f"{name} ({size}), annotated as {sample.size}"
        tally.end(UNUSABLE, name, count=_length(part) or len(shapes))
        tally.annotated[sample.split] = tally.images[sample.split]  # what is wrong there is known
    fix = "Replace these images, or export the annotations again (an image counts as its EXIF orientation turns it)"
    index.report("unreadable", "files that cannot be read", faults["unreadable"], fix)
    index.report("size_mismatch", "images of another (height, width) than annotated", faults["size_mismatch"], fix)
    fix = "Repair or remove these annotations"
    index.report("annotation_unreadable", "annotations that cannot be read", faults["annotation_unreadable"], fix)


def attempt(read: Callable[..., list[Shape]], *args: Any) -> list[Shape] | DataError:
    """What a function reads; the error, where it raises one."""
    try:
        return read(*args)
    except DataError as error:
        return error


def _looks(
    pairs: Sequence[tuple[Sample, Mapping[str, Any]]],
    sizes: Sequence[tuple[int, int] | ReadError],
    shapes_of: ShapesOf | None,
) -> Iterator[Look]:
    """The shapes of each image of a size, and where these end; the error, where they cannot be drawn.

    This is arithmetic, which threads would only make slower.
    """
    for start in range(0, len(pairs), TOGETHER):
        part = slice(start, start + TOGETHER)
        yield from _look(pairs[part], sizes[part], shapes_of)


def _look(
    pairs: Sequence[tuple[Sample, Mapping[str, Any]]],
    sizes: Sequence[tuple[int, int] | ReadError],
    shapes_of: ShapesOf | None,
) -> list[Look]:
    looks: list[Look] = [(part.get("shapes", ()), []) for _, part in pairs]
    usable = {
        number: size
        for number, ((sample, _), size) in enumerate(zip(pairs, sizes, strict=True))
        if isinstance(size, tuple) and (0 in sample.size or sample.size == size)
    }
    shapes = {number: looks[number][0] for number in usable}
    asked = [number for number in usable if shapes_of and "shapes" not in pairs[number][1]]
    if shapes_of and asked:
        read = shapes_of([pairs[number][0] for number in asked], [usable[number] for number in asked])
        for number, found in zip(asked, read, strict=True):
            if isinstance(found, DataError):
                looks[number] = ((), found)
                del shapes[number]
            else:
                shapes[number] = found
    ends = ends_of_each([(own, usable[number]) for number, own in shapes.items()])
    for (number, own), end in zip(shapes.items(), ends, strict=True):
        looks[number] = own, end
    return looks


def _count(index: DatasetIndex, sample: Sample, shapes: Sequence[Shape], ends: Sequence[Fate | None]) -> None:
    tally, names = tally_of(index), index.classes or {}
    drawn: Counter[str] = Counter()
    for number, (shape, fate) in enumerate(zip(shapes, ends, strict=True), start=1):
        value = shape["value"]
        label = shape.get("label") or names.get(value) or ""
        if fate is None and value is not None:
            drawn[label] += 1
            continue
        ignored = RULES[shape.get("rule", MARKED.kind)] if value is None else None
        is_lost = fate is not None and not ignored
        entry = f"{index.below(sample.mask)}: {shape.get('entry', f'shape {number}')}" if is_lost else ""
        tally.end(ignored or fate, entry, label)
    for label, count in drawn.items():
        tally.end(None, "", label, count)


def _length(part: Mapping[str, Any]) -> int:
    return len(part.get("shapes") or part.get("segments") or ())


def _image_header(sample: Sample) -> Header | ReadError:
    """Of the image's file; what the annotation states, where the image is part of it."""
    return Header(sample.size) if sample.image == sample.mask else try_header(sample.image)


def sample_id(name: str) -> str:
    """The id of an image that an annotation names: its path without suffix, and without a drive of Windows."""
    path = re.sub("^[A-Za-z]:", "", name.replace("\\", "/")).lstrip("./")
    return stem_of(path)


def _plain(name: str) -> str:
    """What names are compared by: lower case, letters composed as one sign."""
    return unicodedata.normalize("NFC", name).lower()


def _closeness(path: Path, near: Path, hints: Collection[str]) -> tuple[bool, int]:
    return any(part.lower() in hints for part in path.parts[:-1]), len(os.path.commonpath([path, near]))
