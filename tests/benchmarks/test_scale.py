"""The benchmark of many pictures, on three small ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_table_of_one_and_of_two_processes() -> None:
    words = ["--pictures", "3", "--side", "64", "--labels", "4", "--ways", "processes"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "scale.py", *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| processes")]
    assert [row[1] for row in rows] == ["1", "2"] and all(len(row) == 7 for row in rows)
    assert all(float(row[5]) > 0 for row in rows)  # to start a process takes time, whatever three pictures take
    assert "1e+08 pictures on paper" in done.stdout and done.stdout.count("\n| ") >= 7
