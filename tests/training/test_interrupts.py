from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from segtune.training import interrupts
from segtune.training.interrupts import (
    LIMIT,
    Durations,
    Interrupted,
    StopRequest,
    ignore_interrupts,
    process_start,
    seconds,
)

STOPPING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("30m", 1800), ("8h30m", 30600), ("1d", 86400), ("1h1m1s", 3661)]
)
def test_durations(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "8", "8.5h", "30m8h", "0s", "-1h", "1 h", "h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration: write 90s, 30m, 8h30m or 1d"):
        seconds(text)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_noted_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as request, request.noted():
        assert request.reason is None
        signal.raise_signal(number)
        assert request.reason == f"{number.name} was received"
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_ends_at_once_what_has_nothing_to_save(number: signal.Signals) -> None:
    with pytest.raises(Interrupted, match=f"{number.name} was received"), StopRequest():
        signal.raise_signal(number)
    with pytest.raises(Interrupted), StopRequest() as request, request.noted(), request.at_once():
        signal.raise_signal(number)


def test_what_was_noted_is_obeyed_where_that_may_be_at_once() -> None:
    with StopRequest() as request, request.noted():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM was received"), request.at_once():
            pytest.fail("it is not begun")
        assert request.reason == "SIGTERM was received"


def test_tidying_up_is_not_disturbed_by_a_second_signal() -> None:
    tidied = []
    with pytest.raises(Interrupted, match="SIGTERM"), StopRequest():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGHUP)
            tidied.append(True)
    assert tidied


def test_a_second_interrupt_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest() as request, request.noted():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_nohup_is_meant() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            signal.raise_signal(signal.SIGHUP)
            assert request.reason is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no alarm")
def test_a_limit_that_was_swallowed_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "AGAIN", 0.02)
    with pytest.raises(Interrupted, match=LIMIT), StopRequest(0.01):
        with contextlib.suppress(Interrupted):  # as a callback of the garbage collector does
            time.sleep(60)
        time.sleep(60)


def test_the_limit_is_not_told_where_the_import_lock_would_swallow_it() -> None:
    frame: Any = SimpleNamespace(f_code=SimpleNamespace(co_filename="<frozen importlib._bootstrap>", co_name="cb"))
    request = StopRequest(60.0)
    request._ring(0, frame)
    with pytest.raises(Interrupted, match=LIMIT):
        request._ring(0, None)


def test_while_libraries_are_imported_the_limit_is_told_early() -> None:
    assert StopRequest(30.0, importing=True).reserve == 10.0
    assert StopRequest(86400.0, importing=True).reserve == interrupts.TO_IMPORT
    assert StopRequest(None, importing=True).reason is None


def test_a_process_began_before_its_modules_were_imported() -> None:
    assert 0 < time.monotonic() - process_start() < 86400 * 30


def test_time_limit() -> None:
    with StopRequest(3600) as request:
        assert request.reason is None
    with StopRequest(3600, started=time.monotonic() - 3601) as request, request.noted():
        assert request.reason == LIMIT


def test_time_limit_to_the_second_and_signals_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: now)
    with StopRequest(60) as request, request.noted():
        request.reserve = 10.0
        now = 1049.9
        assert request.reason is None
        now = 1050.0
        assert request.reason == LIMIT
        signal.raise_signal(signal.SIGTERM)
        assert request.reason == "SIGTERM was received"  # whoever sent it wants to know that it was heard


def test_the_limit_ends_what_may_end_at_once_and_nothing_else() -> None:
    with StopRequest(0.1) as request, request.noted():
        threading.Event().wait(0.3)  # saving
        with pytest.raises(Interrupted, match=LIMIT), request.at_once():
            pytest.fail("it is not begun")
    with StopRequest(3600) as request, request.noted():
        request.reserve = 3599.9
        with pytest.raises(Interrupted, match=LIMIT), request.at_once():
            threading.Event().wait(60)  # an evaluation
    with pytest.raises(Interrupted, match=LIMIT), StopRequest(0.1):
        threading.Event().wait(60)  # opening the data


def test_any_number_of_sigterms_waits_for_the_step() -> None:
    with StopRequest() as request, request.noted():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert request.reason == "SIGTERM was received"


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with StopRequest(60):
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


def test_code_that_lets_no_exception_through_is_left_all_the_same() -> None:
    code = (
        "import os, signal, sys, threading, time\nfrom segtune.training import interrupts\n"
        "interrupts.PATIENCE, interrupts.last_resort = 0.3, lambda: os._exit(3)\n"
        "with interrupts.StopRequest():\n"
        "    try:\n        signal.raise_signal(signal.SIGTERM)\n"
        "    except BaseException:\n        print('swallowed', flush=True)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (3, "swallowed\n", "")


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_loading_processes_leave_stopping_to_the_training() -> None:
    ignore_interrupts(0)
    for number in STOPPING:
        os.kill(os.getpid(), number)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # the second one is meant


def test_the_longest_counts() -> None:
    durations = Durations()
    assert durations.of("saving", unknown=7.0) == 7.0
    for taken in (2.0, 3.0, 1.0):
        durations.add("saving", taken)
    with pytest.raises(Interrupted), durations.timed("evaluation"):
        raise Interrupted("enough")
    assert durations.of("saving") == 3.0 and "evaluation" in durations.longest


@pytest.mark.parametrize("text", ["99999999999d", "9" * 5000 + "s", "100000d"])
def test_durations_that_no_timer_takes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no duration|is more than ten years") as refused:
        seconds(text)
    assert len(str(refused.value)) < 150
