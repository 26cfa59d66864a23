"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

RecipeOrPathArgument = Annotated[
    str, typer.Argument(metavar="RECIPE|PATH", help="A recipe, or the folder (or zip) of a data set.")
]
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file or a shipped recipe's name.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="section.key=value", help="Changes to the recipe.")
]
CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A folder such as runs/demo/best, or user/name[@revision].")
]
OverlaysOption = Annotated[
    Path | None, typer.Option(metavar="DIR", file_okay=False, help="Save image | truth | prediction here.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, mps, …; by default the best there is.")]
PrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    typer.Option(help="What the network computes in; auto: half precision on GPUs made for it, fp32 elsewhere."),
]
EngineOption = Annotated[
    Literal["torch", "openvino", "onnxruntime"],
    typer.Option(help="What runs the network; openvino and onnxruntime are faster on CPUs, and read exported files."),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Images, or windows of one, in a forward pass.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
GroupOption = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX", help="Resample groups of images whose ids agree in what this finds (a video, a tile)."
    ),
]
WindowOption = Annotated[
    int | None,
    typer.Option(min=0, help="Side of the windows an image is cut into; 0: none. Default: as the checkpoint says."),
]
StrideOption = Annotated[int | None, typer.Option(min=1, help="From window to window; default: 3/4 of --window.")]
TtaOption = Annotated[bool, typer.Option("--tta", help="Average over six scales and their mirror images: 12 passes.")]
BudgetOption = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="What the whole training of a data set's path may take: 30m, 2h."),
]
