"""`segtune bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from segtune.cli.common import hide_bars_of_libraries
from segtune.cli.options import BatchOption, JsonOption
from segtune.errors import UsageError


def bench(
    variants: Annotated[str, typer.Option(help="Of the network, separated by commas: b0 to b5.")] = "b0",
    checkpoint: Annotated[str | None, typer.Option(help="A checkpoint instead of random weights.")] = None,
    size: Annotated[int, typer.Option(min=1, help="Side of the square input, pixels.")] = 512,
    labels: Annotated[int, typer.Option(min=1, help="Classes.")] = 150,
    batch_size: BatchOption = 1,
    train_batch_size: Annotated[int, typer.Option(min=1, help="Images in a training step.")] = 1,
    dtype: Annotated[str, typer.Option(help="fp32, or bf16 for autocast.")] = "fp32",
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, …")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="Pairs of timings.")] = 7,
    compile_too: Annotated[bool, typer.Option("--compile", help="Also time our forward under torch.compile.")] = False,
    as_json: JsonOption = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", dir_okay=False, help="Also draw time and memory against the size.")
    ] = None,
    plot_sizes: Annotated[str, typer.Option(help="Sides for --plot, separated by commas.")] = "256,512,1024,2048",
) -> None:
    """Compare with transformers' SegFormer on the same weights, side by side: time, memory, work, equality."""
    from segtune import bench as benches

    hide_bars_of_libraries()
    settings = [
        benches.Bench(
            variant, checkpoint, size, labels, batch_size, train_batch_size, dtype, device, repeats, compile_too
        )
        for variant in ([variants] if checkpoint else variants.lower().split(","))
    ]
    sizes = _integers(plot_sizes, "--plot-sizes")
    results = benches.run_benches(settings)
    curve = benches.cost_curve(settings[0], sizes) if plot else None
    if plot and curve:
        benches.plot_curve(curve, f"SegFormer {settings[0].name}, {labels} labels, {dtype}, {device}", plot)
    typer.echo(json.dumps({"results": results, "curve": curve}) if as_json else benches.table(results))
    if plot:
        typer.echo(f"cost curve: {plot}", err=as_json)


def _integers(text: str, option: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text}: whole numbers separated by commas, such as 256,512") from None
