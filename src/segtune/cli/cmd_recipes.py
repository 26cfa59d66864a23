"""`segtune recipes`: list, show or copy the shipped ones; explain their keys."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from segtune.cli.common import add_command, refuse_existing, say
from segtune.cli.options import JsonOption
from segtune.recipe.shipped import RecipeInfo, find_recipe, list_recipes, recipe_name, recipe_table


def application() -> typer.Typer:
    recipes = typer.Typer(rich_markup_mode=None)
    recipes.callback(invoke_without_command=True, help="List, show or copy the shipped recipes; explain their keys.")(
        _list
    )
    add_command(recipes, show)
    add_command(recipes, copy)
    add_command(recipes, keys)
    add_command(recipes, schema)
    return recipes


def _list(
    context: typer.Context,
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table of recipes/README.md.")] = False,
    as_json: JsonOption = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    recipes = list_recipes()
    if markdown:
        typer.echo(recipe_table(recipes), nl=False)
    elif as_json:
        typer.echo(json.dumps({"recipes": [recipe.to_dict() for recipe in recipes]}))
    else:
        from segtune.viz import terminal

        terminal.show(
            terminal.recipe_table([{**recipe.to_dict(), "name": recipe.short_name} for recipe in recipes]),
            *_hints(recipes),
        )


def _hints(recipes: Sequence[RecipeInfo]) -> Iterator[str]:
    templates = [recipe.name for recipe in recipes if recipe.is_template]
    yield f"{len(recipes)} recipes; {len(templates)} of them are templates for your own data: {', '.join(templates)}"
    yield "checked: against the data itself, or a small copy with the published layout, types of files and mask values"
    yield ""
    yield "segtune recipes show NAME             prints one: what to download, cost, result, sources of its facts"
    yield "segtune recipes copy NAME mine.yaml   makes it your own, to be edited"
    yield "segtune recipes keys training         explains the settings of a section; without a name, all of them"
    yield "segtune doctor mine.yaml              says whether the data is what the recipe takes it for"
    yield "segtune train mine.yaml"


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
    target = destination / f"{recipe_name(source)}.yaml" if destination.is_dir() else destination
    refuse_existing(target, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    say(f"{target}")


def keys(
    section: Annotated[
        str, typer.Argument(metavar="SECTION", help="Such as training, training.loss or training.seed; default all.")
    ] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="As the tables of docs/recipe.md.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Explain the keys of a recipe: the type, the default, and what each does."""
    from segtune.recipe.schema import list_settings, settings_as_markdown
    from segtune.viz import terminal

    settings = list_settings(section)
    if markdown:
        typer.echo(settings_as_markdown(settings), nl=False)
    elif as_json:
        typer.echo(json.dumps({"keys": settings}))
    else:
        legend = "† may take another value when a run goes on with training.resume=auto"
        terminal.show(terminal.settings_table(settings), legend)


def schema() -> None:
    """Print the JSON schema of a recipe, by which editors complete and check one."""
    from segtune.recipe.schema import json_schema

    typer.echo(json_schema(), nl=False)
