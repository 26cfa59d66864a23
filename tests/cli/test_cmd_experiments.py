from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segtune.files import read_json
from support.command_runs import TINY


def test_an_ensemble_is_named_by_folders(segtune_command: Any, run_folder: Path, earth: Path, tmp_path: Path) -> None:
    """best/ and final/ of two steps are the same weights: together they answer as each alone."""
    folders = [run_folder / "best", run_folder / "final"]
    images = earth / "images" / "test"
    for name, models in (("one", folders[:1]), ("both", folders)):
        done = segtune_command("predict", *models, images, "--limit", "2", "--output", tmp_path / name)
        assert done.code == 0 and done.out == f"2 masks in {tmp_path / name}\n", done.err
    for path in sorted((tmp_path / "one").glob("*.png")):
        one, both = (np.asarray(PIL.Image.open(tmp_path / name / path.name)) for name in ("one", "both"))
        assert (one == both).mean() > 0.999  # but for rounding
    found = [
        json.loads(segtune_command("evaluate", *models, "demo", "--split", "val", "--json").out)
        for models in (folders[:1], folders)
    ]
    assert found[0]["mean_iou"] == pytest.approx(found[1]["mean_iou"], abs=1e-3)
    assert found[1]["checkpoint"] == " + ".join(map(str, folders))


def test_ensembles_need_images_or_a_recipe(segtune_command: Any, run_folder: Path, tmp_path: Path) -> None:
    folders = [run_folder / "best", run_folder / "final"]
    done = segtune_command("predict", *folders, "--output", tmp_path / "masks")
    assert done.code == 2 and done.err == f"error: no images: {folders[1]} is the folder of a checkpoint\n"
    done = segtune_command("evaluate", *folders)
    assert done.code == 2 and done.err.startswith(f"error: no RECIPE: {folders[1]} is the folder of a checkpoint")


def test_a_soup_of_one_weight_is_that_weight(segtune_command: Any, run_folder: Path, tmp_path: Path) -> None:
    folders = [run_folder / "best", run_folder / "final"]
    done = segtune_command("soup", *folders, "-o", tmp_path / "soup")  # the recipe is that of the run
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line.rsplit(": ", 1)[1] for line in lines[:2]] == ["kept", "kept"]
    assert lines[2].startswith("val mIoU 0.") and "+0.0000" in lines[2] and lines[3] == f"soup: {tmp_path / 'soup'}"
    assert read_json(tmp_path / "soup" / "soup.json")["num_images"] == 39
    done = segtune_command("soup", *folders, "-o", tmp_path / "soup")
    assert done.code == 2 and "exists already" in done.err


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["soup", "{best}", "demo", "-o", "{tmp}/soup"], "a soup is of several checkpoints: demo is no folder of one"),
        (["crossval", "demo", "--group-by", "("], "--group-by (: no regular expression"),
        (["crossval", "dem"], "did you mean 'demo'?"),
        (["tune", "demo", "--budget", "4x"], "--budget '4x' is no duration"),
        (["tune", "demo", "search.space={training.learning_rate: {low: 2, high: 1}}"], "the range is empty"),
        (["tune", "demo", "search.space={training.lerning_rate: [1, 2]}"], "did you mean 'training.learning_rate'?"),
        (["tune", "demo", "search.spce=1"], "did you mean 'search.space'?"),
    ],
)
def test_slips_are_one_message(
    segtune_command: Any, run_folder: Path, tmp_path: Path, words: list[str], fault: str
) -> None:
    words = [word.replace("{best}", str(run_folder / "best")).replace("{tmp}", str(tmp_path)) for word in words]
    done = segtune_command(*words)
    assert done.code == 2 and done.out == "" and fault in done.err
    assert len(done.err.splitlines()) == 1 or "no shipped recipe" in done.err


def test_a_missing_extra_is_told_before_torch() -> None:
    code = (
        "import sys\nfrom importlib.util import find_spec\nimport segtune.cli.cmd_experiments as c\n"
        "c.find_spec = lambda name: None\nfrom segtune.cli.main import main\n"
        "try:\n    main(['tune', 'demo'])\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: segtune tune needs Optuna: pip install 'segtune[tune]'\n"


@pytest.mark.slow
def test_commands_from_end_to_end(segtune_command: Any, tmp_path: Path) -> None:
    """Each training is a process of its own, that of the second search is started by accelerate launch."""
    folder = tmp_path / "cv"
    done = segtune_command("crossval", "demo", "--folds", "2", *TINY, "--output", folder, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["num_images"] == 133 and len(result["folds"]) == 2
    launch = ["--launch", "--cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"]
    space = "search.space={training.learning_rate: {low: 1e-4, high: 1e-2, log: true}}"
    words = ["tune", "demo", space, *TINY, "--trials", "1", "--output", tmp_path / "study"]
    done = segtune_command(*words, *launch)
    assert done.code == 0, done.err
    assert "1 complete" in done.out and "37 images that the search did not see" in done.out
    done = segtune_command("evaluate", folder / "folds/1/final", folder / "folds/2/final", "demo", "--json")
    assert done.code == 0 and json.loads(done.out)["num_images"] == 37
