"""Object stores: addresses such as s3://bucket/folder, read and written through fsspec, their faults in one line.

Credentials and the endpoint come from where the store's own tools take them (for S3: AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, ~/.aws, the role of the machine). None are taken from commands or recipes, which others get to see.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segtune.errors import DataError, SegtuneError, UsageError, causes
from segtune.files import write_atomic

NOT_STORES = ("hub", "segtune", "http", "https", "file")
EXTRAS = {"s3": "pip install 'segtune[s3]'", "s3a": "pip install 'segtune[s3]'", "gs": "pip install gcsfs"}
LONGEST_REASON = 200  # characters
_COMMON = (OSError, ValueError, RuntimeError)


def is_stored(name: str) -> bool:
    """Whether a name is the address of something in an object store, such as s3://bucket/folder or hf://datasets/…"""
    scheme = re.match(r"([a-z][a-z0-9+.-]*)://", str(name))
    return scheme is not None and scheme[1] not in NOT_STORES


@contextmanager
def naming_store_faults(address: str) -> Iterator[None]:
    """Tells what goes wrong in a store in one line that begins with the address.

    Raises:
        UsageError: no package for such addresses, or no credentials.
        DataError: the store does not answer, refuses, or has no such thing.
    """
    try:
        yield
    except SegtuneError:
        raise
    except ImportError as error:
        scheme = address.partition("://")[0]
        fix = EXTRAS.get(scheme, "install that")
        raise UsageError(f"{address}: {scheme}:// needs a package that is not here ({_line(error)}): {fix}") from error
    except _faults() as error:
        raise _told(address, error) from error


def fault_of_store(error: BaseException) -> str | None:
    """In a line what the client of a store says went wrong, where that led to `error`; else None."""
    clients = tuple(fault for fault in _faults() if fault not in _COMMON)
    found = next((link for link in causes(error) if isinstance(link, clients)), None) if clients else None
    return None if found is None else str(_told("object store", found))


def _faults() -> tuple[type[Exception], ...]:
    """What the clients of stores raise, those that are loaded."""
    names = [("botocore.exceptions", "BotoCoreError"), ("botocore.exceptions", "ClientError")]
    names += [("aiohttp", "ClientError"), ("httpx", "HTTPError")]
    loaded = [getattr(sys.modules[module], name) for module, name in names if module in sys.modules]
    return (*_COMMON, *loaded)


def _told(address: str, error: BaseException) -> SegtuneError:
    name, reason = type(error).__name__, _line(error)
    if name in ("NoCredentialsError", "PartialCredentialsError", "NoAuthTokenError"):
        return UsageError(
            f"{address}: no credentials for this store: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if isinstance(error, PermissionError):
        return DataError(f"{address}: the store refuses ({reason}): look whether the credentials may read and write it")
    if isinstance(error, FileNotFoundError):
        return DataError(f"{address}: the store has no such bucket, folder or file ({reason})")
    if name.endswith(("ConnectionError", "TimeoutError", "ConnectTimeout", "ConnectorError", "ConnectError")):
        return DataError(f"{address}: the store does not answer ({reason}): look at the network and AWS_ENDPOINT_URL")
    if isinstance(error, ValueError) and "Protocol not known" in reason:
        return UsageError(f"{address}: no store is known by the name {address.partition('://')[0]}://")
    return DataError(f"{address}: {name}: {reason}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:LONGEST_REASON]


def _opened(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    import fsspec

    fs, path = fsspec.core.url_to_fs(address)
    return fs, path


def list_stored(address: str, wanted: Callable[[str], bool], *, deep: bool = False) -> list[str]:
    """The addresses of files, sorted: of a pattern, of a file, or of those in a folder whose names are `wanted`.

    Args:
        deep: also those in the folders of a folder.

    Raises:
        UsageError: see `naming_store_faults`.
        DataError: likewise; a folder that is not there has no files.
    """
    with naming_store_faults(address):
        fs, path = _opened(address)
        if any(sign in path for sign in "*?["):
            found = [name for name, entry in fs.glob(path, detail=True).items() if entry["type"] == "file"]
        elif fs.isfile(path):
            found = [path]
        else:
            _look_for_bucket(fs, path)
            found = [name for name in fs.find(path, maxdepth=None if deep else 1) if wanted(name.rpartition("/")[2])]
        return sorted(map(fs.unstrip_protocol, found))


def _look_for_bucket(fs: Any, path: str) -> None:
    """Of a bucket that is not there, or may not be listed, s3fs says no more than that it has no files."""
    if "s3" in fs.protocol:
        fs.info(path.strip("/").split("/")[0])


def fetch_stored(address: str, path: Path) -> None:
    """Copy a file of a store to a file of this machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming_store_faults(address):
        fs, name = _opened(address)
        fs.get_file(name, str(path))


def read_stored(address: str) -> bytes | None:
    """The content of a file, at an address or a path of this machine; None where there is none."""
    if not is_stored(address):
        return Path(address).read_bytes() if Path(address).exists() else None
    with naming_store_faults(address):
        fs, name = _opened(address)
        content: bytes | None = fs.cat_file(name) if fs.exists(name) else None
        return content


def write_stored(address: str, content: bytes) -> None:
    """Write a file at an address or a path of this machine; a reader finds it whole or not at all."""
    if not is_stored(address):
        write_atomic(Path(address), content)
        return
    with naming_store_faults(address):
        fs, name = _opened(address)
        fs.pipe_file(name, content)


def existing_files(address: str) -> set[str]:
    """The files below a folder that may not exist yet, relative to it, at an address or a path of this machine."""
    if is_stored(address):
        with naming_store_faults(address):
            fs, root = _opened(address)
            _look_for_bucket(fs, root)
            return {name.removeprefix(root.rstrip("/") + "/") for name in fs.find(root)}
    folder = Path(address)
    found = (Path(place) / name for place, _, names in os.walk(folder) for name in names)
    return {path.relative_to(folder).as_posix() for path in found}
