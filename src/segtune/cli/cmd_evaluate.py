"""`segtune evaluate`, `compare`, `calibrate` and `bench`: what is measured."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segtune.cli import options
from segtune.cli.common import (
    check_before_torch,
    hide_bars_of_libraries,
    importing,
    leading_checkpoints,
    load_checked,
    say,
)
from segtune.errors import UsageError
from segtune.files import write_atomic

if TYPE_CHECKING:
    from segtune.evaluation.evaluation import Evaluation
    from segtune.recipe.recipe import Recipe

BOUNDARY_WIDTH = 0.02


def evaluate(
    checkpoint: options.CheckpointArgument,
    recipe: options.RecipeArgument,
    overrides: options.OverridesArgument = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    as_json: options.JsonOption = False,
    save: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Keep the counts of each image: a run folder, or a file ending in .npz."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the counts that a stopped command left beside --save.")
    ] = False,
    group_by: options.GroupOption = None,
    boundary_width: Annotated[
        float, typer.Option(min=0, max=1, help="Margin of boundary IoU, as a share of the image's diagonal.")
    ] = BOUNDARY_WIDTH,
    overlays: options.OverlaysOption = None,
    limit_overlays: Annotated[int, typer.Option(min=1, help="How many overlays, spread over the split.")] = 12,
    window: options.WindowOption = None,
    stride: options.StrideOption = None,
    tta: options.TtaOption = False,
    batch_size: options.BatchOption = 1,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = "auto",
    engine: options.EngineOption = "torch",
) -> None:
    """Score a checkpoint on one split of a recipe's dataset, at the masks' own size, with error bars.

    Several checkpoints before the recipe are an ensemble: the mean of their probabilities counts.
    On the test split of a run's own data, the counts are kept in the run folder, for its card and `segtune compare`.
    Intervals are bootstrap intervals over images or, with --group-by, over groups of them.
    Processes that accelerate launch or torchrun starts divide the images; the one that ends last prints the result.
    """
    more, words = leading_checkpoints([recipe, *(overrides or ())])
    if not words:
        raise UsageError(f"no RECIPE: {recipe} is the folder of a checkpoint; name the recipe whose data is looked at")
    for each in more:
        check_before_torch(checkpoint=each)
    recipe, *overrides = words
    settings = load_checked(recipe, overrides, checkpoint)
    kept = _file_to_save(save, split, None if more else Path(checkpoint).parent, resume)
    with importing():
        from segtune.inference.evaluate_checkpoint import evaluate_share
        from segtune.inference.parallel.count_blocks import SharedCount
        from segtune.inference.parallel.processes import Processes
        from segtune.viz import terminal

    is_whole = window is None and not stride and not tta
    is_usual = not more and is_whole and boundary_width == BOUNDARY_WIDTH and (precision, engine) == ("auto", "torch")
    in_run = _place_in_run(checkpoint, settings, split) if kept is None and is_usual else None
    kept = kept or in_run
    processes, shared = Processes.launched(), None
    if resume or processes.count > 1:
        if kept is None:
            raise UsageError("--resume and several processes need --save PATH: there counts lie until all are there")
        shared = SharedCount(kept, processes, resume)
    hide_bars_of_libraries()
    found = evaluate_share(
        [checkpoint, *more],
        settings,
        shared,
        split=split,
        window=window,
        stride=stride,
        tta=tta,
        group_by=group_by,
        boundary_width=boundary_width,
        overlays=overlays,
        limit_overlays=limit_overlays,
        batch_size=batch_size,
        device=processes.device(device),
        precision=precision,
        engine=engine,
        progress=processes.local == 0,
    )
    if found is None:
        return
    result = {"checkpoint": checkpoint, "recipe": recipe} | found.to_dict()
    if kept:
        found.evaluation.about["recipe"] = recipe
        found.save(kept)
    if in_run:
        write_atomic(in_run.with_suffix(".json"), json.dumps(result, indent=2) + "\n")
    if as_json:
        say(json.dumps(result))
    else:
        terminal.show(terminal.evaluation_table(result), *terminal.evaluation_lines(result))
    if kept:
        say(f"counts of each image: {kept}", err=as_json or save is None)
    if overlays:
        say(f"overlays: {overlays} (overview.jpg first)", err=as_json)


def _place_in_run(checkpoint: str, settings: Recipe, split: str) -> Path | None:
    """Where a run keeps how its weights do on the test split of its data, which its card shows.

    None: the weights are not those that a run pushes, the data is not the run's, or the split is one that training saw.
    """
    from segtune.evaluation.evaluation import file_name
    from segtune.recipe.recipe import load_recipe
    from segtune.training.run_folder import RECIPE_FILE, find_checkpoint

    run = Path(checkpoint).parent
    if split != "test" or not (run / RECIPE_FILE).is_file() or not os.access(run, os.W_OK):
        return None
    own, given = (
        recipe.dataset.model_dump(exclude={"split_file", "check_masks", "on_error"})
        for recipe in (load_recipe(run / RECIPE_FILE), settings)
    )
    is_pushed = False
    with suppress(UsageError):  # best/ is not whole, which is nothing to those who evaluate final/
        is_pushed = find_checkpoint(run)[1].resolve() == Path(checkpoint).resolve()
    return run / file_name(split) if is_pushed and own == given else None


def _file_to_save(save: Path | None, split: str, run: Path | None, resume: bool) -> Path | None:
    """The file that --save names; refused before the work where it is there already, unless in the `run` itself."""
    from segtune.evaluation.evaluation import file_name

    if save is None:
        return None
    path = save if save.suffix == ".npz" else save / file_name(split)
    if path.exists() and (run is None or path != run / file_name(split)) and not resume:
        raise UsageError(f"--save {save}: {path} exists already; remove it or name another file")
    return path


def compare(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="A run folder, or a file of evaluate --save.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="The other one.")],
    split: Annotated[
        str | None, typer.Option(help="Of run folders; by default test where both have it, else val.")
    ] = None,
    group_by: options.GroupOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Tell whether two runs differ on the same images: the difference of mIoU, its interval, what classes changed."""
    from segtune.evaluation import uncertainty
    from segtune.evaluation.evaluation import Evaluation, find_evaluations
    from segtune.viz import terminal

    paths = find_evaluations([run_a, run_b], split)
    first, second = map(Evaluation.load, paths)
    result = {"a": str(paths[0]), "b": str(paths[1])} | uncertainty.compare(first, second, group_by=group_by)
    if as_json:
        say(json.dumps(result))
    else:
        both = zip("AB", paths, (first, second), strict=True)
        names = (f"{letter}: {path}{_how(run)}" for letter, path, run in both)
        terminal.show(*names, terminal.comparison_table(result), *terminal.comparison_lines(result))


def _how(run: Evaluation) -> str:
    """The engine and precision of a run, where they are not PyTorch's usual ones."""
    engine, precision = run.about.get("engine", "torch"), run.about.get("precision", "fp32")
    return "" if (engine, precision) == ("torch", "fp32") else f" ({engine}, {precision})"


def calibrate(
    checkpoint: options.CheckpointArgument,
    recipe: options.RecipeArgument,
    overrides: options.OverridesArgument = None,
    split: Annotated[str, typer.Option(help="train, val or test; one that the model was not trained on.")] = "val",
    as_json: options.JsonOption = False,
    device: options.DeviceOption = None,
) -> None:
    """Fit a temperature that makes confidences honest, and store it in the checkpoint's config.json.

    Predictions stay as they are. Confidences (segtune evaluate, predict) are taken of logits divided by it.
    """
    settings = load_checked(recipe, overrides, checkpoint)
    with importing():
        from segtune.inference.calibrate import config_file, fit_temperature, store_temperature
        from segtune.inference.evaluate_checkpoint import open_checkpoint

    config = config_file(checkpoint)
    hide_bars_of_libraries()
    opened = open_checkpoint(checkpoint, settings, split=split, device=device)
    fit = fit_temperature(opened.model, opened.rows, opened.label_map, opened.processor)
    temperature = round(fit.temperature(), 4)
    store_temperature(config, temperature)
    result = {"checkpoint": checkpoint, "split": split, "pixels": fit.pixels, "temperature": temperature}
    result |= {"nll_before": fit.nll(1.0), "nll": fit.nll(temperature)}
    say(
        json.dumps(result)
        if as_json
        else f"temperature {temperature} on {fit.pixels} pixels of {split}: negative log-likelihood "
        f"{result['nll_before']:.4f} before, {result['nll']:.4f} now; stored in {config}"
    )


def bench(
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="CHECKPOINT", help="Measure this one instead of --variants.")
    ] = None,
    engines: Annotated[bool, typer.Option("--engines", help="OpenVINO and ONNX Runtime as well.")] = False,
    variants: Annotated[str, typer.Option(help="b0 to b5, with commas between them; random weights.")] = "b0",
    size: Annotated[int, typer.Option(min=32, help="Side of the image, in pixels.")] = 512,
    labels: Annotated[int, typer.Option(min=1, help="Of the networks of random weights.")] = 150,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; every round runs every way once.")] = 11,
    as_json: options.JsonOption = False,
) -> None:
    """Time the way from an image to its mask on this machine: transformers and segtune, in PyTorch and in engines.

    All run in one process, one after the other in every round; ratios are medians of those of the rounds.
    """
    with importing():
        from segtune.engines.engine_bench import bench_engines
        from segtune.viz import terminal

    hide_bars_of_libraries()
    names = [None] if checkpoint else [name.strip() for name in variants.split(",")]
    results = []
    for name in names:
        result = bench_engines(name, checkpoint, size=size, labels=labels, repeats=repeats, engines=engines)
        results.append(result)
        if not as_json:
            terminal.show(terminal.bench_table(result))
    if as_json:
        say(json.dumps(results))
