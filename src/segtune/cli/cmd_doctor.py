"""`segtune doctor`."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segtune.cli.common import hide_bars_of_libraries, importing, load_checked, say
from segtune.cli.options import DeviceOption, JsonOption, OverridesArgument
from segtune.errors import listed, printable

if TYPE_CHECKING:
    from segtune.doctor.examine import Diagnosis


def doctor(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|PATH", help="A recipe, or a folder of images and masks.")],
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
    html: Annotated[
        Path | None, typer.Option(metavar="PAGE", dir_okay=False, help="Also write one page with pictures.")
    ] = None,
    split_file: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write a split without the faulty samples.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="A trained model that is asked for label issues: runs/demo/best.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Also try the recipe's model on a few samples.")] = False,
    device: DeviceOption = None,
) -> None:
    """Look for faults in a data set before it is trained on; each finding says what fixes it. Exit code 1: errors."""
    settings = load_checked(recipe, overrides, checkpoint, or_data=True)
    with importing():
        from segtune.doctor import examine
        from segtune.doctor.page import COMMAND, write_doctor_page
        from segtune.viz.html import check_page

    hide_bars_of_libraries()
    if html:
        check_page(html, COMMAND, "--html")
    if split_file:
        examine.refuse_split_file(split_file)
    diagnosis = examine.examine(settings, try_model=dry_run, checkpoint=checkpoint, device=device)
    typer.echo(json.dumps(diagnosis.to_dict()) if as_json else "\n".join(finding_lines(diagnosis)))
    if html:
        write_doctor_page(diagnosis, html)
        say(f"page: {html}", err=as_json)
    if split_file:
        kept = examine.save_usable_split(diagnosis, split_file)
        left = ", ".join(f"{number} {split}" for split, number in kept.items())
        say(f"split file: {split_file} ({left}); use it with dataset.split_file={split_file}", err=as_json)
    if diagnosis.count("error"):
        raise typer.Exit(1)


def finding_lines(diagnosis: Diagnosis, least: str = "info", limit: int = 3) -> Iterator[str]:
    """The findings as text, each with its first files and what fixes it.

    Args:
        least: the severity from which on findings are shown.
    """
    from segtune.doctor.findings import SEVERITIES, sentence
    from segtune.viz.numbers import count

    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    colors = {"error": "red", "warning": "yellow", "info": "blue"}
    shown = SEVERITIES[: SEVERITIES.index(least) + 1]
    for finding in (each for each in diagnosis.findings if each.severity in shown):
        title = typer.style(f"{finding.severity:<9}", fg=colors[finding.severity], bold=True)
        yield title + typer.style(finding.code, bold=True)
        yield from _indented(sentence(finding.message), width)
        if finding.files:
            yield from _indented(f"in {listed(finding.files, limit)}", width)
        for line in finding.fix:
            yield from _indented(f"→ {line}", width)
        yield ""
    yield f"{diagnosis.case.index.root}: " + ", ".join(f"{n} {split}" for split, n in diagnosis.samples.items())
    yield f"{count(diagnosis.count('error'), 'error')}, {count(diagnosis.count('warning'), 'warning')}"
    if any(finding.drop for finding in diagnosis.findings):
        yield "faulty samples can be left out: --split-file FILE, then dataset.split_file=FILE"


def _indented(text: str, width: int) -> list[str]:
    return textwrap.wrap(
        printable(text), width, initial_indent=" " * 9, subsequent_indent=" " * 9, break_on_hyphens=False
    )
