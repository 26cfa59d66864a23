from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from support.minihub import Hub, serve
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


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Hub, str]]:
    with serve() as started:
        yield started


@pytest.fixture
def on_hub(server: tuple[Hub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty Hub that huggingface_hub takes for the one and only."""
    started, url = server
    started.__init__()
    constants = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in constants.items():
        for module in (huggingface_hub.constants, huggingface_hub.file_download):  # not all versions have all
            monkeypatch.setattr(module, name, value, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    return started
