"""`segtune bench`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from segtune.cli import options
from segtune.cli.common import hide_bars_of_libraries, say


def bench(
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="CHECKPOINT", help="Measure this one instead of --variants.")
    ] = None,
    engines: Annotated[bool, typer.Option("--engines", help="OpenVINO and ONNX Runtime as well.")] = False,
    variants: Annotated[str, typer.Option(help="b0 to b5, with commas between them; random weights.")] = "b0",
    size: Annotated[int, typer.Option(min=32, help="Side of the image, in pixels.")] = 512,
    labels: Annotated[int, typer.Option(min=1, help="Of the networks of random weights.")] = 150,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; every round runs every way once.")] = 11,
    as_json: options.JsonOption = False,
) -> None:
    """Time the way from an image to its mask on this machine: transformers and segtune, in PyTorch and in engines.

    All run in one process, one after the other in every round; ratios are medians of those of the rounds.
    """
    from segtune.engines.engine_bench import bench_engines
    from segtune.viz import terminal

    hide_bars_of_libraries()
    names = [None] if checkpoint else [name.strip() for name in variants.split(",")]
    results = []
    for name in names:
        result = bench_engines(name, checkpoint, size=size, labels=labels, repeats=repeats, engines=engines)
        results.append(result)
        if not as_json:
            terminal.show(terminal.bench_table(result))
    if as_json:
        say(json.dumps(results))
