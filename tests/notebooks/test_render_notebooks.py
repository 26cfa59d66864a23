"""The pages of the documentation that show the notebooks' outputs: as new as the notebooks, and made anew."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
from PIL import Image

from scripts import render_notebooks
from scripts.render_notebooks import LARGEST, NAMES, WIDEST, as_shown, picture, without_badges
from support.examples import TINY

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "notebooks"
PICTURES = {"finetune_colab": 4, "finetune_kaggle": 4, "how_segformer_works": 6, "inference": 4}


def missing_cells(name: str, page: str) -> list[str]:
    """The cells of a notebook that a page does not show as they are, in their order."""
    missing, at = [], 0
    for cell in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells:
        parts = without_badges(cell.source).split("\n\n", 1) if cell.id == "cell-01" else [cell.source]
        if cell.cell_type == "code":
            parts = [f"```python\n{cell.source}\n```\n"]
        for part in parts:
            found = page.find(part, at)
            at = max(at, found + len(part))
            missing += [part] if found < 0 else []
    return missing


def shown_pictures(page: Path) -> list[Path]:
    return [
        page.parent / path for path in re.findall(r"^!\[.+\]\((.+)\)$", page.read_text("utf-8"), flags=re.MULTILINE)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_page_shows_the_notebook_as_it_is(name: str) -> None:
    """A notebook that was changed needs a new page."""
    page = PAGES / f"{name}.md"
    text = page.read_text("utf-8")
    assert missing_cells(name, text) == []
    assert len(missing_cells(name, text.replace("import segtune\n", "import segtune as it\n"))) == 1
    files = shown_pictures(page)
    assert len(files) == PICTURES[name] and sorted(files) == sorted((PAGES / f"{name}_files").iterdir())
    for file in files:
        with Image.open(file) as image:
            assert image.format == "PNG" and image.width <= WIDEST and file.stat().st_size <= LARGEST


def test_no_page_without_a_notebook() -> None:
    assert sorted(path.stem for path in PAGES.glob("*.md")) == NAMES == sorted(PICTURES)
    assert {path.name for path in PAGES.iterdir() if path.is_dir()} == {f"{name}_files" for name in NAMES}


def test_pictures_become_small_and_keep_their_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    def saved(pixels: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        return file.getvalue()

    scale = np.repeat(np.linspace(0, 255, 1800)[None], 40, axis=0)
    smooth = np.stack([scale, 255 - scale, np.full_like(scale, 40)], axis=-1)
    small = Image.open(io.BytesIO(picture(saved(smooth))))
    assert small.mode == "P" and small.size == (WIDEST, 20)
    assert np.abs(np.asarray(small.convert("RGB"), float) - smooth[::2, ::2]).mean() < 3
    monkeypatch.setattr(render_notebooks, "LARGEST", 6_000)
    noise = np.random.default_rng(0).integers(0, 256, (120, 120, 3))
    assert len(picture(saved(noise))) <= 6_000


def test_pages_show_what_stays_on_a_screen() -> None:
    """Not bars, colours, what was drawn over, the log, or the folder that the notebook ran in."""

    def shown(text: str, name: str = "stdout") -> str | None:
        output: Any = SimpleNamespace(output_type="stream", name=name, text=text)
        return getattr(as_shown(output, Path("/tmp/x")), "text", None)

    bar = "predict: 100%|███| 10/10 [00:04<00:00,  2.24it/s]\n"
    assert shown(f"{bar}\x1b[31mred\x1b[0m\r\n 50%|█\rdone   \nin /tmp/x/runs\n") == "red\ndone\nin runs\n"
    assert shown(bar) is None and shown("a line of the log", "stderr") is None
    widget = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "0%"}
    assert as_shown(SimpleNamespace(output_type="display_data", data=widget)) is None


def test_python_with_segtune_is_refused() -> None:
    """It would skip the install cell, and lose its segtune at the end."""
    command = [sys.executable, "scripts/render_notebooks.py", "--python", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "has segtune already" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a new environment that sees all packages of this one but segtune."""
    folder = tmp_path / "environment"
    venv.create(folder, symlinks=True)
    site_packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "segtune" not in entry.name:
            (site_packages / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


@pytest.mark.slow
def test_notebooks_run_from_their_install_cells(python: Path, tmp_path: Path) -> None:
    """Of a wheel in place of the repository, all the others from here; small, for their results mean nothing."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("segtune-*.whl")
    command = [sys.executable, "scripts/render_notebooks.py", "--python", str(python), "--segtune", str(wheel)]
    small = [TINY, "training.batch_size=2"]
    command += ["--set", "STEPS=2", "--set", "SMALL=True", "--set", f"CHANGES={small}"]
    command += ["--output", str(tmp_path / "pages")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PIP_NO_INDEX": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in NAMES:
        page = tmp_path / "pages" / f"{name}.md"
        assert missing_cells(name, page.read_text("utf-8")) == []
        assert len(shown_pictures(page)) == PICTURES[name]
        assert str(tmp_path) not in page.read_text("utf-8")
    absent = [python, "-c", "import importlib.util; assert importlib.util.find_spec('segtune') is None"]
    subprocess.run(absent, check=True, cwd=tmp_path)
