from __future__ import annotations

import pytest

from segtune.proposal.pace import measure
from segtune.recipe.recipe import load_recipe
from segtune.training import auto_batch
from segtune.training.auto_batch import TrialSteps
from support.command_runs import TINY


def test_a_step_and_an_image_are_measured_with_the_batch_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    true = TrialSteps.seconds

    def seconds(trial: TrialSteps, batch_size: int, *more: int) -> list[float]:
        asked.append((batch_size, *more))
        if batch_size > 2:
            raise MemoryError
        return true(trial, batch_size, *more)

    monkeypatch.setattr(TrialSteps, "seconds", seconds)
    monkeypatch.setattr(auto_batch, "largest_elsewhere", TrialSteps.largest)  # and not in another process
    weighted = "training.loss={class_weights: median_frequency}"
    recipe = load_recipe("demo", [*TINY, "training.batch_size=auto", "training.effective_batch_size=4", weighted])
    pace = measure(recipe)
    assert asked == [(1, 2), (2, 2), (4, 1), (2, 2, 5, 0)]  # 5 steps, the first of which is not timed
    assert (pace.training.batch_size, pace.training.accumulation_steps) == (2, 2)
    assert pace.training.loss.class_weights == "median_frequency"
    assert 0 < pace.image < pace.step + 10 and pace.step > 0 and pace.saving > 0.5


def test_without_val_there_is_no_evaluation() -> None:
    recipe = load_recipe("demo", [*TINY, "dataset.splits={train: train}", "dataset.val_fraction=0"])
    assert measure(recipe).image == 0
