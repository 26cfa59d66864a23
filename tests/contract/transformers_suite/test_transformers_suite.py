"""transformers' shared tests pass on our classes wherever they pass on its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def _suite() -> ModuleType:
    path = Path(__file__).with_name("suite.py")
    spec = importlib.util.spec_from_file_location("transformers_suite", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SUITE = _suite()


def test_a_failure_without_a_reason_is_told() -> None:
    (allowed,) = SUITE.ALLOWED["both"]
    results = {"test_a": ("passed", ""), allowed: ("failed", "x"), "test_b": ("failed", "shapes differ")}
    assert SUITE.unexplained(results, "segtune") == {"test_b": "shapes differ"}
    told = SUITE.summary(results, "segtune").splitlines()
    assert told[0] == "segtune: 1 passed, 2 failed, 0 skipped"
    assert f"  {allowed}: not ours: {SUITE.ALLOWED['both'][allowed]}" in told and "  test_b: shapes differ" in told


@pytest.mark.slow
@pytest.mark.skipif(not SUITE.fetched(), reason="`make transformers-suite` fetches transformers' tests")
@pytest.mark.parametrize(("classes", "least"), [("transformers", 110), ("segtune", 105)])
def test_shared_tests_of_transformers(classes: str, least: int, capsys: pytest.CaptureFixture[str]) -> None:
    results = SUITE.run(classes)
    with capsys.disabled():
        print("\n" + SUITE.summary(results, classes))
    assert SUITE.unexplained(results, classes) == {}
    assert sum(outcome == "passed" for outcome, _ in results.values()) >= least
