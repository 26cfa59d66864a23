"""What is written for a tool is read by the tool's own library as the masks of the model.

LabelMe draws the outline as well, a pixel wide, and so may differ there; the others agree in every pixel. The libraries
contradict the pinned versions of other packages (see `tests/data/formats/test_formats_differential.py`), so each has an
environment of its own, for which pip asks the package index.
"""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest

from segtune.selection.preannotate import Tool
from support.preannotations import NAMES, PLAIN, masks_of, scene, write

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("read_with_tools.py")
PACKAGES: dict[Tool, list[str]] = {
    "labelme": ["labelme==5.5.0"],
    "cvat": ["datumaro==1.13.12", "pycocotools==2.0.11"],
    "labelstudio": ["label-studio-sdk==2.1.2", "pycocotools==2.0.11"],
}


def python_with(packages: list[str], folder: Path) -> Path:
    """The interpreter of a new environment; the test is skipped where the packages cannot be had."""
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", *packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:
        pytest.skip(f"pip cannot install {', '.join(packages)}: {done.stderr.strip()[-300:]}")
    return python


def near_borders(labels: np.ndarray) -> np.ndarray:
    """Pixels beside which, also across corners, lies one of another class."""
    padded, found = np.pad(labels, 1, mode="edge"), np.zeros(labels.shape, bool)
    height, width = labels.shape
    for down in range(3):
        for across in range(3):
            found |= padded[down : down + height, across : across + width] != labels
    return found


@pytest.mark.parametrize("tool", PACKAGES)
def test_the_tools_own_library_reads_the_same(tool: Tool, tmp_path: Path) -> None:
    python = python_with(PACKAGES[tool], tmp_path / "environment")
    maps = {"a.png": scene(150, 180, 0), "b 1.jpg": scene(161, 147, 1)}
    folder, out = write(tmp_path, tool, maps, PLAIN), tmp_path / "found.npz"
    command = [python, SCRIPT, tool, folder, json.dumps(NAMES), out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ours, _ = masks_of(folder)
    with np.load(out) as found:
        assert set(found) == set(ours) == {"a", "b 1"}
        for name, labels in maps.items():
            differs = found[Path(name).stem] != labels
            assert np.array_equal(ours[Path(name).stem], labels)
            assert not differs[~near_borders(labels)].any() and (tool == "labelme" or not differs.any()), name
