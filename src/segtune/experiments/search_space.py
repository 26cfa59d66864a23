"""The space of a search: the settings that a recipe names, or usual ones around its own values; no torch is needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from segtune.errors import UsageError
from segtune.recipe.recipe import Recipe
from segtune.recipe.search import Dimension, dimensions

Space = dict[str, Dimension]

# what would make the scores of two trials incomparable, or move their folders
_NOT_SEARCHED = ("dataset", "hub", "search")
_OF_EACH_TRIAL = {
    f"training.{name}"
    for name in (
        "output_dir", "resume", "overwrite", "report", "time_limit", "device", "eval_every", "best_metric",
        "best_direction",
    )
}  # fmt: skip
_DROP_PATH = 0.1  # of SegformerConfig


def space_of(recipe: Recipe) -> Space:
    """What is searched: the space of the recipe, else the usual one.

    Raises:
        UsageError: a setting in it is none that a search may vary.
    """
    given = recipe.search.space
    space = usual_space(recipe) if given is None else dict(dimensions(given))
    if wrong := [key for key in space if key.partition(".")[0] in _NOT_SEARCHED or key in _OF_EACH_TRIAL]:
        raise UsageError(f"search.space: {wrong[0]} is not for a search, which compares trainings on the same data")
    return space


def usual_space(recipe: Recipe) -> Space:
    """Learning rate, weight decay, scale of crops, drop path and loss, around the recipe's own values."""
    rate, decay = recipe.training.learning_rate, recipe.training.weight_decay
    drop_path = recipe.model.config.get("drop_path_rate", _DROP_PATH)
    if isinstance(drop_path, bool) or not isinstance(drop_path, (int, float)):  # of a recipe that was only looked over
        raise UsageError(f"model.config.drop_path_rate={drop_path!r} is no number")
    own_loss = recipe.training.loss.model_dump(mode="json")
    losses = [own_loss, {"cross_entropy": 1.0, "dice": 0.5}, {"cross_entropy": 1.0, "lovasz": 0.5}]
    scales = [list(recipe.transforms.scale), [0.5, 2.0], [0.75, 1.5], [1.0, 1.0]]
    return {
        "training.learning_rate": Dimension((), rate / 10, rate * 10, log=True),
        "training.weight_decay": Dimension((), min(1e-4, decay or 1.0), max(0.1, decay), log=True),
        "transforms.scale": Dimension(tuple(scale for i, scale in enumerate(scales) if scale not in scales[:i])),
        "model.config.drop_path_rate": Dimension((), 0.0, max(0.3, drop_path)),
        "training.loss": Dimension(tuple(losses)),
    }


def own_values(recipe: Recipe, space: Space) -> dict[str, Any] | None:
    """The recipe's own values of what is searched; None where the space does not hold one of them."""
    values = {key: _value(recipe, key) for key in space}
    return values if all(space[key].holds(value) for key, value in values.items()) else None


def check_values(space: Space, load: Callable[[list[str]], Any]) -> None:
    """Try every choice and both ends of every range.

    Args:
        load: a recipe with changes such as `training.max_steps=100`.

    Raises:
        UsageError: a setting does not exist, or does not take one of the values.
    """
    for key, dimension in space.items():
        for value in dimension.ends:
            try:
                load([f"{key}={json.dumps(value)}"])
            except UsageError as error:
                fault = str(error).removeprefix("command line: ")
                raise UsageError(f"search.space: {fault}") from error


def as_text(value: Any) -> str:
    """A value for a table: 0.0012, [0.5, 2.0], {cross_entropy: 1.0}; zeros and nulls of a mapping are left out."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(_entries(value)) + "}"
    return json.dumps(value)


def _entries(value: Mapping[str, Any]) -> Iterator[str]:
    terms = [key for key, item in value.items() if isinstance(item, (int, float)) and item and "_" not in key]
    weights = ["cross_entropy"] if value.get("cross_entropy") else []
    for key in [*weights, *(term for term in terms if term != "cross_entropy")] or value:
        yield f"{key}: {as_text(value[key])}"


def _value(recipe: Recipe, key: str) -> Any:
    """What stands in the recipe at a dotted key, as JSON has it; None where nothing does."""
    if key == "model.config.drop_path_rate":
        return recipe.model.config.get("drop_path_rate", _DROP_PATH)
    found: Any = recipe.model_dump(mode="json")
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
