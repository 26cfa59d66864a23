from __future__ import annotations

import signal
import threading

import pytest

from segtune.training import interrupts
from segtune.training.interrupts import StopRequest, ignore_interrupts, seconds


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("30m", 1800), ("8h30m", 30600), ("1d", 86400), ("1h1m1s", 3661)]
)
def test_durations(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "8", "8.5h", "30m8h", "0s", "-1h", "1 h", "h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration: write 90s, 30m, 8h30m or 1d"):
        seconds(text)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as request:
        assert request.reason is None
        signal.raise_signal(number)
        assert request.reason == f"{number.name} was received"
    assert signal.getsignal(number) is before


def test_a_second_interrupt_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_time_limit() -> None:
    with StopRequest(3600) as request:
        assert request.reason is None
    with StopRequest(0) as request:
        assert request.reason == "training.time_limit is reached"


def test_time_limit_to_the_second_and_signals_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: now)
    with StopRequest(60) as request:
        now = 1059.9
        assert request.reason is None
        now = 1060.0
        assert request.reason == "training.time_limit is reached"
        signal.raise_signal(signal.SIGTERM)
        assert request.reason == "SIGTERM was received"  # whoever sent it wants to know that it was heard


def test_any_number_of_sigterms_waits_for_the_step() -> None:
    with StopRequest() as request:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert request.reason == "SIGTERM was received"


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with StopRequest():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


def test_loading_processes_ignore_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        ignore_interrupts(0)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
