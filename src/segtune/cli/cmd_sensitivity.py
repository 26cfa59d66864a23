"""`segtune sensitivity`."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from segtune.cli import options
from segtune.cli.common import hide_bars_of_libraries, load_checked, say
from segtune.errors import UsageError


def sensitivity(
    checkpoint: options.CheckpointArgument,
    recipe: options.RecipeArgument,
    overrides: options.OverridesArgument = None,
    to: Annotated[
        Literal["onnx", "openvino"], typer.Option(help="Quantise and run by ONNX Runtime, or by nncf and OpenVINO.")
    ] = "onnx",
    split: Annotated[str | None, typer.Option(help="Of the data; by default test where it has it, else val.")] = None,
    images: Annotated[int, typer.Option(min=2, help="Images of the split that are compared, spread over it.")] = 20,
    calibration: Annotated[int, typer.Option(min=1, help="Images of the training split that set the ranges.")] = 32,
    agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Share of pixels that a file must share with fp32 to be recommended.")
    ] = 0.99,
    as_json: options.JsonOption = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a table for documents.")] = False,
) -> None:
    """Tell which layers may be computed in int8, and whether int8 is worth it for a checkpoint on this machine.

    Each kind of layer is quantised alone, then all but it: agreement with float32, the loss of true mIoU with its
    interval (paired bootstrap), time as a share of that of float32 in turns. A table takes minutes.
    """
    if as_json and markdown:
        raise UsageError("give --json or --markdown, not both")
    settings = load_checked(recipe, overrides, checkpoint)
    from segtune.export import sensitivity as measure
    from segtune.viz import terminal

    hide_bars_of_libraries()
    found = measure.sensitivity(
        checkpoint,
        settings,
        runtime="openvino" if to == "openvino" else "onnxruntime",
        split=split,
        images=images,
        calibration=calibration,
        agreement=agreement,
    )
    if as_json:
        say(json.dumps({"recipe": recipe} | found))
    elif markdown:
        say(measure.sensitivity_markdown(found))
    else:
        terminal.show(terminal.sensitivity_table(list(measure.table_cells(found))))
        for line in measure.summary(found):
            say(line)
