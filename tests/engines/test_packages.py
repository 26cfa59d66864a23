from __future__ import annotations

import sys
from importlib.metadata import requires

import pytest

from segtune.engines import packages
from segtune.engines.packages import require
from segtune.errors import UsageError


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    require("--to onnx", "onnx", "onnxscript", "onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"^--to onnx needs the package onnxruntime: pip install 'segtune\[onnx\]'$"):
        require("--to onnx", "onnx", "onnxruntime")


def test_extras_bring_what_they_are_named_for() -> None:
    told = "\n".join(requires("segtune") or [])
    assert all(f"; extra == '{extra}'" in told for extra in packages._EXTRAS.values())
    for name, extra in packages._EXTRAS.items():
        assert any(line.startswith(name) and f"extra == '{extra}'" in line for line in told.splitlines())
