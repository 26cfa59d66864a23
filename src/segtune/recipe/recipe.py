"""A recipe: one YAML file that fully determines one fine-tuning run, loaded strictly.

What imports torch is imported where it is used, so that a slip in a recipe is told at once.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import Field, model_validator

import segtune
from segtune.config import Keys, StrictModel, flatten, may_change_on_resume, walk_fields
from segtune.data.config import DatasetConfig, TransformConfig
from segtune.errors import UsageError
from segtune.hub.config import HubConfig
from segtune.inference.config import EvaluationConfig
from segtune.recipe.search import SearchConfig
from segtune.recipe.shipped import find_recipe, recipe_name
from segtune.recipe.validation import check, dotted, show
from segtune.recipe.yaml_file import parse_yaml, read_yaml, whole
from segtune.training.config import AUTO, RECIPE_FILE, ModelConfig, TrainingConfig, scaled_rate

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound="Recipe")


class Recipe(StrictModel):
    """Everything that determines one run. Read from YAML by `load_recipe`, written back by `to_yaml` and `save`."""

    dataset: DatasetConfig = Field(description="The images and masks: where they are, their classes and splits.")
    transforms: TransformConfig = Field(TransformConfig(), description="What happens to an image before the network.")
    model: ModelConfig = Field(ModelConfig(), description="The network that is fine-tuned.")
    training: TrainingConfig = Field(TrainingConfig(), description="Steps, loss, optimizer, and what a run writes.")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="How images are segmented when it counts.")
    hub: HubConfig = Field(HubConfig(), description="When and where the run is pushed.")
    search: SearchConfig = Field(SearchConfig(), description="What segtune tune searches; training does without it.")

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if (self.dataset.unlabelled is None) != (self.training.semi is None):
            raise ValueError(
                "dataset.unlabelled and training.semi go together: the first names the pictures, the second says how "
                "they are learned from, as in dataset.unlabelled=PATH training.semi='{}' training.ema_decay=0.99"
            )
        return self

    def to_yaml(self) -> str:
        """The recipe with every field written out, so that it keeps its meaning when a default changes."""
        return whole(f"Every setting of one run, written by segtune {segtune.__version__}", self.model_dump())

    def save(self, path: str | Path) -> None:
        """Writes `to_yaml()` to a file."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8")

    def with_changes(self: Kind, section: str, **changes: Any) -> Kind:
        """The same recipe with other values in one section; they are taken as they are, unchecked."""
        return self.model_copy(update={section: getattr(self, section).model_copy(update=changes)})


def load_recipe(ref: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe (a file's path or a shipped recipe's name) with overrides such as `training.max_steps=100`.

    An output folder that is not given becomes `runs/<name of the recipe>`.
    Raises UsageError that lists everything wrong with the file and the overrides at once.
    """
    return _load(ref, overrides)


def load_recipe_or_data(ref: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """`load_recipe`; data that is no recipe (a path, `hub://…`) stands for defaults with that `dataset.path`."""
    return _load(ref, overrides, or_data=True)


def is_data(ref: str | Path) -> bool:
    """Whether a reference is no recipe but a path that exists, or an address such as hub://user/name.

    Raises:
        UsageError: it is neither.
    """
    try:
        find_recipe(ref)
    except UsageError:
        if Path(ref).expanduser().exists() or "://" in str(ref):
            return True
        raise
    return False


def look_over(ref: str | Path, overrides: Sequence[str] = (), *, or_data: bool = False) -> Recipe:
    """`load_recipe`, or `load_recipe_or_data`, without the checks that import torch: of `model.config` and
    `transforms.extra`.
    """
    return _load(ref, overrides, or_data=or_data, without_torch=True)


def _load(ref: str | Path, overrides: Sequence[str], *, or_data: bool = False, without_torch: bool = False) -> Recipe:
    if or_data and is_data(ref):
        return _checked(Path(ref).expanduser(), {"dataset": {"path": str(ref)}}, overrides, without_torch)
    path = find_recipe(ref)
    recipe = _checked(path, read_yaml(path, Recipe.model_fields), overrides, without_torch)
    return _seen_from_here(recipe, path.absolute().parent) if path.name == RECIPE_FILE else recipe


def _checked(path: Path, data: dict[Any, Any], overrides: Sequence[str], without_torch: bool) -> Recipe:
    """The recipe that a file's content and the overrides make; `path` names the file in messages, and its run."""
    recipe = with_overrides(Recipe, path, data, overrides, without_torch)
    if recipe.training.output_dir is None:
        recipe = recipe.with_changes("training", output_dir=f"runs/{recipe_name(path)}")
    return recipe


def with_overrides(
    model: type[Kind], path: Path, data: Mapping[Any, Any], overrides: Sequence[str], without_torch: bool = False
) -> Kind:
    """The recipe of a kind that a file's content and the overrides make; `path` names the file in messages.

    Raises:
        UsageError: lists everything wrong with the file and the overrides at once.
    """
    merged = dict(data)
    problems, changed = [], []
    for text in overrides:
        try:
            changed.append(_override(merged, text))
        except ValueError as error:
            problems.append(f"command line: {error}")
    recipe, found = check(merged, model, without_torch)
    problems += [f"{_origin(problem.keys, path, data, changed)}: {problem.message}" for problem in found]
    if recipe is None or problems:
        raise UsageError(
            "\n  ".join([f"{len(problems)} faults in the recipe", *problems]) if len(problems) > 1 else problems[0]
        )
    return recipe


def _seen_from_here(recipe: Recipe, run: Path) -> Recipe:
    """The recipe of a run folder, whose relative paths begin where it was trained, read from anywhere.

    A path that exists as it is stays. Where that was is told by the run folder: it lies there under `output_dir`.
    """
    output = Path(recipe.training.output_dir or "")
    is_there = bool(output.parts) and run.parts[-len(output.parts) :] == output.parts
    home = Path(*run.parts[: -len(output.parts)]) if is_there else run  # nothing of it lies in the run folder
    found = {
        "path": home / recipe.dataset.path,
        "labels": home / str(recipe.dataset.labels),
        "unlabelled": home / str(recipe.dataset.unlabelled),
        "split_file": run / Path(recipe.dataset.split_file or "").name,
    }
    given = {key: getattr(recipe.dataset, key) for key in found}
    changes = {
        key: str(path)
        for key, path in found.items()
        if isinstance(given[key], str) and not Path(given[key]).exists() and path.exists()
    }
    return recipe.with_changes("dataset", **changes) if changes else recipe


def with_channels(recipe: Kind, rows: datasets.Dataset) -> Kind:
    """The recipe with `transforms.mean` and `std` counted, where it says so, and the model's number of channels.

    Raises:
        UsageError: `model.config.num_channels` is not the number of values in `transforms.mean`.
    """
    from segtune.data.checks import with_statistics
    from segtune.data.streaming import is_stream

    stated = recipe.model.config.get("num_channels")
    if is_stream(rows) and recipe.transforms.mean == "counted":
        raise UsageError("transforms.mean=counted needs all rows at hand: give numbers, or set dataset.streaming=false")
    transforms = with_statistics(recipe.transforms, rows, stated)
    channels = len(transforms.mean)
    if stated not in (None, channels):
        raise UsageError(f"model.config.num_channels={stated}, but transforms.mean has {channels} values: one for each")
    config = recipe.model.config if channels == 3 else {**recipe.model.config, "num_channels": channels}
    return recipe.model_copy(update={"transforms": transforms}).with_changes("model", config=config)


def resolved(recipe: Recipe) -> Recipe:
    """The recipe as the run folder keeps it: with the stored split, from the first step, overwriting nothing."""
    from segtune.training.run_folder import SPLIT_FILE

    if not recipe.dataset.streaming:  # its splits are those of the data
        recipe = recipe.with_changes("dataset", split_file=f"{recipe.training.output_dir}/{SPLIT_FILE}")
    recipe = recipe.with_changes("hub", push=None)
    return recipe.with_changes("training", resume="never", overwrite=False)


def with_stored_batch(recipe: Recipe) -> Recipe:
    """The recipe with the micro-batch that the run it goes on with has found, where `training.batch_size` is auto."""
    from segtune.training.run_folder import is_resuming

    training = recipe.training
    stored = Path(str(training.output_dir)) / RECIPE_FILE
    if training.batch_size != AUTO or not stored.is_file() or not is_resuming(stored.parent, training.resume):
        return recipe
    before = read_yaml(stored, Recipe.model_fields)["training"]
    found = {key: before[key] for key in ("batch_size", "accumulation_steps")}
    images = math.prod(found.values()) * int(os.environ.get("WORLD_SIZE", "1"))
    rate = scaled_rate(training.learning_rate, images, training.images_wanted)
    return recipe.with_changes("training", **found, learning_rate=rate, effective_batch_size=None)


def refuse_another_run(recipe: Recipe) -> None:
    """Raise UsageError where `training.resume` would go on with a run under settings that make it another one.

    A state of another folder may well be the start of another run: what differs is then only said.
    """
    from segtune.training.run_folder import RECIPE_FILE, is_resuming

    resume, folder = recipe.training.resume, str(recipe.training.output_dir)
    stored = Path(folder if resume == "auto" else resume) / RECIPE_FILE
    if resume == "never" or not stored.is_file():
        return
    before, now = (
        dict(flatten(values, "."))
        for values in (read_yaml(stored, type(recipe).model_fields), parse_yaml(recipe.to_yaml()))
    )
    changeable = {dotted(keys) for keys, field in walk_fields(type(recipe)) if may_change_on_resume(field)}
    differing = [
        f"{key}: {show(before.get(key))} then, {show(now.get(key))} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not _is_below(key, changeable)
    ]
    if differing and is_resuming(folder, resume):
        raise UsageError(
            "\n  ".join([f"{folder} cannot go on with other settings than it began with:", *differing])
            + "\nGive these, or start a new run from one of its states: training.resume=PATH training.output_dir=NEW"
        )
    if differing:
        logger.warning("a new run from %s with other settings: %s", resume, "; ".join(differing))


def _is_below(key: str, settings: Collection[str]) -> bool:
    """Whether a dotted key is one of the settings, or stands in the mapping that one of them holds."""
    parts = key.split(".")
    return any(".".join(parts[:length]) in settings for length in range(1, len(parts) + 1))


def _override(data: dict[Any, Any], text: str) -> Keys:
    """Sets `section.key=value` in `data`, copying what it changes; returns the keys. ValueError says what is wrong."""
    path, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[^.\s]+(\.[^.\s]+)+", path):
        raise ValueError(f"'{text}' does not have the form section.key=value")
    section, key, *deeper = path.split(".")
    try:
        keys = (section, key, *map(parse_yaml, deeper))
        parsed = parse_yaml(value)
    except yaml.YAMLError as error:
        raise ValueError(f"{text}: not valid YAML; text with special characters needs quotes: '\"…\"'") from error
    for depth, name in enumerate(keys[:-1], start=1):
        below = data.get(name)
        if below is not None and not isinstance(below, dict):
            raise ValueError(f"{text}: {dotted(keys[:depth])} = {show(below)} has no keys")
        data[name] = dict(below or {})
        data = data[name]
    data[keys[-1]] = parsed
    return keys


def _origin(keys: Keys, path: Path, data: Mapping[Any, Any], changed: Sequence[Keys]) -> str:
    """Where a value was written: the file or the command line."""
    overridden = any(keys[: len(override)] == override[: len(keys)] for override in changed)
    in_file: Any = data
    for key in keys:
        in_file = in_file.get(key) if isinstance(in_file, dict) else None
    if overridden and in_file is not None and len(keys) <= 1:  # the fields of a section, or sections, together
        return f"{path} with the command line"
    return "command line" if overridden else str(path)
