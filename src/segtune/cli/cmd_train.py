"""`segtune train` and `pretrain`."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from segtune.cli.cmd_recipes import proposal_lines, propose_recipe, refuse_budget
from segtune.cli.common import (
    check_before_torch,
    hide_bars_of_libraries,
    importing,
    is_main_process,
    load_checked,
    resumed,
    say,
    settle_threads,
    unpacked,
)
from segtune.cli.options import BudgetOption, OverridesArgument, RecipeOrPathArgument
from segtune.errors import UsageError
from segtune.recipe.shipped import find_recipe
from segtune.training.interrupts import LIMIT, Interrupted, StopRequest, process_start, seconds

if TYPE_CHECKING:
    from segtune.recipe.recipe import Recipe


def train(recipe: RecipeOrPathArgument, overrides: OverridesArgument = None, budget: BudgetOption = None) -> None:
    """Fine-tune what a recipe describes, or on the data at a path; the run folder keeps weights, metrics and recipe.

    For data, the doctor looks at it first; then a recipe is made, said with its reasons, and kept as proposal.yaml.
    `segtune recipes keys [SECTION]` explains every key that may be changed, as in training.max_steps=100.
    Paths are relative to the current folder. Several processes: accelerate launch -m segtune train RECIPE …
    """
    if budget is not None:
        refuse_budget(budget)
    try:
        with StopRequest(_given_limit(overrides or (), budget), process_start(), importing=True):
            from segtune.recipe.recipe import is_data

            if is_data(recipe):
                settings, source = _proposed(recipe, overrides or (), budget)
            elif budget is not None:
                raise UsageError(f"--budget is for data without a recipe: {recipe} takes training.time_limit={budget}")
            else:
                settings, source = load_checked(recipe, overrides, trains=True), find_recipe(recipe)
            with importing():
                from segtune import finetune

            hide_bars_of_libraries()
    except Interrupted as interruption:
        if budget is not None and interruption.reason == LIMIT:  # to give the same command again would end so again
            raise UsageError(
                f"--budget {budget} is over before the data was looked at and a recipe made: give more time, or write "
                f"the recipe first, segtune recipes propose {shlex.quote(recipe)}"
            ) from None
        raise
    result = finetune.train(settings, started=process_start(), source=source)
    stopped = result.get("stopped")
    if is_main_process():
        is_done = not stopped or "left" in result
        words = [recipe, *(overrides or ()), *(["--budget", budget] if budget else [])]
        lines = _closing_lines(result) if is_done else _stopped_lines("train", words, result)
        say("\n".join(lines))
    if stopped:
        raise typer.Exit(3)


def pretrain(
    pictures: Annotated[
        str, typer.Argument(metavar="PATH", help="A folder of pictures; sub-folders are read as well.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", file_okay=False, help="The run folder; weights in DIR/final."),
    ],
    overrides: OverridesArgument = None,
    variant: Annotated[
        Literal["b0", "b1", "b2", "b3", "b4", "b5"] | None, typer.Option(help="Short for model.variant; default: b0.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Short for training.max_steps; default: 5000.")] = None,
) -> None:
    """Pretrain an encoder on pictures without labels: it learns to paint what is hidden of them (SimMIM).

    What comes of it is taken as any checkpoint is: segtune train RECIPE model.name=DIR/final. Keys are those of the
    sections model, transforms and training that matter without labels, and masking.ratio, masking.patch_size.
    Several processes: accelerate launch -m segtune pretrain PATH …
    """
    given = [f"model.variant={variant}"] if variant else []
    given += [f"training.max_steps={steps}"] if steps else []
    words = [*(overrides or ()), *given]
    with StopRequest(_given_limit(words), process_start(), importing=True):
        from segtune.pretraining.config import load_pretraining

        settings = load_pretraining(pictures, output, words)
        check_before_torch(checkpoint=settings.model.name)
        settle_threads(settings)
        with importing():
            from segtune.pretraining.pretrainer import pretrain as run

        hide_bars_of_libraries()
    result = run(settings, started=process_start())
    stopped = result.get("stopped")
    if is_main_process():
        again = [pictures, *words, "--output", str(output)]
        say("\n".join(_stopped_lines("pretrain", again, result) if stopped else _pretrained_lines(result)))
    if stopped:
        raise typer.Exit(3)


def _pretrained_lines(result: dict[str, Any]) -> list[str]:
    from segtune.training.run_folder import FINAL

    folder = Path(result["output_dir"])
    return [
        f"run folder: {folder}",
        *([f"pictures: {result['reconstructions']}"] if result["reconstructions"] else []),
        f"next: segtune train RECIPE {shlex.quote(f'model.name={folder / FINAL}')}",
    ]


def _proposed(path: str, overrides: Sequence[str], budget: str | None) -> tuple[Recipe, Path]:
    """The recipe for data, and its file in the run folder; of a run that goes on, the one that lies there."""
    from segtune.recipe.recipe import load_recipe, look_over

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError(
            f"{path} is data: several processes would each propose a recipe of their own. Write one first, segtune "
            f"recipes propose {shlex.quote(path)} -o mine.yaml, and launch that"
        )
    path = unpacked(path)
    quick = look_over(path, overrides, or_data=True)
    check_before_torch(quick, quick.model.name)
    settle_threads(quick)
    from segtune.files import write_atomic
    from segtune.training.run_folder import PROPOSAL_FILE, is_resuming, refuse_existing_run
    from segtune.training.run_lock import locked

    folder = Path(str(quick.training.output_dir))
    stored = folder / PROPOSAL_FILE
    with locked(folder):  # from now on, so that a second training does not look at its data in vain
        refuse_existing_run(folder, quick.training.resume, quick.training.overwrite)
        if not (stored.is_file() and is_resuming(folder, quick.training.resume)):
            proposal = propose_recipe(path, overrides, budget, process_start())
            typer.echo("\n".join(proposal_lines(proposal)))
            say(f"recipe: {stored}")
            write_atomic(stored, proposal.text())
    # What was found stands in the recipe: a batch that is to be found must not come back.
    kept = [
        text
        for text in overrides
        if not text.startswith(("training.batch_size=auto", "training.effective_batch_size="))
    ]
    limit = [f"training.time_limit={budget}"] if budget else []
    return load_recipe(stored, [*kept, f"training.output_dir={json.dumps(str(folder))}", *limit]), stored


def _given_limit(overrides: Sequence[str], budget: str | None = None) -> int | None:
    """Seconds of a time limit in the command itself; the recipe has its say when it is read."""
    with suppress(ValueError):
        if budget is not None:
            return seconds(budget)
        for text in reversed(overrides):
            if text.startswith("training.time_limit="):
                return seconds(text.partition("=")[2])
    return None


def _stopped_lines(command: str, words: Sequence[str], result: dict[str, Any]) -> Iterator[str]:
    yield f"stopped at step {result['step']}, everything saved: {result['stopped']}"
    if "best" in result and not result["best"]:
        writer = "the first evaluation" if "val" in result["splits"] else "the end of the run, without a val split,"
        weights = f"; the weights of this step, not evaluated: {result['weights']}" if result["weights"] else ""
        yield f"no best/ yet, which {writer} writes{weights}"
    yield f"next: {shlex.join(['segtune', command, *resumed(words)])}"


def _closing_lines(result: dict[str, Any]) -> list[str]:
    from segtune.training.run_folder import BEST, OVERLAYS, RECIPE_FILE

    folder = Path(result["output_dir"])
    lines = []
    for metric, value in result["best"].items():
        if metric != "step":
            name = "mIoU" if metric == "mean_iou" else metric
            lines.append(f"best val {name} {value:.4f} at step {result['best']['step']}")
    lines.append(f"run folder: {folder}")
    if result.get("report"):
        lines.append(f"report: {result['report']}")
    if result.get("pushed"):
        lines.append(f"pushed to {result['pushed']}")
    if "left" in result:
        return [*lines, *(f"next: {shlex.join(command)}" for command in result["left"])]
    split = next((split for split in ("test", "val") if split in result["splits"]), None)
    if split:
        words = ["segtune", "evaluate", str(folder / BEST), str(folder / RECIPE_FILE), "--split", split]
        lines.append(f"next: {shlex.join([*words, '--overlays', str(folder / OVERLAYS)])}")
    return lines
