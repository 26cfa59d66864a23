"""The JSON schema of a recipe, and the list of its settings: both are made from the models of the sections."""

from __future__ import annotations

import html
import itertools
import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from segtune.config import StrictModel, may_change_on_resume, walk_fields
from segtune.errors import UsageError
from segtune.recipe.recipe import Recipe
from segtune.recipe.validation import dotted, expected, nearest, show


class _Untitled(GenerateJsonSchema):
    """Without the title that pydantic makes from the name of each field."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> str:
    """The text of `recipe.schema.json`, shipped beside this module, by which editors complete and check a recipe."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Recipe.model_json_schema(schema_generator=_Untitled),
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def list_settings(prefix: str = "") -> list[dict[str, Any]]:
    """The settings of a recipe in their order, each as a JSON-able mapping.

    Args:
        prefix: a section (`training`), a section in it (`training.loss`) or a key; by default all settings are listed.

    Returns:
        `key`, `type` (in the words of error messages), `default`, `required`, `may_change_on_resume`, `description`.

    Raises:
        UsageError: there is no such section or key.
    """
    found = [
        {
            "key": dotted(keys),
            "type": expected(field.annotation),
            "default": None if field.is_required() else _plain(field.default),
            "required": field.is_required(),
            "may_change_on_resume": may_change_on_resume(field),
            "description": field.description,
        }
        for keys, field in walk_fields(Recipe)
        if len(keys) > 1 and f"{dotted(keys)}.".startswith(f"{prefix}." if prefix else "")
    ]
    if not found:
        close = nearest(tuple(prefix.split(".")), Recipe)
        hint = f"did you mean '{dotted(close)}'?" if close else f"sections are {', '.join(Recipe.model_fields)}"
        raise UsageError(f"'{prefix}': a recipe has no such section or key; {hint}")
    return found


def settings_as_markdown(settings: list[dict[str, Any]]) -> str:
    """A table for each section, under its name and what it is for, as `docs/recipe.md` holds them.

    A dagger marks the settings of which a run that goes on may take another value.
    """
    lines: list[str] = []
    for section, rows in itertools.groupby(settings, key=lambda row: row["key"].split(".")[0]):
        lines += [f"## `{section}`", "", f"{Recipe.model_fields[section].description}", ""]
        lines += ["| key | type | default | what it does |", "|---|---|---|---|", *map(_markdown_row, rows), ""]
    return "\n".join(lines)


def _markdown_row(row: dict[str, Any]) -> str:
    default = "required" if row["required"] else f"`{show(row['default'])}`"
    mark = " †" if row["may_change_on_resume"] else ""
    cells = f"`{row['key']}`{mark}", row["type"], default, html.escape(row["description"], quote=False)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _plain(value: Any) -> Any:
    return {} if isinstance(value, StrictModel) else json.loads(json.dumps(value))
