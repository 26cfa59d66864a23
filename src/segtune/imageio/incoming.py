"""Images that lie in no file of this machine yet: at an address of the web, or on standard input."""

from __future__ import annotations

import http.client
import re
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import segtune
from segtune.errors import DataError, UsageError
from segtune.files import is_full_disk, name_fault

STDIN = "-"
LARGEST = 2**30  # bytes of one image
SILENCE, LONGEST = 20.0, 600.0  # seconds: until a byte comes, and for a whole image
WAITS = (1.0, 3.0)  # seconds before a further try, where the fault may pass
PASSING = (408, 429, 500, 502, 503, 504)  # answers that a later try may not meet
CHUNK = 2**20
SUFFIXES = {b"II*\0": ".tif", b"MM\0*": ".tif", b"II+\0": ".tif", b"MM\0+": ".tif", b"\x93NUM": ".npy"}  # by content


def is_incoming(name: str) -> bool:
    """Whether a name stands for standard input or is an address, `http://…` or `https://…`."""
    return name == STDIN or re.match(r"https?://", name, re.IGNORECASE) is not None


@contextmanager
def as_files(images: Sequence[Path | str]) -> Iterator[dict[Path, str]]:
    """The images as files, in their order, each with what it was called; those that come in lie there for the context.

    Args:
        images: paths; as text, addresses and "-" for standard input.

    Raises:
        DataError: an address gives no image: no answer, another answer than the image, more than `LARGEST`; in the
            context, a fault of such a file is told with its address.
        UsageError: standard input is named twice, or is a terminal.
    """
    if images.count(STDIN) > 1:
        raise UsageError("- is standard input, which can be read once only")
    with tempfile.TemporaryDirectory(prefix="segtune-") as folder:
        files: dict[Path, str] = {}
        names: set[str] = set()
        for number, image in enumerate(images):
            if isinstance(image, Path):
                files[image] = str(image)
                continue
            place = Path(folder) / str(number)
            place.mkdir()
            name = _another("stdin" if image == STDIN else file_name(image), names)
            files[_received(image, place / name)] = image
        try:
            yield files
        except DataError as error:
            text = str(error)
            for path, image in files.items():
                if is_incoming(image):
                    text = text.replace(str(path), "standard input" if image == STDIN else shown(image))
            raise DataError(text) from error


def file_name(address: str) -> str:
    """The last part of an address as the name of a file: letters, digits, "-", "_" and "." only."""
    last = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(address).path)).name
    stem, suffix = PurePosixPath(last).stem, PurePosixPath(last).suffix
    name = re.sub(r"[^\w.-]+", "_", stem)[:100].lstrip(".") + re.sub(r"[^\w.]+", "", suffix)[:10]
    return name if name.strip("._") and not name_fault(name) else "image"


def shown(address: str) -> str:
    """An address for messages: without a password and without the query, which may hold a key."""
    parts = urllib.parse.urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{'?…' if parts.query else ''}"


def _another(name: str, names: set[str]) -> str:
    """A name that is not taken yet, and is from now on."""
    path, number = PurePosixPath(name), 1
    while name.lower() in names:
        number += 1
        name = f"{path.stem}-{number}{path.suffix}"
    names.add(name.lower())
    return name


def _received(image: str, target: Path) -> Path:
    """Where the image lies: `target`, with a suffix where its content alone says what reads it."""
    if image == STDIN:
        _read_stdin(target)
    else:
        _download(image, target)
    with target.open("rb") as file:
        suffix = SUFFIXES.get(file.read(4), "")
    if not suffix or target.suffix.lower().startswith(suffix):
        return target
    return target.rename(target.with_name(f"{target.name}{suffix}"))


def _read_stdin(target: Path) -> None:
    stream: BinaryIO = sys.stdin.buffer
    if stream.isatty():
        raise UsageError("- reads an image from standard input: segtune predict … - < photo.jpg")
    with target.open("wb") as file:
        if not _copy(stream, file, "standard input", time.monotonic() + LONGEST):
            raise DataError("standard input is empty: - reads an image from it")


def _download(address: str, target: Path) -> None:
    for wait in (*WAITS, None):
        try:
            with _opener().open(_request(address), timeout=SILENCE) as answer, target.open("wb") as file:
                _check(address, answer.headers)
                length = _copy(answer, file, shown(address), time.monotonic() + LONGEST)
                if length < int(answer.headers.get("Content-Length") or 0):
                    raise http.client.IncompleteRead(b"")
            return
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, DataError) or is_full_disk(error):
                raise
            status = None
            if isinstance(error, urllib.error.HTTPError):
                status = error.code
                error.close()
            may_pass = status in PASSING if status else not isinstance(error, (ValueError, http.client.InvalidURL))
            if wait is None or not may_pass:
                raise DataError(f"{shown(address)} cannot be fetched: {_reason(error)}") from error
        time.sleep(wait)


def _request(address: str) -> urllib.request.Request:
    quoted = urllib.parse.quote(address, safe="%/:=&?~#+!$,;'@()*[]")
    return urllib.request.Request(quoted, headers={"User-Agent": f"segtune/{segtune.__version__}"})


def _opener() -> urllib.request.OpenerDirector:
    """HTTP alone, through the proxy of the environment: a redirection leads to no file and to no other protocol."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _check(address: str, headers: Any) -> None:
    if (kind := headers.get_content_type()) == "text/html":
        raise DataError(f"{shown(address)} is a page ({kind}), not an image: give the address of the image itself")
    if int(headers.get("Content-Length") or 0) > LARGEST:
        raise _too_large(shown(address))


def _copy(source: Any, file: BinaryIO, name: str, deadline: float) -> int:
    """Copy a stream, of which no more is taken than an image may have; returns the number of bytes."""
    length = 0
    while chunk := source.read1(CHUNK):
        length += len(chunk)
        if length > LARGEST:
            raise _too_large(name)
        if time.monotonic() > deadline:
            raise DataError(f"{name} took more than {LONGEST / 60:.0f} minutes: save it to a file and name that")
        file.write(chunk)
    return length


def _too_large(name: str) -> DataError:
    return DataError(f"{name} has more than {LARGEST // 2**20} MiB: save it to a file and name that")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} ({error.reason})"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended before the image did"
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return f"no answer in {SILENCE:.0f} s"
    return str(cause) or type(cause).__name__
