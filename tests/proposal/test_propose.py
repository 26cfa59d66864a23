from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from segtune.doctor.examine import Diagnosis, examine
from segtune.errors import UsageError
from segtune.proposal import propose as module
from segtune.proposal.choices import Choice
from segtune.proposal.pace import Pace
from segtune.proposal.propose import Proposal, given_settings, nested, propose
from segtune.recipe.recipe import Recipe, load_recipe, load_recipe_or_data
from segtune.training.config import TrainingConfig


@pytest.fixture(scope="module")
def base() -> Recipe:
    return load_recipe_or_data("segtune://earth", ["training.seed=3", "training.output_dir=runs/x"])


@pytest.fixture(scope="module")
def diagnosis(base: Recipe) -> Diagnosis:
    return examine(base)


def written(proposal: Proposal, folder: Path) -> Recipe:
    path = folder / "mine.yaml"
    path.write_text(proposal.text(), encoding="utf-8")
    return load_recipe(path)


def test_the_file_says_what_was_chosen_and_why(base: Recipe, diagnosis: Diagnosis, tmp_path: Path) -> None:
    proposal = propose(base, diagnosis)
    recipe = written(proposal, tmp_path)
    assert recipe.dataset.path == "segtune://earth" and recipe.training.seed == 3
    assert recipe.training.output_dir == "runs/mine"  # that of the run is no part of the proposal
    assert recipe.training.batch_size == "auto" and recipe.transforms.crop_size == 160
    text = proposal.text()
    assert "94 train, 39 val, 37 test; images of 180x180; 4 classes: water, vegetation, bare, ice" in " ".join(
        text.replace("#", "").split()
    )
    for choice in proposal.choices:
        assert f"  # {choice.topic}: {choice.shown}: " in text
    assert max(map(len, text.splitlines())) <= 120
    assert nested(proposal.given, proposal.choices) == proposal.settings


def test_a_budget_puts_numbers_into_the_file(
    base: Recipe, diagnosis: Diagnosis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Recipe] = []

    def measure(recipe: Recipe) -> Pace:
        asked.append(recipe)
        return Pace(0.5, 0.01, 1.0, recipe.training.model_copy(update={"batch_size": 2, "accumulation_steps": 4}))

    monkeypatch.setattr(module, "measure", measure)
    given = load_recipe_or_data("segtune://earth", ["training.batch_size=auto", "training.effective_batch_size=8"])
    for start in (base, given):
        recipe = written(propose(start, diagnosis, budget="5m", examining=4.0), tmp_path)
        training = recipe.training
        assert (training.batch_size, training.accumulation_steps, training.effective_batch_size) == (2, 4, None)
        assert training.time_limit == "5m"
        # 300 - 10 (start) - 2 (checks) - 5 (leaving) - 12 (saving) - 11.5 evaluations of 39 · 0.01 s, 15 % to spare
        assert training.max_steps == int((300 - 29 - 11.5 * 0.39) * 0.85 / 0.5)
        assert asked[-1].transforms.crop_size == recipe.transforms.crop_size == 160
    with pytest.raises(UsageError, match="--budget 20s leaves time for 0 steps"):
        propose(base, diagnosis, budget="20s")


def test_names_of_others_cannot_leave_a_comment(base: Recipe, diagnosis: Diagnosis, tmp_path: Path) -> None:
    proposal = propose(base, diagnosis)
    names = ("sea\ntraining: {max_steps: 1}", "land\u2028hub: {push: end}", "\x85a: b", "\x1b[31m")
    hostile = dataclasses.replace(proposal, facts=dataclasses.replace(proposal.facts, names=names))
    reason = Choice("rate", "1", f"for {names[0]} and {names[1]}", {"training.learning_rate": 0.001})
    hostile = dataclasses.replace(hostile, choices=[reason])
    recipe = written(hostile, tmp_path)
    assert recipe.training.max_steps == TrainingConfig().max_steps and recipe.hub.push is None
    assert "\x1b" not in hostile.text()


def test_what_is_given_is_what_was_said(base: Recipe) -> None:
    assert given_settings(base) == {"dataset.path": "segtune://earth", "training.seed": 3}
    said: dict[str, Any] = given_settings(load_recipe_or_data("segtune://earth", ["transforms.scale=[0.9, 1.1]"]))
    assert said == {"dataset.path": "segtune://earth", "transforms.scale": [0.9, 1.1]}


def test_data_without_training_images_is_refused(tmp_path: Path) -> None:
    config = load_recipe_or_data("segtune://earth", ["dataset.splits={test: test}"])
    with pytest.raises(UsageError, match="no training images, only test"):
        propose(config, examine(config))
