from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

import segtune
from segtune.evaluation.evaluation import Evaluation
from support.command_runs import HEAVY, TINY


def test_evaluate_prints_a_table(segtune_command: Any, run_folder: Path, tmp_path: Path) -> None:
    code, out, _ = segtune_command(
        "evaluate", run_folder / "best", run_folder / "recipe.yaml", "--overlays", tmp_path / "o", "--limit-overlays", 3
    )
    lines = out.splitlines()
    assert code == 0
    rows = [line.split() for line in lines if line.strip()]
    header = [
        "class",
        "IoU",
        "95",
        "%",
        "accuracy",
        "precision",
        "recall",
        "Dice",
        "boundary",
        "IoU",
        "pixels",
        "images",
    ]
    assert rows[0] == header
    assert [row[0] for row in rows[2:7]] == ["water", "vegetation", "bare", "ice", "mean"]
    assert lines[-2].startswith("test mIoU 0.")
    assert lines[-2].endswith("] over 37 images (95 % BCa interval, 10000 resamples of images)")
    assert lines[-1] == f"overlays: {tmp_path / 'o'} (overview.jpg first)"
    assert len(list((tmp_path / "o").iterdir())) == 4


def test_evaluate_prints_one_json_object(segtune_command: Any, run_folder: Path, tmp_path: Path) -> None:
    code, out, err = segtune_command(
        "evaluate", run_folder / "best", "demo", "--split", "val", "--json", "--overlays", tmp_path / "o"
    )
    assert code == 0
    assert f"overlays: {tmp_path / 'o'}" in err
    result = json.loads(out)
    about = ["checkpoint", "recipe", "split", "protocol", "precision", "engine"]
    assert list(result)[:8] == [*about, "num_images", "mean_iou"]
    assert (result["precision"], result["engine"]) == ("fp32", "torch")
    assert {"kappa", "mean_image_iou", "mean_boundary_iou", "mean_iou_small", "calibration"} < set(result)
    assert (result["recipe"], result["split"], result["num_images"]) == ("demo", "val", 39)
    assert list(result["per_class"]) == ["water", "vegetation", "bare", "ice"]
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    best = [line for line in lines if "mean_iou" in line][-1]
    assert result["mean_iou"] == pytest.approx(best["mean_iou"], abs=1e-12)  # what training found
    for name, row in best["per_class"].items():
        assert row.items() <= result["per_class"][name].items()
    low, high = result["intervals"]["mean_iou"]["bca"]
    assert low < result["mean_iou"] < high
    assert list(result["intervals"]["per_class"]) == list(result["per_class"])


def test_absent_classes_are_null_in_json_and_absent_in_the_table(
    segtune_command: Any, run_folder: Path, earth: Path, tmp_path: Path
) -> None:
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        (tmp_path / kind / "test").mkdir(parents=True)
        name = f"{min((earth / kind / 'test').iterdir()).stem}.{suffix}"
        (tmp_path / kind / "test" / name).write_bytes((earth / kind / "test" / name).read_bytes())
    labels = json.dumps({str(i): name for i, name in enumerate(["water", "vegetation", "bare", "ice"])})
    mask = next((tmp_path / "masks" / "test").iterdir())
    Image.fromarray(np.full((180, 180), 255, dtype=np.uint8)).save(mask)
    arguments = ("evaluate", run_folder / "best", "demo", f"dataset.path={tmp_path}", f"dataset.labels={labels}")
    code, out, err = segtune_command(*arguments, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["mean_iou"] is None
    assert {result["per_class"]["ice"][key] for key in ("iou", "accuracy", "dice", "boundary_f1")} == {None}
    assert result["intervals"]["mean_iou"]["bca"] == [None, None]
    out = segtune_command(*arguments).out
    assert ["ice", "absent", "-", "-", "-", "-", "-", "0", "0"] in [line.split() for line in out.splitlines()]
    assert out.endswith("test mIoU undefined over 1 images\n")


def test_evaluations_are_kept_and_compared(segtune_command: Any, run_folder: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", run_folder / "best", "demo", "--save", tmp_path / "run")
    code, out, _ = segtune_command(*arguments)
    path = tmp_path / "run" / "evaluation-test.npz"
    assert code == 0 and out.endswith(f"counts of each image: {path}\n")
    kept = Evaluation.load(path)
    assert len(kept) == 37 and kept.detailed and kept.about["split"] == "test"
    code, _, err = segtune_command(*arguments)
    assert code == 2 and f"{path} exists already" in err
    code, out, err = segtune_command("compare", tmp_path / "run", path, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["a"], result["num_images"], result["mean_iou"]["difference"]) == (str(path), 37, 0)
    assert (result["mean_iou"]["p_value"], result["mean_iou"]["bca"]) == (1, [0, 0])
    code, out, _ = segtune_command("compare", run_folder, run_folder, "--split", "val", "--group-by", "c[0-9]+$")
    assert code == 0
    assert out.startswith(f"A: {run_folder}/evaluation-val.npz\n")  # that training left
    assert "0 of 4 classes changed" in out
    assert "mIoU of B - A: +0.0000 [+0.000, +0.000], p = 1.0000" in out and "groups)" in out
    code, out, err = segtune_command("compare", path, run_folder, "--split", "val")
    assert (code, out) == (2, "")
    assert "the runs were evaluated on different images; only in the first: earth_" in err


def test_compare_needs_nothing_heavy(run_folder: Path) -> None:
    code = (
        "import sys\nfrom segtune.cli.main import main\n"
        f"try:\n    main(['compare', {str(run_folder)!r}, {str(run_folder)!r}])\n"
        "except SystemExit as left:\n    assert not left.code\n"
        f"loaded = sorted(set(sys.modules) & {set(HEAVY) - {'numpy'}!r})\nassert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_calibrate_stores_a_temperature(segtune_command: Any, run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder / "best", tmp_path / "best")
    code, out, _ = segtune_command("calibrate", folder, "demo", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["split"] == "val" and result["nll"] <= result["nll_before"]
    assert json.loads((folder / "config.json").read_text())["calibration_temperature"] == result["temperature"] != 1
    evaluated = json.loads(segtune_command("evaluate", folder, "demo", "--json").out)
    before = json.loads(segtune_command("evaluate", run_folder / "best", "demo", "--json").out)
    assert evaluated["per_class"] == before["per_class"]
    assert evaluated["calibration"]["all"]["ece"] != before["calibration"]["all"]["ece"]
    code, out, err = segtune_command("calibrate", "nvidia/mit-b0", "demo")
    assert (code, out) == (2, "") and "nvidia/mit-b0 is no folder" in err


def test_a_checkpoint_saved_by_transformers_is_evaluated(
    segtune_command: Any, run_folder: Path, tmp_path: Path
) -> None:
    theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(run_folder / "best")
    theirs.save_pretrained(tmp_path / "theirs")
    found = [
        json.loads(segtune_command("evaluate", folder, run_folder / "recipe.yaml", "--json").out)
        for folder in (run_folder / "best", tmp_path / "theirs")
    ]
    assert found[0]["per_class"] == found[1]["per_class"]


def test_labels_that_disagree(segtune_command: Any, run_folder: Path) -> None:
    code, out, err = segtune_command(
        "evaluate", run_folder / "best", "demo", "dataset.labels={0: sea, 1: vegetation, 2: bare, 3: ice}"
    )
    assert (code, out) == (2, "")
    assert "(water, vegetation, bare, ice)" in err
    assert "(sea, vegetation, bare, ice)" in err


def test_missing_split_and_checkpoint(segtune_command: Any, run_folder: Path) -> None:
    code, _, err = segtune_command("evaluate", run_folder / "best", "demo", "--split", "tset")
    assert code == 2
    assert "--split tset: segtune://earth has train, val, test" in err
    code, _, err = segtune_command("evaluate", run_folder / "best", "demo", "--group-by", "(")
    assert code == 2 and "--group-by (: no regular expression" in err
    code, _, err = segtune_command("evaluate", run_folder, "demo")
    assert code == 2
    assert f"did you mean {run_folder / 'best'}?" in err
    code, _, err = segtune_command("evaluate", run_folder / "best", "demo", "--device", "toaster")
    assert code == 2
    assert "error: --device toaster: " in err


def test_folders_for_output_are_no_files(segtune_command: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments in (("predict", "x", "y.png", "--output"), ("evaluate", "x", "demo", "--overlays")):
        code, _, err = segtune_command(*arguments, tmp_path / "file")
        assert code == 2
        assert "is a file" in err


def test_windows_of_a_recipe_are_those_of_its_checkpoint(segtune_command: Any, earth: Path, tmp_path: Path) -> None:
    """One place decides: evaluation.window is used in training's evaluation and by every command afterwards."""
    folder, photo = tmp_path / "run", min((earth / "images" / "test").iterdir())
    overrides = (f"training.output_dir={folder}", "evaluation.window=96", "evaluation.stride=64", *TINY)
    assert segtune_command("train", "demo", *overrides).code == 0
    stored = json.loads((folder / "best" / "preprocessor_config.json").read_text())
    assert (stored["window"], stored["stride"]) == (96, 64)
    code, out, _ = segtune_command("evaluate", folder / "best", "demo", "--split", "val", "--json")
    assert code == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = [line for line in lines if "mean_iou" in line][-1]
    assert json.loads(out)["mean_iou"] == pytest.approx(best["mean_iou"], abs=1e-12)
    assert segtune_command("predict", folder / "best", photo, "--output", tmp_path / "out").code == 0
    with Image.open(tmp_path / "out" / f"{photo.stem}.png") as mask:
        ids = np.array(mask)
    assert np.array_equal(ids, segtune.predict(folder / "best", photo, window=96, stride=64))


def test_evaluation_on_test_is_kept_in_the_run_of_the_weights(
    segtune_command: Any, run_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    for path in run.glob("evaluation-test.*"):
        path.unlink()
    checkpoint, recipe = run / "best", run / "recipe.yaml"
    segtune_command("evaluate", checkpoint, recipe, "--split", "test", "--tta")
    segtune_command("evaluate", run / "final", recipe)
    segtune_command("evaluate", checkpoint, recipe, "dataset.labels=segtune://camvid.json")
    assert not list(run.glob("evaluation-test.*"))  # other weights, data or ways to look at it
    code, out, err = segtune_command("evaluate", checkpoint, "demo")
    assert code == 0 and f"counts of each image: {run / 'evaluation-test.npz'}" in err
    scores = json.loads((run / "evaluation-test.json").read_text())
    assert f"test mIoU {scores['mean_iou']:.4f}" in out
    assert Evaluation.load(run / "evaluation-test.npz").scores()["mean_iou"] == scores["mean_iou"]


def test_run_is_evaluated_and_reported_from_another_folder(
    segtune_command: Any, earth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / "data").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(earth, tmp_path / "home" / "data" / "mine")
    monkeypatch.chdir(tmp_path / "home")
    data, run = "dataset.path=data/mine", tmp_path / "home" / "runs" / "mine"
    assert segtune_command("train", "demo", data, "training.output_dir=runs/mine", *TINY).code == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert segtune_command("report", run).code == 0
    assert segtune_command("evaluate", "../home/runs/mine/best", "../home/runs/mine/recipe.yaml").code == 0
    assert (run / "report.html").is_file() and (run / "evaluation-test.npz").is_file()
