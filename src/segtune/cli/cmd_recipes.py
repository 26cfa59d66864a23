"""`segtune recipes`: list, show or copy the shipped ones; propose one for data; explain their keys."""

from __future__ import annotations

import json
import shlex
import shutil
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segtune.cli.cmd_doctor import finding_lines
from segtune.cli.common import add_command, hide_bars_of_libraries, importing, load_checked, refuse_existing, say
from segtune.cli.options import BudgetOption, JsonOption, OverridesArgument
from segtune.errors import UsageError, printable
from segtune.recipe.shipped import RecipeInfo, find_recipe, list_recipes, recipe_name, recipe_table

if TYPE_CHECKING:
    from segtune.proposal.propose import Proposal

TOPIC = 15  # columns of what is chosen, before the choice


def application() -> typer.Typer:
    recipes = typer.Typer(rich_markup_mode=None)
    recipes.callback(
        invoke_without_command=True,
        help="List, show, copy or propose recipes; explain their keys.",
    )(_list)
    add_command(recipes, show)
    add_command(recipes, copy)
    add_command(recipes, propose)
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
    yield "segtune recipes propose data/mine    writes one for data, with the reason for each choice"
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


def propose(
    path: Annotated[str, typer.Argument(metavar="PATH", help="The folder, file or zip of a data set, or hub://…")],
    overrides: OverridesArgument = None,
    budget: BudgetOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", dir_okay=False, help="By default it is printed.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a recipe for data, with the reason for each choice. Exit code 1: the doctor has found errors in it."""
    from segtune.recipe.recipe import is_data

    if not is_data(path):
        raise UsageError(f"{path} is a recipe already; a folder of data that has the name of one is ./{path}")
    if output is not None:
        refuse_existing(output, force)
    proposal = propose_recipe(path, overrides, budget)
    if output is None:
        typer.echo(proposal.text(), nl=False)
        return
    from segtune.files import write_atomic

    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(output, proposal.text())
    typer.echo("\n".join(proposal_lines(proposal)))
    say(f"recipe: {output}\nnext: {shlex.join(['segtune', 'train', str(output)])}")


def propose_recipe(
    path: str, overrides: Sequence[str] | None, budget: str | None, started: float | None = None
) -> Proposal:
    """A recipe for the data at a path; where the doctor finds errors in it, these are printed, and the command ends.

    Args:
        started: when the command began that also trains; None: another one will.

    Raises:
        typer.Exit: with 1, for errors in the data.
        UsageError: see `load_checked` and `proposal.propose.propose`.
    """
    if budget is not None:
        refuse_budget(budget)
    settings = load_checked(path, overrides, or_data=True, trains=True)
    with importing():
        from segtune.doctor.examine import examine
        from segtune.proposal.propose import propose as propose_settings

    hide_bars_of_libraries()
    began = time.monotonic()
    diagnosis = examine(settings)
    took = time.monotonic() - began
    if diagnosis.count("error"):
        typer.echo("\n".join(finding_lines(diagnosis, least="error")))
        raise typer.Exit(1)
    return propose_settings(settings, diagnosis, budget=budget, started=started, examining=took)


def refuse_budget(budget: str) -> None:
    """Raise UsageError where a budget is no duration."""
    from segtune.training.interrupts import seconds

    try:
        seconds(budget)
    except ValueError as error:
        raise UsageError(f"--budget {error}") from None


def proposal_lines(proposal: Proposal) -> Iterator[str]:
    """What was recognised and chosen, and why: a few lines each."""
    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    told = [("data", proposal.recognised), *((c.topic, f"{c.shown}: {c.reason}") for c in proposal.choices)]
    for topic, text in told:
        indent = " " * TOPIC
        lines = textwrap.wrap(printable(text), width, initial_indent=indent, subsequent_indent=indent)
        yield typer.style(f"{topic:<{TOPIC}}", bold=True) + "\n".join(lines)[TOPIC:]
