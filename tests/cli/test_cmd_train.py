from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from segtune.evaluation.evaluation import Evaluation
from segtune.recipe.shipped import recipe_folder
from support.command_runs import TINY


def test_train_ends_with_the_next_command(segtune_command: Any, earth: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    code, out, _ = segtune_command("train", "demo", f"training.output_dir={folder}", *TINY, "training.report=true")
    lines = out.splitlines()
    assert code == 0
    assert len(lines) == 4
    assert lines[0].startswith("best val mIoU 0.") and lines[0].endswith(" at step 2")
    assert lines[1:3] == [f"run folder: {folder}", f"report: {folder}/report.html"]
    assert lines[3] == (
        f"next: segtune evaluate '{folder}/best' '{folder}/recipe.yaml' --split test --overlays '{folder}/overlays'"
    )
    code, _, err = segtune_command("train", "demo", f"training.output_dir={folder}", *TINY)
    assert code == 2
    assert f"{folder} holds a run" in err


@pytest.mark.slow
def test_accelerate_launches_two_cpu_processes_into_one_run(earth: Path, tmp_path: Path) -> None:
    config = recipe_folder() / "accelerate" / "cpu.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "-m", "segtune"]
    done = subprocess.run(
        [*launch, "train", "demo", f"training.output_dir={tmp_path / 'run'}", *TINY],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best val mIoU") == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["environment"]["num_processes"] == 2
    kept = Evaluation.load(tmp_path / "run" / "evaluation-val.npz")
    assert len(kept) == 39
    evaluated = next(line for line in reversed(lines) if "mean_iou" in line)
    assert kept.scores() == {key: evaluated[key] for key in kept.scores()}
