"""Directory traversal: the files below a folder, through symbolic links but never in a circle; pipes are no files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from segtune.errors import DataError

MAX_LINKS = 3  # to folders, below each other: ten folders that link to each other would have millions of ways


def check_regular(path: Path | str) -> None:
    """Refuse what blocks whoever opens it, such as a named pipe, or never ends, such as a device.

    Raises:
        DataError: it is there, but no file.
        OSError: it cannot be reached.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DataError("it is a folder, a named pipe or a device, not a file")


def entries_of(folder: Path) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
    """The folders in a folder, links to folders among them, and everything else; both sorted, hidden ones left out.

    Raises:
        DataError: it cannot be listed.
    """
    folders: list[os.DirEntry[str]] = []
    others: list[os.DirEntry[str]] = []
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from error
    for entry in found:
        (folders if _is_dir(entry) else others).append(entry)
    return folders, others


# Links alone are followed, which is False, not an error, where they go in a circle: of all others the listing of their
# folder tells what they are, and to ask again for each of many files takes long.


def _is_dir(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry[str]) -> bool:
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


class _Level:
    """A folder on its way down from the first one: where the folders above it really are, and the links on the way."""

    def __init__(self, path: Path, above: frozenset[str] = frozenset(), links: int = 0) -> None:
        self.path, self.links = path, links
        self.places = above | {os.path.realpath(path)}
        self.folders, self.others = entries_of(path)

    def below(self, entry: os.DirEntry[str]) -> _Level | None:
        """One of its folders; None where that leads back to where the way came through."""
        links = self.links + entry.is_symlink()
        if entry.is_symlink() and (links > MAX_LINKS or os.path.realpath(entry.path) in self.places):
            return None
        return _Level(self.path / entry.name, self.places, links)


def walk_folders(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder, with the names of the folders and of everything else in it; as `os.walk`, it heeds names that are
    taken out of the first list.

    Raises:
        DataError: a folder cannot be listed.
    """
    waiting = [_Level(folder)] if folder.is_dir() else []
    while waiting:
        level = waiting.pop()
        names = [entry.name for entry in level.folders]
        yield level.path, names, [entry.name for entry in level.others]
        kept = [level.below(entry) for entry in level.folders if entry.name in names]
        waiting += [found for found in reversed(kept) if found]


def walk_files(folder: Path, suffix: str = "", depth: int | None = None) -> Iterator[Path]:
    """The files of a folder, sorted, then those of the folders in it, level by level.

    Args:
        depth: how many levels below `folder` are looked at; None for all.

    Raises:
        DataError: a folder cannot be listed.
    """
    levels = [_Level(folder)]
    while levels:
        for level in levels:
            yield from (
                level.path / entry.name for entry in level.others if entry.name.endswith(suffix) and _is_file(entry)
            )
        if depth is not None and depth <= 0:
            return
        levels = [found for level in levels for entry in level.folders if (found := level.below(entry))]
        depth = None if depth is None else depth - 1
