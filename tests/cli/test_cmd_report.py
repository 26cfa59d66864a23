from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


def test_report_is_written_beside_the_run(segtune_command: Any, run_folder: Path) -> None:
    page = run_folder / "report.html"
    code, out, _ = segtune_command("report", run_folder)
    assert code == 0
    score = json.loads(segtune_command("evaluate", run_folder / "best", "demo", "--json").out)["mean_iou"]
    assert out == f"test mIoU {score:.3f} over 37 images\nreport: {page}\n"
    text = page.read_text(encoding="utf-8")
    page.unlink()
    assert f"<b>{score:.3f} <small>" in text and "crop_size: 64" in text


def test_a_run_whose_recipe_is_gone_is_told(segtune_command: Any, tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    code, _, err = segtune_command("report", tmp_path)
    assert code == 2 and err.startswith(f"error: {tmp_path} has no recipe.yaml: restore it (each training state in ")


def test_report_of_a_checkpoint_needs_a_recipe(segtune_command: Any, run_folder: Path, tmp_path: Path) -> None:
    checkpoint, page = tmp_path / "weights", tmp_path / "page.html"
    shutil.copytree(run_folder / "best", checkpoint)
    code, _, err = segtune_command("report", checkpoint)
    assert code == 2
    assert err == f"error: {checkpoint} is no run folder: name the RECIPE whose data it is to be tried on\n"
    options = ("--split", "val", "--group-by", "r[0-9]+", "--output", page)
    code, out, _ = segtune_command("report", checkpoint, "demo", "dataset.check_masks=false", *options)
    assert code == 0 and out.startswith("val mIoU ") and out.endswith(f"report: {page}\n")
    assert "groups of images" in page.read_text(encoding="utf-8")
    page.write_text("my notes")
    code, out, err = segtune_command("report", checkpoint, "demo", "--output", page)
    assert (code, out, page.read_text()) == (2, "", "my notes") and "no page of segtune report" in err
    assert segtune_command("report", checkpoint, "demo", "--split", "vla").err.startswith("error: --split vla: ")
