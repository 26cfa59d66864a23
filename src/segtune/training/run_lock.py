"""The lock of a run folder: one training writes into it at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from segtune.errors import UsageError

LOCK_FILE = ".lock"

# A record lock is the process's, not its threads': which thread of this process holds which folder.
_held: dict[Path, int] = {}
_guard = threading.Lock()


@contextmanager
def locked(folder: str | Path, *, what: str = "training", option: str = "training.output_dir") -> Iterator[None]:
    """Holds a run folder, which is made where it does not exist, against other trainings; may be nested.

    The system gives the lock up when the process ends, however it ends. Over NFS that needs a lock service (NFS 4 has
    one); where the file system has no locks, the lock file itself is the lock, and one of a process of this machine
    that is gone does not count.

    Args:
        what: is done in the folder, and by which option it was named, for messages.

    Raises:
        UsageError: another process holds the folder; names it and its host.
    """
    folder = Path(folder).absolute()
    said = (what, option)
    key = folder.resolve()
    with _guard:
        holder = _held.get(key)
        if holder not in (None, threading.get_ident()):
            raise _refusal(folder, _about(), said)
        if holder is None:
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            descriptor = _take(folder, said)
            _held[key] = threading.get_ident()
    if holder is not None:
        yield
        return
    try:
        yield
    finally:
        with _guard:
            del _held[key]
            # Removed while it is held: who opened it in between sees that it has lost its name, and opens the next.
            with contextlib.suppress(OSError):
                (folder / LOCK_FILE).unlink()
            if descriptor is not None:
                os.close(descriptor)
        for path in missing:  # of a training that was refused nothing stays
            with contextlib.suppress(OSError):
                path.rmdir()


def holder(folder: str | Path) -> dict[str, Any] | None:
    """Which process holds a run folder: "pid", "host", "since", as far as it says; None where none does.

    Not to be asked of a folder that this process holds itself: looking would give its lock up.
    """
    path = Path(folder) / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        _lock(descriptor)
    except OSError as error:
        found = _read(path.read_text(encoding="utf-8", errors="replace") if path.exists() else "")
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return found
        is_gone = found.get("host") == socket.gethostname() and not _is_alive(found.get("pid"))
        return None if is_gone else found
    finally:
        os.close(descriptor)
    return None


def _take(folder: Path, said: tuple[str, str]) -> int | None:
    """Take the lock; returns its descriptor, None where the file system has no locks."""
    path = folder / LOCK_FILE
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # removed by one that ended just now
            continue
        try:
            _lock(descriptor)
        except OSError as error:
            content = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _refusal(folder, _read(content), said) from None
            _take_by_name(path, _read(content), said)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                os.truncate(descriptor, 0)
                os.write(descriptor, json.dumps(_about()).encode())
                return descriptor
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        raise OSError(errno.ENOLCK, "no locks")
    import fcntl

    # Not flock, which data-loading processes would inherit: they outlive a killed training by seconds.
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _take_by_name(path: Path, holder: dict[str, Any], said: tuple[str, str]) -> None:
    """Where there are no locks: the file is there, or not; that of a dead process of this host is taken over."""
    if holder and not (holder.get("host") == socket.gethostname() and not _is_alive(holder.get("pid"))):
        raise _refusal(path.parent, holder, said, f"; if that process is gone, remove {path}")
    path.write_text(json.dumps(_about()), encoding="utf-8")


def _is_alive(pid: Any) -> bool:
    if os.name == "nt":  # there a signal 0 is a Ctrl-C
        return True
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except OSError:
        return True
    return True


def _about() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
    }


def _read(content: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:  # not written yet
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(folder: Path, holder: dict[str, Any], said: tuple[str, str], remedy: str = "") -> UsageError:
    return UsageError(
        f"{folder}: a {said[0]} is writing into this folder (process {holder.get('pid', 'unknown')} on host "
        f"{holder.get('host', 'unknown')}, since {holder.get('since', 'just now')}): wait for its end, stop it, or "
        f"choose another {said[1]}{remedy}"
    )
