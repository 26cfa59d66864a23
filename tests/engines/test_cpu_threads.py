"""Whether threads that wait spin or sleep: what the machine says, and the rule."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from segtune.engines import cpu_threads
from segtune.engines.cpu_threads import ASLEEP, DECIDED, VARIABLE, CoreTime, choose, granted, idle_ticks, kept_by_others

STAT = """cpu  300 0 60 900 40 0 8 0 0 0
cpu0 100 0 20 400 30 0 3 0 0 0
cpu1 200 0 40 500 10 0 5 0 0 0
intr 3954479 0 0
ctxt 8152571
"""


def test_idle_is_nothing_to_do_or_waiting_for_a_disk_on_the_cores_that_are_ours() -> None:
    assert idle_ticks(STAT.splitlines(), {0, 1}) == 400 + 30 + 500 + 10
    assert idle_ticks(STAT.splitlines(), {1}) == 500 + 10


@pytest.mark.parametrize(
    "text", ["", "cpu  0 0 0 0 0\ncpu0 0 0 0 0 0\ncpu1 0 0 0 0 0\n", STAT.replace("cpu1", "cpu7"), "intr 5\n" + STAT]
)
def test_a_system_that_does_not_tell(text: str) -> None:
    """No such lines, all times 0 as in a sandbox, cores of other numbers, other lines first."""
    assert idle_ticks(text.splitlines(), {0, 1}) is None


@pytest.mark.parametrize(
    ("idle", "own", "expected"),
    [
        (4.0, 0.0, 0.0),  # 2 cores, 2 seconds, nothing done
        (2.0, 2.0, 0.0),  # this process had one
        (0.0, 2.0, 1.0),  # and another process the other one
        (1.0, 1.0, 1.0),
        (4.1, 0.1, 0.0),  # clocks of ticks may say too much
    ],
)
def test_cores_that_others_keep(idle: float, own: float, expected: float) -> None:
    before = CoreTime(10.0, 1.0, 500.0)
    assert kept_by_others(before, CoreTime(12.0, 1.0 + own, 500.0 + idle), 2) == pytest.approx(expected)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/stat")
def test_this_machine_tells_its_idle_time_or_says_nothing() -> None:
    before = cpu_threads.core_time()
    after = cpu_threads.core_time()
    if before is not None and after is not None:
        assert 0 < before.idle <= after.idle and before.clock <= after.clock and before.own <= after.own


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (
            {  # a group has no more than the one above it
                "proc/self/cgroup": "1:name=systemd:/x\n0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/docker/1f\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_limit_of_a_control_group(files: dict[str, str], expected: float | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert granted(tmp_path) == expected


@pytest.mark.parametrize(
    ("threads", "kept", "more", "asleep", "reason"),
    [
        (4, 0.0, {}, False, "4 threads compute here, and other processes keep 0.0 of 4 cores"),
        (4, 0.2, {}, False, "0.2 of 4 cores"),
        (4, 0.3, {}, True, "0.3 of 4 cores"),
        (2, 2.0, {}, False, "2.0 of 4 cores"),  # there is room for both
        (2, 2.3, {}, True, "2.3 of 4 cores"),
        (1, 4.0, {}, False, "a single thread waits for no other"),
        (4, None, {}, True, "does not tell"),
        (4, 0.0, {"loading": 1}, True, "4 threads and loading processes share 4 cores"),
        (2, 0.0, {"loading": 2}, False, "2 threads and loading processes compute here"),
        (2, 0.0, {"loading": 1, "processes": 2}, True, "2 processes of 2 threads and loading processes share 4 cores"),
        (2, 0.0, {"processes": 2}, False, "2 processes of 2 threads compute here"),
        (3, 0.0, {"processes": 2}, True, "2 processes of 3 threads share 4 cores"),
        (4, 0.0, {"limit": 2.5}, True, "4 threads share the time of 2.5 cores"),
        (2, 0.0, {"limit": 2.0}, False, "2 threads compute here"),
    ],
)
def test_the_rule(threads: int, kept: float | None, more: dict[str, Any], asleep: bool, reason: str) -> None:
    found = choose(threads, 4, lambda: kept, **more)
    assert found.asleep == asleep and reason in found.reason


def settled(**variables: str) -> list[str]:
    """What a new process settles, and what a process of its own then settles where it takes a single thread."""
    code = (
        "import os, subprocess, sys; from segtune.engines import cpu_threads as c; "
        f"print(c.settle(loading=int(os.environ.pop('LOADING', '0')))); print(os.environ.get('{VARIABLE}'), flush=True)"
    )
    child = f"; os.environ['OMP_NUM_THREADS'] = '1'; subprocess.run([sys.executable, '-c', {code!r}])"
    kept = {name: value for name, value in os.environ.items() if name not in (VARIABLE, DECIDED, "LOCAL_WORLD_SIZE")}
    done = subprocess.run([sys.executable, "-c", code + child], env=kept | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_is_settled_is_for_one_process() -> None:
    """More threads than cores sleep; a process that such a one starts decides anew."""
    first, value, second, its_value = settled(OMP_NUM_THREADS=str(cpu_threads.cores() + 1))
    assert first.startswith("asleep: ") and value == ASLEEP
    assert (second, its_value) == ("spinning: a single thread waits for no other", "None")


def test_loading_processes_take_cores() -> None:
    first, value, *_ = settled(OMP_NUM_THREADS=str(max(2, cpu_threads.cores())), LOADING="1")
    assert "and loading processes share" in first and value == ASLEEP


@pytest.mark.parametrize(("given", "shown"), [("ACTIVE", "spinning"), ("passive", "asleep"), (ASLEEP, "asleep")])
def test_what_the_user_set_stays_in_all_processes(given: str, shown: str) -> None:
    told = f"{shown}: {VARIABLE}={given} was set"
    assert settled(OMP_NUM_THREADS="1", OMP_WAIT_POLICY=given) == [told, given, told, given]
