from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segtune.errors import DataError, SegtuneError, UsageError
from segtune.experiments import tune as module
from segtune.experiments.search_space import own_values, space_of
from segtune.experiments.study import Study
from segtune.experiments.tune import evaluations, tune
from segtune.recipe.recipe import Recipe, load_recipe
from segtune.training.interrupts import Interrupted

MakeRecipe = Callable[..., Recipe]
SPACE = {"training.learning_rate": {"low": 0.001, "high": 0.1, "log": True}, "training.weight_decay": [0.0, 0.01]}


def searched(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.with_changes("search", space=SPACE, **changes)


def test_a_search_scores_its_best_on_images_that_no_trial_has_seen(
    tiny_recipe: MakeRecipe, in_process: list[list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    result = tune(searched(tiny_recipe(eval_every=2)), folder, trials=5)
    states = [trial["state"] for trial in result["trials"]]
    assert len(states) == 5 == len(in_process) and states[0] == "complete"
    first = result["trials"][0]
    assert first["is_own"] and first["values"] == {"training.learning_rate": 0.01, "training.weight_decay": 0.01}
    values = [trial["value"] for trial in result["trials"] if trial["state"] == "complete"]
    assert result["best"]["value"] == max(values)
    assert result["test"]["num_images"] == 4 and result["test"]["intervals"]["units"] == 4
    assert (result["over_own"] is None) == (result["best"]["number"] == 0)
    # the best recipe has the best values, on the same splits
    best = load_recipe(folder / "best.yaml")
    assert best.training.learning_rate == result["best"]["values"]["training.learning_rate"]
    assert best.search.space is None and Path(str(best.dataset.split_file)) == folder / "split.json"
    assert best.training.output_dir == str(tmp_path / "run")
    page = (folder / "report.html").read_text()
    assert "<title>study: mIoU 0." in page and 'id="search"' in page and "that it did not see" in page
    # states of trainings are removed, weights of all but two as well
    kept = {path.parent.name for path in (folder / "trials").glob("*/best")}
    assert kept == {result["best"]["run"], first["run"]}
    assert not list((folder / "trials").glob("*/checkpoints"))
    # more trials of the same study: those that are done stay
    again = tune(searched(tiny_recipe(eval_every=2)), folder, trials=6)
    assert len(in_process) == 6 and again["trials"][:5] == result["trials"]
    assert (len(result["importance"]) == 2) == (len(set(values)) >= 4)
    with pytest.raises(UsageError, match="was begun with another recipe"):
        tune(searched(tiny_recipe(eval_every=2, max_steps=5)), folder, trials=6)


def test_images_are_held_out_where_there_is_no_test_split(
    tiny_recipe: MakeRecipe,
    in_process: list[list[str]],
    stripes: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for kind in ("images", "masks"):
        for path in (stripes / kind / "test").iterdir():
            path.unlink()
        (stripes / kind / "test").rmdir()
    result = tune(searched(tiny_recipe(), held_out=0.5), tmp_path / "study", trials=1)
    split = json.loads((tmp_path / "study" / "split.json").read_text())
    assert {name: len(ids) for name, ids in split.items()} == {"train": 4, "val": 4, "test": 4}
    assert not set(split["test"]) & {*split["train"], *split["val"]}
    assert result["test"]["num_images"] == 4 and "4 of 8 training images are held out" in caplog.text


def fake(
    monkeypatch: pytest.MonkeyPatch, curve: Callable[[float], list[float]], stop_at: int | None = None
) -> list[Path]:
    """Trainings that only write evaluations, by their learning rate; the one of this number is interrupted."""
    runs: list[Path] = []

    def train(words: Sequence[str], launch: Any, request: Any, go_on: Callable[[], bool]) -> int:
        recipe = load_recipe(words[0], words[1:])
        run = Path(str(recipe.training.output_dir))
        runs.append(run)
        run.mkdir(parents=True, exist_ok=True)
        lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
        for step, value in enumerate(curve(recipe.training.learning_rate), start=1):
            if step > len(lines):
                lines.append(json.dumps({"step": step, "split": "val", "mean_iou": value}))
            (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
            if stop_at == len(runs) - 1 and step == 2:
                return 3
            if not go_on():
                return 3
        return 0

    monkeypatch.setattr(module, "train_apart", train)
    monkeypatch.setattr(module, "_result", lambda search, best: {"trials": search.study.trials(), "best": best})
    return runs


def curve_of(rate: float) -> list[float]:
    """Rises to 1 - |rate - 0.02| in four evaluations."""
    return [step / 4 * (1 - abs(rate - 0.02)) for step in range(1, 5)]


def test_trials_below_the_median_are_stopped_early(
    tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake(monkeypatch, curve_of)
    recipe = searched(tiny_recipe(eval_every=1), warmup_trials=3)
    with caplog.at_level("INFO", "segtune"):
        found = tune(recipe, tmp_path / "study", trials=12)["trials"]
    pruned = [trial for trial in found if trial.state == "pruned"]
    told = [message for message in caplog.messages if "is worse than the median of the trials so far" in message]
    assert [int(message.rpartition("trial ")[2].split()[0]) for message in told] == [trial.number for trial in pruned]
    assert len(found) == 12 and pruned and all(trial.number >= 3 for trial in pruned)
    finals = sorted(curve_of(trial.values["training.learning_rate"])[-1] for trial in found[:3])
    for trial in pruned:  # a trial is at most as good as the median of those that came before it
        assert curve_of(trial.values["training.learning_rate"])[-1] <= max(
            [finals[1], *(t.value for t in found[: trial.number] if t.state == "complete")]
        )


def test_an_interrupted_study_goes_on_where_it_was(
    tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial in progress continues in its own folder; all others are those of a study that nobody interrupted."""
    recipe = searched(tiny_recipe(eval_every=1), warmup_trials=8)
    fake(monkeypatch, curve_of)
    whole = tune(recipe, tmp_path / "whole", trials=4)["trials"]
    runs = fake(monkeypatch, curve_of, stop_at=2)
    tune(recipe, tmp_path / "study", trials=4)
    assert [run.name for run in runs] == ["0000", "0001", "0002"]  # and no further trial was begun
    runs = fake(monkeypatch, curve_of)
    found = tune(recipe, tmp_path / "study", trials=4)["trials"]
    assert runs[0].name == "0002"
    assert [trial.state for trial in found] == ["complete"] * 4
    assert [trial.values for trial in found[:3]] == [trial.values for trial in whole[:3]]
    assert [trial.value for trial in found[:3]] == [trial.value for trial in whole[:3]]


def test_a_budget_ends_the_search_and_counts_earlier_commands(
    tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = fake(monkeypatch, curve_of)
    recipe = searched(tiny_recipe(eval_every=1))
    clock = [1000.0]
    own = SimpleNamespace(
        monotonic=lambda: clock.__setitem__(0, clock[0] + 5) or clock[0]
    )  # the next look is 5 s later
    monkeypatch.setattr(module, "time", own)
    tune(recipe, tmp_path / "study", trials=50, budget=200)
    first = len(runs)
    assert 1 <= first < 20
    tune(recipe, tmp_path / "study", trials=50, budget=200)
    assert len(runs) - first <= 2
    tune(recipe, tmp_path / "study", trials=50, budget=400)
    assert len(runs) - first >= 3


def test_failures_in_a_row_end_the_search(
    tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "train_apart", lambda *given: 1)
    with pytest.raises(SegtuneError, match="3 trials in a row have failed"):
        tune(searched(tiny_recipe()), tmp_path / "study", trials=9)


def test_a_loss_that_is_not_finite_is_a_bad_trial_and_no_failure(
    tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(words: Sequence[str], *given: Any) -> int:
        (Path(str(load_recipe(words[0], words[1:]).training.output_dir)) / "non_finite").mkdir(parents=True)
        return 1

    monkeypatch.setattr(module, "train_apart", train)
    with pytest.raises(SegtuneError, match="no trial is complete"):
        tune(searched(tiny_recipe()), tmp_path / "study", trials=4)


def test_a_signal_is_told_and_nothing_is_scored(
    tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(words: Sequence[str], launch: Any, request: Any, go_on: Any) -> int:
        request._signal = "SIGTERM was received"
        return 3

    monkeypatch.setattr(module, "train_apart", train)
    with pytest.raises(Interrupted, match="SIGTERM"):
        tune(searched(tiny_recipe()), tmp_path / "study", trials=4)


def test_evaluations_of_a_run_by_any_metric(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"step": 1, "loss": 2},
        {"step": 1, "split": "val", "per_class": {"a": {"iou": 0.5}}},
    ]
    lines += [{"step": 2, "split": "val", "per_class": {"a": {"iou": None}}}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "spl')
    assert evaluations(tmp_path, "per_class/a/iou") == {1: 0.5}
    assert evaluations(tmp_path / "none", "mean_iou") == {}


def test_what_matters_is_found(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Of two settings, the value depends on one."""
    recipe = searched(tiny_recipe())
    space = space_of(recipe)
    study = Study(tmp_path, space, maximize=True, seed=0, warmup=30)
    study.begin(own_values(recipe, space))
    for _ in range(20):
        trial, values = study.ask()
        study.tell(trial, -abs(values["training.learning_rate"] - 0.02))
    importance = study.importance()
    assert importance["training.learning_rate"] > 0.8 and next(iter(importance)) == "training.learning_rate"
    best = study.best()
    assert best is not None and abs(best.values["training.learning_rate"] - 0.02) < 0.02


@pytest.mark.parametrize("way", ["half", "no lines", "a bit", "other objects"])
def test_a_damaged_journal_is_named(
    way: str, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, curve_of)
    recipe = searched(tiny_recipe(eval_every=1))
    tune(recipe, tmp_path / "study", trials=2)
    path = tmp_path / "study" / "study.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    changed = {
        "half": b"".join(lines[: len(lines) // 4]),
        "no lines": b"",
        "a bit": b"".join([*lines[:3], b"\x80" + lines[3][1:], *lines[4:]]),
        "other objects": b'{"a": 1}\n' * 5,
    }
    path.write_bytes(changed[way])
    with pytest.raises(DataError, match=rf"{path} is damaged.*(restore it, or|Restore it, or) remove"):
        tune(recipe, tmp_path / "study", trials=2)


def test_what_cannot_be_searched_is_told(tiny_recipe: MakeRecipe, stripes: Path, tmp_path: Path) -> None:
    shutil.rmtree(stripes / "images" / "test"), shutil.rmtree(stripes / "masks" / "test")
    with pytest.raises(UsageError, match=r"part of train is to be held out \(search.held_out=0.1, one of 10 parts\)"):
        tune(searched(tiny_recipe(), held_out=0.1), tmp_path / "study", trials=1)
    shutil.rmtree(stripes / "images" / "train"), shutil.rmtree(stripes / "masks" / "train")
    with pytest.raises(UsageError, match="no training images, only val"):
        tune(searched(tiny_recipe()), tmp_path / "other", trials=1)
