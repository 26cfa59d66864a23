"""`segtune data preview` and `segtune data convert`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from segtune.cli.common import add_command, load_checked, refuse_existing, say
from segtune.cli.options import JsonOption, OverridesArgument, RecipeOrPathArgument
from segtune.errors import UsageError


def application() -> typer.Typer:
    data = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    data.callback(help="Look at the data of a recipe, or write it in another form.")(lambda: None)
    add_command(data, preview)
    add_command(data, convert)
    return data


def preview(
    recipe: RecipeOrPathArgument,
    overrides: OverridesArgument = None,
    output: Annotated[Path, typer.Option(metavar="PNG", dir_okay=False, help="Where the sheet goes.")] = Path(
        "preview.png"
    ),
    count: Annotated[int, typer.Option(min=1, help="Training samples.")] = 16,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Draw the first training samples of a run as it will see them: cropped, augmented, with their classes."""
    from segtune.recipe.recipe import with_channels

    settings = load_checked(recipe, overrides, or_data=True)
    refuse_existing(output, force)
    from segtune.data.dataset import open_dataset
    from segtune.viz.overlay import preview

    dataset, label_map = open_dataset(settings.dataset)
    if "train" not in dataset:
        raise UsageError(f"{settings.dataset.path}: no training images, only {', '.join(dataset)}")
    settings = with_channels(settings, dataset["train"])
    sheet = preview(dataset["train"], label_map, settings.transforms, seed=settings.training.seed, count=count)
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(output, format="PNG")
    say(f"{output}")


def convert(
    recipe: RecipeOrPathArgument,
    overrides: OverridesArgument = None,
    to: Annotated[
        str, typer.Option(metavar="FORM", help="folder, parquet, or hub: parquet, then uploaded.")
    ] = "folder",
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Where it is written; for hub: converted/REPO.")
    ] = None,
    repo: Annotated[str | None, typer.Option(metavar="USER/NAME", help="The Hub's data set repository.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    tile: Annotated[int | None, typer.Option(min=32, help="Cut larger images into tiles of this side, pixels.")] = None,
    overlap: Annotated[int, typer.Option(min=0, help="Of neighbouring tiles of the training split, pixels.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; by default one for each processor.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a data set anew: id masks, images as they are, labels.json, a data card. Goes on where it was stopped."""
    if to not in ("folder", "parquet", "hub"):
        raise UsageError(f"--to {to}: folder, parquet or hub")
    if (to == "hub") != (repo is not None):
        raise UsageError("--to hub needs --repo USER/NAME" if to == "hub" else "--repo goes with --to hub")
    folder = output or (Path("converted") / repo if repo else None)
    if folder is None:
        raise UsageError("--output DIR: name the folder to write")
    settings = load_checked(recipe, overrides, or_data=True)
    from segtune.data.convert import convert as conversions
    from segtune.data.convert.dataset_card import Origin
    from segtune.data.dataset import open_dataset

    conversion = conversions.Conversion(
        *open_dataset(settings.dataset.model_copy(update={"streaming": False})),
        folder,
        "folder" if to == "folder" else "parquet",
        tile,
        overlap,
        workers or os.cpu_count() or 1,
        Origin.of(settings.dataset.path),
    )
    counts = conversions.convert(conversion)
    result: dict[str, Any] = {"output": str(folder), "samples": {split: n.samples for split, n in counts.items()}}
    if repo:
        from segtune.hub.push import push_folder

        message = "Upload with segtune data convert"
        result["repo"] = push_folder(folder, repo, "dataset", private=private, message=message)
    shown = ", ".join(f"{samples} {split}" for split, samples in result["samples"].items())
    where = result.get("repo", folder)
    say(json.dumps(result) if as_json else f"{shown} in {where} ({conversions.CARD} describes them)")
