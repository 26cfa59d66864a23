from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def busy_machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # as of a script
    from benchmarks import busy_machine

    return busy_machine


def test_bars_are_judged(busy_machine: Any) -> None:
    row = {"alone_s": 1.0, "busy_s": 2.0, "ratio": 2.0}
    names = ("counting regions", "counting noise", "evaluate's formula, regions", "evaluate's formula, noise")
    found = {name: dict(row) for name in (*names, "forward pass")}
    assert busy_machine.verdicts(found) == []
    found["forward pass"]["ratio"] = found["evaluate's formula, noise"]["ratio"] = 3.0
    found["counting noise"]["busy_s"] = 2.5
    assert busy_machine.verdicts(found) == [
        "forward pass takes 3.00 times its time alone",
        "counting noise is slower than the formula (busy)",
    ]


@pytest.mark.slow
def test_every_path_runs(busy_machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy_machine, "SECONDS", 0.0)
    found = busy_machine.measure(busy_machine.paths("b0", 64), repeats=1)
    assert len(found) == 10 and all(row["alone_s"] > 0 and row["ratio"] > 0 for row in found.values())
