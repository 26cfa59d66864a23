from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtune.errors import DataError, UsageError
from segtune.evaluation.evaluation import Evaluation
from segtune.experiments import crossval as module
from segtune.experiments.crossval import crossval
from segtune.inference.evaluate_checkpoint import evaluate_checkpoint
from segtune.recipe.recipe import Recipe, load_recipe

MakeRecipe = Callable[..., Recipe]


def test_every_image_counts_once_by_a_model_that_has_not_seen_it(
    tiny_recipe: MakeRecipe, in_process: list[list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "cv"
    result = crossval(tiny_recipe(), folder, folds=3, group_by=r"^s\d")
    pooled = Evaluation.load(folder / "evaluation-val.npz")
    plan = json.loads((folder / "folds.json").read_text())
    assert sorted(pooled.counts.ids) == sorted(image for fold in plan["folds"] for image in fold)
    assert len(pooled) == 12 and len(plan["test"]) == 4  # test is left alone
    assert all(len({image[:2] for image in fold}) == 1 for fold in plan["folds"])
    for number, fold in enumerate(plan["folds"], start=1):
        run = folder / "folds" / str(number)
        split = json.loads((run / "split.json").read_text())
        assert split["val"] == fold and not set(fold) & set(split["train"])
        assert len(split["train"]) == 12 - len(fold) and split["test"] == plan["test"]
        again = evaluate_checkpoint(run / "final", load_recipe(run / "recipe.yaml"), split="val")
        assert again.scores["mean_iou"] == result["folds"][number - 1]["mean_iou"]
    assert result["mean_iou"] == pooled.scores()["mean_iou"] and result["intervals"]["unit"] == "group"
    assert json.loads((folder / "crossval.json").read_text()) == result
    page = (folder / "report.html").read_text()
    assert "out-of-fold" in page and 'id="folds"' in page and "all images together" in page
    # once more: nothing is trained, and the result is the same
    count = len(in_process)
    assert count == 3 and crossval(tiny_recipe(), folder, folds=3, group_by=r"^s\d") == result
    assert len(in_process) == count


def test_a_folder_of_something_else_is_refused(
    tiny_recipe: MakeRecipe, in_process: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cv"
    (folder / "mine").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds something else than a cross-validation"):
        crossval(tiny_recipe(), folder, folds=2)
    (folder / "mine").rmdir()
    (folder / "folds").mkdir()  # a command was killed before it had a plan: a new one is made
    (folder / "folds" / "1.json").write_text("{}")
    monkeypatch.setattr(module, "_train", lambda *given: pytest.fail("no training yet"))
    monkeypatch.setattr(module, "range", lambda *given: [], raising=False)
    monkeypatch.setattr(module, "_together", lambda *given: {})
    crossval(tiny_recipe(), folder, folds=2)
    with pytest.raises(UsageError, match="was divided with --folds 2"):
        crossval(tiny_recipe(), folder, folds=3)
    with pytest.raises(UsageError, match="was begun with another recipe"):
        crossval(tiny_recipe(max_steps=5), folder, folds=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--launch"):
        crossval(tiny_recipe(), folder, folds=2)


def test_ids_that_two_splits_share_are_refused(tiny_recipe: MakeRecipe, stripes: Path, tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        path = next((stripes / kind / "val").iterdir())
        path.rename(path.with_name("s0_00.png"))
    with pytest.raises(DataError, match=r"images of several splits have one id \(1\): s0_00"):
        crossval(tiny_recipe(), tmp_path / "cv", folds=2)


def _command(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "segtune", *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _state(run: Path) -> bool:
    return any((run / "checkpoints").glob("step-*/manifest.json"))


def _trainings(folder: Path) -> list[int]:
    """Processes that train below a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if b"\0train\0" in words and str(folder).encode() in words:
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the training's process in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_fold_that_was_killed_goes_on_to_the_same_bits(
    number: signal.Signals, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = tmp_path / "tiny.yaml"
    tiny_recipe(max_steps=40, save_every=2)
    results: dict[str, dict[str, Any]] = {}
    for name in ("whole", "killed"):
        folder = tmp_path / name
        words = ["crossval", str(recipe), "--folds", "2", "--output", str(folder)]
        process = _command(words, tmp_path)
        if name == "killed":
            while not _state(folder / "folds" / "2"):
                assert process.poll() is None, "it ended before a state of the second fold was saved"
                time.sleep(0.05)
            if number == signal.SIGKILL:
                (training,) = _trainings(folder)
                for pid in (process.pid, training):
                    os.kill(pid, signal.SIGKILL)
                process.wait()
            else:
                process.send_signal(number)
                assert process.wait(120) == 3
            assert not (folder / "crossval.json").exists() and not (folder / "folds" / "2" / "final").exists()
            process = _command(words, tmp_path)
        assert process.wait(300) == 0
        results[name] = json.loads((folder / "crossval.json").read_text())
        for key in ("folder", "report"):
            results[name].pop(key)
    assert results["whole"] == results["killed"]
    first, second = (Evaluation.load(tmp_path / name / "evaluation-val.npz") for name in results)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(first.counts.arrays().values(), second.counts.arrays().values(), strict=True)
    )
    weights = [(tmp_path / name / "folds/2/final/model.safetensors").read_bytes() for name in results]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda plan: plan | {"folds": 5},
        lambda plan: plan | {"settings": []},
        lambda plan: plan | {"folds": plan["folds"][:1]},
        lambda plan: plan | {"more": 1},
        lambda plan: [plan],
    ],
)
def test_a_damaged_plan_is_named(
    damage: Callable[[Any], Any], tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_train", lambda *given: None)
    monkeypatch.setattr(module, "_together", lambda *given: {})
    crossval(tiny_recipe(), tmp_path / "cv", folds=2)
    path = tmp_path / "cv" / "folds.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=rf"{path} is damaged \(.*\): restore it") as error:
        crossval(tiny_recipe(), tmp_path / "cv", folds=2)
    assert "\n" not in str(error.value)
    path.write_text("{}")
    (tmp_path / "cv" / "recipe.yaml").write_text("training: [")
    with pytest.raises((DataError, UsageError), match=r"folds\.json is damaged|recipe\.yaml"):
        crossval(tiny_recipe(), tmp_path / "cv", folds=2)


def test_counts_that_are_damaged_are_made_anew(
    tiny_recipe: MakeRecipe, in_process: list[list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = crossval(tiny_recipe(), tmp_path / "cv", folds=2)
    path = tmp_path / "cv" / "folds" / "1.npz"
    content = path.read_bytes()
    path.write_bytes(content[:100])
    assert crossval(tiny_recipe(), tmp_path / "cv", folds=2) == result
    assert "1.npz" in caplog.text and "are counted anew" in caplog.text and len(in_process) == 2


def test_there_must_be_images_to_divide(tiny_recipe: MakeRecipe, stripes: Path, tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            shutil.rmtree(stripes / kind / split)
    with pytest.raises(UsageError, match="no images of train or val to divide, only test"):
        crossval(tiny_recipe(), tmp_path / "cv", folds=2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a parent's death is told by Linux")
def test_a_training_whose_command_was_killed_ends_and_is_gone_on_with(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Nothing trains on behind; the same command at once waits for what is saved, and goes on."""
    recipe, folder = tmp_path / "tiny.yaml", tmp_path / "cv"
    tiny_recipe(max_steps=60, save_every=2)
    words = ["crossval", str(recipe), "--folds", "2", "--output", str(folder)]
    process = _command(words, tmp_path)
    while not _state(folder / "folds" / "1"):
        assert process.poll() is None, "it ended before a state was saved"
        time.sleep(0.05)
    process.kill()
    process.wait()
    process = _command(words, tmp_path)
    assert process.wait(300) == 0
    assert (folder / "crossval.json").exists() and not _trainings(folder)
