"""`segtune crossval`, `soup` and `tune`: several trainings that answer one question."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segtune.cli import options
from segtune.cli.common import (
    check_before_torch,
    hide_bars_of_libraries,
    importing,
    leading_checkpoints,
    load_checked,
    refuse_existing,
    say,
)
from segtune.errors import UsageError
from segtune.training.interrupts import process_start, seconds

if TYPE_CHECKING:
    from segtune.recipe.recipe import Recipe

LaunchOption = Annotated[
    str | None,
    typer.Option(metavar="OPTIONS", help="Start each training by accelerate launch with these options, one text."),
]
FolderOption = Annotated[
    Path | None, typer.Option(metavar="DIR", file_okay=False, help="Default: that of the recipe's run, with a suffix.")
]


def crossval(
    recipe: options.RecipeArgument,
    overrides: options.OverridesArgument = None,
    folds: Annotated[int, typer.Option(min=2, help="How many parts the images are divided into.")] = 5,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX", help="Keep images together whose ids agree in what this finds (a video, a tile)."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the division, where several are as good.")] = 0,
    output: FolderOption = None,
    launch: LaunchOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Train a recipe once for each fold of its images, and score all images by models that have not seen them.

    The splits train and val are divided anew, each class evenly; test is left alone. One evaluation with intervals and
    one report come of it. The same command goes on with a cross-validation that was stopped. The models of all folds
    together: segtune predict DIR/folds/*/final IMAGES.
    """
    _check_pattern(group_by)
    launcher = _launch(launch)
    settings = load_checked(recipe, overrides, trains=True)
    folder = output or _beside(settings, "crossval")
    with importing():
        from segtune.experiments.crossval import crossval as run

    hide_bars_of_libraries()
    result = run(settings, folder, folds=folds, group_by=group_by, seed=seed, launch=launcher)
    if as_json:
        say(json.dumps(result))
        return
    for fold in result["folds"]:
        say(f"fold {fold['fold']}: mIoU {_number(fold['mean_iou'])} over {fold['images']} images")
    from segtune.viz.numbers import interval

    how = result["intervals"]
    ends = interval(how["mean_iou"]["bca"], " [{}, {}]")
    units = f" ({100 * how['level']:g} % BCa interval, {how['resamples']} resamples of {how['units']} {how['unit']}s)"
    score = f"out-of-fold mIoU {_number(result['mean_iou'])}{ends} over {result['num_images']} images"
    say(score + (units if ends else ""))
    say(f"report: {result['report']}")
    say(f"next: {shlex.join(['segtune', 'predict'])} {shlex.quote(str(folder))}/folds/*/final IMAGES --output DIR")


def soup(
    checkpoint: options.CheckpointArgument,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT… [RECIPE] [section.key=value]",
            help="Further folders; then the recipe whose data decides, by default that of the first one's run.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", file_okay=False, help="Where the soup goes.")
    ],
    split: Annotated[str, typer.Option(help="val or test; one that no training has seen.")] = "val",
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that is there.")] = False,
    device: options.DeviceOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Average the weights of trainings that began from the same ones: one network, which costs what one costs.

    Greedy (Wortsman et al. 2022): the best goes in first, and each other one stays only where the mean IoU on the split
    does not fall.
    """
    more, rest = leading_checkpoints(words)
    if not more:
        raise UsageError(f"a soup is of several checkpoints: {words[0]} is no folder of one")
    checkpoints = [checkpoint, *more]
    for each in checkpoints:
        check_before_torch(checkpoint=each)
    recipe = rest.pop(0) if rest and "=" not in rest[0] else _recipe_of_run(checkpoint)
    refuse_existing(output, force)
    settings = load_checked(recipe, rest, checkpoint)
    with importing():
        from segtune.experiments.soup import greedy_soup, refuse_output

    refuse_output(output, checkpoints)

    hide_bars_of_libraries()
    result = greedy_soup(checkpoints, settings, output, split=split, device=device)
    if as_json:
        say(json.dumps(result))
    else:
        say("\n".join(_soup_lines(result)))


def tune(
    recipe: options.RecipeArgument,
    overrides: options.OverridesArgument = None,
    trials: Annotated[int, typer.Option(min=1, help="Trainings, those that are stopped early counted.")] = 20,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time for all of it, such as 45m or 4h; by default any.")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Where images are held out: keep those together whose ids agree in this."),
    ] = None,
    output: FolderOption = None,
    launch: LaunchOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Search for better settings with Optuna, then score the best on images that the search did not see.

    search.space of the recipe says what is searched; by default learning rate, weight decay, scale of crops, drop path
    and loss. Trials that do worse than the median on validation are stopped early. The same command goes on with a
    search that was stopped. Trials and time are those of all commands together.
    """
    limit = None if budget is None else _seconds(budget)
    _check_pattern(group_by)
    launcher = _launch(launch)
    if find_spec("optuna") is None:
        raise UsageError("segtune tune needs Optuna: pip install 'segtune[tune]'")
    from segtune.experiments.search_space import check_values, space_of
    from segtune.recipe.recipe import look_over

    given = list(overrides or ())
    check_values(space_of(look_over(recipe, given)), lambda changes: look_over(recipe, [*given, *changes]))
    settings = load_checked(recipe, overrides, trains=True)
    folder = output or _beside(settings, "tune")
    from segtune.experiments.tune import tune as run

    hide_bars_of_libraries()
    how: dict[str, Any] = {"group_by": group_by, "started": process_start(), "launch": launcher}
    result = run(settings, folder, trials=trials, budget=limit, **how)
    say(json.dumps(result) if as_json else "\n".join(_tune_lines(result)))


def _soup_lines(result: dict[str, Any]) -> Iterator[str]:
    for row in result["ingredients"]:
        verb = "kept" if row["kept"] else "left out"
        scores = f"alone {_number(row['mean_iou'])}, soup with it {_number(row['with_it'])}"
        yield f"{row['checkpoint']}: {scores}: {verb}"
    compared = result["over_best"]
    from segtune.viz.numbers import interval

    ends = interval(compared["bca"], " [{}, {}]", signed=True)
    over = f"{compared['difference']:+.4f}{ends} against the best alone"
    yield f"{result['split']} mIoU {_number(result['mean_iou'])} over {result['num_images']} images, {over}"
    yield f"soup: {result['output']}"


def _tune_lines(result: dict[str, Any]) -> Iterator[str]:
    from segtune.experiments.search_space import as_text
    from segtune.experiments.tune import progress_of
    from segtune.viz.numbers import count, duration, interval, percent

    best, test = result["best"], result["test"]
    yield f"{count(len(result['trials']), 'trial')} in {duration(result['seconds'])}: {progress_of(result)}"
    for name, value in best["values"].items():
        share = result["importance"].get(name)
        yield f"  {name} = {as_text(value)}" + (f"  ({percent(share)} of what mattered)" if share is not None else "")
    yield f"best val {result['metric']} {_number(best['value'])} in trial {best['number']}, by which it was chosen"
    ends = interval(test["intervals"]["mean_iou"]["bca"], " [{}, {}]")
    yield f"test mIoU {_number(test['mean_iou'])}{ends} over {test['num_images']} images that the search did not see"
    if over := result["over_own"]:
        ends = interval(over["bca"], " [{}, {}]", signed=True)
        yield f"against the recipe's own values: {over['difference']:+.4f}{ends}"
    yield f"report: {result['report']}"
    yield f"next: {shlex.join(['segtune', 'train', result['recipe']])}"


def _number(value: float | None) -> str:
    from segtune.viz.numbers import number

    return number(value, 4, undefined="undefined")


def _beside(settings: Recipe, suffix: str) -> Path:
    """The folder beside that of the recipe's run."""
    return Path(f"{str(settings.training.output_dir).rstrip('/')}-{suffix}")


def _launch(text: str | None) -> Sequence[str] | None:
    try:
        return None if text is None else shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--launch {text}: no words of a command line ({error})") from error


def _seconds(budget: str) -> int:
    try:
        return seconds(budget)
    except ValueError as error:
        raise UsageError(f"--budget {error}") from error


def _check_pattern(group_by: str | None) -> None:
    """A slip in a regular expression is told before torch is imported."""
    import re

    try:
        re.compile(group_by or "")
    except re.error as error:
        raise UsageError(f"--group-by {group_by}: no regular expression ({error})") from error


def _recipe_of_run(checkpoint: str) -> str:
    from segtune.training.config import RECIPE_FILE

    path = Path(checkpoint).parent / RECIPE_FILE
    if not path.is_file():
        raise UsageError(
            f"{checkpoint} lies in no run folder: name the RECIPE whose data decides, after the checkpoints"
        )
    return str(path)
