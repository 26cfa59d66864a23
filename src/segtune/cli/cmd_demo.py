"""`segtune demo`: not the recipe `demo`, which trains on the embedded tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segtune.cli import options
from segtune.cli.common import check_before_torch, hide_bars_of_libraries, importing, say


def demo(
    checkpoint: options.CheckpointArgument,
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0: all of this machine, for anybody who reaches it.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Default: the first free one from 7860; 0: any free one.")
    ] = None,
    window: options.WindowOption = None,
    stride: options.StrideOption = None,
    tta: options.TtaOption = False,
    examples: Annotated[
        list[Path] | None,
        typer.Option("--example", metavar="IMAGE", help="A picture to try; again for more. Default: the run's data."),
    ] = None,
    no_examples: Annotated[bool, typer.Option("--no-examples", help="Show no pictures of the run's data.")] = False,
    max_mb: Annotated[float, typer.Option(min=0, help="Refuse files that are larger, in MB.")] = 50.0,
    max_megapixels: Annotated[float, typer.Option(min=0, help="Refuse pictures of more million pixels.")] = 50.0,
    max_seconds: Annotated[float, typer.Option(min=0, help="Stop what computes for longer.")] = 300.0,
    batch_size: options.BatchOption = 1,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = "auto",
    engine: options.EngineOption = "torch",
) -> None:
    """Serve a web page that segments pictures with a checkpoint, and the same for programs.

    Ctrl-C ends it. (`segtune train demo` is another thing: a training on the satellite tiles that come with segtune.)
    """
    check_before_torch(checkpoint=checkpoint)
    with importing():
        from segtune.training.interrupts import Interrupted
        from segtune.webdemo.request import Limits
        from segtune.webdemo.server import demo as serve

    hide_bars_of_libraries()
    try:
        server = serve(
            checkpoint,
            host=host,
            port=port,
            window=window,
            stride=stride,
            tta=tta,
            batch_size=batch_size,
            device=device,
            precision=precision,
            engine=engine,
            examples=[] if no_examples else examples or None,
            limits=Limits(max_mb, max_megapixels, max_seconds),
        )
        with server:
            say(f"the demo of {checkpoint} is at {server.url} (Ctrl-C ends it)")
            server.wait()
    except Interrupted:
        say("ended")
