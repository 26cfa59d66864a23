"""`segtune select`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from segtune.cli import options
from segtune.cli.common import check_before_torch, hide_bars_of_libraries, importing, say
from segtune.errors import UsageError, listed


def select(
    checkpoint: options.CheckpointArgument,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Image files without labels, folders of them, quoted globs.")
    ],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Images to choose.")] = 50,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the page and the choice go.")
    ] = Path("selection"),
    to: Annotated[
        Literal["labelme", "cvat", "labelstudio", "coco"] | None,
        typer.Option("--to", help="Also write the images with the model's polygons, for this tool, to DIR/TOOL."),
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="With --to: link the images instead of copying them.")] = False,
    simplify: Annotated[float, typer.Option(min=0, help="With --to: let borders move by so many pixels.")] = 1.0,
    min_region: Annotated[
        int, typer.Option(min=0, help="With --to: give regions of fewer pixels to a neighbour.")
    ] = 32,
    breadth: Annotated[
        int,
        typer.Option(min=1, help="Choose the most different among so many times --number; 1: by uncertainty alone."),
    ] = 2,
    window: options.WindowOption = None,
    stride: options.StrideOption = None,
    tta: options.TtaOption = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Look at so many images at most, the first ones.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew, and replace what is there.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Look at no image again that was looked at with this checkpoint.")
    ] = False,
    as_json: options.JsonOption = False,
    batch_size: options.BatchOption = 1,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = "auto",
) -> None:
    """Choose the images that are worth labelling next: those the model is unsure of, no two of which say the same.

    Writes a page of the choice and, with --to, a folder that an annotation tool opens and segtune trains on.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("select runs in one process: start it without accelerate launch or torchrun")
    if overwrite and resume:
        raise UsageError("--overwrite begins anew, --resume goes on: give one of them")
    if link and to is None:
        raise UsageError("--link goes with --to, which says where the images are linked")
    check_before_torch(checkpoint=checkpoint)
    from segtune.inference.outputs import find_images
    from segtune.selection.preannotate import Form
    from segtune.selection.selection_files import plan

    form = None if to is None else Form(to, link, simplify, min_region)
    sources = plan(find_images(images)[:limit], output, form, resume=resume, overwrite=overwrite)
    with importing():
        from segtune.imageio.raster import any_size
        from segtune.inference.open_network import open_network
        from segtune.inference.processor import load_processor
        from segtune.inference.protocol import InferenceProtocol
        from segtune.inference.segmenter import Segmenter
        from segtune.labels.label_map import LabelMap
        from segtune.selection.encoder_features import PooledFeatures
        from segtune.selection.select_images import select_images

    hide_bars_of_libraries()
    with any_size():
        network = open_network(checkpoint, device, "torch", precision)
        processor = load_processor(network)
        protocol = InferenceProtocol.choose(processor, window, stride, tta)
        segmenter = Segmenter(PooledFeatures(network), processor, protocol, batch_size, precision=precision)
        selection = select_images(
            segmenter,
            LabelMap.from_config(network.config),
            sources,
            output,
            number,
            breadth=breadth,
            form=form,
            resume=resume,
            model=checkpoint,
        )
    if as_json:
        say(json.dumps(selection.to_dict()))
        return
    chosen, faults = selection.choice.images, selection.faults
    say(f"{len(chosen)} of {len(selection.choice.scores)} images chosen: {selection.page}")
    if selection.annotations is not None:
        say(f"for {to}: {selection.annotations}")
    if faults:
        say(f"{len(faults)} left out, which cannot be read: {listed(list(faults))}")
