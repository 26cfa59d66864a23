from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segtune.errors import UsageError
from segtune.experiments.search_space import as_text, check_values, own_values, space_of, usual_space
from segtune.recipe.recipe import Recipe, load_recipe, look_over
from segtune.recipe.search import Dimension


def with_space(space: Any) -> Recipe:
    recipe = load_recipe("demo")
    return recipe.with_changes("search", space=space)


def test_usual_space_lies_around_the_recipe() -> None:
    recipe = load_recipe("demo")
    space = usual_space(recipe)
    assert space["training.learning_rate"] == Dimension((), 2e-4, 2e-2, log=True)
    assert space["transforms.scale"].choices[0] == [0.75, 1.5]
    own = own_values(recipe, space)
    assert own is not None and own["training.learning_rate"] == 2e-3 and own["model.config.drop_path_rate"] == 0.0
    assert own["training.loss"]["cross_entropy"] == 1.0
    check_values(space, lambda changes: load_recipe("demo", changes))


def test_names_may_be_dotted_or_nested() -> None:
    choices = [0.0, 0.1]
    nested = space_of(
        with_space({"training": {"weight_decay": choices}, "transforms.crop_size": {"low": 64, "high": 96}})
    )
    assert nested == {
        "training.weight_decay": Dimension((0.0, 0.1)),
        "transforms.crop_size": Dimension((), 64, 96),
    }
    assert nested["transforms.crop_size"].is_whole
    assert own_values(load_recipe("demo"), nested) is None  # a crop of 128 is outside


@pytest.mark.parametrize(
    ("space", "fault"),
    [
        ("{training.learning_rate: {low: 2, high: 1}}", "the range is empty, low=2 is not below high=1"),
        ("{training.learning_rate: {low: 0, high: 1, log: true}}", "log: true wants low above 0, and no step"),
        ("{training.learning_rate: [1]}", "training.learning_rate: 1 choice is no search"),
        ("{training.learning_rate: {low: 1}}", "a range is {low: number"),
        ("{training.learning_rate: {low: 1, high: 2, base: 3}}", "not base"),
        ("{training.learning_rate: 3}", "give a list of choices or"),
        ("{}", "name at least one setting"),
    ],
)
def test_faults_of_the_section_are_told_by_their_setting(space: str, fault: str) -> None:
    with pytest.raises(UsageError, match=fault) as raised:
        load_recipe("demo", [f"search.space={space}"])
    assert "search" in str(raised.value)


@pytest.mark.parametrize(
    ("space", "fault"),
    [
        ({"training.lerning_rate": [1, 2]}, "no such key; did you mean 'training.learning_rate'?"),
        ({"training.max_steps": {"low": 0, "high": 10}}, "training.max_steps = 0"),
        ({"transforms.preset": ["light", "heavy"]}, "transforms.preset"),
    ],
)
def test_unknown_settings_and_values_are_told(space: dict[str, Any], fault: str) -> None:
    with pytest.raises(UsageError) as raised:
        check_values(space_of(with_space(space)), lambda changes: look_over("demo", changes))
    assert fault in str(raised.value)


@pytest.mark.parametrize("key", ["dataset.path", "training.output_dir", "hub.push", "search.seed"])
def test_what_makes_trials_incomparable_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match="is not for a search"):
        space_of(with_space({key: ["a", "b"]}))


def test_values_are_short_in_tables() -> None:
    loss = load_recipe("demo", ["training.loss={cross_entropy: 1, dice: 0.5}"]).training.loss.model_dump()
    assert as_text(loss) == "{cross_entropy: 1, dice: 0.5}"
    assert [as_text(value) for value in (0.00123456, [0.5, 2.0], None)] == ["0.001235", "[0.5, 2.0]", "null"]


def test_a_run_may_go_on_with_another_space(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """It is nothing to a training."""
    from segtune.recipe.recipe import refuse_another_run

    recipe = tiny_recipe(resume="auto")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.to_yaml())
    refuse_another_run(recipe.with_changes("search", space={"training.learning_rate": [0.1, 0.2]}))
    with pytest.raises(UsageError, match="max_steps"):
        refuse_another_run(recipe.with_changes("training", max_steps=7))


@pytest.mark.parametrize("value", ["{low: .nan, high: 1}", "{low: 0, high: .inf}", "{low: 0, high: 1, step: .nan}"])
def test_ends_of_a_range_are_finite(value: str) -> None:
    with pytest.raises(UsageError, match=r"training.weight_decay: (low|high|step) is no number"):
        load_recipe("demo", [f"search.space={{training.weight_decay: {value}}}"])


def test_a_slip_in_the_network_is_told_before_it_is_built() -> None:
    with pytest.raises(UsageError, match=r"model.config.drop_path_rate='much' is no number"):
        space_of(look_over("demo", ["model.config={drop_path_rate: much}"]))
