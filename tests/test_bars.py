from __future__ import annotations

import io
import sys

import pytest
import tqdm.auto

from segtune.bars import QUIET, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress_bar(range(3), desc="steps", file=stream)) == [0, 1, 2]
    return stream.getvalue()


def test_bars_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "steps" in drawn(Terminal(), monkeypatch)
    assert drawn(io.StringIO(), monkeypatch) == ""
    monkeypatch.setenv(QUIET, "1")
    assert drawn(Terminal(), monkeypatch) == ""


def test_notebooks_have_widgets_though_they_are_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class tqdm_notebook(tqdm.std.tqdm):  # noqa: N801 (as tqdm calls it)
        pass

    monkeypatch.setattr(tqdm.auto, "tqdm", tqdm_notebook)
    assert "steps" in drawn(io.StringIO(), monkeypatch)
    assert progress_bar(range(3), hidden=True).disable
