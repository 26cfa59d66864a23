"""A search for settings: trainings whose values Optuna chooses by validation, and one score on images it did not see.

Each trial is a run folder of its own, trained by a process of its own and watched through its `metrics.jsonl`. The
validation split chooses among trials, so that its best score is too high; the final one is taken on the test split, or
on training images that were held out of all trials.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segtune.config import flatten
from segtune.data.checks import check_masks
from segtune.data.dataset import open_dataset
from segtune.data.lazy_rows import sample_ids
from segtune.data.splits import write_split_file
from segtune.data.tiles import without_tile
from segtune.errors import SegtuneError, UsageError
from segtune.experiments.folds import make_folds
from segtune.experiments.search_space import Space, check_values, own_values, space_of
from segtune.experiments.study import JOURNAL, TRIALS, Study, Trial, import_optuna
from segtune.experiments.training_process import STOPPED, await_earlier, changes, refuse_launched, train_apart
from segtune.experiments.tune_report import final_score, write_tune_report
from segtune.files import read_json_lines, write_atomic
from segtune.recipe.recipe import Recipe, load_recipe
from segtune.recipe.yaml_file import parse_yaml, read_yaml
from segtune.training.interrupts import StopRequest
from segtune.training.run_folder import (
    BEST,
    FINAL,
    METRICS_FILE,
    NON_FINITE,
    OVERLAYS,
    RECIPE_FILE,
    REPORT_FILE,
    SPLIT_FILE,
    STATES,
)
from segtune.training.run_lock import locked
from segtune.viz.numbers import duration

logger = logging.getLogger(__name__)

BEST_RECIPE, RESULT_FILE = "best.yaml", "tune.json"
EVALUATIONS = 5  # of a trial, where the recipe says no number: pruning needs some
FOR_THE_END = 0.05  # part of the budget that the final score and the report have
FAILURES = 3  # in a row that end the search: it is not the values then


@dataclass
class Search:
    """What is the same for all trials of a command.

    Attributes:
        recipe: of all trials, but for what is searched; see `_of_trials`.
        budget: seconds, of this and earlier commands; None for any.
        started: when this command began, by `time.monotonic`.
        before: seconds that earlier commands took.
    """

    recipe: Recipe
    folder: Path
    study: Study
    launch: Sequence[str] | None
    budget: float | None
    started: float
    before: float
    request: StopRequest
    durations: list[float] = field(default_factory=list)

    @property
    def spent(self) -> float:
        return self.before + time.monotonic() - self.started

    def left(self) -> float | None:
        """Seconds that trials still have; None for any number."""
        if self.budget is None:
            return None
        return self.budget * (1 - FOR_THE_END) - self.spent

    def has_time(self) -> bool:
        """Whether another trial may be expected to end in time: as the trials so far."""
        left = self.left()
        return left is None or left > max(1.0, float(np.median(self.durations)) if self.durations else 0.0)

    def run(self, trial: Trial) -> Path:
        """The run folder of a trial."""
        return self.folder / TRIALS / trial.run


def tune(
    recipe: Recipe,
    folder: Path,
    *,
    trials: int = 20,
    budget: float | None = None,
    group_by: str | None = None,
    started: float | None = None,
    launch: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Search until there are as many trials or the budget is spent, score the best, and write recipe and report.

    Args:
        recipe: `search.space` says what is searched; `training.best_metric` decides.
        folder: is made, or gone on with where it holds the same search.
        trials: complete or stopped early, those of earlier commands counted.
        budget: seconds for all, those of earlier commands counted.
        group_by: a regular expression; where images are held out, those whose ids agree in what it finds stay together.
        started: since when the budget counts, by `time.monotonic`; by default from now.
        launch: see `train_apart`.

    Returns:
        JSON-able, and kept as `tune.json`: see `_result`.

    Raises:
        UsageError: the folder holds something else, a setting of the search is wrong, or Optuna is not installed.
        Interrupted: a signal came; the same call goes on.
        SegtuneError: trainings fail, or none ended in time.
    """
    refuse_launched()
    import_optuna()
    space, started = space_of(recipe), time.monotonic() if started is None else started
    with locked(folder, what="search", option="--output"), StopRequest() as request:
        common = _prepared(recipe, folder, space, group_by)
        maximize = common.training.best_direction == "max"
        how = {"seed": recipe.search.seed, "warmup": recipe.search.warmup_trials}
        study = Study(folder, space, maximize=maximize, **how)
        study.begin(own_values(recipe, space))
        search = Search(common, folder, study, launch, budget, started, study.seconds, request)
        _search(search, trials)
        request.check()
        best = study.best()
        if best is None:
            raise SegtuneError(f"no trial is complete after {duration(search.spent)}: give more time by --budget")
        _write_best(search, best, recipe)
        return _result(search, best)


# --- before the first trial ------------------------------------------------------------------------------------------


def _prepared(recipe: Recipe, folder: Path, space: Space, group_by: str | None) -> Recipe:
    """The recipe of all trials, kept in the folder with the splits of all."""
    if recipe.dataset.streaming:
        raise UsageError("a search keeps its splits, for which all rows are needed: set dataset.streaming=false")
    stored, common = folder / RECIPE_FILE, _of_trials(recipe, folder)
    if (folder / JOURNAL).exists():
        if not stored.is_file() or read_yaml(stored, Recipe.model_fields) != parse_yaml(common.to_yaml()):
            raise UsageError(
                f"{folder} was begun with another recipe, which its {RECIPE_FILE} has: give the same one, or name "
                "another folder by --output"
            )
        return common
    if any(path.name[0] != "." and path.name not in (RECIPE_FILE, SPLIT_FILE) for path in folder.iterdir()):
        raise UsageError(f"{folder} holds something else than a search: name another folder by --output")
    rows, label_map = open_dataset(recipe.dataset)
    pixels = check_masks(rows, label_map)
    ids = {split: list(map(without_tile, sample_ids(rows[split]))) for split in rows}
    if "train" not in ids:
        raise UsageError(f"dataset.path = {recipe.dataset.path}: no training images, only {', '.join(ids)}")
    if "val" not in ids:
        raise UsageError("a search chooses by the validation split, and there is none: dataset.val_fraction draws one")
    if "test" not in ids:
        ids |= _held_out(ids["train"], pixels["train"][:, :-1], recipe, group_by)
    write_split_file(folder / SPLIT_FILE, {split: sorted(set(names)) for split, names in ids.items()})
    write_atomic(stored, common.to_yaml())
    check_values(space, lambda overrides: load_recipe(stored, overrides))
    return common


def _of_trials(recipe: Recipe, folder: Path) -> Recipe:
    """What all trials have in common; the masks are checked once, before the first."""
    training = recipe.training
    common = recipe.with_changes("dataset", split_file=str(folder / SPLIT_FILE), check_masks=False)
    return common.with_changes("hub", push=None).with_changes(
        "training",
        output_dir=str(folder),
        resume="never",
        overwrite=False,
        report=False,
        time_limit=None,
        eval_every=training.eval_every or max(1, training.max_steps // EVALUATIONS),
    )


def _held_out(ids: Sequence[str], pixels: np.ndarray, recipe: Recipe, group_by: str | None) -> dict[str, list[str]]:
    """Train without a stratified part of it, and that part as test."""
    parts = max(2, round(1 / recipe.search.held_out))
    files, file_of = np.unique(np.array(ids), return_inverse=True)
    counts = np.zeros((len(files), pixels.shape[1]), np.int64)
    np.add.at(counts, file_of.reshape(-1), pixels)
    try:
        test, *others = make_folds(files.tolist(), counts, parts, group_by=group_by, seed=recipe.search.seed)
    except UsageError as error:
        fault = str(error).removeprefix(f"--folds {parts}: ")
        raise UsageError(
            f"the data has no test split, and a part of train is to be held out (search.held_out="
            f"{recipe.search.held_out:g}, one of {parts} parts): {fault}"
        ) from error
    logger.warning(
        "the data has no test split: %d of %d training images are held out for the end", len(test), len(files)
    )
    return {"train": [image for fold in others for image in fold], "test": test}


# --- trials ----------------------------------------------------------------------------------------------------------


def _search(search: Search, trials: int) -> None:
    """Trials until there are enough, the time is spent, or a signal came."""
    failures = 0
    while _ended(search.study) < trials and search.has_time():
        began, state = time.monotonic(), _one(search)
        search.study.seconds = search.spent
        if state == "interrupted":
            return
        failures = failures + 1 if state == "failed" else 0
        if failures == FAILURES:
            raise SegtuneError(f"{FAILURES} trials in a row have failed: their messages are above")
        if state == "complete":
            search.durations.append(time.monotonic() - began)


def _ended(study: Study) -> int:
    return sum(trial.state in ("complete", "pruned") for trial in study.trials())


def _one(search: Search) -> str:
    """Train the next trial; returns how it ended, see `Trial.state`."""
    study, config = search.study, search.recipe.training
    trial, values = study.ask()
    run = search.folder / TRIALS / trial.user_attrs["run"]
    logger.info("trial %d: %s", trial.number, ", ".join(changes(values)))
    reported: dict[int, float] = {}
    told: list[int] = []

    def go_on() -> bool:
        for step, value in evaluations(run, config.best_metric).items():
            if step not in reported:
                reported[step] = value
                trial.report(value, step)
        better = max(reported, default=0) >= config.max_steps or not trial.should_prune()
        if not better and not told:
            step = max(reported)
            told.append(step)
            worse = "%s %.4f at step %d is worse than the median of the trials so far: trial %d is asked to stop"
            logger.info(worse, config.best_metric, reported[step], step, trial.number)
        return better

    settings = values | {"training.output_dir": str(run), "training.resume": "auto", "search.space": None}
    with search.request.noted():
        await_earlier(run, search.request)
        if search.request.reason:
            return "interrupted"
        if (left := search.left()) is not None:
            settings["training.time_limit"] = f"{max(1, int(left))}s"
        code = train_apart([str(search.folder / RECIPE_FILE), *changes(settings)], search.launch, search.request, go_on)
    pruned = not go_on()
    if code == STOPPED and not pruned:
        return "interrupted"
    best = (max if config.best_direction == "max" else min)(reported.values(), default=None)
    # Weights that are no longer finite say as much of the values as a bad score does.
    pruned = pruned or (code != 0 and (run / NON_FINITE).is_dir())
    study.tell(trial, best if code == 0 else None, pruned=pruned)
    _make_room(search)
    logger.info("trial %d: %s", trial.number, "stopped early" if pruned else f"{config.best_metric} {best}")
    return "pruned" if pruned else "failed" if code or best is None else "complete"


def evaluations(run: Path, metric: str) -> dict[int, float]:
    """The value of each evaluation that the metrics of a run hold, by its step."""
    path = run / METRICS_FILE
    records = read_json_lines(path) if path.is_file() else []
    found = {record["step"]: dict(flatten(record)).get(metric) for record in records if record.get("split") == "val"}
    return {step: float(value) for step, value in found.items() if value is not None}


def _make_room(search: Search) -> None:
    """Of trials that have ended, keep what their curves need; weights of the best one and of the recipe's own only."""
    best = search.study.best()
    for trial in search.study.trials():
        if trial.state == "interrupted" or not trial.run:
            continue
        kept = trial == best or trial.is_own
        for name in (STATES, *(() if kept else (BEST, FINAL, OVERLAYS))):
            shutil.rmtree(search.run(trial) / name, ignore_errors=True)


# --- after the last trial --------------------------------------------------------------------------------------------


def _write_best(search: Search, best: Trial, recipe: Recipe) -> None:
    """The recipe with the best values, on the splits of the search, whose test split no trial has seen."""
    found = load_recipe(search.folder / RECIPE_FILE, changes(best.values | {"search.space": None}))
    own = {name: getattr(recipe.training, name) for name in ("output_dir", "report", "time_limit")}
    found = found.with_changes("training", **own).with_changes("dataset", check_masks=recipe.dataset.check_masks)
    write_atomic(search.folder / BEST_RECIPE, found.to_yaml())


def _result(search: Search, best: Trial) -> dict[str, Any]:
    """Score the best trial where the search has not looked, and write figures and report.

    Returns:
        `folder`, `report`, `recipe` (of the best), `metric`, `direction`, `seconds`; `best` and `trials`: `number`,
        `state`, `value` (on val), `values`, `run`, `is_own`; `importance` by setting; `test`: scores with intervals;
        `over_own`: the difference of the mean IoU on test to that of the recipe's own values, see
        `uncertainty.compare`, or None.
    """
    study, trials = search.study, search.study.trials()
    own = next((trial for trial in trials if trial.is_own and trial.state == "complete" and trial != best), None)
    facts, over_own = final_score(search.run(best) / BEST, search.recipe, own and search.run(own) / BEST)
    search.study.seconds = search.spent
    result: dict[str, Any] = {
        "folder": str(search.folder),
        "report": str(search.folder / REPORT_FILE),
        "recipe": str(search.folder / BEST_RECIPE),
        "metric": search.recipe.training.best_metric,
        "direction": search.recipe.training.best_direction,
        "seconds": study.seconds,
        "best": best._asdict(),
        "trials": [trial._asdict() for trial in trials],
        "importance": study.importance(),
        "test": facts.scores | {"intervals": facts.intervals},
        "over_own": over_own,
    }
    write_atomic(search.folder / RESULT_FILE, json.dumps(result, indent=2) + "\n")
    write_tune_report(facts, result, search.folder)
    return result


def progress_of(result: Mapping[str, Any]) -> str:
    """How many trials there were, and of which kinds, in words."""
    states = [trial["state"] for trial in result["trials"]]
    kinds = [(sum(state == name for state in states), name) for name in ("complete", "pruned", "failed", "interrupted")]
    words = {"pruned": "stopped early"}
    return ", ".join(f"{number} {words.get(name, name)}" for number, name in kinds if number)
