"""`segtune report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segtune.cli.common import check_same_labels, load_checkpoint, load_processor, open_data
from segtune.cli.options import BatchOption, DeviceOption, GroupOption, OverridesArgument
from segtune.errors import UsageError


def report(
    source: Annotated[
        str, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder, or a checkpoint's folder or user/name.")
    ],
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Whose data is looked at; default is that of the run.")
    ] = None,
    overrides: OverridesArgument = None,
    split: Annotated[str | None, typer.Option(help="Default: test where the data has it, else val.")] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="HTML", dir_okay=False, help="Default: report.html in the run folder.")
    ] = None,
    group_by: GroupOption = None,
    batch_size: BatchOption = 1,
    device: DeviceOption = None,
) -> None:
    """Write one page about a run or checkpoint: scores with intervals, curves, confusions, pictures, doubtful masks.

    The page holds all it shows: it needs no server and no network.
    """
    from segtune.data.checks import check_masks
    from segtune.data.lazy_rows import sample_ids
    from segtune.data.splits import choose_split
    from segtune.data.streaming import is_stream
    from segtune.evaluation import uncertainty
    from segtune.recipe.recipe import load_recipe
    from segtune.report.gather import find_place, gather
    from segtune.report.page import COMMAND, write_report
    from segtune.training.run_folder import RECIPE_FILE
    from segtune.viz.html import check_page
    from segtune.viz.numbers import number

    place = find_place(source)
    if recipe is None:
        if place.run is None:
            raise UsageError(f"{source} is no run folder: name the RECIPE whose data it is to be tried on")
        recipe = str(place.run / RECIPE_FILE)
    path = output or place.page
    check_page(path, COMMAND, "--output")
    settings = load_recipe(recipe, overrides or ())
    dataset, label_map = open_data(settings.dataset, split)
    split = choose_split(split, dataset, settings.dataset.path)
    uncertainty.units_of(sample_ids(dataset[split]), group_by)
    model = load_checkpoint(place.checkpoint, device)
    check_same_labels(place.checkpoint, model.config, settings.dataset.path, label_map)
    at_hand = {name: rows for name, rows in dataset.items() if not is_stream(rows)}
    facts = gather(
        place,
        model,
        load_processor(place.checkpoint, settings),
        dataset,
        label_map,
        settings.to_yaml(),
        split=split,
        group_by=group_by,
        pixels=check_masks(at_hand, label_map) if settings.dataset.check_masks else None,
        batch_size=batch_size,
    )
    write_report(facts, path)
    typer.echo(f"{facts.split} mIoU {number(facts.scores['mean_iou'])} over {facts.scores['num_images']} images")
    typer.echo(f"report: {path}")
