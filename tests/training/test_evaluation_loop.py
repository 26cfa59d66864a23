"""Which weights are the best and when a run is to stop, by numbers given; what is counted is seen in test_trainer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator

from segtune.errors import UsageError
from segtune.labels.label_map import LabelMap
from segtune.training.config import TrainingConfig
from segtune.training.evaluation_loop import Validation
from segtune.training.run_folder import RunFolder

LABELS = LabelMap.from_names(["ice", "bare"])
VALUES = {
    "mean_iou": [0.2, 0.1, 0.3, 0.3],
    "overall_accuracy": [0.5, 0.4, 0.4, 0.6],
    "bare": [0.4, None, 0.3, 0.1],  # the second evaluation saw no bare pixel
}


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The models, here numbers of steps, that were saved."""
    found: list[tuple[str, Any]] = []
    monkeypatch.setattr(RunFolder, "save_model", lambda self, name, model, processor: found.append((name, model)))
    monkeypatch.setattr(RunFolder, "save_evaluation", lambda self, evaluation, split, step: None)
    return found


def validation(folder: Path, **fields: Any) -> Validation:
    run = RunFolder(folder, Accelerator(cpu=True), resume="never", overwrite=False, keep_last=1)
    return Validation(None, LABELS, None, run, TrainingConfig(**fields))


def evaluate(validation: Validation, step: int) -> tuple[dict[str, Any], Any]:
    """The scores of a step, and where its pictures were to lie."""
    scores = {name: VALUES[name][step - 1] for name in ("mean_iou", "overall_accuracy")}
    scores |= {"per_class": {"bare": {"iou": VALUES["bare"][step - 1]}}}
    validation.count = lambda model, dataset, on_image: SimpleNamespace(scores=lambda: scores)
    told: list[Any] = []
    progress = SimpleNamespace(evaluating=lambda: None, scores=lambda *given: told.append(given))
    assert validation.evaluate(step, step, progress) is scores
    assert told == [(scores, validation.comparisons)]
    return scores, validation.comparisons.folder


@pytest.mark.parametrize(
    ("metric", "direction", "steps"),
    [
        ("mean_iou", "max", [1, 3]),
        ("per_class/bare/iou", "max", [1]),
        ("per_class/bare/iou", "min", [1, 3, 4]),
        ("overall_accuracy", "min", [1, 2]),
    ],
)
def test_the_best_weights_by_any_number_in_either_direction(
    tmp_path: Path, saved: list[Any], metric: str, direction: str, steps: list[int]
) -> None:
    judge = validation(tmp_path, best_metric=metric, best_direction=direction)
    since_best = []
    for step in (1, 2, 3, 4):
        _, folder = evaluate(judge, step)
        assert folder == tmp_path / "overlays" / f"step-{step:06d}"
        since_best.append(judge.since_best)
    assert saved == [("best", step) for step in steps]
    assert judge.best["step"] == steps[-1] and set(judge.best) == {"step", metric}
    assert since_best == [sum(1 for later in range(1, step + 1) if later > max(s for s in steps if s <= step))
                          for step in (1, 2, 3, 4)]  # fmt: skip


def test_it_stops_after_so_many_evaluations_without_a_better_one(tmp_path: Path, saved: list[Any]) -> None:
    """Also where it is resumed in between."""
    judge = validation(tmp_path, best_metric="per_class/bare/iou", early_stopping_patience=2)
    for step in (1, 2):
        evaluate(judge, step)
        assert judge.early_stop() is None
    resumed = validation(tmp_path, best_metric="per_class/bare/iou", early_stopping_patience=2)
    resumed.load_state_dict(judge.state_dict())
    evaluate(resumed, 3)
    assert resumed.early_stop() == "early: no better per_class/bare/iou in 2 evaluations"
    patient = validation(tmp_path)
    patient.since_best = 100
    assert patient.early_stop() is None


def test_a_best_metric_that_no_evaluation_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"best_metric=miou is no number of an evaluation: num_images, mean_iou, .*per_class/ice/"
    ):
        validation(tmp_path, best_metric="miou")
