"""Commands in forked processes: what they import is imported once, and each command costs a fork."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import pkgutil
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import segtune

HANG = 60.0  # seconds that no command on this little data may take
MEMORY = 6 * 2**30  # bytes of address space, as `ulimit -v` counts them


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (below 0: the signal; None: it hung), what it said, the files it misused."""

    code: int | None
    said: str
    seconds: float
    outside: tuple[str, ...] = ()

    @property
    def is_traceback(self) -> bool:
        """Whether it ended as a bug: with a traceback, or by a signal that nobody sent.

        What workers print whose process the campaign has killed tells nothing of how that one ended.
        """
        if self.code == -signal.SIGKILL:
            return False
        return "Traceback (most recent call last)" in self.said or self.code in (-signal.SIGSEGV, -signal.SIGABRT)


def warm_up() -> None:
    """Import all that commands do. Nothing here may start a thread: a fork would have its locks and not the thread."""
    for module in pkgutil.walk_packages(segtune.__path__, "segtune."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("albumentations", "datasets", "matplotlib", "PIL.PngImagePlugin", "pycocotools.mask", "rasterio"):
        try:
            importlib.import_module(name)
        except ImportError:
            continue


class Watch:
    """Notes files that are opened or changed: the system tells each before it happens.

    Args:
        writable: the folders in which a command may write.
        secret: the folder that it may not read.
    """

    _CHANGES: ClassVar = {"os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2}

    def __init__(self, writable: Iterable[Path], secret: Path, report: int) -> None:
        self.writable = [os.path.realpath(path) for path in (*writable, "/dev", "/proc")]
        self.secret = os.path.realpath(secret)
        self.report = report

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            self.look(arguments[0], _writes(arguments))
        elif event in self._CHANGES:
            for path in arguments[: self._CHANGES[event]]:
                if isinstance(path, (str, bytes, os.PathLike)):
                    self.look(path, True)

    def look(self, path: str | bytes | os.PathLike, writes: bool) -> None:
        real = os.path.realpath(os.fsdecode(path))
        inside = any(real == place or real.startswith(place + os.sep) for place in self.writable)
        if (writes and not inside) or real.startswith(self.secret + os.sep):
            os.write(self.report, f"{'wrote' if writes else 'read'} {real}\n".encode())


@dataclass
class Started:
    """A command that is running; `wait` must be called once."""

    process: int
    said: int  # descriptors of what it writes
    outside: int
    began: float

    def wait(self, limit: float = HANG) -> Ended:
        """How the command ended; one that takes longer than `limit` seconds is killed, and what it started with it."""
        handle = os.pidfd_open(self.process)
        try:
            ended = select.select([handle], [], [], limit)[0]
        finally:
            os.close(handle)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)  # workers that outlive it, or the process itself
        code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        texts = []
        for descriptor in (self.said, self.outside):
            with open(descriptor, "rb") as file:
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        outside = tuple(dict.fromkeys(texts[1].splitlines()))
        return Ended(code if ended else None, texts[0], time.monotonic() - self.began, outside)


def start(
    words: Sequence[str | Path],
    folder: Path,
    *,
    before: Callable[[], None] | None = None,
    secret: Path | None = None,
) -> Started:
    """Run a command of segtune in a process of its own, with `folder` as its working directory.

    Args:
        before: is called in that process before the command.
        secret: a folder that must not be read; with it, writing outside `folder` is noted.
    """
    said, outside = os.memfd_create("said"), os.memfd_create("outside")
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_command([os.fspath(word) for word in words], folder, before, secret, said, outside)
    return Started(child, said, outside, began)


def run(words: Sequence[str | Path], folder: Path, *, limit: float = HANG, **options: Any) -> Ended:
    """Run a command to its end, see `start` and `Started.wait`."""
    return start(words, folder, **options).wait(limit)


def _be_command(
    words: list[str], folder: Path, before: Callable[[], None] | None, secret: Path | None, said: int, report: int
) -> None:
    code = 70
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(said, stream)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if secret is not None:
            sys.addaudithook(Watch((folder, os.environ["HF_HOME"]), secret, report))
        if before is not None:
            before()
        from segtune.cli.main import main

        main(words)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    except BaseException:  # the command let something through
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


def killed_at(folder: Path, number: int, delay: float = 0.0) -> Callable[[], None]:
    """Kill the process before the operation of this number on a file below `folder`, or `delay` seconds after it."""
    count = [0]

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def act() -> None:
        count[0] += 1
        if count[0] == number:
            threading.Timer(delay, die).start() if delay else die()

    return _on_operations(folder, act)


def full_from(folder: Path, number: int) -> Callable[[], None]:
    """As on a full disk: from the operation of this number on, nothing is opened for writing or made below `folder`."""
    count = [0]

    def act() -> None:
        count[0] += 1
        if count[0] >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(folder))

    return _on_operations(folder, act, only_growing=True)


def counted(folder: Path, report: Path) -> Callable[[], None]:
    """Note the operations on files below `folder`, one a line."""

    def start() -> None:
        descriptor = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        _on_operations(folder, lambda: os.write(descriptor, b".\n"))()

    return start


_OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")


def _on_operations(folder: Path, act: Callable[[], object], only_growing: bool = False) -> Callable[[], None]:
    """Call `act` before each operation on something below `folder`, or before those that need room there."""
    root = os.path.realpath(folder)

    def start() -> None:
        process = os.getpid()

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event not in _OPERATIONS or os.getpid() != process:  # workers have the hook as well
                return
            if not isinstance(arguments[0], (str, bytes, os.PathLike)):
                return
            name = os.path.abspath(os.fsdecode(arguments[0]))
            grows = _writes(arguments) if event == "open" else event in ("os.mkdir", "os.link")
            if (name == root or name.startswith(root + os.sep)) and (grows or not only_growing):
                act()

        sys.addaudithook(hook)

    return start


def _writes(arguments: tuple[Any, ...]) -> bool:
    """Whether the audit event of an `open` is for writing."""
    flags = arguments[2] if isinstance(arguments[2], int) else 0
    mode = arguments[1] if isinstance(arguments[1], str) else ""
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or any(sign in mode for sign in "wxa+")
