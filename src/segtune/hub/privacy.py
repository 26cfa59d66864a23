"""Local paths in what is pushed: where files lie on this machine, and whose they are, is told to nobody."""

from __future__ import annotations

import html
import re
from pathlib import Path

import yaml

from segtune.evaluation.evaluation import Evaluation, file_name
from segtune.hub.licenses import hub_id
from segtune.training.run_folder import RECIPE_FILE, REPORT_FILE

# what report/templates/page.html makes of a recipe
_RECIPE_IN_PAGE = re.compile(rf"(<summary>{re.escape(RECIPE_FILE)}</summary><pre>)(.*?)(?=</pre>)", re.DOTALL)


def make_public(folder: Path) -> None:
    """Rewrite recipe, report and evaluations in a folder that is about to be pushed, without local paths."""
    recipe, report = folder / RECIPE_FILE, folder / REPORT_FILE
    recipe.write_text(without_local_paths(recipe.read_text(encoding="utf-8")), encoding="utf-8")
    if report.is_file():
        page = _RECIPE_IN_PAGE.sub(_public_recipe, report.read_text(encoding="utf-8"))
        report.write_text(page, encoding="utf-8")
    for path in folder.glob(file_name("*")):
        evaluation = Evaluation.load(path)
        for key in ("checkpoint", "recipe"):
            if key in evaluation.about:
                evaluation.about[key] = public_name(evaluation.about[key])
        evaluation.save(path)


def _public_recipe(found: re.Match[str]) -> str:
    return found[1] + html.escape(without_local_paths(html.unescape(found[2])))


def public_name(name: str) -> str:
    """A Hub id as it is; of a folder its last part, with its run's before best/ or final/."""
    parts = Path(name).parts
    return name if hub_id(name) else "/".join(parts[-2:] if parts[-1] in ("best", "final") else parts[-1:])


def without_local_paths(recipe: str) -> str:
    """A recipe's text with the last part alone of each path that is absolute or leads upwards."""
    found = []  # value, start and end in the text
    for event in yaml.parse(recipe):
        if isinstance(event, yaml.ScalarEvent) and _is_local(event.value) and event.start_mark and event.end_mark:
            found.append((event.value, event.start_mark.index, event.end_mark.index))
    names = {value: re.split(r"[/\\]", value.rstrip("/\\"))[-1] for value, _, _ in found}
    for value, start, end in reversed(found):  # from the end, so that the places of those before stay right
        name = yaml.safe_dump([names[value]], default_flow_style=True, allow_unicode=True, width=10_000)[1:-2]
        recipe = recipe[:start] + name + recipe[end:]
    for value in sorted(names, key=len, reverse=True):
        recipe = re.sub(rf"(#.*){re.escape(value)}", rf"\g<1>{names[value]}", recipe)  # in a comment
    return recipe


def _is_local(text: str) -> bool:
    return re.match(r"/.|~[^/\\]*[/\\]|[A-Za-z]:[/\\]|\\\\|(\.[/\\])?\.\.[/\\].", text) is not None
