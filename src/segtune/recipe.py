"""A recipe: one YAML file that fully determines one fine-tuning run, loaded strictly."""

from __future__ import annotations

import logging
import re
import shlex
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import segtune
from segtune.catalog import find_recipe, list_recipes, recipe_name
from segtune.checkpoint import ModelConfig, build_model
from segtune.data.checks import check_masks
from segtune.data.config import DatasetConfig
from segtune.data.sources import open_dataset
from segtune.data.statistics import with_statistics
from segtune.data.streaming import is_stream
from segtune.data.transforms import TransformConfig
from segtune.errors import UsageError
from segtune.hub import HubConfig, RunPush
from segtune.inference import processor_for
from segtune.report.facts import of_training
from segtune.report.page import write_report
from segtune.run_folder import RECIPE_FILE, SPLIT_FILE, goes_on, refuse_existing_run
from segtune.section import Section
from segtune.strict import Keys, check, dotted, show
from segtune.tracking import flat
from segtune.trainer import SegmentationTrainer
from segtune.training_config import TrainingConfig

__all__ = ["Recipe", "find_recipe", "list_recipes", "load_recipe", "train"]

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


class Recipe(Section):
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
    return _checked(path, _read_yaml(path), overrides)


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


def train(recipe: Recipe) -> dict[str, Any]:
    """Builds what the recipe names, checks the data, trains, and pushes the run where the recipe says so.

    Returns what `SegmentationTrainer.train` returns and, under "splits", the names of the data's splits; under
    "report", the path of its page, or None where that could not be written; under "pushed", where the run was pushed,
    its URL on the Hub or None. A run that was stopped early is to go on first.
    """
    training = recipe.training
    if training.output_dir is not None:
        refuse_existing_run(training.output_dir, training.resume, training.overwrite)
    dataset, label_map = open_dataset(recipe.dataset)
    loss = recipe.training.loss
    loss.weights(label_map.names)  # refuses unknown classes before masks are read
    if "train" not in dataset:
        raise UsageError(f"dataset.path = {recipe.dataset.path}: no training images, only {', '.join(dataset)}")
    if "val" not in dataset:
        logger.warning("no validation split: the last weights count as the best (dataset.val_fraction draws one)")
    counted, pixels = isinstance(loss.class_weights, str), None
    if recipe.dataset.check_masks or counted:
        pixels = check_masks(_at_hand(recipe, dataset), label_map)
        if counted:
            recipe = _with(recipe, "training", loss=loss.counted(pixels["train"][:, :-1], label_map.names))
    recipe = with_channels(recipe, dataset["train"])
    if training.output_dir is not None:
        refuse_another_run(recipe)  # with what was counted
    trainer = SegmentationTrainer(
        build_model(recipe.model, label_map, seed=recipe.training.seed),
        recipe.training,
        train_dataset=dataset["train"],
        eval_dataset=dataset.get("val"),
        label_map=label_map,
        transforms=recipe.transforms,
        processor=processor_for(recipe.transforms),
        recipe=resolved(recipe).to_yaml(),
        settings=recipe.model_dump(),
        splits=None if recipe.dataset.streaming else dataset,
        shuffle_buffer=recipe.dataset.shuffle_buffer,
    )
    push = _push_beside(recipe, trainer)
    result = {**trainer.train(), "splits": list(dataset)}
    if training.report and "stopped" not in result and trainer.accelerator.is_main_process:
        result["report"] = _write_report(trainer, dataset, pixels)
    if push is not None and "stopped" in result:
        push.wait()
    elif push is not None:
        result["pushed"] = push.finish()
    return result


def _push_beside(recipe: Recipe, trainer: SegmentationTrainer) -> RunPush | None:
    """What pushes the run of the main process while it goes on, where the recipe says so."""
    if recipe.hub.push is None or not trainer.accelerator.is_main_process:
        return None
    push = RunPush(trainer.run.path, recipe.hub, recipe.model.name)
    push.check()
    trainer.after_evaluation = push.after_evaluation
    return push


def _write_report(
    trainer: SegmentationTrainer, dataset: Mapping[str, Any], pixels: Mapping[str, Any] | None
) -> str | None:
    """Write the report of a run that is done; returns its path, or None where that failed, which is only told."""
    run = trainer.run.path
    try:
        options: dict[str, Any] = {"pixels": pixels, "batch_size": trainer.config.eval_batch_size}
        facts = of_training(run, dataset, trainer.label_map, device=trainer.accelerator.device, **options)
        write_report(facts, facts.place.page)
    except Exception as error:  # whatever it is, the run is done
        reason, command = f"{type(error).__name__}: {error}", shlex.join(["segtune", "report", str(run)])
        logger.warning("the run is done, but has no report (%s); %s writes it", reason, command)
        return None
    return str(facts.place.page)


def _at_hand(recipe: Recipe, dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The splits whose masks can be read before the first step: all but a streamed one."""
    if recipe.dataset.streaming and isinstance(recipe.training.loss.class_weights, str):
        raise UsageError(
            "training.loss.class_weights are counted from rows at hand: give numbers, or set dataset.streaming=false"
        )
    return {split: rows for split, rows in dataset.items() if not is_stream(rows)}


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
    before, now = dict(flat(_read_yaml(stored))), dict(flat(_parse(recipe.to_yaml())))
    differing = [
        f"{key.replace('/', '.')}: {show(before.get(key))} then, {show(now.get(key))} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in _FREE and not key.startswith("hub/")
    ]
    if differing and goes_on(folder, resume):
        raise UsageError(
            "\n  ".join([f"{folder} cannot go on with other settings than it began with:", *differing])
            + "\nGive these, or start a new run from one of its states: training.resume=PATH training.output_dir=NEW"
        )
    if differing:
        logger.warning("a new run from %s with other settings: %s", resume, "; ".join(differing))


# YAML ----------------------------------------------------------------------------------------------------------------


def _core_schema() -> dict[str, Any]:
    """First character -> what plain scalars mean: https://yaml.org/spec/1.2.2/#103-core-schema."""
    scalars = (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
        ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
        ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    )
    table: dict[str, Any] = {}
    for tag, pattern, first_characters in scalars:
        for first in first_characters:
            table.setdefault(first, []).append((f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z")))
    return table


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text[2:], 16 if text[1] == "x" else 8) if text[1:2] in ("x", "o") else int(text)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


def _constructors() -> dict[str | None, Any]:
    constructors: dict[str | None, Any] = {**yaml.SafeLoader.yaml_constructors}
    constructors["tag:yaml.org,2002:int"] = _construct_int
    constructors["tag:yaml.org,2002:float"] = _construct_float
    return constructors


def _both_schemas() -> dict[str, Any]:
    old, new = yaml.SafeDumper.yaml_implicit_resolvers, _core_schema()
    return {first: [*old.get(first, []), *new.get(first, [])] for first in {*old, *new}}


class _Loader(yaml.SafeLoader):
    """Plain scalars as in YAML 1.2 (6e-5 is a number; yes, on and 12:30 are text), each key once, no merge keys."""

    yaml_implicit_resolvers = _core_schema()
    yaml_constructors = _constructors()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return mapping


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for something else than text."""

    yaml_implicit_resolvers = _both_schemas()

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style=True)


def _sections() -> dict[str, type[Section]]:
    return {name: typing.cast("type[Section]", field.annotation) for name, field in Recipe.model_fields.items()}


def _parse(text: str | bytes) -> Any:
    return yaml.load(text, Loader=_Loader)


def _read_yaml(path: Path) -> dict[Any, Any]:
    try:
        data = _parse(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = " ".join(filter(None, (getattr(error, "context", None), getattr(error, "problem", None)))) or error
        raise UsageError(f"{path}{where}: {what}") from error
    if not isinstance(data, dict):
        what = "the file is empty" if data is None else f"the file holds {show(data)}"
        raise UsageError(f"{path}: {what}, not a mapping of the sections {', '.join(_sections())}")
    return data


# Overrides -----------------------------------------------------------------------------------------------------------


def _override(data: dict[Any, Any], text: str) -> Keys:
    """Sets `section.key=value` in `data`, copying what it changes; returns the keys. ValueError says what is wrong."""
    path, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[^.\s]+(\.[^.\s]+)+", path):
        raise ValueError(f"'{text}' does not have the form section.key=value")
    section, key, *deeper = path.split(".")
    try:
        keys = (section, key, *map(_parse, deeper))
        parsed = _parse(value)
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
