"""Annotated images: those that an annotation file names, wherever they lie below the data set's folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from segtune.data.config import DatasetConfig
from segtune.data.index import DatasetIndex, Sample, in_threads
from segtune.data.splits import all_names, split_names
from segtune.errors import UsageError
from segtune.imageio.read import ReadError, is_picture, read_size
from segtune.imageio.walk import walk_folders


class AnnotatedImages:
    """Finds the images of an annotation file, by the end of their path, and collects the samples for an index.

    Attributes:
        samples: with the size that the annotation states, or (0, 0).
        parts: of their masks, see `lazy_rows.Reader`.

    Raises:
        UsageError: `dataset.images` is no folder below the index's root.
    """

    def __init__(self, index: DatasetIndex, config: DatasetConfig) -> None:
        self.index = index
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
                    self._by_name.setdefault(name.lower(), []).append(parent / name)

    def find(self, name: str, near: Path, hints: Collection[str] = ()) -> list[Path]:
        """The images whose path ends with `name`.

        Where those are several: the ones in a folder that `hints` name (lower case), and of them the closest to `near`.
        """
        wanted = PurePosixPath(name.replace("\\", "/").lower())
        found = self._by_name.get(wanted.name, [])
        if len(found) > 1:
            found = [
                path for path in found if path.as_posix().lower().endswith(f"/{wanted}".replace("//", "/"))
            ] or found
        if len(found) > 1:
            scores = [_closeness(path, near, hints) for path in found]
            found = [path for path, score in zip(found, scores, strict=True) if score == max(scores)]
        return found

    def find_stem(self, stem: str, near: Path) -> list[Path]:
        """The images of a name without suffix; where those are several, the closest to `near`."""
        if not self._by_stem:
            for name, paths in self._by_name.items():
                self._by_stem.setdefault(PurePosixPath(name).stem, []).extend(paths)
        found = self._by_stem.get(stem.lower(), [])
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

    def finish(self) -> None:
        """Give the index the samples, and the images that are not there, or several times, as problems."""
        fix = "Put the images below dataset.path, or name their folder in dataset.images"
        self.index.report("image_missing", "annotated images that are not there", self._missing, fix)
        self.index.report("image_twice", "annotated images that are there several times", self._several, fix)
        keep_annotated(self.index, self.samples, self.parts)


def keep_annotated(index: DatasetIndex, samples: Sequence[Sample], parts: Sequence[Mapping[str, Any]]) -> None:
    """Give the index the samples whose images can be read and have the annotated size.

    Args:
        samples: with the size that the annotation states, or (0, 0).
        parts: of their masks, see `lazy_rows.Reader`; the size is added here.
    """
    unreadable: dict[str, str] = {}
    different: dict[str, str] = {}
    sizes = in_threads(_shown_size, samples, "reading headers")
    for sample, part, size in zip(samples, parts, sizes, strict=True):
        if isinstance(size, tuple) and (0 in sample.size or sample.size == size):
            text = json.dumps({**part, "size": size}, separators=(",", ":"))
            index.samples.append(sample._replace(size=size, mask_part=text))
        elif isinstance(size, tuple):
            name = index.below(sample.image)
            different[name] = f"{name} ({size}), annotated as {sample.size}"
        else:
            name = index.below(sample.image)
            unreadable[name] = f"{name} ({size.reason})"
    fix = "Replace these images, or export the annotations again (an image counts as its EXIF orientation turns it)"
    index.report("unreadable", "files that cannot be read", unreadable, fix)
    index.report("size_mismatch", "images of another (height, width) than annotated", different, fix)


def _shown_size(sample: Sample) -> tuple[int, int] | ReadError:
    """From the image's header; what the annotation states, where the image is part of it."""
    return sample.size if sample.image == sample.mask else read_size(sample.image)


def sample_id(name: str) -> str:
    """The id of an image that an annotation names: its path without suffix, and without a drive of Windows."""
    path = re.sub("^[A-Za-z]:", "", name.replace("\\", "/")).lstrip("./")
    return path[: -len(suffix)] if (suffix := PurePosixPath(path).suffix) else path


def _closeness(path: Path, near: Path, hints: Collection[str]) -> tuple[bool, int]:
    return any(part.lower() in hints for part in path.parts[:-1]), len(os.path.commonpath([path, near]))
