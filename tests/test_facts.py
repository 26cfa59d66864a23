"""What the files of a run say about it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import names, write_run

from segtune.evaluation import Evaluation
from segtune.facts import describe_run, lineage
from segtune.licences import Licence
from segtune.release import stage


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def nothing_on_the_hub(name: str, kind: str) -> Mapping[str, Any]:
    return {}


def card_of(run: Path, target: Path, read: Any = nothing_on_the_hub) -> Any:
    checkpoint = stage(run, target, with_code=False, pictures=True)
    return describe_run(target, checkpoint, "me/x", "https://hub/", [], Licence(), read)


def test_results_are_those_of_the_weights(run: Path, target: Path, tmp_path: Path) -> None:
    card = card_of(run, target)
    assert card.results.scores["mean_iou"] == 0.4 and card.results.split == "val"
    assert card.parameters == 7
    assert card.environment == {"torch": "2"}
    assert card.data.images == {"train": 2, "val": 1}
    assert (card.pictures, card.example, card.with_code) == ([], None, False)
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
    assert not any(name.endswith(".npz") for name in names(target))
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
