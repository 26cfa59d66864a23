"""`segtune export`: what it says, where it writes, what it refuses before any work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from segtune.cli.cmd_export import _output, _sides
from segtune.errors import UsageError


def test_refusals(segtune_command: Any, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = run_folder / "best"
    taken = tmp_path / "taken"
    taken.mkdir()
    monkeypatch.chdir(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    cases: list[tuple[list[str | Path], str]] = [
        ([best, "--to", "tensorflow"], "'tensorflow' is not one of"),
        ([best, "--to", "onnx", "--output", taken], "taken exists already"),
        ([best, "--to", "onnx", "--size", "512"], "--size 512: give height and width"),
        ([best, "--to", "torch", "--fp16"], "--fp16 is for --to onnx"),
        ([best, "--to", "openvino", "--max-drop", "0.1"], "--max-drop is for --to openvino --int8"),
        ([best, "--to", "torch", "--int8"], "--int8 is for --to onnx, openvino and web, not torch"),
        ([best, "--to", "web", "--int8", "--images", "a.png"], "which --images has not: name the data with --data"),
        ([best, "--to", "onnx", "--images", "no.png"], "no.png: no such image"),
        ([best, "--to", "onnx", "--data", "demo", "--images", "no.png"], "give --data or --images, not both"),
        ([outside, "--to", "onnx"], "is not in a run folder: say what to compare the export on"),
        ([run_folder, "--to", "onnx"], "did you mean"),
    ]
    for words, message in cases:
        found = segtune_command("export", *words)
        assert found.code == 2 and message in " ".join(found.err.split()), (words, found.err)
        assert "Traceback" not in found.err
    assert not (run_folder / "export").exists()


def test_another_architecture(segtune_command: Any, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "other" / "model.safetensors").write_bytes(b"torn")
    found = segtune_command("export", tmp_path / "other", "--to", "onnx", "--data", "demo", "--output", tmp_path / "to")
    assert found.code in (1, 2) and "Traceback" not in found.err and found.err.count("error:") == 1
    assert not (tmp_path / "to").exists()


def test_missing_extra(segtune_command: Any, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    found = segtune_command("export", run_folder / "best", "--to", "onnx", "--output", tmp_path / "to")
    assert found.code == 2 and "pip install 'segtune[onnx]'" in found.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_export_of_a_run(segtune_command: Any, run_folder: Path, tmp_path: Path) -> None:
    words = ["export", run_folder / "best", "--to", "onnx", "--limit", "3", "--output", tmp_path / "to", "--json"]
    found = segtune_command(*words)
    assert found.code == 0, found.err
    result = json.loads(found.out)
    assert result["output"] == str(tmp_path / "to") and result["compared_on"].startswith("3 images of the val split")
    assert all(entry["passed"] and entry["true_mean_iou"]["level"] == 0.95 for entry in result["files"])
    again = segtune_command(*words)
    assert again.code == 2 and "exists already" in again.err


def test_places(tmp_path: Path) -> None:
    (tmp_path / "run" / "best").mkdir(parents=True)
    assert _output(str(tmp_path / "run" / "best"), "onnx", None) == Path("best-onnx")
    (tmp_path / "run" / "recipe.yaml").touch()
    assert _output(str(tmp_path / "run" / "best"), "onnx", None) == tmp_path / "run" / "export" / "onnx"
    assert _output("user/name@v1", "openvino", None) == Path("name-openvino")


def test_sides() -> None:
    assert _sides(None) is None and _sides("512x768") == (512, 768)
    for wrong in ("512", "0x5", "5x", "512X512", "5x123456"):
        with pytest.raises(UsageError, match=f"--size {wrong}: give height and width"):
            _sides(wrong)
