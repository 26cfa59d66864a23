"""Which faults of the Hub are worth another try, how long is waited, what the user is told."""

from __future__ import annotations

import email.utils
import errno
import time
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from segtune.errors import UsageError
from segtune.hub import retries
from segtune.hub.retries import FailedError, retried
from segtune.hub_errors import fault_of_hub, may_pass, reason


class AnswerError(OSError):
    """As the client's: with the response."""

    def __init__(self, status: int, headers: dict[str, str] | None = None, message: str = "") -> None:
        super().__init__(message)
        self.response = SimpleNamespace(status_code=status, headers=headers or {})


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", made.append)
    return made


def failing(*errors: Exception) -> Any:
    left = list(errors)

    def step() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return step


def test_faults_that_may_pass_are_tried_again_with_longer_waits(waits: list[float]) -> None:
    assert retried(failing(AnswerError(503), ConnectionError("reset"), AnswerError(429)), "me/x") == "done"
    assert waits == [2, 4, 8]


def test_end_of_the_tries_says_why(waits: list[float]) -> None:
    with pytest.raises(FailedError, match=r"^no answer from the Hub \(ConnectionError: refused\)$"):
        retried(failing(*[ConnectionError("refused")] * 9), "me/x")
    assert waits == list(retries.WAITS)


@pytest.mark.parametrize("headers", [{"Retry-After": "60"}, {"RateLimit": '"api";r=0;t=60'}])
def test_hub_is_waited_for_as_long_as_it_asks(waits: list[float], headers: dict[str, str]) -> None:
    assert retried(failing(AnswerError(429, headers)), "me/x") == "done"
    assert waits == [60]


def test_date_to_come_back_at_is_understood(waits: list[float]) -> None:
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert retried(failing(AnswerError(503, {"Retry-After": date})), "me/x") == "done"
    assert 90 < waits[0] <= 100
    assert retried(failing(AnswerError(503, {"Retry-After": "tomorrow"})), "me/x") == "done"


def test_nobody_waits_for_hours(waits: list[float]) -> None:
    with pytest.raises(FailedError, match=r"the Hub answers 429 \(too many requests\)"):
        retried(failing(AnswerError(429, {"Retry-After": "7200"})), "me/x")
    assert waits == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (AnswerError(401), "does not accept the token"),
        (AnswerError(403), "needs the role write"),
        (AnswerError(400, message="bad card\n  in README.md."), "the Hub answers 400: bad card in README.md"),
        (OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE=1"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left for it .* HF_HOME"),
        (ValueError("Repo id must be …"), "Repo id must be …"),
    ],
)
def test_clear_refusals_are_not_tried_again(waits: list[float], error: Exception, message: str) -> None:
    assert not may_pass(error)
    with pytest.raises(FailedError, match=f"^.*{message}.*$"):
        retried(failing(error), "me/x")
    assert waits == []


def test_bugs_stay_what_they_are(waits: list[float]) -> None:
    with pytest.raises(TypeError, match="ours"):
        retried(failing(TypeError("ours")), "me/x")
    assert waits == []


def test_mistakes_of_the_user_stay_what_they_are(waits: list[float]) -> None:
    with pytest.raises(UsageError, match="yours"):
        retried(failing(UsageError("yours")), "me/x")


def test_reasons_are_one_line() -> None:
    assert reason(ValueError("a\n  b\n\nc.")) == "a b c"
    assert len(reason(ValueError("long " * 1000))) == 300


def test_fault_of_the_hub_is_found_below_other_errors() -> None:
    def wrapped(cause: Exception) -> Exception:
        try:
            try:
                raise cause
            except Exception as error:
                raise OSError("the library's own words") from error
        except OSError as error:
            return error

    assert "does not accept the token" in (fault_of_hub(wrapped(AnswerError(401))) or "")
    assert "no space is left" in (fault_of_hub(wrapped(OSError(errno.EFBIG, "too large"))) or "")
    assert fault_of_hub(wrapped(KeyError("x"))) is None


def test_at_the_end_of_a_run_tries_stop_with_patience(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(retries.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(retries.time, "sleep", lambda wait: clock.__setitem__(0, clock[0] + wait))
    patience = retries.Patience()
    clock[0] = 1000.0  # of training
    assert retried(failing(ConnectionError("refused"), ConnectionError("refused")), "me/x", patience) == "done"
    assert not patience.fails and clock[0] == 1006.0
    patience.end()
    for _ in range(2):  # a queued push, and the last one: one limit for both
        with pytest.raises(FailedError):
            retried(failing(*[ConnectionError("refused")] * 99), "me/x", patience)
    assert patience.fails and clock[0] <= 1006.0 + retries.LIMIT


def test_lost_connection_reads_as_one() -> None:
    assert reason(RuntimeError("Cannot send a request, as the client has been closed.")) == (
        "no answer from the Hub (the connection was lost)"
    )
