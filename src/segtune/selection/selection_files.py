"""Targets of a selection: what it writes where, and what is refused before anything is computed, without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segtune.errors import UsageError
from segtune.imageio.video import is_video
from segtune.selection.preannotate import Form, check_packages
from segtune.viz.html import check_page

PAGE, TABLE, RECORD = "selection.html", "selection.json", ".survey.jsonl"


def plan(
    images: Sequence[Path | str], output: Path, form: Form | None, *, resume: bool = False, overwrite: bool = False
) -> list[Path]:
    """The images as files.

    Args:
        output: the folder of everything that is written.
        resume, overwrite: what becomes of an earlier selection there.

    Raises:
        UsageError: an image that is no file or is a video, an output that is there, or a missing package.
    """
    for image in images:
        if isinstance(image, str) or is_video(image):
            raise UsageError(f"{image}: select takes files of pictures, which an annotation tool can be given")
    if output.is_file():
        raise UsageError(f"--output {output} is a file: name a folder")
    if form is not None:
        check_packages()
    check_page(output / PAGE, "select", "--output")
    annotations = output / form.tool if form is not None else None
    if annotations is not None and annotations.exists() and not overwrite:
        raise UsageError(
            f"{annotations} exists already, and may hold somebody's work: name another --output, or say --overwrite"
        )
    for path in (output / TABLE, output / RECORD):
        if path.exists() and not (resume or overwrite):
            raise UsageError(
                f"{path} exists already: say --resume to choose from what is known of these images, --overwrite to "
                "begin anew, or name another --output"
            )
    return [Path(image) for image in images]
