"""Set up before any test module is imported: no network, no shared caches; then the real datasets as fixtures."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

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
