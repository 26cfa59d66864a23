"""A recipe: one YAML file that fully determines one fine-tuning run, loaded strictly."""

from __future__ import annotations

import logging
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import segtune
from segtune.config import StrictModel
from segtune.data.checks import with_statistics
from segtune.data.config import DatasetConfig
from segtune.data.streaming import is_stream
from segtune.data.transforms import TransformConfig
from segtune.errors import UsageError
from segtune.hub.push import HubConfig
from segtune.recipe.shipped import find_recipe, list_recipes, recipe_name
from segtune.recipe.validation import Keys, check, dotted, show
from segtune.recipe.yaml_file import _Dumper, parse, read_yaml
from segtune.training.config import TrainingConfig
from segtune.training.model import ModelConfig
from segtune.training.run_folder import RECIPE_FILE, SPLIT_FILE, is_resuming
from segtune.training.trackers import flat

__all__ = ["Recipe", "find_recipe", "list_recipes", "load_recipe"]

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

# What may change when a run goes on: how it runs and what it writes, not what it computes. The images of a step are
# compared as a whole, the splits by their samples.
_FREE = {
    "dataset/check_masks",
    "dataset/split_file",
    "training/output_dir",
    "training/batch_size",
    "training/accumulation_steps",
    "training/eval_batch_size",
    "training/num_workers",
    "training/gradient_checkpointing",
    "training/early_stopping_patience",
    "training/overlays",
    "training/report",
    "training/trackers",
    "training/save_every",
    "training/keep_last",
    "training/log_every",
    "training/device",
    "training/time_limit",
    "training/resume",
    "training/overwrite",
}


class Recipe(StrictModel):
    """Everything that determines one run. Read from YAML by `load_recipe`, written back by `to_yaml` and `save`."""

    dataset: DatasetConfig
    transforms: TransformConfig = TransformConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    hub: HubConfig = HubConfig()

    def to_yaml(self) -> str:
        """The recipe with every field written out, so that it keeps its meaning when a default changes."""
        body = yaml.dump(self.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
        return f"# Every setting of one run, written by segtune {segtune.__version__}\n{body}"

    def save(self, path: str | Path) -> None:
        """Writes `to_yaml()` to a file."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8")


def load_recipe(ref: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe (a file's path or a shipped recipe's name) with overrides such as `training.max_steps=100`.

    An output folder that is not given becomes `runs/<name of the recipe>`.
    Raises UsageError that lists everything wrong with the file and the overrides at once.
    """
    path = find_recipe(ref)
    return _checked(path, read_yaml(path, _sections()), overrides)


def load_recipe_or_data(ref: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """`load_recipe`; data that is no recipe (a path, `hub://…`) stands for defaults with that `dataset.path`."""
    try:
        find_recipe(ref)
    except UsageError:
        path = Path(ref).expanduser()
        if path.exists() or "://" in str(ref):
            return _checked(path, {"dataset": {"path": str(ref)}}, overrides)
        raise
    return load_recipe(ref, overrides)


def _checked(path: Path, data: dict[Any, Any], overrides: Sequence[str]) -> Recipe:
    """The recipe that a file's content and the overrides make; `path` names the file in messages, and its run."""
    merged = dict(data)
    problems, changed = [], []
    for text in overrides:
        try:
            changed.append(_override(merged, text))
        except ValueError as error:
            problems.append(f"command line: {error}")
    sections, found = check(merged, _sections())
    problems += [f"{_origin(problem.keys, path, data, changed)}: {problem.message}" for problem in found]
    if problems:
        raise UsageError(
            "\n  ".join([f"{len(problems)} faults in the recipe", *problems]) if len(problems) > 1 else problems[0]
        )
    recipe = Recipe.model_validate(sections)
    if recipe.training.output_dir is None:
        recipe = _with(recipe, "training", output_dir=f"runs/{recipe_name(path)}")
    return recipe


def with_channels(recipe: Recipe, rows: datasets.Dataset) -> Recipe:
    """The recipe with `transforms.mean` and `std` counted, where it says so, and the model's number of channels.

    Raises:
        UsageError: `model.config.num_channels` is not the number of values in `transforms.mean`.
    """
    stated = recipe.model.config.get("num_channels")
    if is_stream(rows) and recipe.transforms.mean == "counted":
        raise UsageError("transforms.mean=counted needs all rows at hand: give numbers, or set dataset.streaming=false")
    transforms = with_statistics(recipe.transforms, rows, stated)
    channels = len(transforms.mean)
    if stated not in (None, channels):
        raise UsageError(f"model.config.num_channels={stated}, but transforms.mean has {channels} values: one for each")
    config = recipe.model.config if channels == 3 else {**recipe.model.config, "num_channels": channels}
    return _with(recipe.model_copy(update={"transforms": transforms}), "model", config=config)


def resolved(recipe: Recipe) -> Recipe:
    """The recipe as the run folder keeps it: with the stored split, from the first step, overwriting nothing."""
    if not recipe.dataset.streaming:  # its splits are those of the data
        recipe = _with(recipe, "dataset", split_file=f"{recipe.training.output_dir}/{SPLIT_FILE}")
    recipe = _with(recipe, "hub", push=None)
    return _with(recipe, "training", resume="never", overwrite=False)


def _with(recipe: Recipe, section: str, **changes: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=changes)})


def refuse_another_run(recipe: Recipe) -> None:
    """Raise UsageError where `training.resume` would go on with a run under settings that make it another one.

    A state of another folder may well be the start of another run: what differs is then only said.
    """
    resume, folder = recipe.training.resume, str(recipe.training.output_dir)
    stored = Path(folder if resume == "auto" else resume) / RECIPE_FILE
    if resume == "never" or not stored.is_file():
        return
    before, now = dict(flat(read_yaml(stored, _sections()))), dict(flat(parse(recipe.to_yaml())))
    differing = [
        f"{key.replace('/', '.')}: {show(before.get(key))} then, {show(now.get(key))} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in _FREE and not key.startswith("hub/")
    ]
    if differing and is_resuming(folder, resume):
        raise UsageError(
            "\n  ".join([f"{folder} cannot go on with other settings than it began with:", *differing])
            + "\nGive these, or start a new run from one of its states: training.resume=PATH training.output_dir=NEW"
        )
    if differing:
        logger.warning("a new run from %s with other settings: %s", resume, "; ".join(differing))


# YAML ----------------------------------------------------------------------------------------------------------------


def _sections() -> dict[str, type[StrictModel]]:
    return {name: typing.cast("type[StrictModel]", field.annotation) for name, field in Recipe.model_fields.items()}


# Overrides -----------------------------------------------------------------------------------------------------------


def _override(data: dict[Any, Any], text: str) -> Keys:
    """Sets `section.key=value` in `data`, copying what it changes; returns the keys. ValueError says what is wrong."""
    path, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[^.\s]+(\.[^.\s]+)+", path):
        raise ValueError(f"'{text}' does not have the form section.key=value")
    section, key, *deeper = path.split(".")
    try:
        keys = (section, key, *map(parse, deeper))
        parsed = parse(value)
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
    return "command line" if overridden and (in_file is None or len(keys) > 1) else str(path)
