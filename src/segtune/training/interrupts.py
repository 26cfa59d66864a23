"""Graceful interruption of a run: signals and a time limit, both obeyed between two optimiser steps."""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?=.)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def seconds(duration: str) -> int:
    """Seconds of a duration such as `90s`, `30m`, `8h30m` or `1d`.

    Raises:
        ValueError: anything else, or no time at all.
    """
    match = _DURATION.fullmatch(duration)
    total = sum(int(n or 0) * unit for n, unit in zip(match.groups(), _UNITS.values(), strict=True)) if match else 0
    if total == 0:
        raise ValueError(f"{duration!r} is no duration: write 90s, 30m, 8h30m or 1d")
    return total


class StopRequest:
    """A context in which SIGTERM, the first SIGINT and the end of `limit` seconds only set `reason`.

    A second SIGINT interrupts at once. Outside the main thread, as in some notebooks, signals do what they did before.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.deadline = None if limit is None else time.monotonic() + limit
        self._signal: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def reason(self) -> str | None:
        """Why to stop, in words; None while there is no reason."""
        if self._signal is None and self.deadline is not None and time.monotonic() >= self.deadline:
            return "training.time_limit is reached"
        return self._signal

    def __enter__(self) -> StopRequest:
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal is not None:
            raise KeyboardInterrupt
        self._signal = f"{signal.Signals(number).name} was received"
        logger.warning("%s: stopping after this step (Ctrl-C once more stops at once)", self._signal)


def ignore_interrupts(worker: int) -> None:
    """For a data-loading process: Ctrl-C reaches the whole group, but only the training decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
