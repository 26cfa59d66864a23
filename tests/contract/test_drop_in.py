"""The table of docs/drop-in.md says what the probes find, and the probes can find it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(
    r"^\| (?P<what>[^|]+) \| (?P<result>same|works here only|refused by both|refused|differs) \|", re.MULTILINE
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "scripts" / "drop_in_table.py"
    spec = importlib.util.spec_from_file_location("drop_in_table", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def documented() -> dict[str, str]:
    page = (ROOT / "docs" / "drop-in.md").read_text(encoding="utf-8")
    table = page.partition("<!-- table of probes")[2]
    return {match["what"]: match["result"] for match in ROW.finditer(table)}


def test_the_page_has_every_probe(script: ModuleType) -> None:
    probes = [what for part in script.PROBES.values() for what in part]
    assert len(probes) == len(set(probes)) >= 74
    assert list(documented()) == probes
    different = {what for what, result in documented().items() if result == "differs"}
    assert different <= set(script.DIFFERENT)  # nothing is different without a reason


@pytest.mark.parametrize(("mine", "theirs", "found"), [
    (torch.ones(2), torch.ones(2) * (1 + 1e-5), ""),
    ([torch.ones(2), 3], [np.ones(2), 3], ""),
    ({"a": 1}, {"a": 2}, "'1' instead of '2'"),
    (torch.ones(2), torch.ones(3), "the shape (2,) instead of (3,)"),
    (torch.ones(2), torch.tensor([1.0, 1.01]), "relative difference 9.9e-03"),
    (torch.tensor([torch.nan]), torch.ones(1), "relative difference nan"),
    ([None], [torch.zeros(1)], "'None' instead of 'tensor([0.])'"),
    ([1], [1, 2], "1 values instead of 2"),
])  # fmt: skip
def test_differences_are_seen(script: ModuleType, mine: object, theirs: object, found: str) -> None:
    assert script.difference(mine, theirs, 2e-4) == found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of both libraries, about what the probes do on purpose
def test_the_page_says_what_the_probes_find(script: ModuleType) -> None:
    """Where this fails, `python scripts/drop_in_table.py --write` writes what is so now."""
    found = {row.what: row for row in script.rows()}
    wrong = {what: row for what, row in found.items() if row.result != documented().get(what)}
    assert wrong == {}
