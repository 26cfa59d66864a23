"""Whether memory that a step frees stays with the process, or goes back to the system after every step.

The GNU C library gives a block of 32 MB and more back when it is freed, and the end of its heap when 128 KB of it are
free. So each training step gets tens of thousands of fresh pages, which the system clears one by one: an eighth of the
time of a step of B0.
"""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of mallopt's parameters, see `man mallopt`
KEPT, ALONE = 2**30, 2**28  # bytes that may lie free at the heap's end; of a block that goes back to the system alone
VARIABLES = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_MMAP_MAX_",
    "GLIBC_TUNABLES",
)


def keep_freed_memory() -> bool:
    """Let this process keep up to 1 GiB that it frees; what the user has set stays.

    Under a limit of addresses (`ulimit -v`) nothing is kept: what lies free in the C library's heap is of no use to
    those who map memory themselves, such as oneDNN for the code that it makes.

    Returns:
        Whether the C library took it: it is GNU's, none of `VARIABLES` is set, and addresses are not limited.
    """
    if any(name in os.environ for name in VARIABLES) or _addresses_are_limited():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; Windows
        return False
    return bool(mallopt(MMAP_THRESHOLD, ALONE)) and bool(mallopt(TRIM_THRESHOLD, KEPT))


def _addresses_are_limited() -> bool:
    if sys.platform == "win32":
        return False
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
