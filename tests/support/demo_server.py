"""`segtune demo` in a process of its own, for tests that ask it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Running(NamedTuple):
    url: str
    folder: Path  # of its own


def environment(folder: Path) -> dict[str, str]:
    """A proxy that is not there: nobody asks it for what lies on this machine, and nobody else is asked."""
    nobody = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    return {**os.environ, **nobody, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
