from __future__ import annotations

import os
import subprocess
import sys

import pytest

from segtune.engines.freed_memory import VARIABLES

GNU = hasattr(os, "confstr") and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
FAULTS = """
import resource
import numpy as np
from segtune.engines.freed_memory import keep_freed_memory
print(int(keep_freed_memory()))
for number in range(6):
    if number == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(40 << 20, np.uint8).fill(number)
    np.empty(3 << 20, np.uint8).fill(number)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**variables: str) -> tuple[bool, int]:
    """Whether freed memory is kept, and the pages that five rounds of 43 MB got anew."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    kept, number = map(int, done.stdout.split())
    return bool(kept), number


@pytest.mark.skipif(not GNU, reason="GNU's")
def test_freed_memory_is_taken_again_and_what_the_user_set_stays() -> None:
    kept, few = faults()
    assert kept
    set_by_user, many = faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert not set_by_user
    assert few < 500 and many > 5 * few  # of 55,000 pages of 4 KB; of fewer where the system gives larger ones


@pytest.mark.skipif(not GNU, reason="GNU's")
def test_nothing_is_kept_under_a_limit_of_addresses() -> None:
    code = "from segtune.engines.freed_memory import keep_freed_memory; print(keep_freed_memory())"
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    limited = ["bash", "-c", 'ulimit -v 8000000; exec "$@"', "bash", sys.executable, "-c", code]
    assert subprocess.run(limited, env=environment, capture_output=True, text=True, check=True).stdout == "False\n"
