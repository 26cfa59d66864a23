"""How the threads that compute on a CPU wait for their next work: spinning or asleep, by `OMP_WAIT_POLICY`.

A thread that spins goes on the moment there is work, but keeps its core until then. Where every thread has a core to
itself, that is the faster way; where another process, or another thread, wants the core, the work that all wait for is
held up, and sleeping is far faster. OpenMP reads the variable when PyTorch is loaded, so that nothing here imports it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

VARIABLE, ASLEEP = "OMP_WAIT_POLICY", "PASSIVE"  # where it is not set, threads spin for a moment before they sleep
# Has the value of VARIABLE where it was set here. A process that is started later inherits both, and so knows that
# nobody has said it: it decides anew, since the cores may be busy then, or free.
DECIDED = "SEGTUNE_OMP_WAIT_POLICY"
WINDOW = 0.05  # seconds for which the cores are looked at, at least: Linux counts in ticks of 0.01 s
QUIET = 0.25  # cores that others may keep beside threads that spin


class CoreTime(NamedTuple):
    """What the clocks say, in seconds: of the wall, of this process, and of its cores while they had nothing to do."""

    clock: float
    own: float
    idle: float


@dataclass(frozen=True)
class Waiting:
    """How threads wait, and why, in words."""

    asleep: bool
    reason: str

    def __str__(self) -> str:
        return f"{'asleep' if self.asleep else 'spinning'}: {self.reason}"


# --- what the machine says -------------------------------------------------------------------------------------------


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def core_time() -> CoreTime | None:
    """The clocks now; None where the system does not tell how long its cores have been idle."""
    try:
        with open("/proc/stat", encoding="ascii") as lines:  # of Linux
            idle = idle_ticks(lines, os.sched_getaffinity(0))
    except (OSError, ValueError):
        return None
    if idle is None:
        return None
    return CoreTime(time.monotonic(), time.process_time(), idle / os.sysconf("SC_CLK_TCK"))


def idle_ticks(lines: Iterable[str], numbers: Collection[int]) -> int | None:
    """Ticks in which some cores had nothing to do, or waited for a disk, since the machine was started.

    Args:
        lines: of `/proc/stat`: `cpuN user nice system idle iowait irq …`, before all others.
        numbers: of the cores.

    Returns:
        None where a core is not told of, or all of its times are 0, as sandboxes have them.
    """
    idle = []
    for line in lines:
        name, *ticks = line.split()
        if not name.startswith("cpu"):
            break
        if name != "cpu" and int(name[3:]) in numbers and any(map(int, ticks)):
            idle.append(int(ticks[3]) + int(ticks[4]))
    return sum(idle) if len(idle) == len(numbers) else None


def kept_by_others(before: CoreTime, after: CoreTime, number: int) -> float:
    """How many of a number of cores other processes have kept between two moments, on average."""
    took = after.clock - before.clock
    used = number * took - (after.idle - before.idle) - (after.own - before.own)
    return min(max(used / took, 0.0), float(number))


def granted(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that the process's control group may use, as a container's limit; None: without limit."""
    group, found = root / "sys/fs/cgroup", []
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    own = next((Path(line[3:].lstrip("/")) for line in lines if line.startswith("0::")), Path())
    for folder in (own, *own.parents):  # a group has no more than those above it
        found.append(_quota(group / folder / "cpu.max"))
    found.append(_quota(group / "cpu/cpu.cfs_quota_us", group / "cpu/cpu.cfs_period_us"))  # version 1
    return min((quota for quota in found if quota is not None), default=None)


def _quota(*files: Path) -> float | None:
    """The quotient of two numbers that stand in one file or in two; None where there is no limit."""
    try:
        quota, period = " ".join(path.read_text(encoding="ascii") for path in files).split()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such file; "max 100000"
        return None


# --- the rule --------------------------------------------------------------------------------------------------------


def choose(
    threads: int,
    number: int,
    others: Callable[[], float | None],
    *,
    limit: float | None = None,
    processes: int = 1,
    loading: int = 0,
) -> Waiting:
    """Whether threads should sleep while they wait.

    Args:
        threads: of each process that computes.
        number: of cores.
        others: how many cores other processes keep; None: not known. It is asked where it matters.
        limit: cores' worth of time that may be used, see `granted`.
        processes: that compute together on this machine.
        loading: processes that load data for each of them.
    """
    if threads == 1:
        return Waiting(False, "a single thread waits for no other")
    wanted = processes * (threads + loading)
    beside = " and loading processes" if loading else ""
    told = (f"{processes} processes of " if processes > 1 else "") + f"{threads} threads{beside}"
    if wanted > number:
        return Waiting(True, f"{told} share {number} cores")
    if limit is not None and wanted > limit:
        return Waiting(True, f"{told} share the time of {limit:g} cores")
    kept = others()
    if kept is None:
        return Waiting(True, "this system does not tell whether other processes keep its cores")
    asleep = wanted + kept > number + QUIET
    return Waiting(asleep, f"{told} compute here, and other processes keep {kept:.1f} of {number} cores")


def settle(loading: int = 0) -> Waiting:
    """Set `OMP_WAIT_POLICY` before PyTorch is loaded, or leave it unset, which is to spin; what the user set stays.

    It may be called again where more is known. It takes no time, but where the process has just begun (`WINDOW`).

    Args:
        loading: see `choose`.
    """
    value, ours = os.environ.get(VARIABLE), os.environ.pop(DECIDED, None)
    if value is not None and value != ours:
        found = Waiting(value.strip().upper() == ASLEEP, f"{VARIABLE}={value} was set")
    else:
        os.environ.pop(VARIABLE, None)
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        found = choose(_threads(), cores(), _others, limit=granted(), processes=processes, loading=loading)
        if found.asleep:
            os.environ[VARIABLE] = os.environ[DECIDED] = ASLEEP
    settled.append(found)
    return found


def _threads() -> int:
    """Threads that PyTorch will take."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else cores()


def _others() -> float | None:
    """How many cores other processes have kept since this one began."""
    if _BEGINNING is None:
        return None
    time.sleep(max(0.0, _BEGINNING.clock + WINDOW - time.monotonic()))
    now = core_time()
    return None if now is None else kept_by_others(_BEGINNING, now, cores())


settled: list[Waiting] = []  # what `settle` has found, the latest last
_BEGINNING = core_time()
