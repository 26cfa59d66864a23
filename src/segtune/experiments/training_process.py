"""A training in a process of its own: alone, or by `accelerate launch`; it is asked to stop, and saves, with us."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from segtune.errors import UsageError
from segtune.training.interrupts import StopRequest
from segtune.training.run_lock import holder

logger = logging.getLogger(__name__)

POLL = 0.5  # seconds between two looks at a training
STOPPED = 3  # exit code of a command that was stopped early, everything saved
_PR_SET_PDEATHSIG = 1  # of prctl(2)


def train_apart(
    words: Sequence[str],
    launch: Sequence[str] | None,
    request: StopRequest,
    go_on: Callable[[], bool] = lambda: True,
) -> int:
    """Run `segtune train WORDS`; what it says is seen, but for its last lines.

    Its memory is given back at its end, and its signals are its own: where this process is asked to stop, the training
    is, and waited for. Where this process is killed, the training is asked to stop by Linux; see `await_earlier`.

    Args:
        launch: the words between `accelerate launch` and `-m segtune`; None starts one process without it.
        request: hears signals; inside of its `noted()`.
        go_on: is asked now and then; where it says False, the training is stopped.

    Returns:
        The exit code: 0 done, `STOPPED` where it was stopped, another one where it failed.
    """
    module = ["-m", "segtune"] if launch is None else ["-m", "accelerate.commands.launch", *launch, "-m", "segtune"]
    process = subprocess.Popen(
        [sys.executable, *module, "train", *words],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_stop_with_parent(),  # noqa: PLW1509 (one call of the C library, which takes no lock)
    )
    try:
        while _ended_within(process, POLL) is None:
            if request.reason or not go_on():
                _ask_to_stop(process)
                process.wait()
    finally:
        if process.poll() is None:  # this process leaves at once
            process.kill()
            process.wait()
    return process.returncode


def await_earlier(run: Path, request: StopRequest) -> None:
    """Wait until a run folder is free: where an earlier command was killed, its training may still save, or go on.

    Args:
        request: ends the waiting; inside of its `noted()`.
    """
    told = None
    while (found := holder(run)) is not None and not request.reason:
        if found != told:
            logger.warning("%s: waiting for the training of an earlier command (process %s)", run, found.get("pid"))
            told = found
        time.sleep(POLL)


def refuse_launched() -> None:
    """Raise UsageError in one of several processes of a launcher: these commands start the processes themselves."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError(
            "this command starts the processes of each training itself: --launch '--config_file FILE' gives them the "
            "options of accelerate launch"
        )


def changes(values: Mapping[str, Any]) -> list[str]:
    """Settings by their dotted names as words of a command; JSON is YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _ended_within(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _stop_with_parent() -> Callable[[], None] | None:
    """What a new process calls so that it gets SIGTERM when this one is gone, however it ends; None where none can."""
    if sys.platform != "linux":
        return None
    library = _c_library()  # before the fork: only the call itself is left for the new process
    return lambda: library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) and None


@cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _ask_to_stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the whole group: a launcher does not hand it on in every case, and a training bears it twice."""
    if os.name == "nt":
        process.terminate()
    else:
        os.killpg(process.pid, signal.SIGTERM)
