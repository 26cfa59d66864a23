"""`segtune evaluate`, `compare` and `calibrate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from segtune.cli.common import check_same_labels, load_checkpoint, load_processor, open_split
from segtune.cli.options import (
    BatchOption,
    CheckpointArgument,
    DeviceOption,
    GroupOption,
    JsonOption,
    OverlaysOption,
    OverridesArgument,
    RecipeArgument,
    StrideOption,
    TtaOption,
    WindowOption,
)
from segtune.errors import UsageError


def evaluate(
    checkpoint: CheckpointArgument,
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    as_json: JsonOption = False,
    save: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Keep the counts of each image: a run folder, or a file ending in .npz."),
    ] = None,
    group_by: GroupOption = None,
    boundary_width: Annotated[
        float, typer.Option(min=0, max=1, help="Of the band of boundary IoU, as a share of the image's diagonal.")
    ] = 0.02,
    overlays: OverlaysOption = None,
    limit_overlays: Annotated[int, typer.Option(min=1, help="How many overlays, spread over the split.")] = 12,
    window: WindowOption = None,
    stride: StrideOption = None,
    tta: TtaOption = False,
    batch_size: BatchOption = 1,
    device: DeviceOption = None,
) -> None:
    """Score a checkpoint on one split of a recipe's dataset, at the masks' own size, with error bars.

    Intervals are bootstrap intervals over images or, with --group-by, over groups of them.
    """
    from segtune.data.lazy_rows import sample_ids
    from segtune.evaluation import uncertainty
    from segtune.evaluation.evaluation import Evaluation
    from segtune.inference.evaluate import evaluate_model
    from segtune.inference.protocol import InferenceProtocol
    from segtune.recipe.recipe import load_recipe
    from segtune.viz import terminal
    from segtune.viz.comparisons import Comparisons

    settings = load_recipe(recipe, overrides or ())
    rows, label_map = open_split(settings.dataset, split)
    ids = sample_ids(rows)
    uncertainty.units_of(ids, group_by)
    kept = _file_to_save(save, split)
    model = load_checkpoint(checkpoint, device)
    check_same_labels(checkpoint, model.config, settings.dataset.path, label_map)
    pictures = Comparisons(overlays, label_map, ids, limit_overlays) if overlays else None
    processor = load_processor(checkpoint, settings)
    protocol = InferenceProtocol.choose(processor, window, stride, tta)
    about = {"checkpoint": checkpoint, "recipe": recipe, "split": split, "protocol": str(protocol)}
    evaluation = Evaluation(label_map.names, label_map.ignore_index, detailed=True, boundary_width=boundary_width)
    evaluation.about = about | {"calibration_temperature": model.config.calibration_temperature}
    evaluate_model(
        model,
        rows,
        label_map,
        processor,
        evaluation=evaluation,
        protocol=protocol,
        batch_size=batch_size,
        on_image=pictures.save if pictures else None,
    )
    result = about | evaluation.scores() | {"intervals": uncertainty.intervals(evaluation, group_by=group_by)}
    if kept:
        evaluation.save(kept)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        terminal.show(terminal.evaluation_table(result), *terminal.evaluation_lines(result))
    if kept:
        typer.echo(f"counts of each image: {kept}", err=as_json)
    if pictures:
        pictures.save_overview()
        typer.echo(f"overlays: {overlays} (overview.png first)", err=as_json)


def _file_to_save(save: Path | None, split: str) -> Path | None:
    """The file that --save names; refused before the work where it is there already."""
    from segtune.evaluation.evaluation import file_name

    if save is None:
        return None
    path = save if save.suffix == ".npz" else save / file_name(split)
    if path.exists():
        raise UsageError(f"--save {save}: {path} exists already; remove it or name another file")
    return path


def compare(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="A run folder, or a file of evaluate --save.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="The other one.")],
    split: Annotated[
        str | None, typer.Option(help="Of run folders; by default test where both have it, else val.")
    ] = None,
    group_by: GroupOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell whether two runs differ on the same images: the difference of mIoU, its interval, what classes changed."""
    from segtune.evaluation import uncertainty
    from segtune.evaluation.evaluation import Evaluation, find_evaluations
    from segtune.viz import terminal

    paths = find_evaluations([run_a, run_b], split)
    first, second = map(Evaluation.load, paths)
    result = {"a": str(paths[0]), "b": str(paths[1])} | uncertainty.compare(first, second, group_by=group_by)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        names = (f"{letter}: {path}" for letter, path in zip("AB", paths, strict=True))
        terminal.show(*names, terminal.comparison_table(result), *terminal.comparison_lines(result))


def calibrate(
    checkpoint: CheckpointArgument,
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    split: Annotated[str, typer.Option(help="train, val or test; one that the model was not trained on.")] = "val",
    as_json: JsonOption = False,
    device: DeviceOption = None,
) -> None:
    """Fit a temperature that makes confidences honest, and store it in the checkpoint's config.json.

    Predictions stay as they are. Confidences (segtune evaluate, predict) are taken of logits divided by it.
    """
    from segtune.inference.calibrate import config_file, fit_temperature, store_temperature
    from segtune.recipe.recipe import load_recipe

    settings = load_recipe(recipe, overrides or ())
    rows, label_map = open_split(settings.dataset, split)
    config = config_file(checkpoint)
    model = load_checkpoint(checkpoint, device).eval()
    check_same_labels(checkpoint, model.config, settings.dataset.path, label_map)
    fit = fit_temperature(model, rows, label_map, load_processor(checkpoint, settings))
    temperature = round(fit.temperature(), 4)
    store_temperature(config, temperature)
    result = {"checkpoint": checkpoint, "split": split, "pixels": fit.pixels, "temperature": temperature}
    result |= {"nll_before": fit.nll(1.0), "nll": fit.nll(temperature)}
    typer.echo(
        json.dumps(result)
        if as_json
        else f"temperature {temperature} on {fit.pixels} pixels of {split}: negative log-likelihood "
        f"{result['nll_before']:.4f} before, {result['nll']:.4f} now; stored in {config}"
    )
