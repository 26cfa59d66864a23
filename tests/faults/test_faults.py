"""A sample of the campaign, the same each time; `make faults` runs all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the campaign forks and watches as Linux does")
@pytest.mark.parametrize("kind", ["kills", "full disks", "damaged files", "hostile input", "two trainings"])
def test_of_a_sample_nothing_is_lost_silent_or_outside(kind: str) -> None:
    """In a process of its own, which has no threads yet and may fork."""
    search = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    words = [sys.executable, "-m", "faults.campaign", kind, "--sample", "12", "--processes", "1"]
    ended = subprocess.run(words, env=os.environ | {"PYTHONPATH": search}, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
