"""`segtune predict`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from segtune.cli import options
from segtune.cli.common import check_before_torch, hide_bars_of_libraries, say
from segtune.errors import UsageError

if TYPE_CHECKING:
    from segtune.inference.outputs import Targets


def predict(
    checkpoint: options.CheckpointArgument,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE", help="Image files, folders of them, quoted globs, videos, http(s) addresses; - is stdin."
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", file_okay=False, help="Where the masks go.")],
    overlay: Annotated[bool, typer.Option("--overlay", help="Also save NAME_overlay.png, of a video .mp4.")] = False,
    window: options.WindowOption = None,
    stride: options.StrideOption = None,
    overlap: Annotated[int | None, typer.Option(min=0, help="Instead of --stride: pixels that windows share.")] = None,
    tta: options.TtaOption = False,
    confidence: Annotated[
        Literal["png", "tif"] | None, typer.Option(help="Also save NAME_confidence: 8-bit png or 32-bit tif.")
    ] = None,
    polygons: Annotated[
        Literal["geojson", "coco", "labelme"] | None, typer.Option(help="Also save the regions as polygons.")
    ] = None,
    simplify: Annotated[float, typer.Option(min=0, help="Let polygons' borders move by so many pixels.")] = 0.0,
    min_region: Annotated[int, typer.Option(min=0, help="Give smaller regions to a neighbour, in polygons.")] = 0,
    frames: Annotated[
        Literal["all", "first"] | None,
        typer.Option(help="Of files with several pages, frames or slices: a mask for each, or the first alone."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take so many images at most, the first ones.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    as_json: options.JsonOption = False,
    batch_size: options.BatchOption = 1,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = "auto",
    engine: options.EngineOption = "torch",
) -> None:
    """Save a mask of class ids for each image: a palette PNG in the labels' colours, at the image's own size.

    Of a georeferenced TIFF, the mask is a TIFF in the same place. Of a video, there is a folder of masks.
    """
    from segtune.imageio.incoming import as_files, is_incoming
    from segtune.inference import outputs

    check_before_torch(checkpoint=checkpoint if engine == "torch" else None)
    wanted = outputs.Wanted(overlay, confidence, polygons, simplify, min_region)
    found = outputs.find_images(images)[:limit]
    from segtune.imageio.raster import any_size
    from segtune.inference.open_network import open_network, precision_of
    from segtune.inference.predict_files import predict_files
    from segtune.inference.processor import load_processor
    from segtune.inference.protocol import InferenceProtocol
    from segtune.inference.segmenter import Segmenter
    from segtune.labels.label_map import LabelMap

    with any_size(), as_files(found) as files:
        paths, parts = outputs.with_frames(files, frames)
        fetched = {path for path, name in files.items() if is_incoming(name)}
        targets = outputs.plan_targets(paths, output, wanted, overwrite, fetched, parts)
        hide_bars_of_libraries()
        model = open_network(checkpoint, device, engine, precision)
        processor = load_processor(model)
        protocol = InferenceProtocol.choose(processor, window, _stride(window, stride, overlap), tta)
        computed = precision_of(model, precision)
        segmenter = Segmenter(model, processor, protocol, batch_size, precision=precision)
        masks = predict_files(segmenter, LabelMap.from_config(model.config), paths, targets, output, wanted)
    if as_json:
        result = {
            "output": str(output),
            "masks": masks,
            "precision": computed,
            "engine": engine,
            "images": _written([files[path] for path in paths], targets),
        }
        say(json.dumps(result | ({"polygons": str(output / outputs.COCO_FILE)} if polygons == "coco" else {})))
    else:
        by = "" if engine == "torch" else f" by {engine}"
        how = f", computed{by} in {computed}" if by or computed != "fp32" else ""
        say(f"{masks} mask{'s' if masks > 1 else ''} in {output}{how}")


def _written(names: Sequence[str], targets: Sequence[Targets]) -> list[dict[str, Any]]:
    """For each image, as it was named, the files that were written of it; of a video, its folder of masks."""
    return [
        {"image": name, **{key: str(path) for key, path in target._asdict().items() if isinstance(path, Path)}}
        for name, target in zip(names, targets, strict=True)
    ]


def _stride(window: int | None, stride: int | None, overlap: int | None) -> int | None:
    if overlap is None:
        return stride
    if stride is not None or not window:
        raise UsageError(f"--overlap {overlap} goes with --window, and in the place of --stride")
    return window - overlap
