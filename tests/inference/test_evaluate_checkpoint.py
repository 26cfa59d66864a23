"""Scores with error bars of a checkpoint on a split, from one function."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import segtune
from segtune.data.config import DatasetConfig
from segtune.data.dataset import open_dataset
from segtune.errors import UsageError
from segtune.evaluation.evaluation import Evaluation
from segtune.inference.evaluate import evaluate_model
from segtune.inference.evaluate_checkpoint import evaluate_checkpoint, open_checkpoint
from segtune.inference.parallel.processes import weights_digest
from segtune.inference.processor import processor_from_transforms
from segtune.recipe.recipe import load_recipe
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.loading import load_model
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

TINY = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_attention_heads": (1, 2, 4, 8)}
SMALL = ("dataset.path=data", "transforms.mean=[0.4,0.5,0.6]", "transforms.std=[0.2,0.3,0.4]")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, earth: Path) -> Path:
    """A folder with five test images in `data` and a checkpoint of random weights without a processor in `best`."""
    folder = tmp_path_factory.mktemp("checkpoint")
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        (folder / "data" / kind / "test").mkdir(parents=True)
        for mask in sorted((earth / "masks" / "test").iterdir())[:5]:
            name = f"{mask.stem}.{suffix}"
            shutil.copyfile(earth / kind / "test" / name, folder / "data" / kind / "test" / name)
    shutil.copyfile(earth / "classes.json", folder / "data" / "classes.json")
    label_map = open_dataset(DatasetConfig(path=str(folder / "data"), val_fraction=0))[1]
    torch.manual_seed(0)
    config = SegformerConfig(**TINY, decoder_hidden_size=16, **label_map.config_fields())
    SegformerForSemanticSegmentation(config).save_pretrained(folder / "best")
    return folder


@pytest.fixture(autouse=True)
def _inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_scores_are_those_of_the_model_on_the_split(place: Path) -> None:
    recipe = load_recipe("demo", SMALL)
    found = evaluate_checkpoint("best", recipe, device="cpu", progress=False)
    opened = open_checkpoint("best", recipe, device="cpu")
    assert opened.processor.image_mean == processor_from_transforms(recipe.transforms).image_mean == [0.4, 0.5, 0.6]
    own = evaluate_model(opened.model, opened.rows, opened.label_map, opened.processor, progress=False)
    np.testing.assert_array_equal(found.evaluation.confusion, own.confusion)
    assert (found.checkpoint, found.split, found.protocol, found.scores["num_images"]) == ("best", "test", "whole", 5)
    assert found.intervals["units"] == 5 and "calibration" in found.scores and found.evaluation.detailed
    told = json.loads(json.dumps(found.to_dict()))
    assert list(told)[:4] == ["checkpoint", "split", "protocol", "precision"] and list(told)[-1] == "intervals"


def test_the_path_of_a_data_set_has_the_classes_of_the_checkpoint(place: Path, tmp_path: Path) -> None:
    (place / "data" / "classes.json").rename(tmp_path / "classes.json")
    try:
        found = evaluate_checkpoint(place / "best", place / "data", window=96, stride=64, device="cpu", progress=False)
    finally:
        (tmp_path / "classes.json").rename(place / "data" / "classes.json")
    assert found.protocol == "slide 96 stride 64"
    assert list(found.scores["per_class"]) == ["water", "vegetation", "bare", "ice"]
    found.save(tmp_path / "kept.npz")
    kept = Evaluation.load(tmp_path / "kept.npz")
    assert kept.scores() == found.scores
    assert kept.about.pop("weights") == weights_digest(load_model(place / "best"))
    assert kept.about == {
        "checkpoint": str(place / "best"),
        "split": "test",
        "protocol": "slide 96 stride 64",
        "precision": "fp32",
        "engine": "torch",
        "calibration_temperature": 1.0,
    }


def test_the_precision_is_part_of_the_result() -> None:
    found = evaluate_checkpoint("best", "data", device="cpu", precision="bf16", progress=False)
    assert found.precision == found.to_dict()["precision"] == found.evaluation.about["precision"] == "bf16"


def test_groups_and_overlays(tmp_path: Path) -> None:
    found = segtune.evaluate_checkpoint(
        "best", "data", group_by="r[0-9]+", overlays=tmp_path, limit_overlays=2, device="cpu", progress=False
    )
    assert found.intervals["unit"] == "group"
    with Image.open(tmp_path / "overview.jpg") as sheet:
        assert sheet.width > 2 * 180
    assert len(list(tmp_path.iterdir())) == 3


def test_what_cannot_be_is_said_before_the_checkpoint_is_loaded() -> None:
    recipe = load_recipe("demo", SMALL)
    with pytest.raises(UsageError, match=r"--split val: data has test"):
        evaluate_checkpoint("none", load_recipe("demo", [*SMALL, "dataset.val_fraction=0"]), split="val")
    with pytest.raises(UsageError, match=r"--group-by \(: no regular expression"):
        evaluate_checkpoint("none", recipe, group_by="(")
    with pytest.raises(UsageError, match="none"):
        evaluate_checkpoint("none", recipe)
    other = load_recipe("demo", [*SMALL, "dataset.labels={0: sea, 1: vegetation, 2: bare, 3: ice}"])
    with pytest.raises(UsageError, match=r"best has 4 \(water, .*data has 4 \(sea, "):
        evaluate_checkpoint("best", other, device="cpu")
