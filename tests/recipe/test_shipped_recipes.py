"""Every shipped recipe on a miniature of its data set: what is read, what the doctor says, two training steps."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segtune.data.class_names import TABLES
from segtune.data.dataset import open_dataset
from segtune.doctor.examine import examine
from segtune.finetune import train
from segtune.imageio.read import read_mask
from segtune.labels.label_map import LabelMap
from segtune.recipe.recipe import Recipe, load_recipe
from segtune.recipe.shipped import HEADER_FIELDS, RecipeInfo, find_recipe, list_recipes
from support import minihub
from support.miniatures import MINIATURES, ON_THE_HUB
from support.miniatures.drawing import Miniature

RECIPES = list_recipes()
TINY = "model.config={hidden_sizes: [8, 16, 20, 32], depths: [1, 1, 1, 1], decoder_hidden_size: 32}"
SMALL = [TINY, "model.name=null", "transforms.crop_size=64", "training.batch_size=2", "training.max_steps=2"]
# Classes; samples in train, val and test of the miniature. Where the real test split has no labels, there are none.
EXPECTED = {
    "ade20k/segformer-b0": (150, 6, 3, 0),
    "camvid/segformer-b0": (11, 6, 3, 3),
    "celebamask-hq/segformer-b0": (19, 8, 2, 2),
    "cityscapes/segformer-b0": (19, 6, 3, 0),
    "coco-stuff/segformer-b0": (171, 6, 3, 0),
    "drive/segformer-b0": (2, 5, 1, 6),
    "foodseg103/segformer-b0": (104, 6, 3, 0),
    "isaid/segformer-b0": (16, 6, 3, 0),
    "kvasir-seg/segformer-b0": (2, 9, 1, 0),
    "lip/segformer-b0": (20, 6, 3, 0),
    "loveda/segformer-b0": (7, 6, 3, 0),
    "my-binary": (2, 9, 1, 0),
    "my-coco": (3, 6, 3, 0),
    "my-folder": (3, 6, 3, 0),
    "oxford-pet/segformer-b0": (2, 5, 1, 3),
    "pascal-context/segformer-b0": (59, 6, 3, 0),
    "pascal-voc/segformer-b0": (21, 6, 3, 0),
    "potsdam/segformer-b0": (6, 20, 4, 14),
    "scene-parse-150/segformer-b0": (150, 6, 3, 0),
    "sen1floods11/segformer-b0": (2, 6, 3, 3),
    "sidewalk-semantic/segformer-b0": (34, 9, 1, 0),
}
LOSSY = {"kvasir-seg/segformer-b0"}  # its masks are JPEGs

Drawn = tuple[str, Path, Miniature]


@pytest.fixture(scope="module")
def draw(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Drawn]:
    """Draws a miniature once, and does with it what the recipe's header says: `#   (cd FOLDER;) awk …`, `for …`."""
    drawn: dict[str, Drawn] = {}

    def draw_once(name: str) -> Drawn:
        if name not in drawn:
            root = tmp_path_factory.mktemp(name.split("/", maxsplit=1)[0])
            drawn[name] = name, root, MINIATURES[name](root)
            for command in re.findall(
                r"^#   ((?:awk|cd) .*)$", find_recipe(name).read_text(encoding="utf-8"), re.MULTILINE
            ):
                subprocess.run(["sh", "-c", command], cwd=root, check=True)
        return drawn[name]

    return draw_once


@pytest.fixture(params=sorted(MINIATURES))
def drawn(request: pytest.FixtureRequest, draw: Callable[[str], Drawn]) -> Drawn:
    return draw(request.param)


def recipe_of(name: str, root: Path, mini: Miniature, *more: str) -> Recipe:
    return load_recipe(name, [f"dataset.path={root}", *mini.overrides, *more])


def test_each_recipe_has_a_miniature() -> None:
    names = [recipe.name for recipe in RECIPES]
    assert len(names) == 22
    assert set(MINIATURES) == set(EXPECTED) == set(names) - {"demo"}  # its data is in the package
    assert len([name for name in names if name.endswith("/segformer-b0")]) == 18
    assert [recipe.name for recipe in RECIPES if recipe.is_template] == ["my-binary", "my-coco", "my-folder"]
    assert set(ON_THE_HUB) == {name for name in names if load_recipe(name).dataset.path.startswith("hub://")}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_headers_are_complete(recipe: RecipeInfo) -> None:
    assert [field for field in HEADER_FIELDS if not getattr(recipe, field)] == []
    verb = "recipes copy" if recipe.is_template else "train"
    assert recipe.command.startswith(f"segtune {verb} {recipe.short_name}")
    assert recipe.checked in {"real data", "real files", "layout"}
    assert len(recipe.path.read_text(encoding="utf-8").splitlines()) <= 60


def test_commands_of_the_headers_name_options_that_there_are() -> None:
    """`# command: segtune …` and, indented below it, `#   segtune …` with its continuation lines."""
    found = []
    for recipe in RECIPES:
        text = recipe.path.read_text(encoding="utf-8").replace("\\\n#    ", "")
        for line in re.findall(r"^#(?: command:|  ) segtune ((?:train|data convert) .*)$", text, re.MULTILINE):
            words = shlex.split(line.removeprefix("data "))
            changes = itertools.takewhile(lambda word: not word.startswith("--"), words[2:])
            found.append(load_recipe(words[1], list(changes)).dataset.path)
    assert len(found) == 22 - 3 + 3


def test_masks_are_read_as_they_were_drawn(drawn: Drawn) -> None:
    name, _, mini = drawn
    dataset, label_map = open_dataset(recipe_of(*drawn).dataset)
    sizes = [len(dataset.get(split, ())) for split in ("train", "val", "test")]
    assert (label_map.num_labels, *sizes) == EXPECTED[name]
    wrong = pixels = ignored = 0
    for split, rows in dataset.items():
        for row in rows:
            key = (split, row["id"]) if (split, row["id"]) in mini.truth else ("train", row["id"])  # a drawn val split
            labels = label_map.encode(read_mask(row["mask"]))
            names = np.array([*label_map.names, *[""] * (256 - label_map.num_labels)])[labels]
            wrong += np.count_nonzero(names != mini.named(*key))
            ignored += np.count_nonzero(labels == label_map.ignore_index)
            pixels += labels.size
    assert wrong <= (0.02 * pixels if name in LOSSY else 0)
    assert (ignored > 0) == any(name.startswith("[") for name in mini.classes)


def test_images_have_the_size_of_their_masks(drawn: Drawn) -> None:
    dataset, _ = open_dataset(recipe_of(*drawn).dataset)
    row = dataset["train"][0]
    assert np.asarray(row["image"]).shape[:2] == np.asarray(row["mask"]).shape[:2]


def test_the_doctor_finds_no_errors(drawn: Drawn) -> None:
    diagnosis = examine(recipe_of(*drawn))
    assert [finding for finding in diagnosis.findings if finding.severity == "error"] == []


def test_the_doctor_proposes_the_names_of_an_annotation_file(draw: Callable[[str], Drawn]) -> None:
    diagnosis = examine(recipe_of(*draw("my-coco"), "dataset.labels=[background, road, lorry]"))
    (found,) = [finding for finding in diagnosis.findings if finding.severity == "error"]
    assert found.message.startswith("dataset.labels: car: not named, though the data has it (and no 'lorry'); ")
    assert found.fix == ('dataset.labels=["background", "road", "car"] in another order, or leave it out',)


@pytest.mark.slow
def test_two_steps_and_an_evaluation(drawn: Drawn, tmp_path: Path) -> None:
    result = train(recipe_of(*drawn, *SMALL, f"training.output_dir={tmp_path / 'run'}", "training.device=cpu"))
    assert result["best"]["step"] == 2
    config = json.loads((tmp_path / "run/best/config.json").read_text(encoding="utf-8"))
    assert len(config["id2label"]) == (1 if drawn[0] == "my-binary" else EXPECTED[drawn[0]][0])
    assert config["num_channels"] == (13 if drawn[0].startswith("sen1floods11") else 3)


def test_what_the_header_of_camvid_changes_is_what_its_miniature_needs(draw: Callable[[str], Drawn]) -> None:
    _, _, mini = draw("camvid/segformer-b0")
    text = find_recipe("camvid").read_text(encoding="utf-8")
    assert len(mini.overrides) == 3
    assert all(change in text for change in mini.overrides)


def test_real_scenes_of_camvid(camvid: Path) -> None:
    recipe = load_recipe("camvid", [f"dataset.path={camvid}"])
    dataset, label_map = open_dataset(recipe.dataset)
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 367, "val": 101, "test": 233}
    assert label_map == LabelMap.from_file(TABLES / "camvid.json")


OPEN = """
import sys
from segtune.data.dataset import open_dataset
from segtune.recipe.recipe import load_recipe
for name in sys.argv[1:]:
    dataset, label_map = open_dataset(load_recipe(name).dataset)
    print(name, *(f"{split}={len(rows)}" for split, rows in dataset.items()), label_map.num_labels)
"""


@pytest.mark.slow
def test_recipes_of_the_hub_read_from_it(draw: Callable[[str], Drawn], tmp_path: Path) -> None:
    with minihub.serve() as (hub, url):
        for name, repository in ON_THE_HUB.items():
            _, root, _ = draw(name)
            assert load_recipe(name).dataset.path == f"hub://{repository}"
            hub.repos["datasets", repository] = minihub.Repo("datasets", repository, private=False)
            files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
            hub.large |= {hashlib.sha256(content).hexdigest(): content for content in files.values()}
            added = {path: ("lfs", hashlib.sha256(content).hexdigest()) for path, content in files.items()}
            hub.repo(repository, "datasets").add_commit("main", added, [], "data")
        environment = os.environ | minihub.environment(url, tmp_path)
        done = subprocess.run(
            [sys.executable, "-c", OPEN, *ON_THE_HUB], env=environment, capture_output=True, text=True
        )
    assert done.stdout.splitlines() == [
        "foodseg103/segformer-b0 train=6 val=3 104",
        "sidewalk-semantic/segformer-b0 train=9 val=1 34",
    ], done.stderr
