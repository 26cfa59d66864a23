"""Retries of requests to the Hub: how often, and how long to wait before each."""

from __future__ import annotations

import contextlib
import email.utils
import logging
import math
import re
import time
from collections.abc import Callable
from typing import TypeVar

from segtune.errors import UsageError
from segtune.hub_errors import HUB_FAULTS, may_pass, origin_of, reason, status_of

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

WAITS = (2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before each further try
LONGEST_WAIT = 900.0  # that the Hub may ask for
LIMIT = 30.0  # seconds after the last success, see `Patience`; the client's own tries of a request take up to 25 more


class FailedError(Exception):
    """A step of a push failed for good."""


class Patience:
    """How long a Hub that gives no answer is waited for: as long as the run goes on, then for `LIMIT` seconds in all.

    What counts is the time since the last step that succeeded, so that a slow upload takes as long as it takes.
    """

    def __init__(self) -> None:
        self.fails = False  # the last step did
        self._since = time.monotonic()
        self._is_last = False

    def end(self) -> None:
        """From now on nothing but the push keeps the process from its end."""
        if not self._is_last:
            self._is_last, self._since = True, time.monotonic()

    def note(self, succeeded: bool) -> None:
        self.fails = not succeeded
        if succeeded:
            self._since = time.monotonic()

    def left(self) -> float:
        """Seconds; infinite while the run goes on."""
        return self._since + LIMIT - time.monotonic() if self._is_last else math.inf

    def sleep(self, wait: float) -> None:
        """Until the next try, which is at once where the run ends meanwhile."""
        was_last = self._is_last
        for _ in range(math.ceil(wait)):
            time.sleep(1)
            if self._is_last and not was_last:
                return


def retried(step: Callable[[], Result], repo: str, patience: Patience | None = None) -> Result:
    """The result of `step`, which is tried again after faults that may pass. (The client itself repeats uploads.)

    Args:
        patience: of a push beside a run; without it, all tries are made.

    Raises:
        FailedError: it failed for good; says why.
    """
    for tries, planned in enumerate((*WAITS, None), start=1):
        try:
            result = step()
            if patience:
                patience.note(succeeded=True)
            return result
        except UsageError:
            raise
        except HUB_FAULTS as error:
            wait = max(planned or 0.0, _asked_to_wait(error))
            if patience:
                patience.note(succeeded=False)
            is_over = patience is not None and wait > patience.left()
            if planned is None or is_over or not may_pass(error) or wait > LONGEST_WAIT:
                raise FailedError(reason(error)) from error
            logger.warning("pushing to %s: %s; trying again in %.0f s (%d)", repo, reason(error), wait, tries)
        (patience.sleep if patience else time.sleep)(wait)
    raise AssertionError("the last try returns or raises")


def _asked_to_wait(error: BaseException) -> float:
    """Seconds that the Hub's answer asks for: `Retry-After` (seconds or a date), or what is left of a rate limit."""
    origin = origin_of(error)
    headers = getattr(getattr(origin, "response", None), "headers", {})
    after, limit = headers.get("Retry-After"), re.search(r"\bt=(\d+)", headers.get("RateLimit", ""))
    if after and after.strip().isdigit():
        return float(after)
    with contextlib.suppress(ValueError):
        return email.utils.parsedate_to_datetime(after or "").timestamp() - time.time()
    return float(limit.group(1)) if limit and status_of(origin) == 429 else 0.0
