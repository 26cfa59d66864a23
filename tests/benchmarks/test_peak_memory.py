"""The benchmark of memory, on a small image."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells the peak of a part")
def test_each_way_has_a_row() -> None:
    for package in ("onnx", "onnxruntime", "onnxscript", "openvino"):
        pytest.importorskip(package)
    words = ["--side", "64", "--labels", "4", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "peak_memory.py", *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["transformers", "segtune", "ONNX Runtime", "OpenVINO"]
    for _, loaded, most, added, _ in rows:
        assert int(loaded) > 0 and int(most) - int(loaded) == int(added) >= 0
