"""A study of Optuna in a folder: which values are tried next, which trial is stopped early, what mattered."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from segtune.errors import DataError, UsageError
from segtune.experiments.search_space import Space
from segtune.recipe.search import Dimension

if TYPE_CHECKING:
    import optuna

JOURNAL, TRIALS = "study.journal", "trials"  # in the folder of a search
LEAST_FOR_IMPORTANCE = 4  # complete trials


class Trial(NamedTuple):
    """A trial that has ended, or was interrupted.

    Attributes:
        state: "complete", "pruned", "failed" or "interrupted".
        value: of the best evaluation; of a trial that was stopped early, of its last one.
    """

    number: int
    state: str
    value: float | None
    values: dict[str, Any]
    run: str
    is_own: bool


class Study:
    """The study that lies in a folder, made or gone on with; one process at a time works on it.

    Args:
        maximize: whether more is better.
        warmup: trials that are drawn at random and not stopped early.

    Raises:
        UsageError: Optuna is not installed.
        DataError: its journal is damaged.
    """

    def __init__(self, folder: Path, space: Space, *, maximize: bool, seed: int, warmup: int) -> None:
        self.optuna, self.space, self.seed, self.warmup = import_optuna(), space, seed, warmup
        for left in folder.glob(f"{JOURNAL}.lock*"):  # by a process that was killed: the folder's own lock is held
            left.unlink()
        journals, path = self.optuna.storages.journal, str(folder / JOURNAL)
        lock = journals.JournalFileOpenLock(path)  # not by a symbolic link, which Windows allows few
        with _quiet(), _naming_damage(folder):
            self.study = self.optuna.create_study(
                study_name="segtune",
                storage=self.optuna.storages.JournalStorage(journals.JournalFileBackend(path, lock)),
                direction="maximize" if maximize else "minimize",
                pruner=self.optuna.pruners.MedianPruner(n_startup_trials=warmup),
                load_if_exists=True,
            )
            found = [trial.user_attrs.get("run") for trial in self.study.get_trials(deepcopy=False)]
        if lost := sorted(run for run in (folder / TRIALS).glob("[0-9]*") if run.name not in found):
            raise DataError(f"{path} is damaged: it knows nothing of {lost[0]}. Restore it, or remove {folder}")

    # --- trials ------------------------------------------------------------------------------------------------------

    def begin(self, own: Mapping[str, Any] | None) -> None:
        """Queue what comes before new draws: the recipe's own values first, and trials that were interrupted.

        Those go on from the states of their trainings, under another number: Optuna has none for it.
        """
        if own is not None and not self.study.get_trials(deepcopy=False):
            values = {key: _stored(self.space[key], value) for key, value in own.items()}
            self.study.enqueue_trial(values, user_attrs={"own": True})
        for trial in self.study.get_trials(states=(self.optuna.trial.TrialState.RUNNING,)):
            self.study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)
            self.study.set_user_attr(f"interrupted-{trial.number}", True)
            if trial.params.keys() == self.space.keys():
                self.study.enqueue_trial(trial.params, user_attrs=dict(trial.user_attrs))

    def ask(self) -> tuple[optuna.trial.Trial, dict[str, Any]]:
        """The next trial, and its values by the names of the settings."""
        count = len(self.study.get_trials(deepcopy=False))
        with _quiet():
            # A generator of its own for each trial: a study that was interrupted draws what an uninterrupted one would.
            self.study.sampler = self.optuna.samplers.TPESampler(
                seed=self.seed * 100_003 + count, n_startup_trials=self.warmup
            )
            trial = self.study.ask()
            values = {key: _suggested(trial, key, dimension) for key, dimension in self.space.items()}
        if "run" not in trial.user_attrs:
            trial.set_user_attr("run", f"{trial.number:04d}")
        return trial, values

    def tell(self, trial: optuna.trial.Trial, value: float | None, *, pruned: bool = False) -> None:
        """End a trial: with its value, stopped early, or failed where it has none."""
        states = self.optuna.trial.TrialState
        with _quiet():
            if pruned:
                self.study.tell(trial, state=states.PRUNED)
            elif value is None:
                self.study.tell(trial, state=states.FAIL)
            else:
                self.study.tell(trial, value)

    def trials(self) -> list[Trial]:
        """All trials by their numbers; interrupted ones that went on under another number are left out."""
        names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "interrupted"}
        gone = {name.removeprefix("interrupted-") for name in self.study.user_attrs}
        return [
            Trial(
                trial.number,
                names[trial.state.name],
                trial.value if trial.values else next(reversed(list(trial.intermediate_values.values())), None),
                {key: _meant(self.space[key], value) for key, value in trial.params.items() if key in self.space},
                trial.user_attrs.get("run", ""),
                bool(trial.user_attrs.get("own")),
            )
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.name in names and str(trial.number) not in gone
        ]

    def best(self) -> Trial | None:
        """The complete trial of the best value, the first of equal ones."""
        complete = [trial for trial in self.trials() if trial.state == "complete" and trial.value is not None]
        sign = 1 if self.study.direction.name == "MAXIMIZE" else -1
        return max(complete, key=lambda trial: sign * (trial.value or 0.0), default=None)

    # --- what is kept with it ----------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """That all commands together have spent."""
        return float(self.study.user_attrs.get("seconds", 0.0))

    @seconds.setter
    def seconds(self, value: float) -> None:
        self.study.set_user_attr("seconds", round(value, 1))

    def importance(self) -> dict[str, float]:
        """How much of the difference between good and other trials each setting explains, the most first.

        PED-ANOVA (Watanabe, Bansal & Hutter 2023, arXiv 2304.10255), which needs no model of the values. Empty where
        there are too few complete trials, or all have one value.
        """
        values = {trial.value for trial in self.trials() if trial.state == "complete"}
        if len(values) < LEAST_FOR_IMPORTANCE:
            return {}
        with _quiet():
            evaluator = self.optuna.importance.PedAnovaImportanceEvaluator()
            found = self.optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def import_optuna() -> Any:
    """Optuna, which says nothing of its own; UsageError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise UsageError("segtune tune needs Optuna: pip install 'segtune[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextmanager
def _naming_damage(folder: Path) -> Iterator[None]:
    """Tells a journal that Optuna cannot follow as that, whatever it stumbled over."""
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise DataError(
            f"{folder / JOURNAL} is damaged ({reason}): restore it, or remove {folder} to begin anew"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings: that something is experimental, or that a value was reported twice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _suggested(trial: optuna.trial.Trial, key: str, dimension: Dimension) -> Any:
    if dimension.choices:
        stored = trial.suggest_categorical(key, [_stored(dimension, choice) for choice in dimension.choices])
    elif dimension.is_whole:
        stored = trial.suggest_int(
            key, int(dimension.low), int(dimension.high), log=dimension.log, step=int(dimension.step or 1)
        )
    else:
        stored = trial.suggest_float(key, dimension.low, dimension.high, log=dimension.log, step=dimension.step)
    return _meant(dimension, stored)


def _stored(dimension: Dimension, value: Any) -> Any:
    """A value as Optuna keeps it, which takes no lists and mappings."""
    return json.dumps(dimension.choices[dimension.choices.index(value)]) if dimension.choices else value


def _meant(dimension: Dimension, stored: Any) -> Any:
    return json.loads(stored) if dimension.choices else stored
