"""`segtune report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from segtune.cli.common import check_before_torch, hide_bars_of_libraries, importing, say
from segtune.cli.options import BatchOption, DeviceOption, EngineOption, GroupOption, OverridesArgument
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
    engine: EngineOption = "torch",
) -> None:
    """Write one page about a run or checkpoint: scores with intervals, curves, confusions, pictures, doubtful masks.

    The page holds all it shows: it needs no server and no network.
    """
    from segtune.training.config import RECIPE_FILE

    if not (Path(source) / RECIPE_FILE).is_file():
        _refuse_run_without_recipe(Path(source))
        check_before_torch(checkpoint=source)
    with importing():
        from segtune.data.checks import check_masks
        from segtune.data.streaming import is_stream
        from segtune.inference.evaluate_checkpoint import open_checkpoint
        from segtune.recipe.recipe import load_recipe
        from segtune.report.gather import find_subject, gather
        from segtune.report.page import COMMAND, write_report
        from segtune.viz.html import check_page
        from segtune.viz.numbers import number

    subject = find_subject(source)
    if recipe is None:
        if subject.run is None:
            raise UsageError(f"{source} is no run folder: name the RECIPE whose data it is to be tried on")
        recipe = str(subject.run / RECIPE_FILE)
    path = output or subject.page
    check_page(path, COMMAND, "--output")
    settings = load_recipe(recipe, overrides or ())
    hide_bars_of_libraries()
    how: dict[str, Any] = {"device": device, "engine": engine}
    opened = open_checkpoint(subject.checkpoint, settings, split=split, group_by=group_by, **how)
    at_hand = {name: rows for name, rows in opened.dataset.items() if not is_stream(rows)}
    pixels = check_masks(at_hand, opened.label_map) if settings.dataset.check_masks else None
    facts = gather(subject, opened, settings.to_yaml(), group_by=group_by, pixels=pixels, batch_size=batch_size)
    write_report(facts, path)
    say(f"{facts.split} mIoU {number(facts.scores['mean_iou'])} over {facts.scores['num_images']} images")
    say(f"report: {path}")


def _refuse_run_without_recipe(folder: Path) -> None:
    if not folder.is_dir():
        return
    from segtune.training.run_folder import BEST, FINAL, RECIPE_FILE, STATES  # imports torch, which takes seconds

    weights = [folder / name for name in (BEST, FINAL) if (folder / name).is_dir()]
    if weights:
        raise UsageError(
            f"{folder} has no {RECIPE_FILE}: restore it (each training state in {STATES}/ has a copy), or name the "
            f"weights, {weights[0]}, and a RECIPE whose data they are tried on"
        )
