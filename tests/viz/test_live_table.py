from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from segtune.bars import notebook
from segtune.viz.live_table import MOST_ROWS, LiveTable


class Place:
    """What a notebook shows: pages by their place, each the last one of it."""

    def __init__(self) -> None:
        self.pages: list[str] = []

    def display(self, page: str, display_id: bool) -> Any:
        self.pages.append(page)
        number = len(self.pages) - 1
        return SimpleNamespace(update=lambda new: self.pages.__setitem__(number, new))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Place:
    place, ipython = Place(), ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=1)  # type: ignore[attr-defined]
    ipython.display = SimpleNamespace(HTML=str, display=place.display)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    return place


def cells(page: str) -> list[list[str]]:
    rows = page.split("<tr>")[1:]
    return [[cell.split("</t")[0] for cell in row.replace("<th>", "<td>").split("<td>")[1:]] for row in rows]


def test_only_a_kernel_is_a_notebook(monkeypatch: pytest.MonkeyPatch, shown: Place) -> None:
    assert notebook() is sys.modules["IPython"]
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", SimpleNamespace)  # in a terminal
    assert notebook() is None
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: None)  # imported by a script
    assert notebook() is None
    monkeypatch.delitem(sys.modules, "IPython")
    assert notebook() is None


def test_a_row_for_each_evaluation_and_one_for_the_steps_after_it_in_one_place(shown: Place) -> None:
    table = LiveTable(30)
    table.log(10, 1.25, 0.001, 4.0)
    table.evaluating()
    assert "step 10 of 30, evaluating" in shown.pages[0]
    table.evaluated(10, 0.5)
    table.log(20, 0.75, 0.0005, 4.0)
    table.evaluated(20, 0.25)
    table.log(25, 0.5, 0.00025, 4.0)
    (page,) = shown.pages
    assert "step 25 of 30, 4.0 images/s" in page and 'value="25" max="30"' in page
    assert cells(page) == [
        ["step", "loss", "learning rate", "val mIoU", "best"],
        ["10", "1.2500", "1.00e-03", "0.5000", "0.5000"],
        ["20", "0.7500", "5.00e-04", "0.2500", "0.5000"],
        ["25", "0.5000", "2.50e-04", "", ""],
    ]
    table.evaluated(30, None)
    table.finish("ended: <the time limit>")
    assert "ended: &lt;the time limit&gt;" in shown.pages[0]
    assert cells(shown.pages[0])[-1] == ["30", "0.5000", "2.50e-04", "", "0.5000"]


def test_of_many_rows_the_latest_are_shown(shown: Place) -> None:
    table = LiveTable(1000)
    for step in range(1, MOST_ROWS + 4):
        table.evaluated(step, step / 100)
    assert "3 earlier" in shown.pages[0]
    assert [row[0] for row in cells(shown.pages[0])[2:]] == [str(step) for step in range(4, MOST_ROWS + 4)]
