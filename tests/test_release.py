"""Which files of a run go to the Hub, and what its folder says about it."""

from __future__ import annotations

import ast
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from segtune import release
from segtune.errors import UsageError
from segtune.evaluation import Evaluation
from segtune.labels import LabelMap
from segtune.release import CODE_FILES, describe_run, find_checkpoint, lineage, stage

SPLIT = {"train": ["a", "b"], "val": ["c"]}
SCORES = {"mean_accuracy": 0.5, "overall_accuracy": 0.5, "per_class": {}}


def write_run(folder: Path, path: str = "data", name: str | None = None) -> Path:
    """A run folder as a training leaves it, with weights of seven numbers."""
    for checkpoint in ("best", "final"):
        (folder / checkpoint).mkdir(parents=True)
        config = {"model_type": "segformer", "num_channels": 3, **LabelMap.from_names(["sky", "road"]).config_fields()}
        config["auto_map"] = {"AutoConfig": "someone/else--code.Config"}
        (folder / checkpoint / "config.json").write_text(json.dumps(config))
        (folder / checkpoint / "preprocessor_config.json").write_text("{}")
        weights = {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(1), "n.running_mean": torch.ones(9)}
        save_file(weights, folder / checkpoint / "model.safetensors")
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "checkpoints" / "step-1" / "training_state.pt").write_bytes(b"optimiser")
    (folder / "recipe.yaml").write_text(
        f"dataset: {{path: {path}}}\nmodel: {{name: {name or 'null'}}}\ntraining: {{}}\n"
    )
    (folder / "split.json").write_text(json.dumps(SPLIT))
    lines = [{"environment": {"torch": "1"}}, {"step": 1, "loss": 1.0}]
    lines += [{"step": s, "split": "val", "mean_iou": v, **SCORES} for s, v in ((1, 0.2), (2, 0.4), (3, 0.3))]
    lines += [{"environment": {"torch": "2"}}]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 4, "lo')
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def nothing_on_the_hub(name: str, kind: str) -> Mapping[str, Any]:
    return {}


def card_of(run: Path, target: Path, read: Any = nothing_on_the_hub) -> Any:
    checkpoint = stage(run, target, with_code=False, pictures=True)
    return describe_run(target, checkpoint, "me/x", "https://hub/", [], release.Licence(), read)


# --- files -----------------------------------------------------------------------------------------------------------

PLAIN = {"config.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml", "split.json", "metrics.jsonl"}


def test_no_pickle_and_no_state_of_the_optimiser_is_pushed(run: Path, target: Path) -> None:
    stage(run, target, with_code=False, pictures=True)
    assert names(target) == PLAIN


def test_best_weights_are_taken_else_the_last_else_those_that_are_named(run: Path) -> None:
    assert find_checkpoint(run) == (run, run / "best")
    assert find_checkpoint(run / "final") == (run, run / "final")
    shutil.rmtree(run / "best")
    assert find_checkpoint(run) == (run, run / "final")
    shutil.rmtree(run / "final")
    with pytest.raises(UsageError, match="has no weights yet"):
        find_checkpoint(run)
    with pytest.raises(UsageError, match="no such run folder"):
        find_checkpoint(run / "nowhere")
    with pytest.raises(UsageError, match=r"is no run folder: it has no recipe\.yaml"):
        find_checkpoint(run / "checkpoints")


def test_what_is_staged_does_not_change_with_the_run(run: Path, target: Path) -> None:
    stage(run, target, with_code=False, pictures=False)
    before = {name: (target / name).read_bytes() for name in names(target)}
    (run / "best").rename(run / "old")
    write_run(run.parent / "other")
    save_file({"b": torch.zeros(5)}, run.parent / "other" / "best" / "model.safetensors")
    (run.parent / "other" / "best").rename(run / "best")
    shutil.rmtree(run / "old")
    with (run / "metrics.jsonl").open("a") as file:
        file.write("more")
    assert {name: (target / name).read_bytes() for name in names(target)} == before


def test_code_of_others_is_not_passed_on(run: Path, target: Path) -> None:
    """Weights from a repository with code of its own carry an auto_map that names it."""
    stage(run, target, with_code=False, pictures=False)
    assert "auto_map" not in json.loads((target / "config.json").read_text())


def test_code_is_all_that_the_network_imports(run: Path, target: Path) -> None:
    stage(run, target, with_code=True, pictures=False)
    assert names(target) == PLAIN | set(CODE_FILES)
    imported = {
        f"{node.module}.py"
        for name in CODE_FILES
        for node in ast.walk(ast.parse((target / name).read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    }
    entries = [
        value.partition(".")
        for file in ("config.json", "preprocessor_config.json")
        for value in json.loads((target / file).read_text())["auto_map"].values()
    ]
    assert imported | {f"{module}.py" for module, _, _ in entries} == set(CODE_FILES)
    assert all(f"class {name}(" in (target / f"{module}.py").read_text() for module, _, name in entries)


def test_pictures_of_the_data_are_few_and_can_be_left_out(run: Path, target: Path, earth: Path) -> None:
    (run / "recipe.yaml").write_text("dataset: {path: segtune://earth}\nmodel: {name: null}\ntraining: {}\n")
    ids = [path.stem for path in sorted((earth / "images" / "test").iterdir())]
    (run / "split.json").write_text(json.dumps({"test": ids}))
    (run / "report.html").write_text("page")
    (run / "overlays" / "step-000001").mkdir(parents=True)
    for name in ("overview", *(f"tile{i:02}" for i in range(20)), "step-000001/early"):
        Image.new("RGB", (8, 8)).save(run / "overlays" / f"{name}.png")
    stage(run, target, with_code=False, pictures=True)
    expected = {"overlays/overview.png", *(f"overlays/tile{i:02}.png" for i in range(15))}
    assert names(target) == PLAIN | expected | {"report.html", "example.jpg"}
    with Image.open(target / "example.jpg") as example:
        assert example.size == (180, 180)
    card = describe_run(target, run / "best", "me/x", "https://hub/", [], release.Licence(), nothing_on_the_hub)
    assert card.pictures[0] == "overlays/overview.png" and card.example == "example.jpg"
    shutil.rmtree(target)
    target.mkdir()
    stage(run, target, with_code=False, pictures=False)
    assert names(target) == PLAIN


def test_pictures_of_the_last_evaluation_stand_in_for_overlays(run: Path, target: Path) -> None:
    for step, name in ((100, "a"), (200, "b/c")):
        path = run / "overlays" / f"step-{step:06d}" / f"{name}.jpg"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(path)
    stage(run, target, with_code=False, pictures=True)
    assert names(target) == PLAIN | {"overlays/c.jpg"}


# --- facts -----------------------------------------------------------------------------------------------------------


def test_results_are_those_of_the_weights(run: Path, target: Path, tmp_path: Path) -> None:
    card = card_of(run, target)
    assert card.results.scores["mean_iou"] == 0.4 and card.results.split == "val"
    assert card.parameters == 7
    assert card.environment == {"torch": "2"}
    assert card.data.images == {"train": 2, "val": 1}
    (tmp_path / "last").mkdir()
    assert card_of(run / "final", tmp_path / "last").results.scores["mean_iou"] == 0.3


def test_another_metric_may_have_chosen_the_weights(run: Path, target: Path) -> None:
    with (run / "recipe.yaml").open("a") as file:
        file.write("transforms: {}\n")
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(
        text.replace("training: {}", "training: {best_metric: mean_iou, best_direction: min}")
    )
    assert card_of(run, target).results.scores["mean_iou"] == 0.2


def save_evaluation(run: Path, split: str, checkpoint: str, correct: int) -> Path:
    """Of three images of ten pixels each, `correct` of them right in every image."""
    evaluation = Evaluation(["sky", "road"])
    labels = np.array([[0] * 5 + [1] * 5], dtype=np.uint8)
    for number in range(3):
        prediction = labels.copy()
        prediction[0, : 10 - correct] = 1
        evaluation.add(f"{split}-{number}", labels, prediction)
    evaluation.about = {"checkpoint": checkpoint}
    evaluation.save(run / f"evaluation-{split}.npz")
    return run / f"evaluation-{split}.npz"


def test_counts_of_the_weights_give_intervals_on_test_before_val(run: Path, target: Path, tmp_path: Path) -> None:
    save_evaluation(run, "val", str(run / "best"), correct=6)
    results = card_of(run, target).results
    assert (results.split, results.scores["per_class"]["sky"]["iou"]) == ("val", 0.2)
    assert results.intervals["sky"] == pytest.approx([0.2, 0.2]) and set(results.intervals) == {None, "sky", "road"}
    assert results.how.startswith("Intervals: 95 %, BCa bootstrap of 10000 resamples")
    assert "evaluation-val.npz" in names(target)
    save_evaluation(run, "test", "best", correct=8)
    (tmp_path / "second").mkdir()
    results = card_of(run, tmp_path / "second").results
    assert (results.split, results.scores["num_images"]) == ("test", 3)
    assert results.scores["per_class"]["sky"]["iou"] == pytest.approx(3 / 5)


def test_counts_of_other_weights_are_left_out(run: Path, target: Path, caplog: pytest.LogCaptureFixture) -> None:
    earlier = save_evaluation(run, "test", str(run / "best"), correct=8)
    os.utime(earlier, (1, 1))
    save_evaluation(run, "val", str(run / "final"), correct=8)
    (run / "evaluation-mine.npz").write_bytes(b"torn")
    assert card_of(run, target).results.scores["mean_iou"] == 0.4
    assert names(target) == PLAIN
    assert "left out: " in caplog.text and "evaluation-mine.npz" in caplog.text


def test_data_says_its_name_source_and_licence(tmp_path: Path, target: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    about = {"name": "camvid", "classes": {}, "source": "a drive.", "licence_as_stated": "CC BY-NC 4.0, research."}
    (folder / "classes.json").write_text(json.dumps(about))
    card = card_of(write_run(tmp_path / "run", str(folder)), target)
    assert (card.data.name, card.data.source, card.data.licence) == ("camvid", "a drive", "CC BY-NC 4.0, research")
    assert card.data.is_non_commercial
    (folder / "README.md").write_text("---\npretty_name: CamVid\nlicense: cc-by-4.0\n---\n")
    shutil.rmtree(target)
    target.mkdir()
    again = card_of(tmp_path / "run", target)
    assert (again.data.name, again.data.licence, again.data.is_non_commercial) == ("CamVid", "cc-by-4.0", False)


def test_data_that_is_not_here_is_only_named(run: Path, target: Path) -> None:
    card = card_of(run, target)
    assert (card.data.name, card.data.licence, card.data.hub_id) == ("data", "not stated", None)


def test_data_of_the_hub_is_described_by_its_card(tmp_path: Path, target: Path) -> None:
    def read(name: str, kind: str) -> Mapping[str, Any]:
        assert (name, kind) == ("you/roads", "dataset")
        return {"pretty_name": "Roads", "license": "cc-by-4.0"}

    for name in ("hub://you/roads", "you/roads"):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.rmtree(target)
        target.mkdir()
        card = card_of(write_run(tmp_path / "run", name), target, read)
        assert (card.data.name, card.data.hub_id, card.data.licence) == ("Roads", "you/roads", "cc-by-4.0")


@pytest.mark.parametrize(("path", "hub_id"), [("gone/folder", None), ("hub://you/roads", "you/roads")])
def test_folder_that_is_gone_is_not_taken_for_data_of_the_hub(
    tmp_path: Path, target: Path, path: str, hub_id: str | None
) -> None:
    assert card_of(write_run(tmp_path / "run", path), target).data.hub_id == hub_id


def test_line_goes_through_run_folders_and_cards(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", name="nvidia/mit-b0")
    second = write_run(tmp_path / "second", name=str(first / "best"))
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "README.md").write_text("---\nlicense: mit\n---\n")
    found = lineage(str(second / "best"), lambda name, kind: {"license": "other", "kind": kind})
    assert [ancestor.name for ancestor in found] == [str(second / "best"), str(first / "best"), "nvidia/mit-b0"]
    assert found[2].metadata == {"license": "other", "kind": "model"}
    assert lineage(str(tmp_path / "converted"), nothing_on_the_hub)[0].licence == {"license": "mit"}
    assert lineage(None, nothing_on_the_hub) == []
