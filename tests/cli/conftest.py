from __future__ import annotations

from pathlib import Path

import pytest

from segtune.cli import main
from support.command_runs import TINY


@pytest.fixture(scope="session")
def run_folder(earth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two steps of training leave."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    with pytest.raises(SystemExit) as left:
        main.main(["train", "demo", f"training.output_dir={folder}", *TINY])
    assert not left.value.code
    return folder
