"""`segtune recipes`: list, show or copy the shipped ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from segtune.catalog import find_recipe, list_recipes, recipe_table
from segtune.commands.opening import refuse_existing


def application() -> typer.Typer:
    recipes = typer.Typer(rich_markup_mode=None)
    recipes.callback(invoke_without_command=True, help="List, show or copy the shipped recipes.")(_list)
    recipes.command()(show)
    recipes.command()(copy)
    return recipes


def _list(
    context: typer.Context,
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table of recipes/README.md.")] = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    if markdown:
        typer.echo(recipe_table(list_recipes()), nl=False)
        return
    for recipe in list_recipes():
        typer.echo(f"{recipe.name}\n  command  {recipe.command}\n  cost     {recipe.cost}\n  result   {recipe.result}")


def show(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a recipe."""
    typer.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)


def copy(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A file or a folder.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Copy a recipe, to change it: by default into the current folder."""
    source = find_recipe(name)
    target = destination / source.name if destination.is_dir() else destination
    refuse_existing(target, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    typer.echo(f"{target}")
