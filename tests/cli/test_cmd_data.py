from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segtune.hub import push


def test_preview_is_drawn_and_never_overwritten_unasked(
    segtune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = segtune_command("data", "preview", "demo", "transforms.preset=medium", "--count", 2)
    assert (code, out) == (0, "preview.png\n")
    with Image.open(tmp_path / "preview.png") as sheet:
        assert sheet.width == 512
    code, out, err = segtune_command("data", "preview", "demo")
    assert (code, out) == (2, "") and "preview.png exists already" in err
    assert segtune_command("data", "preview", "demo", "--count", 1, "--force").code == 0
    code, _, err = segtune_command("data", "preview", "demo", "transforms.extra=[{Rotate: {limt: 3}}]")
    assert code == 2 and err.endswith("Rotate has no argument limt; did you mean limit?\n")


def test_convert_writes_completes_and_tells(segtune_command: Any, tmp_path: Path, earth: Path) -> None:
    code, out, _ = segtune_command("data", "convert", earth, "--output", tmp_path / "a", "--workers", 2)
    assert (code, out) == (0, f"94 train, 39 val, 37 test in {tmp_path / 'a'} (README.md describes them)\n")
    code, out, _ = segtune_command("data", "convert", "demo", "--output", tmp_path / "a", "--json")
    assert code == 0
    assert json.loads(out) == {"output": str(tmp_path / "a"), "samples": {"train": 94, "val": 39, "test": 37}}
    assert len(list((tmp_path / "a").glob("[im]*/*/*"))) == 2 * 170
    assert segtune_command("data", "preview", tmp_path / "a", "--count", 1, "--output", tmp_path / "p.png").code == 0


def test_convert_pushes_to_the_hub(segtune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = []

    def push_folder(folder: Path, repo: str, kind: str, **options: Any) -> str:
        pushed.append((folder, repo, kind, options["private"], sorted(path.name for path in folder.iterdir())))
        return f"https://hub/datasets/{repo}"

    monkeypatch.setattr(push, "push_folder", push_folder)
    monkeypatch.chdir(tmp_path)
    code, out, _ = segtune_command("data", "convert", "demo", "--to", "hub", "--repo", "me/earth", "--private")
    assert (code, out) == (
        0,
        "94 train, 39 val, 37 test in https://hub/datasets/me/earth (README.md describes them)\n",
    )
    names = [".cache", "README.md", "data", "labels.json"]
    assert pushed == [(Path("converted/me/earth"), "me/earth", "dataset", True, names)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo"], "--output DIR: name the folder"),
        (["demo", "--to", "zip", "--output", "x"], "--to zip: folder, parquet or hub"),
        (["demo", "--to", "hub"], "--to hub needs --repo"),
        (["demo", "--repo", "me/x", "--output", "x"], "--repo goes with --to hub"),
        (["demo", "--output", "x", "--overlap", "5"], "overlap=5"),
        (["nowhere", "--output", "x"], "'nowhere': no shipped recipe"),
    ],
)
def test_data_convert_refuses(
    segtune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = segtune_command("data", "convert", *arguments)
    assert (code, out) == (2, "") and message in err
    assert list(tmp_path.iterdir()) == []
