from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import segtune
from segtune.data.config import DatasetConfig
from segtune.data.convert.dataset_card import Origin
from segtune.data.dataset import open_dataset
from segtune.inference.calibrate import store_temperature
from segtune.labels.label_map import LabelMap
from support.command_runs import TINY


@pytest.fixture
def checkpoint(run_folder: Path, tmp_path: Path) -> Path:
    """Two steps of training leave nothing to be sure of: a low temperature makes some pixels sure."""
    folder = tmp_path / "best"
    shutil.copytree(run_folder / "best", folder)
    store_temperature(folder / "config.json", 0.002)
    return folder


@pytest.fixture
def pictures(earth: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "more"
    folder.mkdir()
    for file in sorted((earth / "images" / "test").iterdir())[:3]:
        shutil.copy(file, folder / file.name)
    return folder


def test_masks_hold_the_sure_pixels_and_train_as_they_are(
    segtune_command: Any, checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labelled"
    command = ("label", checkpoint, pictures, "--min-confidence", "0.6", "-o", out)
    code, text, err = segtune_command(*command, "--json")
    assert code == 0, err
    result = json.loads(text)
    assert result["images"] >= 2 and result["images"] + len(result["left_out"]) == 3
    assert result["temperature"] == 0.002
    assert 0 < result["labelled_share"] < 1
    label_map = LabelMap.from_file(out / "classes.json")
    assert label_map == LabelMap.from_names(["water", "vegetation", "bare", "ice"], label_map.colors)
    named = f"{tmp_path.name}/best"
    assert Origin.of(str(out)).source == f"masks of the pixels that {named} is sure of (segtune label)"
    labelled = np.zeros(4, dtype=int)
    kept = [file for file in sorted(pictures.iterdir()) if str(file) not in result["left_out"]]
    assert sorted(file.name for file in (out / "images").iterdir()) == [file.name for file in kept]
    for file in kept:
        assert (out / "images" / file.name).read_bytes() == file.read_bytes()
        with Image.open(out / "masks" / f"{file.stem}.png") as mask:
            ids = np.array(mask)
        predicted = segtune.predict(checkpoint, file)
        assert np.array_equal(ids[ids != 255], predicted[ids != 255]) and (ids == 255).any()
        labelled += np.bincount(ids[ids != 255], minlength=4)
    assert [row["labelled"] for row in result["per_class"].values()] == labelled.tolist()
    assert sum(row["predicted"] for row in result["per_class"].values()) == 3 * 180 * 180
    rows, found = open_dataset(DatasetConfig(path=str(out)))
    assert found == label_map and sum(map(len, rows.values())) == result["images"]
    code, text, err = segtune_command(*command)
    assert code == 2 and "exists already; name another folder, or say --overwrite" in err
    code, text, err = segtune_command(*command, "--overwrite")
    assert (
        code == 0
        and f"{result['images']} pictures in {out}, {result['labelled_share']:.1%} of the pixels labelled" in text
    )
    assert "not calibrated" not in err and f"next: segtune train {out}" == err.splitlines()[-1]
    code, text, err = segtune_command("train", out, *TINY, f"training.output_dir={tmp_path / 'run'}")
    assert code == 0 and (tmp_path / "run" / "best" / "config.json").is_file(), text + err


def test_the_next_command_trains_what_lies_in_a_folder_named_as_a_recipe(
    segtune_command: Any, checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, named in (("demo", "./demo"), ("my labels", "'my labels'")):
        code, _, err = segtune_command("label", checkpoint, pictures, "--min-confidence", "0.6", "-o", folder)
        assert code == 0 and err.splitlines()[-1] == f"next: segtune train {named}"


def test_pictures_without_a_sure_pixel_are_left_out(
    segtune_command: Any, run_folder: Path, checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    """Nothing is sure at the temperature of 1; with nothing at all, nothing is written."""
    out = tmp_path / "labelled"
    code, _, err = segtune_command("label", run_folder / "best", pictures, "-o", out)
    assert code == 1 and "no pixel of 3 pictures reaches a confidence of 0.9, the highest is 0.2" in err
    assert not out.exists() and not list(tmp_path.glob(".labelled*"))
    code, _, err = segtune_command("label", run_folder / "best", pictures, "-o", out, "--min-confidence", "0.2")
    assert code == 0 and "the confidences are not calibrated: segtune calibrate" in err


def test_slips_are_told(segtune_command: Any, checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    for images, checkpoint_, message in (
        (tmp_path / "nothing", checkpoint, "no such image"),
        (pictures, tmp_path / "nowhere", "nowhere"),
        (tmp_path / "pages.tif", checkpoint, "has 2 pages or frames"),
        ("https://example.org/x.png", checkpoint, "takes files"),
    ):
        code, _, err = segtune_command("label", checkpoint_, images, "-o", tmp_path / "out")
        assert code == 2 and message in err, err
        assert not (tmp_path / "out").exists()


def test_overwriting_replaces_labelled_pictures_and_nothing_else(
    segtune_command: Any, checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the pictures themselves, nor the folder that they are in, nor what somebody keeps elsewhere."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "thesis.tex").touch()
    (tmp_path / "data" / "masks").mkdir(parents=True)  # which people drew
    monkeypatch.chdir(tmp_path / "kept")
    before = sorted(path for path in tmp_path.rglob("*"))
    for output, message in (
        (pictures, "which would go with it"),
        (tmp_path, "which would go with it"),
        (tmp_path / "kept", "it holds thesis.tex, which this command did not write"),
        (".", "it holds thesis.tex, which this command did not write"),
        (tmp_path / "data", "it holds masks, which this command did not write"),
    ):
        code, _, err = segtune_command("label", checkpoint, pictures, "-o", output, "--overwrite")
        assert code == 2 and message in err and len(err.splitlines()) == 1, err
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_names_that_no_training_takes_are_told_before_anything_is_labelled(
    segtune_command: Any, checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    file = next(pictures.iterdir())
    file.rename(pictures / "con.jpg")
    code, _, err = segtune_command("label", checkpoint, pictures, "-o", tmp_path / "out", "--min-confidence", "0.2")
    assert code == 2 and "'con.jpg' cannot be the name of a sample: 'con.jpg' is a device on Windows" in err
    assert not (tmp_path / "out").exists()
