"""Shipped recipes: where they are and what their first lines say.

Standard library only, so that `segtune recipes` answers at once; `segtune.recipe.recipe` reads the files themselves.
"""

from __future__ import annotations

import difflib
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segtune.errors import UsageError

HEADER_FIELDS = ("command", "cost", "result", "data", "size", "license", "checked", "facts")
SUFFIXES = (".yaml", ".yml")
LAUNCH_CONFIGS = "accelerate"  # this folder holds configurations of `accelerate launch`, which are no recipes
DEFAULT_MODEL = "segformer-b0"
TEMPLATE = "your own"  # what the data line of a template begins with


@dataclass(frozen=True)
class RecipeInfo:
    """A shipped recipe: its name, its file and what its header says ("" for a line that is missing).

    Attributes:
        data: the data set.
        size: its images by split, as published.
        license: of the data, as its authors state it.
        checked: what the recipe has read: "real data"; "real files" where it was a few of them, which a comment counts;
            or "layout" where it was a miniature with the names, sizes and values of the published files.
        facts: what names, ids, colours and numbers of images were compared with.
    """

    name: str
    path: Path
    command: str
    cost: str
    result: str
    data: str
    size: str
    license: str
    checked: str
    facts: str

    @property
    def is_template(self) -> bool:
        """It is for data of the user's own, and is copied and edited first."""
        return self.data.startswith(TEMPLATE)

    @property
    def short_name(self) -> str:
        """What is enough for `find_recipe`."""
        return self.name.removesuffix(f"/{DEFAULT_MODEL}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "path": str(self.path), "template": self.is_template}


def recipe_folder() -> Path:
    """The folder of the shipped recipes: inside the installed package or, in a checkout, `recipes/` at the top."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1] / "recipes"
    if not (package / "recipes").is_dir() and package.parent.name == "src" and checkout.is_dir():
        return checkout
    return package / "recipes"


def read_header(path: Path) -> dict[str, str]:
    """The lines `# command: …`, `# cost: …`, … of HEADER_FIELDS that a recipe opens with, in this order."""
    header = dict.fromkeys(HEADER_FIELDS, "")
    lines = path.read_text(encoding="utf-8").splitlines()
    for field, line in zip(HEADER_FIELDS, lines, strict=False):
        name, _, text = line.removeprefix("#").partition(":")
        if line.startswith("#") and name.strip() == field:
            header[field] = text.strip()
    return header


def list_recipes() -> list[RecipeInfo]:
    """All shipped recipes, sorted by name, templates last; a name is the path below the folder without its suffix."""
    folder = recipe_folder()
    recipes = []
    for path in sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if not name.startswith(f"{LAUNCH_CONFIGS}/"):
            recipes.append(RecipeInfo(name=name, path=path, **read_header(path)))
    return sorted(recipes, key=lambda recipe: recipe.is_template)


def find_recipe(ref: str | Path) -> Path:
    """The file of a recipe given as a path (`my/recipe.yaml`) or as the name of a shipped one.

    A folder's name stands for its only recipe or, of several, for its `segformer-b0`.
    Raises UsageError where there is no such file or name.
    """
    path = Path(ref)
    if path.suffix in SUFFIXES:
        if not path.is_file():
            raise UsageError(f"{ref}: no such recipe file (paths are relative to the current folder)")
        return path
    recipes = {recipe.name: recipe.path for recipe in list_recipes()}
    name = str(ref).strip("/")
    if name in recipes:
        return recipes[name]
    group = [candidate for candidate in recipes if candidate.startswith(f"{name}/")]
    if len(group) > 1 and f"{name}/{DEFAULT_MODEL}" in group:
        group = [f"{name}/{DEFAULT_MODEL}"]
    if len(group) == 1:
        return recipes[group[0]]
    if path.is_file():
        raise UsageError(f"{ref}: a recipe file's name ends in .yaml")
    if str(ref) and path.is_dir() and not group:
        from segtune.training.config import RECIPE_FILE  # here alone: it imports pydantic

        if (path / RECIPE_FILE).is_file():
            raise UsageError(f"{ref} is the folder of a run, and no recipe: did you mean {path / RECIPE_FILE}?")
        raise UsageError(
            f"{ref} is a folder, and no recipe: segtune recipes propose {shlex.quote(str(ref))} -o mine.yaml writes "
            "one for data"
        )
    if path.is_absolute() or str(ref).startswith((".", "~")):
        raise UsageError(f"{ref}: there is no such file or folder")
    raise UsageError(_no_such_recipe(name, group, list_recipes()))


def recipe_name(path: Path) -> str:
    """A short name for runs of a recipe file: `demo`, `camvid-segformer-b0` for shipped ones, else the file's stem."""
    path = path.resolve()
    folder = recipe_folder().resolve()
    return "-".join(path.relative_to(folder).with_suffix("").parts) if path.is_relative_to(folder) else path.stem


def recipe_table(recipes: Sequence[RecipeInfo]) -> str:
    """The Markdown table of `recipes/README.md`, made from the headers."""
    columns = ("data", "size", "license", "checked", "cost", "result")
    rows = [f"| recipe | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for recipe in recipes:
        cells = " | ".join(getattr(recipe, column) for column in columns)
        rows.append(f"| [{recipe.name}]({recipe.name}.yaml) | {cells} |")
    return "\n".join(rows) + "\n"


def _no_such_recipe(name: str, group: Sequence[str], recipes: Sequence[RecipeInfo]) -> str:
    if group:
        return f"'{name}' stands for several recipes; name one: {', '.join(group)}"
    names = [recipe.short_name for recipe in recipes]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    lines = [f"'{name}': no shipped recipe of this name, and no such file or folder{hint}"]
    for title, wanted in (("data sets", False), ("your own data", True)):
        listed = ", ".join(recipe.short_name for recipe in recipes if recipe.is_template == wanted)
        lines += textwrap.wrap(
            f"{title}: {listed or 'none'}", 100, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
        )
    return "\n".join([*lines, "`segtune recipes` says more of them; the name of a recipe's file ends in .yaml"])
