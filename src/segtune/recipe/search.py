"""The `search` section of a recipe: the settings that `segtune tune` varies, and between which values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import Field, field_validator

from segtune.config import MayChangeOnResume, StrictModel

_OF_RANGE = {"low", "high", "log", "step"}


class Dimension(NamedTuple):
    """One setting that is searched: choices, or a range.

    Attributes:
        choices: values of any kind; empty for a range.
        low, high: ends of the range, both included; whole numbers where both are.
        log: whether factors count instead of differences.
        step: between values of the range; None for any.
    """

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether values of the range are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values of which each must be valid: all choices, or both ends."""
        return self.choices or (self.low, self.high)

    def holds(self, value: Any) -> bool:
        """Whether the search may take a value."""
        if self.choices:
            return value in self.choices
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high and (self.step is None or value in (self.low, self.high))

    def __str__(self) -> str:
        if self.choices:
            return f"one of {len(self.choices)}"
        return f"{self.low:g} to {self.high:g}{', by factors' if self.log else ''}"


class SearchConfig(StrictModel):
    """The `search` section of a recipe."""

    space: MayChangeOnResume[dict[str, Any] | None] = Field(
        None,
        description="Settings by their dotted names, each with a list of choices or a range: {low: 1e-4, high: 1e-2, "
        "log: true}, {low: 2, high: 8, step: 2}; null = learning rate, weight decay, scale of crops, drop path and "
        "loss, around the recipe's own values.",
    )
    seed: MayChangeOnResume[int] = Field(0, ge=0, description="Seed of what the search draws.")
    warmup_trials: MayChangeOnResume[int] = Field(
        5, ge=1, description="Trials that are drawn at random, and none of which is stopped early."
    )
    held_out: MayChangeOnResume[float] = Field(
        0.2,
        gt=0,
        lt=1,
        description="Part of the training images that the final score is taken on where the data has no test split; "
        "the search does not see them.",
    )

    @field_validator("space")
    @classmethod
    def _check(cls, space: dict[str, Any] | None) -> dict[str, Any] | None:
        if space is not None and not dict(dimensions(space)):
            raise ValueError("name at least one setting, such as training.learning_rate")
        return space


def dimensions(space: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Dimension]]:
    """What a space says of each setting; names may be dotted, or nested as in a recipe.

    Raises:
        ValueError: neither choices nor a range, or an empty one; the message names the setting.
    """
    for name, value in space.items():
        key = f"{prefix}{name}"
        if isinstance(value, list):
            yield key, _of_choices(key, value)
        elif isinstance(value, Mapping) and _OF_RANGE & value.keys():
            yield key, _of_range(key, dict(value))
        elif isinstance(value, Mapping):
            yield from dimensions(value, f"{key}.")
        else:
            raise ValueError(f"{key}: give a list of choices or {{low: …, high: …}}")


def _of_choices(key: str, values: list[Any]) -> Dimension:
    if len(values) < 2:
        raise ValueError(f"{key}: {len(values)} choice{'s are' if not values else ' is'} no search; give two or more")
    return Dimension(tuple(values))


def _of_range(key: str, given: dict[str, Any]) -> Dimension:
    numbers = {name: given[name] for name in ("low", "high", "step") if given.get(name) is not None}
    if wrong := [
        name
        for name, value in numbers.items()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)
    ]:
        raise ValueError(f"{key}: {wrong[0]} is no number")
    if unknown := given.keys() - _OF_RANGE:
        raise ValueError(f"{key}: a range has low, high, log and step, not {', '.join(sorted(map(str, unknown)))}")
    if not isinstance(given.get("log", False), bool) or not {"low", "high"} <= numbers.keys():
        raise ValueError(f"{key}: a range is {{low: number, high: number, log: true or false, step: number}}")
    if numbers["low"] >= numbers["high"]:
        raise ValueError(f"{key}: the range is empty, low={numbers['low']} is not below high={numbers['high']}")
    log, step = given.get("log", False), numbers.get("step")
    if log and (numbers["low"] <= 0 or step is not None):
        raise ValueError(f"{key}: log: true wants low above 0, and no step")
    if step is not None and step <= 0:
        raise ValueError(f"{key}: step={step} must be above 0")
    return Dimension((), numbers["low"], numbers["high"], log, step)
