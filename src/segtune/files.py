"""Files that a reader finds whole, or not at all: written beside their place, then renamed."""

from __future__ import annotations

import json
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from segtune.errors import DataError

LONGEST_NAME, LONGEST_PATH = 230, 1024  # bytes: file systems take 255 of a name, of which suffixes and tiles have some
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d|conin\$|conout\$)(\..*)?", re.IGNORECASE)  # names of Windows
TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # text that shows in another order


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; renamed to `path` at the end, removed where something went wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, so that a reader finds the old content or the new one."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder under a temporary name, then put it in the place of `folder`."""
    temporary, previous = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    for leftover in (temporary, previous):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    for file in temporary.rglob("*"):
        if file.is_file():
            _sync(file)
    if folder.exists():
        folder.rename(previous)
    temporary.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _sync(path: Path) -> None:
    with suppress(OSError):  # Windows opens no folder, and some file systems cannot sync one
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def recover(folder: Path) -> None:
    """Finish what `write_folder` left half done when its process was killed: what was being replaced comes back."""
    temporary, previous = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    if previous.is_dir() and not folder.exists():
        previous.rename(folder)
    for leftover in (temporary, previous):
        shutil.rmtree(leftover, ignore_errors=True)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line that was cut off is left out."""
    objects = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            objects.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return objects


def name_fault(name: str) -> str | None:
    """Why a text that data holds, such as a sample's id, cannot name a file below a folder; None where it can.

    It may have folders, "/" between them, and any letters. The rule is the same on all systems, so that what was
    written on one can be read on another.
    """
    parts = name.split("/")
    if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name):
        return "it is absolute"
    if any(not part.strip(". ") for part in parts):
        return "it has a part that is empty or of dots"
    if "\\" in name:
        return "it has a backslash"
    if any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in name):
        return "it has a control character, or bytes that are no text"
    if any(unicodedata.bidirectional(sign) in TURNING for sign in name):
        return "it has signs that turn the direction of text"
    if device := next(filter(DEVICES.fullmatch, parts), None):
        return f"{device!r} is a device on Windows"
    if max(len(part.encode()) for part in parts) > LONGEST_NAME or len(name.encode()) > LONGEST_PATH:
        return f"it is longer than {LONGEST_NAME} bytes between two slashes, or {LONGEST_PATH} in all"
    return None


def path_inside(root: Path, *names: str, suffix: str = "") -> Path:
    """The file that data names below `root`: the only way in which a sample's id becomes a path.

    Raises:
        DataError: a name that is none (see `name_fault`), or a symbolic link that leads out of `root`.
    """
    name = "/".join(names)
    if fault := name_fault(name):
        raise DataError(f"{name[:100]!r} cannot be the name of a file: {fault}. Rename the sample")
    path = root / f"{name}{suffix}"
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{path} would be written outside {root}: remove the symbolic link")
    return path


def points_inside(root: Path, path: Path) -> bool:
    """Whether a path that a data set names lies below its folder `root`.

    Links that lie in the folder may lead out: whoever laid the data there made them, as the Hub's cache does.
    """
    if ".." not in path.parts:
        return path.absolute().is_relative_to(root.absolute())
    place = path.resolve() if path.name == ".." else path.parent.resolve() / path.name
    return place.is_relative_to(root.resolve())


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is no JSON, no text, or nested so deeply that no tool meant it.
    """
    return parse_json(path.read_text(encoding="utf-8-sig"))


def parse_json(text: str) -> Any:
    """The value of a JSON text; see `read_json`."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
