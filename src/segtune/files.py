"""Files that a reader finds whole, or not at all: written beside their place, then renamed; and their checksums."""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from segtune.errors import TURNING, DataError, FullDiskError, UsageError, causes, listed

logger = logging.getLogger(__name__)

LONGEST_NAME, LONGEST_PATH = 230, 1024  # bytes: file systems take 255 of a name, of which suffixes and tiles have some
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d|conin\$|conout\$)(\..*)?", re.IGNORECASE)  # names of Windows
MODEL_MANIFEST = ".manifest.json"  # in the folder of a saved model: hidden, so that others who read it need not know it

LARGEST_MANIFEST = 2**20  # bytes: it lists a handful of files

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
# torch's writer, Rust's and the C library tell a full disk in words only, numpy counts what it could not write.
_FULL_WORDS = (
    "No space left on device",
    "Disk quota exceeded",
    "unexpected pos ",
    "PytorchStreamWriter failed",
    "iostream error",
)
_FREE = 2**20  # bytes; with less of them free, a write that failed has failed for want of room


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Tells a full disk as that, whatever the writer of `path` made of it.

    Raises:
        FullDiskError: nothing more could be written; names the path and what is free.
    """
    try:
        yield
    except FullDiskError:
        raise
    except Exception as error:
        if is_full_disk(error, path.parent):
            raise FullDiskError(
                f"{path} cannot be written: the disk is full ({_free(path.parent) / 1e6:.1f} MB free in "
                f"{path.parent}). Make room, then give the same command again"
            ) from error
        raise


def is_full_disk(error: BaseException, folder: Path | None = None) -> bool:
    """Whether an error, or what led to it, says that a disk, a quota or the file names of a disk are used up.

    Args:
        folder: where was written; an error of writing counts where no room is left there.
    """
    for link in causes(error):
        if isinstance(link, OSError) and link.errno in _FULL:
            return True
        if not isinstance(link, MemoryError) and any(words in str(link) for words in _FULL_WORDS):
            return "shared memory" not in str(link)
    writes = isinstance(error, OSError) and error.errno is None
    return writes and folder is not None and _free(folder) < _FREE


def _free(folder: Path) -> int:
    """Bytes that may still be written below a folder, which need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with suppress(OSError):
        return shutil.disk_usage(folder).free
    return _FREE


@contextmanager
def atomic_path(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A name beside `path` to write to; renamed to `path` at the end, removed where something went wrong.

    Args:
        shared: several processes may write the same file at the same time; the last one counts.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part" if shared else f".{path.name}.part")
    with naming_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            with suppress(OSError):  # what went wrong is to be told, not that nothing lies here
                temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, so that a reader finds the old content or the new one."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder under a temporary name, then put it in the place of `folder`.

    Where `write` fails, nothing of it stays: the last bytes of a full disk are given back.

    Raises:
        UsageError: another process is writing the same folder.
    """
    place = Path(os.path.abspath(folder))  # "." has no name beside which something could lie
    recover(place)
    temporary, previous = _beside(place)
    is_ours = False
    try:
        with naming_full_disk(folder):
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.mkdir()
            except FileExistsError:  # made in this moment
                raise _being_written(place) from None
            is_ours = True
            with _claimed(temporary):
                write(temporary)
                for file in temporary.rglob("*"):
                    if file.is_file():
                        _sync(file)
                if place.exists():
                    place.rename(previous)
                temporary.rename(place)
    finally:
        if is_ours:
            recover(place)
    _sync(place.parent)


def refuse_foreign(folder: Path, mark: str, own: Iterable[str], option: str, inputs: Iterable[Path] = ()) -> None:
    """Refuse to let a folder be replaced that holds anything but what the same command writes into one.

    Args:
        mark: the file that says that the command has written the folder.
        own: names of what else it writes.
        option: by which the folder was named, for the message.
        inputs: what the command reads, none of which may lie in the folder.

    Raises:
        UsageError: something else would be lost; the message names it.
    """
    if not folder.is_dir():
        return
    real = Path(os.path.realpath(folder))
    if within := next((path for path in inputs if Path(os.path.realpath(path)).is_relative_to(real)), None):
        raise UsageError(f"{option} {folder}: it holds {within}, which would go with it: name another folder")
    found = sorted(path.name for path in folder.iterdir())
    known = {mark, *own} if mark in found else set()
    if foreign := [name for name in found if name not in known and name[0] != "."]:
        raise UsageError(
            f"{option} {folder}: it holds {listed(foreign)}, which this command did not write and would remove: name "
            "another folder"
        )


def _sync(path: Path) -> None:
    with suppress(OSError):  # Windows opens no folder, and some file systems cannot sync one
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def recover(folder: Path) -> None:
    """Finish what `write_folder` left half done when its process was killed: what was being replaced comes back.

    Raises:
        UsageError: its process is not dead, but writes on.
    """
    temporary, previous = _beside(folder)
    with _claimed(temporary):
        pass
    if previous.is_dir() and not folder.exists():
        previous.rename(folder)
    for leftover in (temporary, previous):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _claimed(temporary: Path) -> Iterator[None]:
    """A lock on a folder that is being written, which the system gives up with the process; none where there are none.

    Raises:
        UsageError: another process has it.
    """
    descriptor = None
    if sys.platform != "win32":  # which opens no folder
        import fcntl

        with suppress(OSError):
            descriptor = os.open(temporary, os.O_RDONLY)
    try:
        if descriptor is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not (temporary.is_dir() and os.path.samestat(os.fstat(descriptor), temporary.stat())):
                    raise BlockingIOError  # another process has taken it for a leftover in this moment
            except BlockingIOError:
                raise _being_written(temporary.with_name(temporary.name[1:-4])) from None
            except OSError:  # a file system without locks
                pass
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _being_written(folder: Path) -> UsageError:
    return UsageError(f"{folder} is being written by another process: wait for its end, or name another folder")


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where a folder is written, and where the one before it waits to be removed."""
    return folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")


def write_manifest(folder: Path, name: str) -> None:
    """Write the size and SHA-256 of every file of a folder into a file of it, the last one to be written."""
    files = {path.relative_to(folder).as_posix(): fingerprint(path) for path in sorted(folder.rglob("*"))}
    content = {path: entry for path, entry in files.items() if entry and path != name}
    (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def update_manifest(file: Path, name: str) -> None:
    """Let the manifest of its folder, where there is one, know of a file that was changed on purpose."""
    manifest = file.parent / name
    if manifest.is_file():
        content = json.loads(manifest.read_text(encoding="utf-8")) | {file.name: fingerprint(file)}
        write_atomic(manifest, json.dumps(content, indent=2) + "\n")


def check_manifest(
    folder: Path, name: str, needed: Iterable[str] = (), only: Callable[[str], bool] = lambda path: True
) -> None:
    """Compare the files of a folder with its manifest.

    Args:
        needed: files that the manifest must list.
        only: says of a file that the manifest lists whether it is looked at.

    Raises:
        DataError: a file is not byte by byte what was written, or the manifest is missing or torn; names the file.
    """
    try:
        if not (folder / name).is_file() or (folder / name).stat().st_size > LARGEST_MANIFEST:
            raise ValueError
        files = read_json(folder / name)
        expected = {path: (entry["bytes"], entry["sha256"]) for path, entry in files.items() if only(path)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{folder} is not complete: {name} is missing or torn") from None
    if not expected.keys() >= set(needed):
        raise DataError(f"{folder} is not complete: {name} does not list all files")
    for path, (size, digest) in expected.items():
        file = folder / path
        if not file.is_file():
            raise DataError(f"{file} is missing")
        if file.stat().st_size != size:
            raise DataError(f"{file} has {file.stat().st_size} of {size} bytes")
        if fingerprint(file)["sha256"] != digest:
            raise DataError(f"{file} is not what was written: its checksum differs")


def fingerprint(file: Path) -> dict[str, Any]:
    """Size and checksum of a file; nothing of a folder."""
    if not file.is_file():
        return {}
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; lines that cannot be read are left out.

    Damaged ones are told. Not so a last line without its end: a process that was killed leaves one.
    """
    objects, damaged = [], []
    *lines, unfinished = path.read_bytes().split(b"\n")
    for number, line in enumerate((*lines, unfinished), start=1):
        try:
            found = json.loads(line)  # of bytes: what is no UTF-8 is an error as well
            if not isinstance(found, dict):
                raise TypeError
            objects.append(found)
        except (ValueError, TypeError, RecursionError):
            if number <= len(lines):
                damaged.append(number)
    if damaged:
        logger.warning(
            "%s: %s cannot be read and %s left out: line %s of %d",
            path,
            "a line" if len(damaged) == 1 else f"{len(damaged)} lines",
            "is" if len(damaged) == 1 else "are",
            listed(damaged),
            len(lines),
        )
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
    is_plain = name.isascii() and name.isprintable()
    if not is_plain and any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in name):
        return "it has a control character, or bytes that are no text"
    if not is_plain and any(ord(sign) in TURNING for sign in name):
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
    return parse_json(read_text(path))


def read_text(path: Path) -> str:
    """The text of a file, see `decode_text`; lines end with a newline alone.

    Raises:
        ValueError: it is no text.
    """
    text = decode_text(path.read_bytes())
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def decode_text(content: bytes, errors: str = "strict") -> str:
    """Text in UTF-8, or in UTF-16 as tools on Windows write it; without the mark that says which.

    Args:
        errors: as for `bytes.decode`.

    Raises:
        ValueError: it is neither.
    """
    try:
        return content.decode(utf_16_of(content) or "utf-8", errors).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start}): save it as UTF-8") from error


def utf_16_of(content: bytes) -> str | None:
    """The kind of UTF-16 that a text, whose first signs are of ASCII, is encoded in; None where it is no UTF-16."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in content[:4]:
        return "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    return None


def parse_json(text: str) -> Any:
    """The value of a JSON text; see `read_json`."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def promise_last_line(title: str, last_line: str, content: str) -> str:
    """`content` between `title`, which names the last line, and that line: a reader can tell that a file was cut.

    Half of a YAML may be valid YAML, so its syntax does not say it.
    """
    return f"{title}; {last_line!r} is the last line\n{content}{last_line}\n"


def missing_last_line(content: bytes) -> str | None:
    """The last line that `promise_last_line` promised and that is not there; None where nothing is missing."""
    first, _, rest = content.partition(b"\n")
    promised = re.search(rb"; '([^']+)' is the last line\s*$", first)
    if promised is None or promised[1] in rest:
        return None
    return promised[1].decode(errors="replace")
