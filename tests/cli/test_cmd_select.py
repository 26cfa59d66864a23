"""`segtune select`: a page, a table, and a folder that segtune trains on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import segtune
from segtune.data.config import DatasetConfig
from segtune.data.dataset import open_dataset
from segtune.imageio.read import read_mask
from support.html_reading import Page


@pytest.fixture
def pool(earth: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "pool"
    folder.mkdir()
    for number, photo in enumerate(sorted((earth / "images" / "train").iterdir())[:8]):
        (folder / f"tile {number}.jpg").write_bytes(photo.read_bytes())
    (folder / "broken & <b>.jpg").write_bytes(b"no image")
    return folder


def test_select_writes_a_page_and_a_folder_for_a_tool(
    segtune_command: Any, run_folder: Path, pool: Path, tmp_path: Path
) -> None:
    out, best = tmp_path / "out", run_folder / "best"
    command = ("select", best, pool, "--number", "3", "--output", out)
    code, text, err = segtune_command(*command, "--to", "labelme", "--simplify", "0", "--min-region", "0")
    assert code == 0, err
    assert text.splitlines() == [
        f"3 of 8 images chosen: {out / 'selection.html'}",
        f"for labelme: {out / 'labelme'}",
        f"1 left out, which cannot be read: {pool / 'broken & <b>.jpg'}",
    ]
    table = json.loads((out / "selection.json").read_text(encoding="utf-8"))
    assert table["selected"][0]["rank"] == 1 and table["images"] == 8
    page = Page((out / "selection.html").read_text(encoding="utf-8"))
    assert page.open == [] and "broken & <b>.jpg" in page.text
    assert all(source.startswith("data:") for source in page.sources) and len(page.sources) == 1 + 3 * 3
    assert [Path(entry["image"]).name in page.text for entry in table["selected"]] == [True] * 3
    # what lies there is data to train on: the masks are what the model predicts
    dataset, label_map = open_dataset(DatasetConfig(path=str(out / "labelme"), val_fraction=0))
    assert len(dataset["train"]) == 3
    for row in dataset["train"]:
        predicted = segtune.predict(best, pool / f"{row['id']}.jpg")
        assert np.array_equal(label_map.encode(read_mask(row["mask"])), predicted)
    # a second choice looks at no image of the pool again, and does not touch what people may have worked on
    assert segtune_command(*command).code == 2
    code, text, err = segtune_command(*command, "--resume", "--to", "labelme")
    assert code == 2 and "may hold somebody's work" in err
    code, text, _ = segtune_command(*command, "--resume", "--to", "coco", "--link", "--json")
    assert code == 0
    assert json.loads(text) == table | {"annotations": str(out / "coco")}
    assert next((out / "coco" / "images").iterdir()).is_symlink()


def test_select_is_deterministic_and_takes_windows(
    segtune_command: Any, run_folder: Path, pool: Path, tmp_path: Path
) -> None:
    command = ("select", run_folder / "best", f"{pool}/tile*", "-n", "2", "--limit", "5", "--json", "--window", "64")
    found = []
    for name in ("a", "b"):
        code, text, err = segtune_command(*command, "-o", tmp_path / name)
        assert code == 0, err
        found.append(json.loads(text))
    assert found[0]["selected"] == found[1]["selected"]
    assert (found[0]["images"], found[0]["unreadable"], found[0]["annotations"]) == (5, {}, None)


def test_slips_are_told_before_torch_is_imported(run_folder: Path, pool: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "cvat").mkdir(parents=True)
    best = str(run_folder / "best")
    slips = {
        ("nowhere", str(pool)): "nowhere does not exist",
        (best, str(tmp_path / "none")): "none: no such image",
        (best, str(pool), "--to", "cvat", "-o", str(tmp_path / "out")): "may hold somebody's work",
    }
    for words, message in slips.items():
        code = (
            "import sys\nfrom segtune.cli.main import main\n"
            f"try:\n    main(['select', *{words!r}])\nexcept SystemExit as left:\n    assert left.code == 2\n"
            "assert 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert message in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--link",), "--link goes with --to"),
        (("--overwrite", "--resume"), "give one of them"),
        (("--to", "paint"), "'paint' is not one of"),
        (("--number", "0"), "--number"),
        (("--window", "500"), "window 500: use a multiple of 32"),
    ],
)
def test_select_refuses(
    segtune_command: Any, run_folder: Path, pool: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = segtune_command("select", run_folder / "best", pool, "-o", tmp_path / "out", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "out").exists()


def test_select_refuses_what_is_no_file(
    segtune_command: Any, run_folder: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = run_folder / "best"
    assert "takes files" in segtune_command("select", best, "https://example.org/a.jpg", "-o", tmp_path / "out").err
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert "takes files" in segtune_command("select", best, tmp_path / "a.mp4", "-o", tmp_path / "out").err
    (tmp_path / "file").touch()
    assert "is a file: name a folder" in segtune_command("select", best, pool, "-o", tmp_path / "file").err
    (tmp_path / "broken.png").touch()
    code, _, err = segtune_command("select", best, tmp_path / "broken.png", "-o", tmp_path / "out")
    assert code == 1 and "none of the 1 images can be read" in err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "runs in one process" in segtune_command("select", best, pool, "-o", tmp_path / "out").err


def test_grey_and_turned_pictures(segtune_command: Any, run_folder: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 70), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    (tmp_path / "pool").mkdir()
    Image.fromarray(noise).save(tmp_path / "pool" / "turned.jpg", exif=exif)
    Image.fromarray(noise).save(tmp_path / "pool" / "grey.png")
    out = tmp_path / "out"
    code, _, err = segtune_command("select", run_folder / "best", tmp_path / "pool", "-o", out, "--to", "cvat")
    assert code == 0, err
    dataset, _ = open_dataset(DatasetConfig(path=str(out / "cvat"), val_fraction=0))
    sizes = {row["id"].rpartition("/")[2]: read_mask(row["mask"]).shape for row in dataset["train"]}
    assert sizes == {"turned": (70, 40), "grey": (40, 70)}
