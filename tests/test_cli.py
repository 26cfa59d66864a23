from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import transformers
from PIL import Image

import segtune
from segtune import cli, hub
from segtune.catalog import list_recipes, recipe_folder, recipe_table
from segtune.errors import DataError
from segtune.evaluation import Evaluation
from segtune.labels import LabelMap
from segtune.recipe import load_recipe

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "numpy",
    "albumentations",
    "accelerate",
    "evaluate",
    "PIL",
    "yaml",
)
TINY = [
    "transforms.crop_size=64",
    "model.config={hidden_sizes: [8, 16, 20, 32], depths: [1, 1, 1, 1], decoder_hidden_size: 16}",
    "training.max_steps=2",
    "training.batch_size=2",
    "training.device=cpu",
    "training.report=false",
]


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def segtune_command(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command in this process."""

    def run(*arguments: str | Path) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(int(left.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def run_folder(earth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two steps of training leave."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "demo", f"training.output_dir={folder}", *TINY])
    assert not left.value.code
    return folder


# answers that need no torch


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["recipes"], ["recipes", "show", "demo"], ["train", "--help"]]
)
def test_help_and_lists_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom segtune.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as left:\n    assert not left.code\n"
        f"loaded = sorted(set(sys.modules) & set({HEAVY!r}))\nassert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr == ""


def test_version(segtune_command: Any) -> None:
    assert segtune_command("--version") == (0, f"segtune {segtune.__version__}\n", "")


def test_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "segtune", "recipes", "show", "demo"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, (recipe_folder() / "demo.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("arguments", [["nonsense"], ["train"], ["evaluate", "x"], ["train", "demo", "--steps=3"]])
def test_wrong_usage_leaves_with_2(segtune_command: Any, arguments: list[str]) -> None:
    code, out, err = segtune_command(*arguments)
    assert (code, out) == (2, "")
    assert "Error: " in err


# recipes


def test_recipes_are_listed_with_their_headers(segtune_command: Any) -> None:
    code, out, _ = segtune_command("recipes")
    assert code == 0
    recipes = list_recipes()
    rows = [line.split() for line in out.splitlines()]
    starts = [row[0] for row in rows[3:] if row and row[0] in {recipe.short_name for recipe in recipes}]
    assert starts == [recipe.short_name for recipe in recipes] and len(starts) == 22
    (camvid,) = [line for line in out.splitlines() if line.split()[:1] == ["camvid"]]
    assert "CamVid, street scenes, 11 classes" in camvid and "CC BY-NC 4.0" in camvid and "real data" in camvid
    assert "22 recipes; 3 of them are templates for your own data: my-binary, my-coco, my-folder\n" in out
    assert "segtune recipes copy NAME mine.yaml" in out
    listed = json.loads(segtune_command("recipes", "--json").out)["recipes"]
    assert listed == [recipe.to_dict() for recipe in recipes]
    assert segtune_command("recipes", "--markdown").out == recipe_table(recipes)


def test_recipe_is_copied_and_never_overwritten_unasked(
    segtune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert segtune_command("recipes", "copy", "camvid") == (0, "camvid-segformer-b0.yaml\n", "")
    assert load_recipe("camvid-segformer-b0.yaml").dataset == load_recipe("camvid").dataset
    assert segtune_command("recipes", "copy", "demo", "new/mine.yaml").code == 0
    mine = tmp_path / "new" / "mine.yaml"
    mine.write_text("changed")
    code, out, err = segtune_command("recipes", "copy", "demo", "new/mine.yaml")
    assert (code, out, mine.read_text()) == (2, "", "changed")
    assert err == "error: new/mine.yaml exists already; name another file, or say --force to overwrite it\n"
    assert segtune_command("recipes", "copy", "demo", "new/mine.yaml", "--force").code == 0
    assert mine.read_text(encoding="utf-8") == (recipe_folder() / "demo.yaml").read_text(encoding="utf-8")


# data


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

    monkeypatch.setattr(hub, "push_folder", push_folder)
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


# errors


def test_error_is_one_message_without_traceback(segtune_command: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("dataset: {path: x}\ntrainig: {max_steps: 3}\n")
    code, out, err = segtune_command("train", path)
    assert (code, out, err) == (2, "", f"error: {path}: trainig: no such section; did you mean 'training'?\n")


def test_missing_dataset_folder(segtune_command: Any, tmp_path: Path) -> None:
    code, _, err = segtune_command(
        "train", "demo", f"dataset.path={tmp_path / 'none'}", f"training.output_dir={tmp_path / 'run'}"
    )
    assert code == 2
    assert err.startswith("error: ") and "dataset.path" in err and str(tmp_path / "none") in err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("x.png: broken"), 1, "error: x.png: broken\n"),
        (KeyError("lost"), 1, "error: KeyError: 'lost'\n(SEGTUNE_TRACEBACK=1 in the environment shows where"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(
    segtune_command: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.delenv("SEGTUNE_TRACEBACK", raising=False)
    monkeypatch.setattr("segtune.commands.recipes.list_recipes", fail)
    found = segtune_command("recipes")
    assert (found.code, found.out) == (code, "")
    assert found.err.startswith(message)
    assert "Traceback" not in found.err


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("lost")

    monkeypatch.setenv("SEGTUNE_TRACEBACK", "1")
    monkeypatch.setattr("segtune.commands.recipes.list_recipes", fail)
    with pytest.raises(KeyError, match="lost"):
        cli.main(["recipes"])


# train, evaluate, predict


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
    assert [row[0] for row in rows[2:7]] == ["ocean", "humid", "arid", "polar", "mean"]
    assert lines[-2].startswith("test mIoU 0.")
    assert lines[-2].endswith("] over 37 images (95 % BCa interval, 10000 resamples of images)")
    assert lines[-1] == f"overlays: {tmp_path / 'o'} (overview.png first)"
    assert len(list((tmp_path / "o").iterdir())) == 4


def test_evaluate_prints_one_json_object(segtune_command: Any, run_folder: Path, tmp_path: Path) -> None:
    code, out, err = segtune_command(
        "evaluate", run_folder / "best", "demo", "--split", "val", "--json", "--overlays", tmp_path / "o"
    )
    assert code == 0
    assert f"overlays: {tmp_path / 'o'}" in err
    result = json.loads(out)
    assert list(result)[:6] == ["checkpoint", "recipe", "split", "protocol", "num_images", "mean_iou"]
    assert {"kappa", "mean_image_iou", "mean_boundary_iou", "mean_iou_small", "calibration"} < set(result)
    assert (result["recipe"], result["split"], result["num_images"]) == ("demo", "val", 39)
    assert list(result["per_class"]) == ["ocean", "humid", "arid", "polar"]
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
    labels = json.dumps({str(i): name for i, name in enumerate(["ocean", "humid", "arid", "polar"])})
    mask = next((tmp_path / "masks" / "test").iterdir())
    Image.fromarray(np.full((180, 180), 255, dtype=np.uint8)).save(mask)
    arguments = ("evaluate", run_folder / "best", "demo", f"dataset.path={tmp_path}", f"dataset.labels={labels}")
    code, out, err = segtune_command(*arguments, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["mean_iou"] is None
    assert {result["per_class"]["polar"][key] for key in ("iou", "accuracy", "dice", "boundary_f1")} == {None}
    assert result["intervals"]["mean_iou"]["bca"] == [None, None]
    out = segtune_command(*arguments).out
    assert ["polar", "absent", "-", "-", "-", "-", "-", "0", "0"] in [line.split() for line in out.splitlines()]
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
    code, out, _ = segtune_command("compare", run_folder, run_folder, "--group-by", "c[0-9]+$")
    assert code == 0
    assert out.startswith(f"A: {run_folder}/evaluation-val.npz\n")  # that training left
    assert "0 of 4 classes changed" in out
    assert "mIoU of B - A: +0.0000 [+0.000, +0.000], p = 1.0000" in out and "groups)" in out
    code, out, err = segtune_command("compare", path, run_folder)
    assert (code, out) == (2, "")
    assert "the runs were evaluated on different images; only in the first: earth_" in err


def test_compare_needs_nothing_heavy(run_folder: Path) -> None:
    code = (
        "import sys\nfrom segtune.cli import main\n"
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
        "evaluate", run_folder / "best", "demo", "dataset.labels={0: sea, 1: humid, 2: arid, 3: polar}"
    )
    assert (code, out) == (2, "")
    assert "(ocean, humid, arid, polar)" in err
    assert "(sea, humid, arid, polar)" in err


def test_missing_split_and_checkpoint(segtune_command: Any, run_folder: Path) -> None:
    code, _, err = segtune_command("evaluate", run_folder / "best", "demo", "--split", "tset")
    assert code == 2
    assert "--split tset: segtune://earth has train, val, test" in err
    code, _, err = segtune_command("evaluate", "none", "demo", "--group-by", "(")
    assert code == 2 and "--group-by (: no regular expression" in err
    code, _, err = segtune_command("evaluate", run_folder, "demo")
    assert code == 2
    assert f"did you mean {run_folder / 'best'}?" in err
    code, _, err = segtune_command("evaluate", run_folder / "best", "demo", "--device", "toaster")
    assert code == 2
    assert "error: --device toaster: " in err


def test_predict_writes_palette_masks_and_overlays(
    segtune_command: Any, run_folder: Path, earth: Path, tmp_path: Path
) -> None:
    photo = min((earth / "images" / "test").iterdir())
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tile.jpg").write_bytes(photo.read_bytes())
    with Image.open(photo) as picture:
        picture.crop((0, 0, 90, 50)).convert("L").save(tmp_path / "y" / "small.png")
    out_folder = tmp_path / "out"
    code, out, _ = segtune_command(
        "predict", run_folder / "best", tmp_path / "x", f"{tmp_path}/y/*", "--output", out_folder, "--overlay",
        "--batch-size", "2",
    )  # fmt: skip
    assert (code, out) == (0, f"3 masks in {out_folder}\n")
    names = {path.relative_to(out_folder).as_posix() for path in out_folder.rglob("*.png")}
    assert names == {f"{name}{end}.png" for name in ("x/tile", "y/tile", "y/small") for end in ("", "_overlay")}
    with Image.open(out_folder / "y" / "small.png") as small, Image.open(out_folder / "x" / "tile.png") as tile:
        assert (small.mode, small.size) == ("P", (90, 50))
        assert (tile.mode, tile.size) == ("P", (180, 180))
        ids, colors = np.array(tile), np.array(tile.convert("RGB"))
    label_map = LabelMap.from_file(earth / "classes.json")
    assert set(np.unique(ids)) <= set(range(4))
    assert np.array_equal(colors, label_map.colorize(ids))
    expected = segtune.predict(run_folder / "best", tmp_path / "x" / "tile.jpg")
    assert np.array_equal(ids, expected)


def test_predict_in_windows_with_everything(
    segtune_command: Any, run_folder: Path, earth: Path, tmp_path: Path
) -> None:
    photo, out = min((earth / "images" / "test").iterdir()), tmp_path / "out"
    command = ("predict", run_folder / "best", photo, "--output", out, "--window", "64", "--overlap", "32")
    code, text, err = segtune_command(*command, "--confidence", "tif", "--polygons", "geojson", "--batch-size", "4")
    assert (code, text) == (0, f"1 mask in {out}\n"), err
    stem = photo.stem
    assert {path.name for path in out.iterdir()} == {f"{stem}.png", f"{stem}_confidence.tif", f"{stem}.geojson"}
    with Image.open(out / f"{stem}.png") as mask:
        ids = np.array(mask)
    assert np.array_equal(ids, segtune.predict(run_folder / "best", photo, window=64, stride=32, batch_size=4))
    code, text, err = segtune_command(*command)
    assert (code, text) == (2, "")
    assert f"{out / stem}.png exists already; name another folder, or say --overwrite" in err
    assert segtune_command(*command[:-4], "--overwrite", "--tta").code == 0
    with Image.open(out / f"{stem}.png") as mask:
        assert np.array_equal(np.array(mask), segtune.predict(run_folder / "best", photo, tta=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--window", "500"), "window 500: use a multiple of 32"),
        (("--overlap", "32"), "--overlap 32 goes with --window, and in the place of --stride"),
        (("--window", "64", "--stride", "32", "--overlap", "32"), "--overlap 32 goes with --window"),
        (("--window", "64", "--overlap", "64"), "stride 0 of windows of 64"),
        (("--stride", "32"), "stride 32 without a window"),
        (("--polygons", "svg"), "'svg' is not one of"),
    ],
)
def test_predict_refuses(
    segtune_command: Any, run_folder: Path, earth: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    photo = min((earth / "images" / "test").iterdir())
    code, out, err = segtune_command("predict", run_folder / "best", photo, "--output", tmp_path / "out", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "out").exists()


def test_windows_of_a_recipe_are_those_of_its_checkpoint(segtune_command: Any, earth: Path, tmp_path: Path) -> None:
    """One place decides: transforms.eval_window is used in training's evaluation and by every command afterwards."""
    folder, photo = tmp_path / "run", min((earth / "images" / "test").iterdir())
    overrides = (f"training.output_dir={folder}", "transforms.eval_window=96", "transforms.eval_stride=64", *TINY)
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


def test_predict_never_writes_among_the_images(segtune_command: Any, run_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    code, _, err = segtune_command("predict", run_folder / "best", tmp_path / "a.png", "--output", tmp_path)
    assert code == 2
    assert "would lie among the input images" in err
    assert (tmp_path / "a.png").read_bytes() == before


def test_folders_for_output_are_no_files(segtune_command: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments in (("predict", "x", "y.png", "--output"), ("evaluate", "x", "demo", "--overlays")):
        code, _, err = segtune_command(*arguments, tmp_path / "file")
        assert code == 2
        assert "is a file" in err


def test_predict_names_a_broken_image(segtune_command: Any, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    code, out, err = segtune_command(
        "predict", run_folder / "best", tmp_path / "broken.jpg", "--output", tmp_path / "out"
    )
    assert (code, out) == (1, "")
    assert str(tmp_path / "broken.jpg") in err


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


# report


def test_report_is_written_beside_the_run(segtune_command: Any, run_folder: Path) -> None:
    page = run_folder / "report.html"
    code, out, _ = segtune_command("report", run_folder)
    assert code == 0
    score = json.loads(segtune_command("evaluate", run_folder / "best", "demo", "--json").out)["mean_iou"]
    assert out == f"test mIoU {score:.3f} over 37 images\nreport: {page}\n"
    text = page.read_text(encoding="utf-8")
    page.unlink()
    assert f"<b>{score:.3f} <small>" in text and "crop_size: 64" in text


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


# push, convert


def test_push_passes_on_what_was_given_and_nothing_else(
    segtune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Path, dict[str, Any]]] = []

    def push_run(run: Path, **settings: Any) -> str:
        calls.append((run, settings))
        return "https://hub/me/x"

    monkeypatch.setattr("segtune.hub.push_run", push_run)
    assert segtune_command("push", tmp_path) == (0, f"pushed {tmp_path} to https://hub/me/x\n", "")
    options = ("--repo", "me/x", "--private", "--branch", "v1", "--license", "mit", "--create-pr", "--with-code")
    segtune_command("push", tmp_path, *options, "--no-pictures")
    flags = {"private": True, "create_pr": True, "with_code": True, "pictures": False}
    assert calls == [
        (tmp_path, {"create_pr": False}),
        (tmp_path, {"repo": "me/x", "branch": "v1", "license": "mit", **flags}),
    ]


def test_push_wants_a_run(segtune_command: Any, tmp_path: Path) -> None:
    code, out, err = segtune_command("push", tmp_path)
    assert (code, out, err) == (2, "", f"error: {tmp_path} is no run folder: it has no recipe.yaml\n")


def test_convert_names_what_it_wrote(segtune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(path: Path, output: Path, layout: str, *, encoder_only: bool) -> Any:
        assert (path, layout, encoder_only) == (tmp_path / "a.pth", "mmseg", True)
        config = segtune.SegformerConfig(hidden_sizes=[8, 16, 40, 64], depths=[1, 1, 1, 1], num_labels=3)
        return segtune.SegformerForSemanticSegmentation(config)

    monkeypatch.setattr("segtune.segformer.originals.convert_original", convert)
    arguments = ("convert", tmp_path / "a.pth", tmp_path / "out", "--from", "mmseg", "--encoder-only")
    code, out, _ = segtune_command(*arguments)
    assert (code, out.splitlines()) == (
        0,
        [
            f"{tmp_path / 'out'}: SegformerForSemanticSegmentation, 3 labels, 0.4 million parameters",
            f"next: segtune train RECIPE model.name={tmp_path / 'out'}",
        ],
    )


def test_convert_refuses(segtune_command: Any, tmp_path: Path) -> None:
    code, _, err = segtune_command("convert", tmp_path / "a.pth", tmp_path / "out", "--from", "timm")
    assert (code, err) == (2, "error: --from timm: mmseg, nvlabs or auto\n")
    code, _, err = segtune_command("convert", tmp_path / "a.pth", tmp_path / "out")
    assert (code, err) == (1, f"error: {tmp_path / 'a.pth'}: no such file\n")


# bench


def test_bench_prints_one_json_object_and_draws(
    segtune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segtune.bench.peak_memory", lambda bench, side, task: 300.0 + bench.size)
    arguments = ("bench", "--size", "32", "--labels", "3", "--repeats", "1", "--json")
    code, out, err = segtune_command(*arguments, "--plot", tmp_path / "c.png", "--plot-sizes", "32,64")
    assert code == 0 and "c.png" in err
    found = json.loads(out)
    assert [row["size"] for row in found["curve"]] == [32, 64]
    assert found["results"][0]["bench"]["labels"] == 3 and found["results"][0]["train"]["wall"]["ratio"] > 0
    assert (tmp_path / "c.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--variants", "b9"), "variant 'b9' does not exist"),
        (("--dtype", "fp8"), "dtype 'fp8': fp32 or bf16"),
        (("--plot", "x.png", "--plot-sizes", "a"), "--plot-sizes a: whole numbers"),
    ],
)
def test_bench_refuses(segtune_command: Any, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = segtune_command("bench", *arguments)
    assert (code, out) == (2, "") and message in err
