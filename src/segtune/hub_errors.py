"""Hub errors: what a fault of the Hub or of its cache means, whether a later try may succeed, what to tell the user."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import (
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

# What huggingface_hub raises where a request, an upload or a file of its cache goes wrong; anything else is a bug.
HUB_FAULTS = (HTTPError, OSError, RuntimeError, ValueError)
PASSING = (408, 409, 412, 425, 429, 500, 502, 503, 504)  # statuses that a later try may not meet
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WAITS = (1.0, 3.0)  # seconds before each further try of a download
LONGEST_REASON = 300  # characters
PATIENCE = 8.0  # seconds until a Hub that does not answer at all counts as out of reach

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def patiently(step: Callable[[], Result], what: str) -> Result:
    """The result of a download, tried again after an answer that a later try may not meet, such as 500 or 503.

    Args:
        what: is downloaded, for the message.
    """
    for wait in (*WAITS, None):
        try:
            return step()
        except HUB_FAULTS as error:
            if wait is None or not answers_later(error):
                raise
            logger.warning("%s: %s; trying again in %.0f s", what, reason(error), wait)
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def answers_later(error: BaseException) -> bool:
    """Whether the Hub did answer, in a way that may pass."""
    return status_of(origin_of(error)) in PASSING


def origin_of(error: BaseException) -> BaseException:
    """What a library's error was raised from: the Hub's answer, where there is one, else the first error."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return next((each for each in chain if status_of(each) is not None), chain[-1])


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the Hub's answer; None where `error` is none."""
    return getattr(getattr(error, "response", None), "status_code", None)


def reason(raised: Exception) -> str:
    """What went wrong and what to do about it, on one line."""
    error = origin_of(raised)
    status = status_of(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE=1 keeps this process off the network"
    if status == 401 or isinstance(error, LocalTokenNotFoundError):
        return "the Hub does not accept the token (401): log in with `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return "the token may not write there (403): it needs the role write, and the repository must be yours"
    if isinstance(error, RevisionNotFoundError):
        return "the Hub has no such branch, tag or commit (404)"
    if isinstance(error, RepositoryNotFoundError):
        return "the Hub has no such repository, or does not show it to this token (404)"
    if isinstance(error, OSError) and error.errno in FULL:
        return f"no space is left for it ({error}); HF_HOME names another place for the cache"
    if isinstance(error, RuntimeError) and "client has been closed" in str(error):
        return "no answer from the Hub (the connection was lost)"
    text = " ".join(str(getattr(error, "server_message", None) or error).split())[:LONGEST_REASON].rstrip(".")
    if status is not None:
        return f"the Hub answers {status}{' (too many requests)' if status == 429 else ''}: {text}"
    named = text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
    return f"no answer from the Hub ({named})" if may_pass(error) else named


def may_pass(error: BaseException) -> bool:
    """Whether a later try may succeed: not after a clear refusal, nor after faults on this machine."""
    origin = origin_of(error)
    status = status_of(origin)
    if status is not None:
        return status in PASSING
    here = (FileNotFoundError, PermissionError, OfflineModeIsEnabled, LocalTokenNotFoundError)
    mistakes = (AttributeError, LookupError, TypeError, ValueError, Warning)
    return type(origin) is not OSError and not isinstance(origin, (*here, *mistakes))


def is_refusal(error: Exception) -> bool:
    """Whether it would be the same tomorrow, unlike a Hub that is out of reach for now."""
    return not may_pass(error) and not isinstance(origin_of(error), OfflineModeIsEnabled)


def fault_of_hub(error: Exception) -> str | None:
    """Why the Hub or its cache did not give a file, where that is what `error` was raised from; else None."""
    origin = origin_of(error)
    is_full = isinstance(origin, OSError) and origin.errno in FULL
    return reason(error) if is_full or status_of(origin) is not None else None


@contextmanager
def offline_if_out_of_reach(asked: bool = True) -> Iterator[None]:
    """Keep to the cache where the Hub gives no answer within `PATIENCE`: each request would be repeated for a minute.

    Args:
        asked: whether the Hub is to be asked at all, rather than a folder.
    """
    fault = _unreachable() if asked and not constants.HF_HUB_OFFLINE else None
    if fault is None:
        yield
        return
    logger.warning("%s gives no answer (%s): only its cache is looked at", constants.ENDPOINT, fault)
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def is_out_of_reach() -> bool:
    """Whether the Hub gives no answer at all within `PATIENCE`."""
    return _unreachable() is not None


def _unreachable() -> str | None:
    """Why one request to the Hub, whatever its answer, fails or takes too long; None where there is an answer."""
    faults = [f"no answer in {PATIENCE:.0f} s"]

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
            faults.clear()
        except HUB_FAULTS as error:
            faults[:] = [" ".join(str(error).split())[:LONGEST_REASON]]

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name takes its own time, which nothing limits
    asking.start()
    asking.join(PATIENCE)
    return faults[0] if faults else None
