"""Retries of requests to the Hub: how often, and how long to wait before each."""

from __future__ import annotations

import contextlib
import email.utils
import logging
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


class FailedError(Exception):
    """A step of a push failed for good."""


def retried(step: Callable[[], Result], repo: str) -> Result:
    """The result of `step`, which is tried again after faults that may pass. (The client itself repeats uploads.)

    Raises:
        FailedError: it failed for good; says why.
    """
    for tries, planned in enumerate((*WAITS, None), start=1):
        try:
            return step()
        except UsageError:
            raise
        except HUB_FAULTS as error:
            wait = max(planned or 0.0, _asked_to_wait(error))
            if planned is None or not may_pass(error) or wait > LONGEST_WAIT:
                raise FailedError(reason(error)) from error
            logger.warning("pushing to %s: %s; trying again in %.0f s (%d)", repo, reason(error), wait, tries)
        time.sleep(wait)
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
