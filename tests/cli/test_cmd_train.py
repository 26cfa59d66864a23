from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtune.cli.cmd_train import _stopped_lines
from segtune.evaluation.evaluation import Evaluation
from segtune.recipe.shipped import recipe_folder
from segtune.recipe.yaml_file import parse_yaml
from support.command_runs import TINY
from support.pairs import write_pairs


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


@pytest.mark.slow
def test_256_classes_from_masks_to_masks(
    segtune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """255 is a class, 65535 is ignored, and what is predicted has 16 bits; the report is written from anywhere."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for kind in ("images", "masks"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
        for number in range(2):
            mask = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) // 16
            mask[0] = 65535
            Image.fromarray(mask).save(tmp_path / f"data/masks/{split}/{number}.png")
            image = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / f"data/images/{split}/{number}.png")
    (tmp_path / "data" / "labels.json").write_text(json.dumps([f"c{number}" for number in range(256)]))
    words = ["dataset.path=data", "dataset.labels=null", "training.output_dir=run", "training.max_steps=1"]
    trained = segtune_command("train", "demo", *TINY, *words)
    assert trained.code == 0, trained.err
    assert "256 classes: ignored pixels have the id 65535 in labels" in caplog.text
    assert json.loads((tmp_path / "run/best/config.json").read_text())["semantic_loss_ignore_index"] == 65535
    found = segtune_command("evaluate", "run/best", "run/recipe.yaml", "--json")
    assert found.code == 0 and json.loads(found.out)["num_images"] == 2, found.err
    assert segtune_command("predict", "run/best", "data/images/test", "--output", "masks").code == 0
    with Image.open(tmp_path / "masks" / "0.png") as mask:
        assert mask.mode.startswith("I") and np.asarray(mask).max() < 256
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    written = segtune_command("report", "../run")
    assert written.code == 0 and (tmp_path / "run" / "report.html").is_file(), written.err


def test_one_class_is_told_what_to_write(segtune_command: Any, tmp_path: Path) -> None:
    write_pairs(tmp_path, ["a", "b", "c"])
    words = ("demo", f"dataset.path={tmp_path}", "dataset.labels=[crack]", f"training.output_dir={tmp_path / 'run'}")
    code, out, err = segtune_command("train", *words)
    assert (code, out) == (2, "") and not (tmp_path / "run").exists()
    assert err.splitlines()[-1].startswith(f"error: {tmp_path}: 'crack' is the only class")
    fix = """dataset.labels='{"0": "background", "1": "crack"}'"""
    assert fix in err
    code, out, _ = segtune_command("doctor", *words)
    assert code == 1 and "'crack' is the only class" in " ".join(out.split())


NUMBERS = ("loss", "mean_iou", "lr", "grad_norm")
DATA = [text for text in TINY if not text.startswith("training.batch_size")] + ["training.log_every=1"]


def computed(run: Path) -> list[list[Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[line.get(key) for key in NUMBERS] for line in lines]


def test_data_is_enough_and_the_recipe_that_lies_in_the_run_trains_it_again(
    segtune_command: Any, earth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = segtune_command("train", earth, *DATA)
    assert code == 0, err
    run = tmp_path / "runs" / "earth"
    lines = out.splitlines()
    assert lines[0].startswith("data           folder (pictures in images") and "94 train, 39 val, 37 test" in " ".join(
        out.split()
    )
    assert "recipe: runs/earth/proposal.yaml" in lines and f"run folder: {Path('runs/earth')}" in lines
    assert {"weights", "crop", "batch", "rate", "copy-paste", "evaluation", "steps"} <= {
        line.split()[0] for line in lines if line and not line.startswith(" ")
    }
    again = segtune_command("train", "runs/earth/proposal.yaml", "training.output_dir=runs/again")
    assert again.code == 0 and "data  " not in again.out
    assert computed(run) == computed(tmp_path / "runs" / "again")
    first, second = ((tmp_path / "runs" / name / "recipe.yaml").read_text() for name in ("earth", "again"))
    assert first.replace("runs/earth", "runs/again") == second
    # The folder is known before the doctor looks at anything; going on takes the recipe that lies there.
    code, out, err = segtune_command("train", earth, *DATA)
    assert (code, out) == (2, "") and "runs/earth holds a run" in err
    before = computed(run)
    code, out, err = segtune_command("train", earth, *DATA, "training.resume=auto")
    assert code == 0 and not out.startswith("data "), err  # neither doctor nor proposal
    assert computed(run) == before
    # A run from another recipe that takes its place takes its proposal away as well; that of the next data is its own.
    replacing = ["training.output_dir=runs/earth", "training.overwrite=true"]
    assert segtune_command("train", "demo", *TINY, *replacing).code == 0
    assert not (run / "proposal.yaml").exists() and (run / "recipe.yaml").is_file()
    assert segtune_command("train", earth, *DATA, *replacing).code == 0
    assert (run / "proposal.yaml").is_file()


def test_errors_of_the_doctor_stop_it_and_nothing_is_written(
    segtune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "data", ["a", "b", "c"])
    (tmp_path / "data" / "masks" / "b.png").unlink()
    for words in (
        ("train", "data"),
        ("train", "data", "--budget", "9d"),  # a long one: the time counts from the start of this process
        ("recipes", "propose", "data", "-o", "x.yaml"),
    ):
        code, out, _ = segtune_command(*words)
        assert code == 1 and "error    unpaired" in out and "dataset.labels=" in out
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_budget_is_for_data(segtune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = segtune_command("train", "demo", "--budget", "9d")
    assert (code, err) == (
        2,
        "error: --budget is for data without a recipe: demo takes training.time_limit=9d\n",
    )
    (tmp_path / "data").mkdir()
    assert "'10' is no duration" in segtune_command("train", "data", "--budget", "10").err
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = segtune_command("train", "data")
    assert code == 2 and "segtune recipes propose data -o mine.yaml, and launch that" in err


def test_with_a_budget_the_numbers_that_were_found_stand_in_the_recipe(
    segtune_command: Any, earth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long one: the time counts from the start of this process. Steps are given, so that it is not used up."""
    monkeypatch.chdir(tmp_path)
    code, out, err = segtune_command("train", earth, *DATA, "--budget", "9d", "training.batch_size=auto")
    assert code == 0, err
    assert "8 images, 8 at once" in " ".join(out.split())
    for name in ("proposal", "recipe"):
        training = parse_yaml((tmp_path / "runs" / "earth" / f"{name}.yaml").read_text())["training"]
        assert (training["batch_size"], training["accumulation_steps"], training["max_steps"]) == (8, 1, 2)
        assert training["time_limit"] == "9d" and training.get("effective_batch_size") is None


@pytest.mark.parametrize(
    ("best", "weights", "splits", "told"),
    [
        ({"step": 2, "mean_iou": 0.5}, None, ["train", "val"], []),
        ({}, None, ["train", "val"], ["no best/ yet, which the first evaluation writes"]),
        (
            {},
            "run/checkpoints/step-000003/model",
            ["train", "val"],
            [
                "no best/ yet, which the first evaluation writes; the weights of this step, not evaluated: "
                "run/checkpoints/step-000003/model"
            ],
        ),
        ({}, None, ["train"], ["no best/ yet, which the end of the run, without a val split, writes"]),
    ],
)
def test_a_run_that_was_stopped_says_what_there_is_and_how_to_go_on(
    best: dict[str, Any], weights: str | None, splits: list[str], told: list[str]
) -> None:
    result = {"step": 3, "stopped": "training.time_limit is reached", "best": best, "weights": weights}
    assert list(_stopped_lines("train", ["demo", "training.resume=never"], result | {"splits": splits})) == [
        "stopped at step 3, everything saved: training.time_limit is reached",
        *told,
        "next: segtune train demo training.resume=auto",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.distill={teacher: runs/none/best}", "runs/none/best"),
        ("dataset.unlabelled=pictures/none", "dataset.unlabelled=pictures/none: there is no such folder"),
    ],
)
def test_a_teacher_or_pictures_that_are_not_there_are_told_before_torch_is_imported(
    change: str, message: str, tmp_path: Path
) -> None:
    code = "import sys; from segtune.cli import main; sys.modules['torch'] = None; main.main(sys.argv[1:])"
    words = ["train", "demo", change, "training.ema_decay=0.9", f"training.output_dir={tmp_path / 'run'}"]
    words += ["training.semi={}"] if "unlabelled" in change else []
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and message in done.stderr


def test_an_archive_is_told_with_the_command_that_unpacks_it_before_torch_is_imported(tmp_path: Path) -> None:
    code = "import sys; from segtune.cli import main; sys.modules['torch'] = None; main.main(sys.argv[1:])"
    for name, module, *words in (
        ("data.tgz", "tarfile", "train", "data.tgz"),
        ("data.zip", "zipfile", "train", "demo", "dataset.path=data.zip"),
        ("data.tgz", "tarfile", "doctor", "data.tgz"),
    ):
        (tmp_path / name).write_bytes(b"PK")
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
        told = f"unpack it: python -m {module} -e '{name}' 'data', and name the folder in its place"
        assert (done.returncode, done.stderr) == (2, f"error: {name} is an archive: {told}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.tgz", "data.zip"]


def test_a_zip_is_unpacked_once_beside_it(
    segtune_command: Any, earth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("tiles.zip", "w") as archive:
        for path in sorted(earth.rglob("*.*")):
            archive.write(path, f"earth-v2/{path.relative_to(earth)}")
    code, out, err = segtune_command("train", "tiles.zip", *DATA)
    assert code == 0, err
    assert "tiles.zip is unpacked into tiles: " in err and "94 train, 39 val, 37 test" in " ".join(out.split())
    assert parse_yaml(Path("runs/tiles/proposal.yaml").read_text())["dataset"]["path"] == "tiles"
    code, out, err = segtune_command("doctor", "tiles.zip")
    assert code == 0 and "unpacked" not in err
    assert segtune_command("recipes", "propose", "tiles.zip", "-o", "x.yaml").code == 0
    (tmp_path / "tiles.zip").write_bytes(b"another")
    code, _, err = segtune_command("doctor", "tiles.zip")
    assert code == 2 and "tiles.zip would be unpacked into tiles, which is there and does not come of it" in err


def test_pretraining_ends_with_the_command_that_takes_its_encoder(
    segtune_command: Any, earth: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "an encoder"
    words = ("pretrain", earth / "images" / "val", "-o", folder, "--variant", "b0", "--steps", "2")
    tiny = [word for word in TINY if not word.startswith(("training.max_steps", "training.report"))]
    code, out, err = segtune_command(*words, *tiny)
    assert code == 0, err
    assert out.splitlines() == [
        f"run folder: {folder}",
        f"pictures: {folder}/overlays/reconstructions.png",
        f"next: segtune train RECIPE 'model.name={folder}/final'",
    ]
    code, _, err = segtune_command(*words, *tiny)
    assert code == 2 and f"{folder} holds a run" in err
    caplog.clear()
    started = [word for word in TINY if not word.startswith("model.config")]
    code, _, err = segtune_command(
        "train", "demo", *started, f"model.name={folder}/final", f"training.output_dir={tmp_path / 'run'}"
    )
    assert code == 0, err
    assert "loaded encoder" in caplog.text and "starts fresh: decode_head" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: there is no such folder of pictures"),
        (["data", "training.eval_every=3"], "training.eval_every: pretraining, which sees no labels"),
        (["data", "--variant", "b9"], "Invalid value for '--variant'"),
        (["data", "model.name=./nothing"], "checkpoint ./nothing does not exist"),
        (["data", "training.device=cpu"], "holds no picture to learn from"),
    ],
)
def test_slips_of_a_pretraining_are_told_and_leave_nothing(
    segtune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    code, out, err = segtune_command("pretrain", *words, "--output", "run")
    assert (code, out) == (1 if "picture to" in message else 2, "") and message in err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
