"""Annotated images: those that an annotation file names, wherever they lie below the data set's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from segtune.data.index import DatasetIndex, Sample, in_threads
from segtune.errors import UsageError
from segtune.imageio.read import is_picture, read_size


class ImageFinder:
    """Finds images by the end of their path.

    Args:
        folder: a sub-folder of the data set, in which `{split}` stands for the name of a split; None for all of it.
        split_names: what that may be.

    Raises:
        UsageError: there is no such folder.
    """

    def __init__(self, root: Path, folder: str | None, split_names: Sequence[str]) -> None:
        places = dict.fromkeys(root / (folder or "").replace("{split}", name) for name in split_names)
        self.places = [place for place in places if place.is_dir()]
        if not self.places:
            raise UsageError(f"dataset.images={folder!r} is no folder below {root}")
        self.by_name: dict[str, list[Path]] = {}
        self.by_stem: dict[str, list[Path]] = {}
        for place in self.places:
            for parent, folders, names in os.walk(place, followlinks=True):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in filter(is_picture, names):
                    self.by_name.setdefault(name.lower(), []).append(Path(parent, name))

    def find(self, name: str, near: Path, hints: Collection[str] = ()) -> list[Path]:
        """The images whose path ends with `name`.

        Where those are several: the ones in a folder that `hints` name (lower case), and of them the closest to `near`.
        """
        wanted = PurePosixPath(name.replace("\\", "/").lower())
        found = self.by_name.get(wanted.name, [])
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
        if not self.by_stem:
            for name, paths in self.by_name.items():
                self.by_stem.setdefault(PurePosixPath(name).stem, []).extend(paths)
        found = self.by_stem.get(stem.lower(), [])
        scores = [_closeness(path, near, ()) for path in found]
        return [path for path, score in zip(found, scores, strict=True) if score == max(scores)]


def keep_annotated(index: DatasetIndex, samples: Sequence[Sample], parts: Sequence[Mapping[str, Any]]) -> None:
    """Give the index the samples whose images can be read and have the annotated size.

    Args:
        samples: with the size that the annotation states, or (0, 0).
        parts: of their masks, see `references.Reader`; the size is added here.
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
            unreadable[name] = f"{name} ({size})"
    fix = "Replace these images, or export the annotations again (an image counts as its EXIF orientation turns it)"
    index.report("unreadable", "files that cannot be read", unreadable, fix)
    index.report("size_mismatch", "images of another (height, width) than annotated", different, fix)


def _shown_size(sample: Sample) -> tuple[int, int] | Exception:
    """From the image's header; what the annotation states, where the image is part of it."""
    return sample.size if sample.image == sample.mask else read_size(sample.image)


class Missing:
    """Annotated images that are not there, or several times."""

    def __init__(self) -> None:
        self.none: dict[str, str] = {}
        self.several: dict[str, str] = {}

    def only(self, name: str, found: Sequence[Path]) -> Path | None:
        """The one image that was found; else None, and the name is noted."""
        if len(found) == 1:
            return found[0]
        if found:
            self.several[name] = f"{name} ({', '.join(map(str, found[:3]))})"
        else:
            self.none[name] = name
        return None

    def report(self, index: DatasetIndex) -> None:
        """Make them problems of an index."""
        fix = "Put the images below dataset.path, or name their folder in dataset.images"
        index.report("image_missing", "annotated images that are not there", self.none, fix)
        index.report("image_twice", "annotated images that are there several times", self.several, fix)


def sample_id(name: str) -> str:
    """The id of an image that an annotation names: its path without suffix."""
    return PurePosixPath(name.replace("\\", "/").lstrip("./")).with_suffix("").as_posix()


def _closeness(path: Path, near: Path, hints: Collection[str]) -> tuple[bool, int]:
    return any(part.lower() in hints for part in path.parts[:-1]), len(os.path.commonpath([path, near]))
