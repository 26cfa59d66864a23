"""Archives of data: what a zip holds, in a folder beside it, all of it or nothing.

An archive may come from anybody: no name in it leads out of the folder, nothing of it is a link, and what it unpacks
to is known before the first byte is written.
"""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from stat import S_ISLNK
from typing import NamedTuple

from segtune.errors import DataError, UsageError
from segtune.files import name_fault, read_json, write_folder

MARK = ".unpacked.json"  # in the folder: which archive it came of
SMALL, RATIO = 2**30, 100  # what unpacks to more bytes than SMALL, and to RATIO times its size, is no set of pictures
MOST_FILES = 2_000_000
_OF_SYSTEMS = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")  # files that systems add; and macOS's "._name"
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, LookupError, RuntimeError)


class Unpacked(NamedTuple):
    """The folder that an archive was unpacked into; `files` and `bytes` are None where an earlier command did it."""

    folder: Path
    files: int | None = None
    bytes: int | None = None


def unpack_beside(archive: Path) -> Unpacked:
    """Unpack a zip into the folder of its name beside it, unless it lies there.

    A folder that all of it lies in is left out; so are files that only a system reads.

    Raises:
        UsageError: the folder is something else, or cannot be made, or has no room.
        DataError: the archive is damaged or encrypted, or holds what no data set has: names that lead elsewhere, names
            that are one on some systems, links, or far more bytes than it has.
    """
    folder = archive.with_suffix("")
    found = archive.stat()
    mark = {"archive": archive.name, "bytes": found.st_size, "modified": found.st_mtime_ns}
    if os.path.lexists(folder):
        if _mark_of(folder) == mark:
            return Unpacked(folder)
        raise UsageError(
            f"{archive} would be unpacked into {folder}, which is there and does not come of it as it is now: name "
            f"{folder} itself, or move it away"
        )
    with _opened(archive) as opened:
        entries = _entries(opened, archive)
        size = sum(info.file_size for info in entries.values())
        _refuse_unfit(archive, size, found.st_size)

        def write(target: Path) -> None:
            for name, info in entries.items():
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as source, path.open("wb") as file:  # no more than `file_size`
                    shutil.copyfileobj(source, file, 2**20)
            (target / MARK).write_text(dumps(mark) + "\n", encoding="utf-8")

        write_folder(folder, write)
    return Unpacked(folder, len(entries), size)


def _mark_of(folder: Path) -> object:
    try:
        return read_json(folder / MARK)
    except (OSError, ValueError):
        return None


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(archive) as opened:
            yield opened
    except _BROKEN as error:
        if isinstance(error, (DataError, UsageError)):
            raise
        raise DataError(f"{archive} cannot be unpacked ({error}): fetch or make it once more") from error


def _entries(opened: zipfile.ZipFile, archive: Path) -> dict[str, zipfile.ZipInfo]:
    """The files of an archive by their path in the folder, with "/"."""
    found: dict[str, zipfile.ZipInfo] = {}
    taken: set[str] = set()
    for info in opened.infolist():
        name = info.filename.replace("\\", "/")  # as some programs of Windows write it
        last = name.rpartition("/")[2]
        if not last or last.startswith("._") or set(name.split("/")).intersection(_OF_SYSTEMS):
            continue
        if fault := name_fault(name):
            raise DataError(f"{archive} holds {name[:100]!r}, which is no file of a data set: {fault}")
        if S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{archive} holds a link, {name[:100]!r}: pack the file itself")
        if info.flag_bits & 1:
            raise DataError(f"{archive} is encrypted: unpack it with its password, and name the folder in its place")
        if name.casefold() in taken:
            raise DataError(f"{archive} holds two files {name[:100]!r}, which are one on some systems")
        taken.add(name.casefold())
        found[name] = info
    if not found or len(found) > MOST_FILES:
        raise DataError(f"{archive} holds {len(found):,} files: expected 1 to {MOST_FILES:,}")
    if folded := next((name for name in found for above in _above(name) if above in taken), None):
        raise DataError(f"{archive} holds {folded[:100]!r} below a file of the same name")
    while len({name.partition("/")[0] for name in found}) == 1 and all(map(_below, found)):
        found = {_below(name): info for name, info in found.items()}
    return found


def _above(name: str) -> Iterator[str]:
    parts = name.casefold().split("/")
    return ("/".join(parts[:number]) for number in range(1, len(parts)))


def _below(name: str) -> str:
    """A path without its first folder; "" of a file in none."""
    return name.partition("/")[2]


def _refuse_unfit(archive: Path, size: int, packed: int) -> None:
    place = archive.absolute().parent
    elsewhere = f"unpack it elsewhere (python -m zipfile -e '{archive}' FOLDER), and name that folder"
    if size > max(SMALL, RATIO * packed):
        raise DataError(
            f"{archive} of {packed / 2**20:.1f} MiB would become {size / 2**20:,.1f} MiB, as no pictures do: if you "
            f"trust it, {elsewhere}"
        )
    if not os.access(place, os.W_OK):
        raise UsageError(f"{place}, where {archive.name} lies, cannot be written to: {elsewhere}")
    if size > (free := shutil.disk_usage(place).free):
        raise UsageError(
            f"{archive} becomes {size / 2**20:,.1f} MiB, and {place} has {free / 2**20:,.1f} MiB free: {elsewhere}"
        )
