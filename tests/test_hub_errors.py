from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from segtune import hub_errors
from segtune.hub_errors import answers_later, patiently


class AnswerError(OSError):
    def __init__(self, status: int) -> None:
        super().__init__(f"{status}")
        self.response = SimpleNamespace(status_code=status, headers={})


class Hub:
    """Answers with these statuses, then with "file"; the answer is inside what a library makes of it."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.tries = list(statuses), 0

    def fetch(self) -> str:
        self.tries += 1
        if self.statuses:
            raise OSError("cannot load it") from AnswerError(self.statuses.pop(0))
        return "file"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []
    monkeypatch.setattr(hub_errors.time, "sleep", made.append)
    return made


def test_a_download_is_tried_again_after_answers_that_pass(
    waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(500, 503)
    assert patiently(hub.fetch, "checkpoint you/model") == "file"
    assert (hub.tries, waits) == (3, [1.0, 3.0])
    assert "checkpoint you/model: the Hub answers 500" in caplog.text and "trying again in 3 s" in caplog.text


@pytest.mark.parametrize(("statuses", "tries"), [((404,), 1), ((401,), 1), ((500, 403), 2), ((500, 502, 504), 3)])
def test_but_neither_after_a_refusal_nor_for_ever(statuses: tuple[int, ...], tries: int) -> None:
    hub = Hub(*statuses)
    with pytest.raises(OSError, match="cannot load it"):
        patiently(hub.fetch, "it")
    assert hub.tries == tries


def test_no_answer_is_none_that_comes_later() -> None:
    """Whether the Hub is out of reach was asked before; its tries would take a minute."""
    assert not answers_later(ConnectionError("reset")) and answers_later(AnswerError(429))
    calls: list[Any] = []
    with pytest.raises(ConnectionError):
        patiently(lambda: calls.append(1) or (_ for _ in ()).throw(ConnectionError("reset")), "it")
    assert calls == [1]
