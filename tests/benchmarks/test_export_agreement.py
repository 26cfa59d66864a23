"""The benchmark of exports, on two pictures; what it makes and tells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.export_agreement import PHOTOGRAPHS, TILES, row, write_pictures

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_checkpoint_has_a_row() -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    words = ["--limit", "2", "--cases", "four channels", "--targets", "onnx"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "export_agreement.py", *words],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    cells = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    assert cells[2][:3] == ["four channels", "2", "64,800"] and len(cells) == 3
    assert len(cells[2]) == len(cells[0]) and cells[2][5] == "0" and float(cells[2][6]) > 0.999


def test_pictures_are_tiles_and_photographs_with_crops(tmp_path: Path) -> None:
    (tmp_path / "set" / "images" / "test").mkdir(parents=True)
    photograph = np.random.default_rng(0).integers(0, 256, (360, 480, 3), dtype=np.uint8)
    for number in range(PHOTOGRAPHS + 2):
        Image.fromarray(photograph).save(tmp_path / "set" / "images" / "test" / f"x{number:02d}.png")
    write_pictures(tmp_path, tmp_path / "set", limit=100)
    sizes = []
    for path in (tmp_path / "3").iterdir():
        with Image.open(path) as picture:
            sizes.append(picture.size)
    counts = {size: sizes.count(size) for size in set(sizes)}
    tiles = len(list(TILES.iterdir()))
    assert counts == {(180, 180): tiles, **dict.fromkeys([(480, 360), (333, 251), (65, 97)], PHOTOGRAPHS)}
    with Image.open(tmp_path / "4" / "x00.png") as picture:
        four = np.asarray(picture)
    red, green, blue = photograph[..., 0].astype(int), photograph[..., 1].astype(int), photograph[..., 2].astype(int)
    assert (four[..., :3] == photograph).all()
    assert (four[..., 3] == (128 + 2 * green - red - blue).clip(0, 255)).all()


def test_a_row_tells_errors_from_ties() -> None:
    def entry(runtime: str, precision: str, differing: int, ties: int, worst: float) -> dict[str, Any]:
        counts = {"images": 3, "pixels": 1234, "differing_pixels": differing, "of_these_ties": ties}
        return {"runtime": runtime, "precision": precision, **counts, "worst_image": {"agreement": worst}}

    onnx = [entry("onnxruntime", "fp32", 1, 1, 0.9999), entry("onnxruntime", "fp32", 5, 3, 0.9997)]
    assert row("mine", onnx) == "| mine | 3 | 1,234 | 1, 5 | not run | 2 | 0.99970 | not run |"
    openvino = [entry("openvino", "fp32", 0, 0, 1.0), entry("openvino", "bf16", 700, 9, 0.5)]
    assert row("mine", [*onnx, *openvino]) == "| mine | 3 | 1,234 | 1, 5 | 0 | 2 | 0.99970 | 700 |"
