from __future__ import annotations

from pathlib import Path

import pytest

from support.run_folders import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with all that a run leaves behind."""
    return write_run(tmp_path / "run")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty folder."""
    (tmp_path / "target").mkdir()
    return tmp_path / "target"
