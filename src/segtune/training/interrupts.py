"""Graceful interruption of a command: signals and a time limit, obeyed at once, or where something can be saved."""

from __future__ import annotations

import logging
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?=.)(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?")
LONGEST = 10 * 365 * 86400  # seconds: longer ones are slips, and the system's timers do not take them

STOPPING = ("SIGTERM", "SIGINT", "SIGHUP")  # SIGHUP: the terminal was closed; Windows has none
LIMIT = "training.time_limit is reached"
TO_LEAVE = 3.0  # seconds that a process takes to end, at least
TO_IMPORT = 30.0  # seconds in which no signal may be heard: a busy machine takes long to load a library of C++
AGAIN = 2.0  # seconds until the limit is told once more: a callback of Python's may have swallowed the exception
_OF_IMPORT_LOCK = ("<frozen importlib._bootstrap>", "cb")
PATIENCE = 8.0  # seconds after a signal that what is interrupted at once may take
# Called, from a thread of its own, where a process is still there then: in a library's code that lets no exception
# through. A command sets it.
last_resort: Callable[[], None] | None = None


def process_start() -> float:
    """When this process began, by `time.monotonic`."""
    import psutil

    return time.monotonic() - max(0.0, time.time() - psutil.Process().create_time())


def seconds(duration: str) -> int:
    """Seconds of a duration such as `90s`, `30m`, `8h30m` or `1d`.

    Raises:
        ValueError: anything else, or no time at all.
    """
    match, shown = _DURATION.fullmatch(duration), repr(duration[:60])
    total = sum(int(n or 0) * unit for n, unit in zip(match.groups(), _UNITS.values(), strict=True)) if match else 0
    if total == 0:
        raise ValueError(f"{shown} is no duration: write 90s, 30m, 8h30m or 1d")
    if total > LONGEST:
        raise ValueError(f"{shown} is more than ten years: write 90s, 30m, 8h30m or 1d")
    return total


class Interrupted(BaseException):
    """A signal or the time limit ends what is being done; no `except Exception` holds it up.

    Args:
        reason: why, in words.

    Attributes:
        command: what finishes what was left, where that is another command than the one that was interrupted.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.command: list[str] | None = None


class StopRequest:
    """A context in which SIGTERM, SIGINT, SIGHUP and the time limit raise `Interrupted` where they find the process.

    Inside `noted()` they only set `reason`, to be asked for where something can be saved. A second SIGINT raises
    KeyboardInterrupt anywhere. Outside the main thread, as in some notebooks, signals do what they did before, and the
    limit holds where `reason` or `check` asks. Contexts may be nested; the inner one hears.

    Args:
        limit: seconds.
        started: when they began, by `time.monotonic`; by default now.
        importing: whether libraries are imported inside, where the limit is heard late, and is told earlier therefore.

    Attributes:
        to_leave: seconds that the process is given to end.
        reserve: seconds before the end of the limit from which it counts as reached: what saving takes.
    """

    def __init__(self, limit: float | None = None, started: float | None = None, *, importing: bool = False) -> None:
        began = time.monotonic() if started is None else started
        self.deadline = None if limit is None else began + limit
        # Where starting took long, the machine is slow or busy, and ending takes long as well.
        self.to_leave = min(max(TO_LEAVE, (time.monotonic() - began) / 2), (limit or 0.0) / 4)
        self.reserve = min(TO_IMPORT, (limit or 0.0) / 3) if importing else self.to_leave
        self._signal: str | None = None
        self._noting = False
        self._timer: threading.Timer | None = None
        self._previous: dict[int, Any] = {}

    @property
    def reason(self) -> str | None:
        """Why to stop, in words; None while there is no reason."""
        if self._signal is None and self.left() <= 0:
            return LIMIT
        return self._signal

    def left(self) -> float:
        """Seconds until the limit counts as reached; infinite where there is none."""
        return math.inf if self.deadline is None else self.deadline - self.reserve - time.monotonic()

    def check(self) -> None:
        """Raise Interrupted where there is a reason."""
        if reason := self.reason:
            raise Interrupted(reason)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Inside, a reason is only noted."""
        with self._mode(noting=True):
            yield

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a reason raises Interrupted, also one that was there before."""
        self.check()
        with self._mode(noting=False):
            try:
                yield
            finally:
                if self._timer is not None:  # it was heard: what follows, such as saving, may take its time
                    self._timer.cancel()

    @contextmanager
    def _mode(self, noting: bool) -> Iterator[None]:
        before, self._noting = self._noting, noting
        self._set_alarm()
        try:
            yield
        finally:
            self._noting = before
            self._set_alarm()

    def __enter__(self) -> StopRequest:
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for name in STOPPING:
                number = getattr(signal, name, None)
                # `nohup` has SIGHUP ignored, and means it.
                if number is not None and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                    self._previous[number] = signal.signal(number, self._hear)
            if self.deadline is not None and hasattr(signal, "SIGALRM"):
                self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._ring)
                signal.setitimer(signal.ITIMER_REAL, max(self.left(), 1e-3), AGAIN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(signal, "SIGALRM") and signal.SIGALRM in self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _set_alarm(self) -> None:
        """Ring at the end of the limit where it is to be obeyed at once; one that has passed was obeyed."""
        if hasattr(signal, "SIGALRM") and signal.SIGALRM in self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0.0 if self._noting else max(self.left(), 0.0), AGAIN)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        # Python's import lock has a callback that swallows exceptions, with a traceback on the terminal.
        swallows = frame is not None and (frame.f_code.co_filename, frame.f_code.co_name) == _OF_IMPORT_LOCK
        if not self._noting and self._signal is None and not swallows:
            raise Interrupted(LIMIT)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        again, self._signal = self._signal is not None, f"{signal.Signals(number).name} was received"
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._noting and not again:
            hint = " (Ctrl-C once more stops at once)" if number == signal.SIGINT else ""
            logger.warning("%s: stopping after this step%s", self._signal, hint)
        elif not again:  # a second signal does not disturb the tidying up after the first
            if last_resort is not None:
                self._timer = threading.Timer(PATIENCE, last_resort)
                self._timer.daemon = True
                self._timer.start()
            raise Interrupted(self._signal)


def ignore_interrupts(worker: int) -> None:
    """For a data-loading process: signals reach the whole group, but only the training decides when to stop.

    A second SIGTERM ends it: that of a training which waits for it in vain.
    """
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_once)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


def seconds_of_saving(model: nn.Module) -> float:
    """Of saving, before anything was saved: weights and two moments of AdamW, at the pace of a slow disk."""
    return 0.5 + 3e-8 * sum(p.numel() * p.element_size() for p in model.parameters())


class Durations:
    """The longest time that each part of a run has taken, in seconds, by which the time limit is kept."""

    def __init__(self) -> None:
        self.longest: dict[str, float] = {}

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Learn how long the block takes; one that is interrupted takes at least as long."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(part, time.monotonic() - began)

    def add(self, part: str, seconds: float) -> None:
        """Note how long a part took."""
        self.longest[part] = max(self.of(part), seconds)

    def of(self, part: str, unknown: float = 0.0) -> float:
        """What a part takes; where that is not known yet, `unknown`."""
        return self.longest.get(part, unknown)
