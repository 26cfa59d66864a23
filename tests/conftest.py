"""Set up before any test module is imported: no network, no shared caches; then the real datasets as fixtures."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE

_CACHE = tempfile.TemporaryDirectory(prefix="segtune-tests-")  # removed when the interpreter ends
os.environ["HF_HOME"] = _CACHE.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
for _name in ("HF_DATASETS_CACHE", "HF_EVALUATE_CACHE", "HF_HUB_CACHE", "HF_TOKEN"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def earth() -> Path:
    """The dataset inside the package."""
    return ROOT / "src" / "segtune" / "data" / "earth"


@pytest.fixture(scope="session")
def camvid() -> Path:
    """Real street scenes, which may not be shipped: $SEGTUNE_SHARED/data/camvid, by default beside the checkout."""
    folder = Path(os.environ.get("SEGTUNE_SHARED", ROOT.parent / "shared")) / "data" / "camvid"
    if not folder.is_dir():
        reason = f"no CamVid at {folder} (set SEGTUNE_SHARED to the folder that holds data/camvid)"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def launch() -> Callable[..., list[str]]:
    """Starts a worker script in processes that know of each other, as `torchrun` does; returns what they say."""

    def start(processes: int, script: str, *arguments: str, **variables: str) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, str(ROOT / "tests" / "workers" / script), *arguments]
        common = os.environ | variables | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        running = [
            subprocess.Popen(command, env=common | {"RANK": rank, "LOCAL_RANK": rank}, stderr=PIPE, text=True)
            for rank in map(str, range(processes))
        ]
        try:
            said = [process.communicate(timeout=300)[1] for process in running]
        finally:
            for process in running:
                process.kill()
        assert [process.returncode for process in running] == [0] * processes, "\n".join(said)
        return said

    return start
